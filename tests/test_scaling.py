"""Gradients that float16 cannot hold arrive; a scale that it cannot hold was never there."""

import itertools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from sklearn.datasets import load_digits

import adamx

BAD = [jnp.nan, jnp.inf, -jnp.inf]
LR = 0.01


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)


def avals(tree):
    return jax.tree.structure(tree), [jax.typeof(x) for x in jax.tree.leaves(tree)]


def params_of(dtype):
    return {"a": {"w": jnp.array([0.0, -0.0, 1.0, -2.5, 3e-5], dtype)}, "b": jnp.array([[1.0, -0.0]], dtype)}


def compiled(tx):
    """One step on gradients of the scaled loss."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def scales_after(tx, pattern):
    """The scale after each gradient of a pattern such as "++-": finite, finite, not finite."""
    params = {"w": jnp.zeros(2, jnp.float16)}
    state, update, seen = tx.init(params), jax.jit(tx.update), []
    for sign in pattern:
        _, state = update({"w": jnp.array([1.0, 1.0 if sign == "+" else jnp.inf], jnp.float16)}, state, params)
        seen.append(float(adamx.loss_scale(state)))
    assert update._cache_size() == 1
    return seen


# The rule


@pytest.mark.thin(default=2)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_an_overflow_halves_the_scale_and_the_step_was_never_there(bad, dtype):
    params = params_of(dtype)
    good = jax.tree.map(jnp.ones_like, params)
    tx = adamx.loss_scaling(adamx.adamw(1e-3, weight_decay=0.1), init_scale=8.0)
    step = compiled(tx)
    p1, s1 = step(params, tx.init(params), good)
    p2, s2 = step(p1, s1, good | {"b": good["b"].at[0, 1].set(bad)})
    assert bits(p2) == bits(p1)
    assert bits(s2.inner.inner) == bits(s1.inner.inner)
    assert (adamx.loss_scale(s1), adamx.loss_scale(s2)) == (8, 4)
    assert adamx.skip_report(s2, params) == adamx.SkipReport(1, 1, "b")
    # a gradient of half the loss scale goes on as if it had come then
    p3, s3 = step(p2, s2, jax.tree.map(lambda g: g / 2, good))
    q2, t2 = step(p1, s1, good)
    assert bits(p3) == bits(q2)
    assert bits(s3.inner.inner) == bits(t2.inner.inner)
    assert step._cache_size() == 1


def test_the_scale_grows_after_so_many_finite_gradients_in_a_row_and_a_bad_one_starts_the_count_anew():
    tx = adamx.loss_scaling(adamx.sgd(1.0), init_scale=16.0, growth_interval=3, factor=4.0)
    assert scales_after(tx, "+++" "++-" "+++" "+-+" "++-") == [
        16, 16, 64,
        64, 64, 16,
        16, 16, 64,
        64, 16, 16,
        16, 64, 16,
    ]  # fmt: skip


def test_the_scale_stays_between_its_bounds_and_may_be_below_one():
    tx = adamx.loss_scaling(
        adamx.sgd(1.0), init_scale=1.0, growth_interval=1, factor=4.0, min_scale=0.125, max_scale=8.0
    )
    assert scales_after(tx, "---++++") == [0.25, 0.125, 0.125, 0.5, 2, 8, 8]
    least, most = 2.0**-126, 2.0**126
    widest = adamx.loss_scaling(adamx.sgd(1.0), 2.0**125, 1, factor=most, min_scale=least, max_scale=most)
    assert scales_after(widest, "++--") == [most, most, 1.0, least]
    fixed = adamx.loss_scaling(adamx.sgd(1.0), 4.0, growth_interval=1, min_scale=4.0, max_scale=4.0)
    assert scales_after(fixed, "+-+") == [4, 4, 4]


def test_a_growth_interval_beyond_int32_never_ends():
    tx = adamx.loss_scaling(adamx.sgd(1.0), growth_interval=10**12)
    state = tx.init(jnp.zeros(1))
    state = state._replace(good=jnp.int32(2**31 - 3))
    assert adamx.loss_scale(tx.update(jnp.ones(1), state)[1]) == 2**15


def test_defaults_are_those_of_the_field():
    state = adamx.loss_scaling(adamx.sgd(1.0)).init(jnp.zeros(1))
    assert adamx.loss_scale(state) == 2**15
    state = state._replace(good=jnp.int32(1998))
    once = adamx.loss_scaling(adamx.sgd(1.0)).update(jnp.ones(1), state)[1]
    assert (adamx.loss_scale(once), once.good) == (2**15, 1999)
    twice = adamx.loss_scaling(adamx.sgd(1.0)).update(jnp.ones(1), once)[1]
    assert (adamx.loss_scale(twice), twice.good) == (2**16, 0)


# Numbers


@pytest.mark.parametrize("scale", [2.0**-14, 1.0, 2.0**15, 2.0**24])
def test_every_float16_gradient_arrives_exactly(scale):
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    tx = adamx.loss_scaling(optax.identity(), init_scale=scale, min_scale=2.0**-14)
    updates, _ = jax.jit(tx.update)(jnp.asarray(every), tx.init(jnp.asarray(every)))
    assert updates.dtype == jnp.float32
    exact = (every.astype(np.float64) / scale).astype(np.float32)
    assert bits(updates) == bits(exact)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64"),
     ("complex64", "complex64"), ("complex128", "complex128")],
)  # fmt: skip
def test_updates_are_what_the_method_makes_of_gradients_in_at_least_float32(dtype, wide):
    parts = jnp.array([1.5, -0.0, 0.0, -0.0, -0.0]), jnp.array([-0.0, -2.5, 1.0, 1.0, -0.0])
    join = lambda x, y: jax.lax.complex(x, y).astype(dtype) if "complex" in dtype else x.astype(dtype)
    g, scaled = join(*parts), join(*(2.0**10 * x for x in parts))
    tx = adamx.loss_scaling(optax.identity(), init_scale=2.0**10)
    updates, state = tx.update(scaled, tx.init(g))
    assert updates.dtype == wide
    assert bits(updates) == bits(g.astype(wide))
    assert adamx.loss_scale(state).dtype == jnp.float32


def test_an_update_narrower_or_wider_than_the_gradient_stays_as_the_method_made_it():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        cast = optax.stateless(lambda u, p, dtype=dtype: jax.tree.map(lambda x: x.astype(dtype), u))
        tx = adamx.loss_scaling(cast)
        g = jnp.ones(2, jnp.float16)
        updates, state = tx.update(g, tx.init(g))
        skipped, _ = tx.update(g * jnp.inf, state)
        assert updates.dtype == skipped.dtype == dtype


def network(dtype, sizes=(64, 32, 10)):
    rng = np.random.default_rng(0)
    return [{"kernel": jnp.asarray(rng.standard_normal((m, n)) / m**0.5, dtype), "bias": jnp.zeros(n, dtype)}
            for m, n in itertools.pairwise(sizes)]  # fmt: skip


def digits():
    images, labels = load_digits(return_X_y=True)
    return jnp.asarray(images / 16, jnp.float16), jnp.asarray(labels)  # exact


def cross_entropy(params, images, labels, dtype):
    """Of a sigmoid network that computes in one dtype up to its logits."""
    x = images.astype(dtype)
    for layer in params:
        logits = x @ layer["kernel"].astype(dtype) + layer["bias"].astype(dtype)
        x = jax.nn.sigmoid(logits)
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


def gradients_of_digits():
    images, labels = digits()
    return jax.jit(jax.grad(lambda p, scale: scale * cross_entropy(p, images, labels, jnp.float32)))


CLIPPED = adamx.chain(adamx.clip_by_global_norm(0.1), adamx.adamw(LR, weight_decay=0.1))
UNSCALED = {"init_scale": 1.0, "min_scale": 1.0, "max_scale": 1.0}


def test_a_float32_run_without_overflow_is_the_unscaled_run_bit_for_bit():
    gradient, scaled = gradients_of_digits(), adamx.loss_scaling(CLIPPED, growth_interval=4)
    unscaled = adamx.loss_scaling(CLIPPED, **UNSCALED)
    p = q = network(jnp.float32)
    state, scaled_state, step, scaled_step = unscaled.init(p), scaled.init(p), compiled(unscaled), compiled(scaled)
    for _ in range(20):
        p, state = step(p, state, gradient(p, 1.0))
        q, scaled_state = scaled_step(q, scaled_state, gradient(q, adamx.loss_scale(scaled_state)))
    assert bits(q) == bits(p)
    assert bits(scaled_state.inner) == bits(state.inner)
    assert (adamx.loss_scale(scaled_state), adamx.loss_scale(state)) == (2**20, 1)
    assert adamx.skip_report(scaled_state, p).skipped == 0


def test_op_by_op_it_is_the_bare_method_bit_for_bit():
    # compiled, the method may contract another multiplication with another addition in each of the two programs
    gradient, scaled = gradients_of_digits(), adamx.loss_scaling(CLIPPED, growth_interval=4)
    p = q = network(jnp.float32)
    state, scaled_state = CLIPPED.init(p), scaled.init(p)
    for _ in range(6):
        grads, scaled_grads = gradient(p, 1.0), gradient(q, adamx.loss_scale(scaled_state))
        with jax.disable_jit():
            updates, state = CLIPPED.update(grads, state, p)
            scaled_updates, scaled_state = scaled.update(scaled_grads, scaled_state, q)
        p, q = optax.apply_updates(p, updates), optax.apply_updates(q, scaled_updates)
    assert bits(q) == bits(p)
    assert bits(scaled_state.inner.inner) == bits(state)
    assert adamx.loss_scale(scaled_state) == 2**16


def trained(tx, params, images, labels, dtype, steps):
    """Losses, and for each step which of the first layer's gradients were zero."""

    def step(carry, _):
        params, state = carry
        scale = adamx.loss_scale(state)
        loss, grads = jax.value_and_grad(lambda p: scale * cross_entropy(p, images, labels, dtype))(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), (loss / scale, grads[0]["kernel"] == 0)

    return jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))((params, tx.init(params)))


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_a_deep_float16_network_learns_digits_with_scaling_and_hardly_without(stored):
    """Seven sigmoid layers: the mean of 1797 losses has gradients below 2^-24 in the first of them."""
    images, labels = digits()
    params = network(stored, (64, *[16] * 6, 10))
    plain = adamx.loss_scaling(adamx.adam(LR), **UNSCALED)
    dynamic = adamx.loss_scaling(adamx.adam(LR), 2.0**24, growth_interval=50)
    wide = optax.tree.cast(params, jnp.float32)
    _, (exact, zero) = trained(plain, wide, images, labels, jnp.float32, 120)
    _, (without, lost) = trained(plain, params, images, labels, jnp.float16, 120)
    (params, state), (with_it, kept) = trained(dynamic, params, images, labels, jnp.float16, 120)
    k = adamx.skip_report(state, params).skipped  # that many steps were never there
    blank = np.sum(np.ptp(np.asarray(images), axis=0) == 0)  # pixels that are always white: their gradients are 0
    assert zero[0].sum() == 16 * blank
    assert lost[0].sum() > 500  # of 1024
    assert kept[k].sum() == 16 * blank
    assert 1 <= k < 10
    assert 2**12 <= adamx.loss_scale(state) < 2**24
    assert abs(float(with_it[100 + k] - exact[100])) < 0.05
    assert float(without[100 + k] - exact[100]) > 0.5


