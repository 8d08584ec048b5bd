"""Every method lives inside every wrapper of optax and of JAX, and comes out of it unchanged.

Where a test runs `LAYOUTS` instead of the whole table, what it tests depends on the state's layout and on whether the
parameters are read, not on the rule: one method stands for each such pair.
"""

import functools
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import ALL, LINKS, LR, each_kind, each_layout, each_linear_kind, each_method_kind, each_shaped_kind

import adamx

pytestmark = pytest.mark.thin(default=2, slow=7)


@functools.cache
def _made(name):
    return next(case for case in ALL if case.name == name).make()


def made(case):
    """The transformation, made once: under the run-time checks of annotations a factory takes a tenth of a second."""
    return _made(case.name)


# A compiled program may contract a multiplication and an addition into one, which differs by a rounding a step.
ULPS = 4


def tree(seed, dtype=jnp.float32, leaves=("kernel", "bias")):
    rng = np.random.default_rng(seed)
    drawn = {"kernel": rng.standard_normal((3, 2)), "bias": rng.standard_normal(2)}
    return {name: jnp.asarray(drawn[name], dtype) for name in leaves}


def gradients(n, *args, **kwargs):
    return [tree(seed, *args, **kwargs) for seed in range(1, n + 1)]


ONE = {"leaves": ("bias",)}  # one leaf, where another would only cost time


@pytest.fixture
def op_by_op():
    """Nothing is compiled as a whole: the same arithmetic gives the same bits, and a test takes milliseconds."""
    with jax.disable_jit():
        yield


plainly = pytest.mark.usefixtures("op_by_op")


def run(tx, grads, params, state=None):
    """All updates and the last state, one call at a time, at constant parameters."""
    state = tx.init(params) if state is None else state
    updates = []
    for g in grads:
        u, state = tx.update(g, state, params)
        updates.append(u)
    return updates, state


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


# Wrappers of optax


@plainly
@each_kind
def test_in_a_chain_foreign_links_before_and_after_act_as_they_do_by_hand(case):
    before, tx, after = optax.ema(0.5), made(case), optax.trace(0.5)
    params, grads = tree(0, **ONE), gradients(2, **ONE)
    fed, _ = run(before, grads, params)
    put_out, state = run(tx, fed, params)
    by_hand, _ = run(after, put_out, params)
    for chain in (optax.chain, adamx.chain):
        updates, states = run(chain(before, tx, after), grads, params)
        chex.assert_trees_all_equal(updates, by_hand)
        chex.assert_trees_all_equal(states[1], state)


@plainly
@each_layout
def test_foreign_links_between_ours_keep_their_places_and_their_states(case):
    links = [adamx.clip(0.5), made(case), optax.ema(0.5), adamx.clip_by_leaf_norm(0.01), optax.trace(0.5)]
    links.append(adamx.scale_by_lr(-2.0))
    params = tree(0)
    whole, state = run(adamx.chain(*links), gradients(2), params)
    by_hand = gradients(2)
    for link in links:
        by_hand, _ = run(link, by_hand, params)
    chex.assert_trees_all_equal(whole, by_hand)
    kinds = [type(s).__name__ for s in state]
    assert kinds == ["State", "EmaState", "State", "TraceState", "State"]
    assert set(state[0].moments) == set(case.moments)  # the clip and the method are one


@plainly
@each_layout
def test_a_chain_hands_extra_arguments_to_the_foreign_links_in_it(case):
    def scaled_by_value(updates, state, params=None, *, value, **extra):
        del params, extra
        return jax.tree.map(lambda u: value * u, updates), state

    foreign = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scaled_by_value)
    params, grads = tree(0), tree(1)
    tx = made(case)
    whole = adamx.chain(tx, foreign)
    updates, _ = whole.update(grads, whole.init(params), params, value=8.0, loss=None)
    plain, _ = tx.update(grads, tx.init(params), params)
    chex.assert_trees_all_equal(updates, jax.tree.map(lambda u: 8 * u, plain))


