"""Every method trains the models of Flax (nnx and linen) and of Equinox as plain optax would."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import LAYOUTS, LR, each_layout, each_method_kind
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx

pytestmark = pytest.mark.thin(slow=7)

# A compiled step may contract a multiplication and an addition into one, which differs by a rounding a step.
ULPS = 8


def by_hand(tx, params, all_grads):
    """Parameters and state by plain optax, op by op, from recorded gradients."""
    with jax.disable_jit():
        state = tx.init(params)
        for grads in all_grads:
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    return params, state


def batches(n=3):
    normal = np.random.default_rng(0).standard_normal
    return [jnp.asarray(normal((5, 3)), jnp.float32) for _ in range(n)]


# Flax nnx


class Net(nnx.Module):
    """Two layers, and a variable that is not trained."""

    def __init__(self, rngs, dtype=jnp.float32):
        self.inner = nnx.Linear(3, 2, rngs=rngs, param_dtype=dtype)
        self.outer = nnx.Linear(2, 1, rngs=rngs, param_dtype=dtype)
        self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] += 1
        return self.outer(jnp.tanh(self.inner(x)))


def net(seed=0, dtype=jnp.float32):
    return Net(nnx.Rngs(seed), dtype)


def square(model, x):
    return jnp.mean(jnp.square(model(x).astype(jnp.float32)))


def values(tree):
    """The plain arrays, copied, since nnx updates in place."""
    return jax.tree.map(jnp.array, nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else nnx.as_pure(tree))


def trained(model):
    return values(nnx.state(model, nnx.Param))


def avals(tree):
    return jax.tree.structure(tree), [jax.typeof(x) for x in jax.tree.leaves(tree)]


def nnx_step():
    """A jitted step that knows how often it was traced, and tells its gradients."""
    traces = []

    @nnx.jit
    def step(model, optimizer, x):
        traces.append(1)
        grads = nnx.grad(square)(model, x)
        optimizer.update(model, grads)
        return grads

    return step, traces


@each_layout
def test_an_nnx_optimizer_trains_as_optax_does_and_compiles_once(case):
    model, tx = net(), case.make()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    start, kinds, recorded = trained(model), [avals(nnx.as_pure(optimizer.opt_state))], []
    step, traces = nnx_step()
    for x in batches():
        recorded.append(values(step(model, optimizer, x)))
        kinds.append(avals(nnx.as_pure(optimizer.opt_state)))
    params, state = by_hand(tx, start, recorded)
    assert len(traces) == 1
    assert model.calls[...] == 3
    assert kinds == [kinds[0]] * 4
    chex.assert_trees_all_close_ulp(trained(model), params, maxulp=ULPS)
    chex.assert_trees_all_close(jax.tree.leaves(optimizer.opt_state), jax.tree.leaves(state), rtol=1e-5, atol=1e-7)


@each_method_kind
def test_an_nnx_optimizer_starts_with_plain_optax_state(case):
    model = net()
    optimizer = nnx.Optimizer(model, case.make(), wrt=nnx.Param)
    expected = jax.eval_shape(optimizer.tx.init, nnx.as_pure(nnx.state(model, nnx.Param)))
    chex.assert_trees_all_equal_shapes_and_dtypes(nnx.as_pure(optimizer.opt_state), expected)


@pytest.mark.parametrize(
    "mask",
    [
        "*kernel",
        ["inner/kernel", "outer/*l"],
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        lambda params: jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in str(path), params),
        lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params),
    ],
    ids=["pattern", "patterns", "by-rank", "by-path", "by-last-key"],
)
@pytest.mark.parametrize("factory", [adamx.adamw, adamx.nadamw])
def test_a_mask_decays_kernels_only_at_init_and_at_update_alike(factory, mask):
    model = net()
    before = trained(model)
    optimizer = nnx.Optimizer(model, factory(0.5, weight_decay=0.5, mask=mask), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    decayed = jax.tree_util.tree_map_with_path(lambda path, p: 0.75 * p if path[-1].key == "kernel" else p, before)
    chex.assert_trees_all_close_ulp(trained(model), decayed, maxulp=1)


def test_an_injected_learning_rate_is_changed_inside_an_nnx_optimizer():
    model = net()
    optimizer = nnx.Optimizer(model, optax.inject_hyperparams(adamx.adamw)(LR, mask="*kernel"), wrt=nnx.Param)
    step, traces = nnx_step()
    step(model, optimizer, batches()[0])
    moved = trained(model)
    optimizer.opt_state.hyperparams["learning_rate"][...] = jnp.float32(0.0)
    step(model, optimizer, batches()[1])
    chex.assert_trees_all_equal(trained(model), moved)
    assert optimizer.opt_state.hyperparams["learning_rate"][...] == 0
    assert len(traces) == 1


def test_a_guard_inside_an_nnx_optimizer_skips_and_reports():
    model = net()
    tx = optax.chain(optax.clip_by_global_norm(1.0), adamx.skip_nonfinite(adamx.adamw(LR, mask="*kernel")))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    report = lambda: adamx.skip_report(optimizer.opt_state, nnx.state(model, nnx.Param))
    step, traces = nnx_step()
    step(model, optimizer, batches()[0])
    assert report() == adamx.SkipReport(0, 0, None)
    good, state = trained(model), values(optimizer.opt_state[1].inner)
    step(model, optimizer, jnp.nan * batches()[1])
    assert report() == adamx.SkipReport(1, 1, "inner/bias")
    chex.assert_trees_all_equal(trained(model), good)
    chex.assert_trees_all_equal(values(optimizer.opt_state[1].inner), state)
    assert len(traces) == 1


@each_layout
def test_bfloat16_nnx_parameters_have_float32_moments_through_all_steps(case):
    model = net(dtype=jnp.bfloat16)
    optimizer = nnx.Optimizer(model, case.make(), wrt=nnx.Param)
    step, traces = nnx_step()
    before = avals(nnx.as_pure(optimizer.opt_state))
    for x in batches(2):
        step(model, optimizer, x)
        assert avals(nnx.as_pure(optimizer.opt_state)) == before
    assert len(traces) == 1
    assert {leaf.dtype.name for leaf in jax.tree.leaves(optimizer.opt_state.moments)} <= {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained(model))} == {"bfloat16"}
    chex.assert_tree_all_finite(trained(model))


def test_a_vmapped_nnx_ensemble_is_its_members_alone():
    tx, x = adamx.amsgrad(LR), batches()[0]

    @nnx.vmap
    def ensemble(seed):
        model = nnx.Linear(3, 1, rngs=nnx.Rngs(seed))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    @nnx.vmap(in_axes=(0, 0, None))
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(square)(model, x))

    keys = jax.random.split(jax.random.key(0), 2)
    models, optimizers = ensemble(keys)
    step(models, optimizers, x)
    for i, key in enumerate(keys):
        model = nnx.Linear(3, 1, rngs=nnx.Rngs(key))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        optimizer.update(model, nnx.grad(square)(model, x))
        of = lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i], values(tree))
        chex.assert_trees_all_close(of(nnx.state(models, nnx.Param)), trained(model), rtol=1e-6)
        chex.assert_trees_all_close(of(optimizers.opt_state), values(optimizer.opt_state), rtol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_nnx_sharding_metadata_reaches_the_moments_and_stays(kind):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        split = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "d"))
        model = nnx.Linear(3, 8, kernel_init=split, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, adamx.amsgrad(LR), wrt=nnx.Param)
        step, traces = nnx_step()
        for x in batches(2):
            step(model, optimizer, x)
            for moment in optimizer.opt_state.moments.values():
                assert moment["kernel"][...].sharding == NamedSharding(mesh, P(None, "d"))
    assert len(traces) == 1


# Flax linen


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.relu(linen.Dense(4)(x)))


APPLY = Dense().apply


def train_state(tx):
    params = Dense().init(jax.random.key(0), batches()[0])["params"]
    return TrainState.create(apply_fn=APPLY, params=params, tx=tx)


@jax.jit
def linen_step(state, x):
    loss = lambda params: jnp.mean(jnp.square(state.apply_fn({"params": params}, x)))
    grads = jax.grad(loss)(state.params)
    return state.apply_gradients(grads=grads), grads


@pytest.mark.thin(default=3, slow=7)
@each_layout
def test_a_linen_train_state_saved_as_bytes_continues_as_if_it_had_not_stopped(case):
    tx = case.make()
    first, *rest = batches()
    fresh = train_state(tx)
    state, grads = linen_step(fresh, first)
    recorded = [grads]
    continued = serialization.from_bytes(fresh, serialization.to_bytes(state))
    chex.assert_trees_all_equal_structs(continued, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(continued, state)
    for x in rest:
        (state, grads), (continued, _) = linen_step(state, x), linen_step(continued, x)
        recorded.append(grads)
    assert state.step == 3
    chex.assert_trees_all_equal((continued.params, continued.opt_state), (state.params, state.opt_state))
    params, inner = by_hand(tx, fresh.params, recorded)
    chex.assert_trees_all_close_ulp(state.params, params, maxulp=ULPS)
    chex.assert_trees_all_close(state.opt_state, inner, rtol=1e-5, atol=1e-7)


def test_linen_sharding_metadata_reaches_the_moments():
    split = linen.with_partitioning(linen.initializers.lecun_normal(), (None, "d"))
    params = linen.Dense(8, kernel_init=split).init(jax.random.key(0), batches()[0])["params"]
    tx = adamx.adamw(LR, mask="kernel")
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    chex.assert_trees_all_equal_structs(optax.apply_updates(params, updates), params)
    for moment in linen.get_partition_spec(state).moments.values():
        assert moment == {"kernel": P(None, "d"), "bias": P()}


@each_method_kind
def test_a_state_survives_flax_bytes(case):
    params = {"w": jnp.arange(3.0), "half": jnp.ones(2, jnp.bfloat16)}
    tx = case.make()
    _, state = by_hand(tx, params, [params])
    again = serialization.from_bytes(tx.init(params), serialization.to_bytes(state))
    chex.assert_trees_all_equal_structs(again, state)
    chex.assert_trees_all_equal(again, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(again, state)


def test_a_guarded_injected_chain_survives_flax_bytes():
    params = {"w": jnp.arange(3.0)}
    tx = optax.chain(optax.clip(1.0), adamx.skip_nonfinite(optax.inject_hyperparams(adamx.amsgrad)(LR)))
    _, state = by_hand(tx, params, [params])
    again = serialization.from_bytes(tx.init(params), serialization.to_bytes(state))
    chex.assert_trees_all_equal_structs(again, state)
    chex.assert_trees_all_equal(again, state)


# Equinox


def mlp():
    """Arrays, functions and, where there is no bias, None."""
    return eqx.nn.MLP(3, 1, 4, 1, use_final_bias=False, key=jax.random.key(0))


def loss_of(model, x):
    return jnp.mean(jnp.square(jax.vmap(model)(x)))


@each_layout
def test_an_equinox_model_trains_as_optax_does_with_all_of_it_given_as_parameters(case):
    tx, model = case.make(), mlp()
    arrays = eqx.filter(model, eqx.is_inexact_array)
    state, traces, recorded = tx.init(arrays), [], []

    @eqx.filter_jit
    def step(model, state, x):
        traces.append(1)
        grads = eqx.filter_grad(loss_of)(model, x)
        updates, state = tx.update(grads, state, params=model)
        return eqx.apply_updates(model, updates), state, grads

    for x in batches():
        model, state, grads = step(model, state, x)
        recorded.append(grads)
    assert len(traces) == 1
    assert None in jax.tree.leaves(arrays, is_leaf=lambda x: x is None)
    params, expected = by_hand(tx, arrays, recorded)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected)
    chex.assert_trees_all_close_ulp(eqx.filter(model, eqx.is_inexact_array), params, maxulp=ULPS)


def test_an_equinox_mask_by_name_decays_weights_only():
    model = mlp()
    arrays = eqx.filter(model, eqx.is_inexact_array)
    tx = adamx.adamw(0.5, weight_decay=0.5, mask="layers/*/weight")
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, arrays), tx.init(arrays), params=model)
    after = eqx.apply_updates(model, updates)
    chex.assert_trees_all_equal(after.layers[0].weight, 0.75 * model.layers[0].weight)
    chex.assert_trees_all_equal(after.layers[0].bias, model.layers[0].bias)


def test_an_equinox_guard_names_the_layer():
    model = mlp()
    arrays = eqx.filter(model, eqx.is_inexact_array)
    tx = adamx.skip_nonfinite(adamx.adam(LR))
    bad = eqx.tree_at(lambda m: m.layers[1].weight, jax.tree.map(jnp.zeros_like, arrays), replace_fn=lambda w: w / 0)
    updates, state = tx.update(bad, tx.init(arrays), params=model)
    chex.assert_trees_all_equal(eqx.filter(eqx.apply_updates(model, updates), eqx.is_inexact_array), arrays)
    assert adamx.skip_report(state, arrays) == adamx.SkipReport(1, 1, "layers/1/weight")


@pytest.mark.parametrize("case", [c for c in LAYOUTS if c.moments], ids=lambda c: c.name)
def test_an_unfiltered_equinox_model_is_refused_with_the_remedy(case):
    with pytest.raises(TypeError, match=r"leaf 'activation' is .*cannot be trained: pass only the parameters, .*eqx"):
        case.make().init(mlp())


def test_an_ensemble_under_filter_vmap_is_its_members_alone():
    tx, keys = adamx.adamw(LR), jax.random.split(jax.random.key(0), 2)

    def one(key, x):
        model = eqx.nn.Linear(3, 1, key=key)
        grads = eqx.filter_grad(loss_of)(model, x)
        updates, state = tx.update(grads, tx.init(eqx.filter(model, eqx.is_inexact_array)), model)
        return eqx.apply_updates(model, updates), state

    x = batches()[0]
    models, states = eqx.filter_vmap(one, in_axes=(0, None))(keys, x)
    for i, key in enumerate(keys):
        alone = one(key, x)
        member = jax.tree.map(lambda leaf, i=i: leaf[i], (models, states))
        chex.assert_trees_all_close(eqx.filter(member, eqx.is_array), eqx.filter(alone, eqx.is_array), rtol=1e-5)