# Trees and transformations


def test_odd_leaves_are_carried_along():
    params = {"w": jnp.ones(2, jnp.float16), "n": jnp.arange(2), "none": None, "z": jnp.ones(2, jnp.complex64)}
    zero = np.zeros(2, jax.dtypes.float0)
    tx = adamx.loss_scaling(adamx.adam(LR), init_scale=4.0)
    state = tx.init(params)
    grads = {"w": 4 * jnp.ones(2, jnp.float16), "n": zero, "none": None, "z": (4 + 8j) * jnp.ones(2)}
    updates, after = tx.update(grads, state, params)
    assert avals(after) == avals(state)
    assert updates["none"] is None
    np.testing.assert_array_equal(after.inner.inner.moments["mu"]["w"], np.float32(0.1) * np.ones(2, np.float32))
    moved = optax.apply_updates(params, updates)
    assert avals(moved) == avals(params)
    np.testing.assert_array_equal(moved["n"], params["n"])
    for bad in (complex(1, jnp.inf), complex(jnp.nan, 1)):
        _, state = tx.update(grads | {"z": bad * jnp.ones(2)}, after, params)
        assert adamx.loss_scale(state) == 2
        assert adamx.skip_report(state, params).leaf == "z"
    tx = adamx.loss_scaling(adamx.sgd(1.0), 4.0)
    updates, _ = tx.update({"s": 8.0}, tx.init({"s": 1.0}))
    assert updates["s"] == -2