@plainly
@each_kind
def test_unknown_extra_arguments_change_nothing(case):
    params, grads, tx = tree(0), tree(1), made(case)
    state = tx.init(params)
    plain = tx.update(grads, state, params)
    chex.assert_trees_all_equal(tx.update(grads, state, params=params, value=1.0, value_fn=len, step=None), plain)


@plainly
@each_method_kind
def test_a_named_chain_keeps_a_method_under_its_name(case):
    params, grads, tx = tree(0), gradients(2), made(case)
    updates, state = run(optax.named_chain(("halve", optax.scale(0.5)), ("method", tx)), grads, params)
    plain, expected = run(tx, jax.tree.map(lambda g: 0.5 * g, grads), params)
    chex.assert_trees_all_equal(updates, plain)
    chex.assert_trees_all_equal(state["method"], expected)


@plainly
@each_method_kind
@pytest.mark.parametrize(
    "mask",
    [{"kernel": True, "bias": False}, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)],
    ids=["tree", "function"],
)
def test_a_masked_method_moves_what_is_chosen_and_passes_the_rest_through(mask, case):
    params, grads, tx = tree(0), gradients(2), made(case)
    updates, state = run(optax.masked(tx, mask), grads, params)
    only = lambda t: {"kernel": t["kernel"]}
    alone, expected = run(tx, [only(g) for g in grads], only(params))
    chex.assert_trees_all_equal([only(u) for u in updates], alone)
    chex.assert_trees_all_equal([u["bias"] for u in updates], [g["bias"] for g in grads])
    chex.assert_trees_all_equal(jax.tree.leaves(state), jax.tree.leaves(expected))


@plainly
def test_a_decay_mask_by_name_works_below_a_mask():
    params, grads = tree(0), jax.tree.map(jnp.zeros_like, tree(1))
    tx = optax.masked(adamx.adamw(1.0, weight_decay=0.5, mask="*kernel"), {"kernel": True, "bias": False})
    (updates,), _ = run(tx, [grads], params)
    chex.assert_trees_all_equal(updates, {"kernel": -0.5 * params["kernel"], "bias": grads["bias"]})


@plainly
@each_layout
@pytest.mark.parametrize("other", [optax.adam(0.1), adamx.adamax(0.1)], ids=["optax.adam", "adamax"])
@pytest.mark.parametrize(
    "labels",
    [{"kernel": "method", "bias": "other"}, lambda params: {k: "method" if k == "kernel" else "other" for k in params}],
    ids=["tree", "function"],
)
def test_in_a_partition_each_leaf_follows_its_own_method(labels, other, case):
    params, grads, tx = tree(0), gradients(2), made(case)
    updates, _ = run(optax.partition({"method": tx, "other": other}, labels), grads, params)
    for name, alone in {"kernel": tx, "bias": other}.items():
        pick = lambda t, name=name: {name: t[name]}
        chex.assert_trees_all_equal([pick(u) for u in updates], run(alone, [pick(g) for g in grads], pick(params))[0])


def injected_numbers(case):
    """What optax traces of the factory's arguments, as float32."""
    defaults = {k: p.default for k, p in inspect.signature(case.factory).parameters.items()}
    given = defaults | case.args | {"learning_rate": LR}
    return {k: np.float32(v) for k, v in given.items() if isinstance(v, float)}


@plainly
@each_method_kind
def test_injected_numbers_lose_nothing_on_bfloat16_parameters(case):
    params, grads = tree(0, jnp.bfloat16, **ONE), gradients(2, jnp.bfloat16, **ONE)
    tx = optax.inject_hyperparams(case.factory)(LR, **case.args)
    at_init = tx.init(params)
    updates, state = run(tx, grads, params, at_init)
    numbers = injected_numbers(case)
    assert numbers["learning_rate"] == np.float32(LR)
    for hyperparams in (at_init.hyperparams, state.hyperparams):
        hyperparams = {k: v for k, v in hyperparams.items() if k != "clip_value_fn"}  # a schedule, to the wrapper
        assert {k: v.dtype for k, v in hyperparams.items()} == dict.fromkeys(numbers, np.dtype("float32"))
        chex.assert_trees_all_equal(hyperparams, numbers)
    chex.assert_trees_all_equal(updates, run(made(case), grads, params)[0])