def test_leaves_that_a_mask_hides_stay_hidden_and_names_stay_right():
    params = {"b": jnp.ones(1), "w": jnp.ones(1)}
    grads = {"b": jnp.array([jnp.inf]), "w": jnp.full(1, 8.0)}
    tx = optax.masked(adamx.loss_scaling(adamx.sgd(1.0), 4.0), {"b": False, "w": True})
    updates, state = tx.update(grads, tx.init(params), params)
    assert updates == {"b": jnp.inf, "w": -2}
    assert adamx.loss_scale(state) == 4
    _, state = tx.update(grads | {"w": jnp.full(1, jnp.nan)}, state, params)
    assert adamx.loss_scale(state) == 2
    assert adamx.skip_report(state, params).leaf == "w"


@pytest.mark.parametrize(
    ("p_dtype", "g_dtype"), [("float16", "float16"), ("float32", "float16"), ("bfloat16", "float32")]
)
def test_the_state_never_changes_its_type_and_a_step_compiles_once_with_its_arguments_donated(p_dtype, g_dtype):
    params, grads = params_of(p_dtype), jax.tree.map(jnp.ones_like, params_of(g_dtype))
    tx = adamx.loss_scaling(adamx.chain(adamx.clip_by_global_norm(1.0), adamx.amsgrad(LR)), growth_interval=1)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    state = tx.init(params)
    before = avals(state)
    assert not any(x.weak_type for x in before[1])
    for factor in (1.0, jnp.inf, 1.0):
        given = jax.tree.leaves((params, state))
        params, state = step(params, state, jax.tree.map(lambda g, factor=factor: factor * g, grads))
        assert avals(state) == before
        assert all(x.is_deleted() for x in given)
    assert step._cache_size() == 1
    assert adamx.loss_scale(state) == 2**16


def test_runs_under_vmap_scale_each_for_itself():
    tx = adamx.loss_scaling(adamx.adam(LR), init_scale=8.0, growth_interval=2)
    params, grads = jnp.ones((3, 2), jnp.float16), jnp.ones((3, 2), jnp.float16).at[1, 0].set(jnp.inf)

    @jax.jit
    @jax.vmap
    def step(params, state, grads):
        updates, state = tx.update(grads * adamx.loss_scale(state).astype(grads.dtype), state, params)
        return optax.apply_updates(params, updates), state

    swept = params, jax.vmap(tx.init)(params)
    for _ in range(3):
        swept = step(*swept, grads)
    np.testing.assert_array_equal(adamx.loss_scale(swept[1]), [16, 1, 16])
    for i in range(3):
        alone = params[i : i + 1], jax.vmap(tx.init)(params[i : i + 1])
        for _ in range(3):
            alone = step(*alone, grads[i : i + 1])
        assert bits(alone) == bits(jax.tree.map(lambda x, i=i: x[i : i + 1], swept))


def test_derivatives_through_a_skipped_step_are_finite():
    tx = adamx.loss_scaling(adamx.adam(0.1))

    def trained(p):
        state = tx.init(p)
        for bad in (0.0, jnp.nan, 0.0):
            updates, state = tx.update((p + bad) * adamx.loss_scale(state), state, p)
            p = p + updates
        return jnp.sum(p)

    chex.assert_tree_all_finite(jax.grad(trained)(jnp.ones(3)))


def test_it_scales_in_a_chain_and_around_a_foreign_one():
    params = {"w": jnp.ones(3)}
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LR))
    tx = optax.chain(adamx.loss_scaling(inner), optax.scale(2.0))
    g = {"w": jnp.array([3.0, 4.0, 5.0])}
    updates, state = tx.update(jax.tree.map(lambda g: g * 2**15, g), tx.init(params), params)
    expected, inner_state = inner.update(g, inner.init(params), params)
    chex.assert_trees_all_equal(updates, {"w": 2 * expected["w"]})
    chex.assert_trees_all_equal(state[0].inner.inner, inner_state)
    assert adamx.loss_scale(state) == 2**15


def test_several_gradients_to_a_step_are_unscaled_one_by_one():
    tx = adamx.loss_scaling(adamx.accumulate(adamx.sgd(1.0, momentum=0.5), 2), init_scale=8.0)
    assert tx.every == 2
    p = jnp.zeros(1, jnp.float16)
    state, got = tx.init(p), []
    for g in (1.0, jnp.inf, 3.0):  # the second does not count
        updates, state = tx.update(jnp.full(1, g, jnp.float16) * adamx.loss_scale(state).astype(jnp.float16), state, p)
        got.append(float(updates[0]))
    assert got == [0, 0, -2]
    with pytest.raises(ValueError, match="MultiSteps"):
        adamx.ema_of_params(tx)