@plainly
@each_method_kind
def test_injected_numbers_give_the_updates_of_the_plain_method(case):
    # A traced decay is float32: 1 - b2 at b2 = 0.999 is 1.3e-5 of itself away from that of the Python number, in the
    # average and in its bias correction alike.
    params, grads = tree(0, **ONE), gradients(2, **ONE)
    updates, _ = run(optax.inject_hyperparams(case.factory)(LR, **case.args), grads, params)
    chex.assert_trees_all_close(updates, run(made(case), grads, params)[0], rtol=2e-5, atol=1e-6 * LR)


@plainly
@each_layout
def test_an_injected_schedule_gives_the_updates_of_the_plain_method(case):
    schedule = optax.linear_schedule(LR, 0.0, 4)
    params, grads = tree(0), gradients(3)
    updates, state = run(optax.inject_hyperparams(case.factory)(schedule, **case.args), grads, params)
    plain, _ = run(case.make(schedule), grads, params)
    chex.assert_trees_all_close(updates, plain, rtol=2e-5, atol=1e-6 * LR)
    chex.assert_trees_all_equal(state.hyperparams["learning_rate"], schedule(jnp.int32(2)))


@plainly
@pytest.mark.parametrize(
    "schedule",
    [
        optax.constant_schedule(LR),
        lambda step: LR / (step + 1),
        optax.cosine_decay_schedule(LR, 10),
        adamx.schedules.warmup_cosine(LR, 1, 10),
        adamx.schedules.warmup_linear(LR, 1, 10),
        adamx.schedules.inverse_sqrt(LR, 3),
        adamx.schedules.step_decay(LR, 3),
    ],
    ids=["constant", "lambda", "cosine", "warmup_cosine", "warmup_linear", "inverse_sqrt", "step_decay"],
)
def test_an_injected_schedule_loses_nothing_on_bfloat16_parameters(schedule):
    params, grads = tree(0, jnp.bfloat16, **ONE), gradients(2, jnp.bfloat16, **ONE)
    updates, state = run(optax.inject_hyperparams(adamx.adam)(schedule), grads, params)
    expected = jnp.asarray(schedule(jnp.int32(1)), jnp.float32)
    chex.assert_trees_all_equal(state.hyperparams["learning_rate"], expected)
    chex.assert_trees_all_equal(updates, run(adamx.adam(schedule), grads, params)[0])


@each_layout
def test_another_injected_learning_rate_takes_effect_without_compiling_again(case):
    params, grads = tree(0, **ONE), gradients(2, **ONE)
    tx = optax.inject_hyperparams(case.factory)(LR, **case.args)
    update = jax.jit(tx.update)
    _, state = update(grads[0], tx.init(params), params)
    state.hyperparams["learning_rate"] = jnp.float32(0.5)
    updates, after = update(grads[1], state, params)
    assert update._cache_size() == 1
    assert after.hyperparams["learning_rate"] == np.float32(0.5)
    with jax.disable_jit():
        made_so = optax.inject_hyperparams(case.factory)(0.5, **case.args)
        expected, _ = made_so.update(grads[1], made_so.init(params)._replace(inner_state=state.inner_state), params)
    chex.assert_trees_all_close_ulp(updates, expected, maxulp=ULPS)


@plainly
@pytest.mark.parametrize(
    ("mask", "static"),
    [
        ("*kernel", ()),
        ({"kernel": True, "bias": False}, ()),
        (lambda params: {name: name == "kernel" for name in params}, "mask"),  # optax takes functions for schedules
    ],
    ids=["pattern", "tree", "function"],
)
def test_a_mask_passes_through_injection(mask, static):
    params, grads = tree(0), jax.tree.map(jnp.zeros_like, tree(1))
    tx = optax.inject_hyperparams(adamx.adamw, static_args=static)(1.0, weight_decay=0.5, mask=mask)
    (updates,), _ = run(tx, [grads], params)
    chex.assert_trees_all_equal(updates, {"kernel": -0.5 * params["kernel"], "bias": grads["bias"]})