def test_inside_and_around_multi_steps_the_mean_gradient_counts():
    p = jnp.zeros(1, jnp.float16)
    inside = optax.MultiSteps(adamx.loss_scaling(adamx.sgd(1.0)), 2).gradient_transformation()
    around = adamx.loss_scaling(optax.MultiSteps(adamx.sgd(1.0), 2).gradient_transformation())
    for tx in (inside, around):
        state, update = tx.init(p), jax.jit(tx.update)
        before = avals(state)
        for g, expected in ((2.0**-30, 0.0), (2.0**-29, -1.5 * 2.0**-30)):
            updates, state = update(jnp.asarray(adamx.loss_scale(state) * g, jnp.float16)[None], state, p)
            assert float(updates[0]) == expected
            assert avals(state) == before
        assert update._cache_size() == 1


# Frameworks


def half_net(seed=0):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Linear(3, 2, rngs=rngs, dtype=jnp.float16)
            self.outer = nnx.Linear(2, 1, rngs=rngs, dtype=jnp.float16)

        def __call__(self, x):
            return self.outer(jnp.tanh(self.inner(x))).astype(jnp.float32)

    return Net(nnx.Rngs(seed))


def test_inside_an_nnx_optimizer_the_scale_is_read_lowered_and_reported():
    model = half_net()
    tx = optax.chain(adamx.loss_scaling(adamx.adamw(LR, mask="*kernel"), 2.0**24))
    optimizer, traces = nnx.Optimizer(model, tx, wrt=nnx.Param), []

    @nnx.jit(donate_argnums=(0, 1))
    def step(model, optimizer, x):
        traces.append(1)
        scale = adamx.loss_scale(optimizer.opt_state)
        grads = nnx.grad(lambda model: scale * jnp.mean(jnp.square(model(x))))(model)
        optimizer.update(model, grads)
        return scale

    pure = lambda: jax.tree.map(jnp.array, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    before, x = pure(), jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
    assert step(model, optimizer, x) == 2**24
    assert bits(pure()) == bits(before)
    skipped = 1
    while adamx.skip_report(optimizer.opt_state, nnx.state(model, nnx.Param)).streak:
        assert adamx.loss_scale(optimizer.opt_state) == 2.0 ** (24 - skipped)
        assert step(model, optimizer, x) == 2.0 ** (24 - skipped)
        skipped += 1
    assert 2**8 < adamx.loss_scale(optimizer.opt_state) < 2**24
    assert bits(pure()) != bits(before)
    chex.assert_tree_all_finite(pure())
    assert len(traces) == 1


def test_an_equinox_model_is_trained_in_float16_and_its_state_survives_flax_bytes():
    model = eqx.nn.MLP(3, 1, 4, 1, use_final_bias=False, key=jax.random.key(0))
    model = jax.tree.map(lambda x: x.astype(jnp.float16) if eqx.is_inexact_array(x) else x, model)
    arrays = eqx.filter(model, eqx.is_inexact_array)
    tx = adamx.loss_scaling(adamx.adamw(LR))
    state = tx.init(arrays)

    @eqx.filter_jit
    def step(model, state, x):
        loss = lambda m: adamx.loss_scale(state) * jnp.mean(jnp.square(jax.vmap(m)(x).astype(jnp.float32)))
        updates, after = tx.update(eqx.filter_grad(loss)(model), state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), after

    for size in (1.0, jnp.inf):
        model, state = step(model, state, jnp.full((5, 3), size, jnp.float16))
    assert adamx.skip_report(state, arrays).skipped == 1
    assert adamx.loss_scale(state) == 2**14
    plain = adamx.loss_scaling(adamx.adamw(LR))
    params = {"w": jnp.ones(2, jnp.float16)}
    _, kept = plain.update({"w": jnp.full(2, jnp.inf, jnp.float16)}, plain.init(params), params)
    again = serialization.from_bytes(plain.init(params), serialization.to_bytes(kept))
    chex.assert_trees_all_equal_structs(again, kept)
    chex.assert_trees_all_equal(again, kept)


# Sentences


def test_it_gives_up_when_told_to():
    params = {"w": jnp.ones(1)}
    tx = adamx.loss_scaling(adamx.sgd(1.0), give_up_after=2)
    state = tx.init(params)
    for _ in range(2):
        adamx.skip_report(state, params)
        _, state = tx.update({"w": jnp.full(1, jnp.nan)}, state)
    with pytest.raises(adamx.NonFiniteGradients, match="2 steps in a row had non-finite gradients"):
        adamx.skip_report(state, params)


def said(error, call):
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    return str(caught.value)


@pytest.mark.parametrize(
    ("args", "error", "sentence"),
    [
        ({"init_scale": 1000.0}, ValueError, "init_scale must be a power of two from 2^-126 to 2^126, which rounds"),
        ({"init_scale": 2.0**127}, ValueError, "init_scale must be a power of two from 2^-126 to 2^126"),
        ({"min_scale": 2.0**-130}, ValueError, "min_scale must be a power of two"),
        ({"min_scale": 0.0}, ValueError, "min_scale must be finite and above 0, but is 0.0."),
        ({"max_scale": float("inf")}, ValueError, "max_scale must be finite and above 0, but is inf."),
        ({"init_scale": jnp.float32(3)}, ValueError, "init_scale must be a power of two"),
        ({"init_scale": lambda step: 2.0}, ValueError, "init_scale must be a power of two"),
        ({"init_scale": "2"}, TypeError, "init_scale must be a number"),
        ({"factor": 1.5}, ValueError, "factor must be a power of two"),
        ({"factor": 1.0}, ValueError, "factor must be above 1"),
        ({"factor": 0.5}, ValueError, "factor must be above 1"),
        ({"min_scale": 2.0**16}, ValueError, "init_scale 32768.0, min_scale 65536.0, max_scale 16777216.0."),
        ({"max_scale": 2.0**14}, ValueError, "init_scale 32768.0, min_scale 1.0, max_scale 16384.0."),
        ({"growth_interval": 0}, ValueError, "growth_interval must be a whole number above 0, but is 0."),
        ({"growth_interval": 2.5}, ValueError, "growth_interval must be a whole number above 0, but is 2.5."),
        ({"give_up_after": 0}, ValueError, "give_up_after must be a whole number above 0, but is 0."),
    ],
    ids=lambda x: None if isinstance(x, dict) else str(x),  # a function's address is another in each worker
)
def test_bad_numbers_are_refused_at_construction(args, error, sentence):
    assert sentence in said(error, lambda: adamx.loss_scaling(adamx.sgd(1.0), **args))


def test_numpy_numbers_and_whole_ones_are_numbers():
    tx = adamx.loss_scaling(adamx.sgd(1.0), np.float32(8), np.int64(1), 2, np.int32(1), 16)
    assert scales_after(tx, "++-") == [16, 16, 8]


def test_what_is_no_transformation_is_refused():
    assert "loss_scaling takes gradient transformations" in said(TypeError, lambda: adamx.loss_scaling(adamx.adam))


def test_what_would_hide_overflows_from_it_is_refused():
    scaled = adamx.loss_scaling(adamx.adam(LR))
    for wrap in (adamx.skip_nonfinite, adamx.loss_scaling):
        assert "hide from it the gradients that lower its scale" in said(ValueError, lambda wrap=wrap: wrap(scaled))
        for hidden in (adamx.chain(adamx.clip(1.0), scaled), adamx.ema_of_params(scaled), optax.masked(scaled, True)):
            tx = wrap(hidden)
            assert "leave the outer" in said(ValueError, lambda tx=tx: tx.init({"w": jnp.ones(1)}))


def test_a_guard_inside_keeps_what_it_is_for():
    params = {"w": jnp.ones(1)}
    tx = adamx.loss_scaling(adamx.chain(adamx.clip(1.0), adamx.skip_nonfinite(adamx.adam(LR))))
    _, state = tx.update({"w": jnp.full(1, jnp.inf)}, tx.init(params), params)
    assert adamx.skip_report(state, params) == adamx.SkipReport(1, 1, "w")
    assert adamx.loss_scale(state) == 2**14


def test_a_method_whose_state_is_float16_is_refused_with_a_remedy_that_helps():
    params = {"w": jnp.ones(2, jnp.float16)}
    tx = adamx.loss_scaling(optax.adam(LR))
    text = said(TypeError, lambda: jax.jit(tx.update)(params, tx.init(params), params))
    assert "turn this method's float16 state into float32" in text
    state = tx.init(optax.tree.cast(params, jnp.float32))
    _, after = tx.update(params, state, params)
    assert avals(after) == avals(state)


def test_a_state_without_one_scale_is_refused():
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    assert "this state holds 0 loss scales, not one" in said(
        ValueError, lambda: adamx.loss_scale(adamx.adam(LR).init(params))
    )
    scaled = adamx.loss_scaling(adamx.adam(LR))
    state = optax.partition({"x": scaled, "y": scaled}, {"a": "x", "b": "y"}).init(params)
    assert "this state holds 2 loss scales, not one: wrap the whole method in loss_scaling." in said(
        ValueError, lambda: adamx.loss_scale(state)
    )