@plainly
@each_method_kind
def test_multi_steps_is_one_step_on_the_mean_gradient(case):
    # Gradients in sixteenths: their mean is exact, so that nothing but the method can differ.
    params = tree(0, **ONE)
    grads = [jax.tree.map(lambda g: jnp.round(16 * g) / 16, g) for g in gradients(4, **ONE)]
    accumulated = optax.MultiSteps(made(case), every_k_schedule=2)
    tx = made(case)
    state, expected_state = accumulated.init(params), tx.init(params)
    for micro in (grads[:2], grads[2:]):
        silent, state = accumulated.update(micro[0], state, params)
        chex.assert_trees_all_equal(silent, jax.tree.map(jnp.zeros_like, params))
        updates, state = accumulated.update(micro[1], state, params)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, *micro)
        expected, expected_state = tx.update(mean, expected_state, params)
        chex.assert_trees_all_equal(updates, expected)
    chex.assert_trees_all_equal(state.inner_opt_state, expected_state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state.inner_opt_state, expected_state)


@plainly
@each_layout
def test_apply_if_finite_passes_good_steps_and_drops_bad_ones(case):
    params, grads, tx = tree(0), gradients(2), made(case)
    guarded = optax.apply_if_finite(tx, max_consecutive_errors=3)
    bad = grads[0] | {"bias": jnp.array([1.0, jnp.nan])}
    (first, dropped, second), state = run(guarded, [grads[0], bad, grads[1]], params)
    plain, expected = run(tx, grads, params)
    chex.assert_trees_all_equal([first, second], plain)
    chex.assert_trees_all_equal(state.inner_state, expected)
    chex.assert_trees_all_equal(dropped, jax.tree.map(jnp.zeros_like, params))


OTHERS = {
    "flatten": lambda: optax.flatten(adamx.adamw(LR)),
    "selective_transform": lambda: optax.selective_transform(
        adamx.amsgrad(LR), freeze_mask={"kernel": False, "bias": True}
    ),
    "conditionally_transform": lambda: optax.conditionally_transform(adamx.nadam(LR), lambda step, **extra: step < 4),
    "conditionally_mask": lambda: optax.conditionally_mask(adamx.adamax(LR), lambda step, **extra: step < 1),
    "schedule_free": lambda: optax.contrib.schedule_free(adamx.adamw(LR, b1=0.0), LR, b1=0.9),
    "sam": lambda: optax.contrib.sam(adamx.adam(LR), adamx.sgd(LR), sync_period=2),
    "mechanize": lambda: optax.contrib.mechanize(adamx.adam(1.0)),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_the_rarer_wrappers_of_optax_train_and_compile_once(make):
    params, tx, traces = tree(0), make(), []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(params, state, params)  # the gradient of half the square
        return optax.apply_updates(params, updates), state

    before, state = params, tx.init(params)
    for _ in range(4):
        params, state = step(params, state)
    assert len(traces) == 1
    assert optax.tree.norm(params) < optax.tree.norm(before)


@each_shaped_kind
def test_map_params_visits_each_moment_and_nothing_else(case):
    params, tx = tree(0), made(case)
    state = jax.eval_shape(tx.init, params)
    visited = optax.tree.map_params(
        tx, lambda leaf, p: (leaf.shape, p.shape), state, params, transform_non_params=lambda leaf: "other"
    )
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.shape) if leaf.shape else "other", state)
    assert visited == expected  # counts are scalars, and no parameter is one


@plainly
@each_method_kind
def test_a_state_is_read_and_written_by_its_names(case):
    params = tree(0)
    _, whole = run(optax.chain(optax.clip(1.0), made(case)), gradients(1), params)
    empty, state = whole
    assert optax.tree.get(whole, "count") == 1
    for name in case.moments:
        chex.assert_trees_all_equal(optax.tree.get(whole, name), state.moments[name])
        chex.assert_trees_all_equal_structs(optax.tree.get(whole, name), params)
        changed = optax.tree.set(whole, **{name: params, "count": jnp.int32(7)})
        expected = state._replace(count=jnp.int32(7), moments=state.moments | {name: params})
        chex.assert_trees_all_equal(changed, (empty, expected))


@plainly
def test_an_injected_learning_rate_is_read_and_written_by_its_name():
    tx = optax.chain(optax.clip(1.0), optax.inject_hyperparams(adamx.adam)(LR))
    state = tx.init(tree(0))
    assert optax.tree.get(state, "learning_rate") == np.float32(LR)
    state = optax.tree.set(state, learning_rate=jnp.float32(0.5))
    assert state[1].hyperparams["learning_rate"] == np.float32(0.5)


# Transformations of JAX


@each_kind
def test_a_scan_may_carry_a_state_and_a_cond_may_skip_its_update(case):
    # Carries and branches must have the same types to the weak ones; the abstract evaluation checks that.
    tx = made(case)

    def step(carry, g):
        updates, state = jax.lax.cond(jnp.all(g["bias"] > 0), tx.update, lambda g, s, p: (g, s), g, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), updates

    params = jax.eval_shape(lambda: tree(0, jnp.bfloat16))
    grads = jax.eval_shape(lambda: stacked(gradients(3)))
    carry, updates = jax.eval_shape(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g), params, grads)
    chex.assert_trees_all_equal_shapes_and_dtypes(carry, (params, jax.eval_shape(tx.init, params)))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)


@each_layout
def test_a_scan_is_the_python_loop(case):
    params, grads, tx = tree(0, **ONE), gradients(3, **ONE), made(case)

    def step(carry, g):
        p, state = carry
        updates, state = tx.update(g, state, p)
        return (optax.apply_updates(p, updates), state), updates

    scanned, all_updates = jax.lax.scan(step, (params, tx.init(params)), stacked(grads))
    carry, looped = (params, tx.init(params)), []
    for g in grads:
        carry, updates = jax.jit(step)(carry, g)
        looped.append(updates)
    chex.assert_trees_all_equal_shapes_and_dtypes(scanned, carry)
    chex.assert_trees_all_close_ulp((scanned, all_updates), (carry, stacked(looped)), maxulp=ULPS)


@each_layout
def test_a_cond_takes_the_branch_it_is_told(case):
    params, grads, tx = tree(0, **ONE), tree(1, **ONE), made(case)
    state = tx.init(params)
    maybe = jax.jit(
        lambda go: jax.lax.cond(go, lambda: tx.update(grads, state, params), lambda: (grads, state)),
    )
    chex.assert_trees_all_close_ulp(maybe(True), tx.update(grads, state, params), maxulp=ULPS)
    chex.assert_trees_all_equal(maybe(False), (grads, state))


@plainly
@each_layout
def test_a_sweep_of_learning_rates_is_the_loop_over_float32_scalars(case):
    params, grads = tree(0, **ONE), gradients(2, **ONE)
    rates = jnp.array([1e-4, LR, 0.3], jnp.float32)
    outcome = lambda lr: run(case.make(lr), grads, params)
    chex.assert_trees_all_equal(jax.vmap(outcome)(rates), stacked([outcome(lr) for lr in rates]))


@plainly
def test_a_sweep_may_go_over_every_number_of_adam():
    params, grads = tree(0, **ONE), gradients(2, **ONE)
    numbers = {
        "b1": jnp.array([0.0, 0.9]),
        "b2": jnp.array([0.9, 0.9999]),
        "eps": jnp.array([0.0, 1e-3]),
        "eps_root": jnp.array([0.0, 1e-6]),
        "weight_decay": jnp.array([0.0, 0.1]),
    }
    outcome = lambda numbers: run(adamx.adamw(LR, **numbers), grads, params)
    looped = [outcome({k: v[i] for k, v in numbers.items()}) for i in range(2)]
    chex.assert_trees_all_equal(jax.vmap(outcome)(numbers), stacked(looped))


@plainly
@each_kind
def test_a_vmapped_ensemble_is_the_loop_over_its_members(case):
    members, grads, tx = [tree(seed, **ONE) for seed in (0, 10, 20)], gradients(3, **ONE), made(case)
    one = lambda p, g: tx.update(g, tx.init(p), p)
    looped = [one(p, g) for p, g in zip(members, grads, strict=True)]
    chex.assert_trees_all_equal(jax.vmap(one)(stacked(members), stacked(grads)), stacked(looped))


@plainly
@each_linear_kind
def test_an_update_is_linear_in_the_learning_rate_and_its_derivative_says_so(case):
    params, grads = tree(0, **ONE), gradients(2, **ONE)
    last = lambda lr: run(case.make(lr), grads, params)[0][-1]
    derivative = jax.jacfwd(last)(jnp.float32(LR))
    expected = jax.tree.map(lambda u: u / LR, last(jnp.float32(LR)))
    chex.assert_trees_all_close(derivative, expected, rtol=1e-5, atol=1e-6)


def through_two_steps(tx, steep=1.0):
    """A loss after two steps, of the parameters before them; the loss of the steps is flat where `steep` is 0."""

    def loss(params):
        return sum(jnp.sum(steep * p**3) for p in jax.tree.leaves(params))

    def outer(params):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    return outer


@pytest.mark.parametrize("case", LINKS, ids=lambda c: c.name)  # the methods' are in test_contracts.py
def test_a_derivative_through_two_steps_is_finite(case):
    derivative = jax.jit(jax.grad(lambda params, steep: through_two_steps(made(case), steep)(params)))
    for steep in (1.0, 0.0):
        chex.assert_tree_all_finite(derivative(tree(0, **ONE), steep))


@pytest.mark.usefixtures("x64")
@each_layout
def test_a_derivative_through_two_steps_is_the_finite_difference(case):
    outer, params, direction = through_two_steps(made(case)), tree(0, float, **ONE), tree(1, float, **ONE)
    along = jax.jit(lambda h: outer(jax.tree.map(lambda p, d: p + h * d, params, direction)))
    slope = jax.jit(jax.grad(along))(0.0)
    np.testing.assert_allclose(slope, (along(1e-6) - along(-1e-6)) / 2e-6, rtol=1e-6)


@each_layout
def test_a_checkpointed_step_has_the_same_derivative(case):
    outer, params = through_two_steps(made(case)), tree(0, **ONE)
    derivative = jax.jit(jax.grad(jax.checkpoint(outer)))(params)
    chex.assert_trees_all_close_ulp(derivative, jax.jit(jax.grad(outer))(params), maxulp=ULPS)


# Pickles


@plainly
@each_kind
def test_a_state_survives_pickling(case):
    _, state = run(made(case), gradients(1), tree(0))
    again = pickle.loads(pickle.dumps(state))
    chex.assert_trees_all_equal_structs(again, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(again, state)
    chex.assert_trees_all_equal(again, state)


ROOT = Path(adamx.__file__).parents[1]
CONTINUE = """
import pickle, sys
state, grads, params = pickle.load(sys.stdin.buffer)
import adamx
updates, state = adamx.amsgrad(0.01).update(grads, state, params)
sys.stdout.buffer.write(pickle.dumps((type(state).__name__, updates, state)))
"""


def test_a_pickled_state_continues_in_a_fresh_process():
    params, grads, tx = tree(0), gradients(2), adamx.amsgrad(LR)
    _, state = run(tx, grads[:1], params)
    sent = pickle.dumps((state, grads[1], params))
    done = subprocess.run([sys.executable, "-c", CONTINUE], input=sent, capture_output=True, check=True, cwd=ROOT)
    name, updates, after = pickle.loads(done.stdout)
    assert name == "State"
    chex.assert_trees_all_equal((updates, after), tx.update(grads[1], state, params))
