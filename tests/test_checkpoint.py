"""What Orbax saves, Orbax restores: every state to the bit, and a stopped run continues as if it had not stopped."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import LR, each_kind
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

import adamx

pytestmark = pytest.mark.thin(slow=7)


def tree(seed):
    normal = np.random.default_rng(seed).standard_normal
    return {"w": jnp.asarray(normal((8, 2)), jnp.float32), "half": jnp.asarray(normal(3), jnp.bfloat16)}


def run(tx, params, state, seeds):
    for seed in seeds:
        updates, state = tx.update(tree(seed), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def target(tx):
    """What to restore: parameters and state, their types, and where they shall lie."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(lambda p: (p, tx.init(p)), tree(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract)


def assert_same(restored, saved):
    chex.assert_trees_all_equal_structs(restored, saved)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, saved)
    bits = lambda tree: jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)
    assert bits(restored) == bits(saved)


@pytest.mark.thin(default=2, slow=7)
@each_kind
def test_a_stopped_run_continues_as_if_it_had_not_stopped(tmp_path, case):
    tx = case.make()
    with jax.disable_jit():
        saved = run(tx, tree(0), tx.init(tree(0)), [1])
    ocp.save(tmp_path / "here", saved)
    restored = ocp.load(tmp_path / "here", target(tx))
    assert_same(restored, saved)
    with jax.disable_jit():
        chex.assert_trees_all_equal(run(tx, *restored, [2]), run(tx, *saved, [2]))


WRAPPED = {
    "chain": lambda: optax.chain(optax.clip(1.0), adamx.amsgrad(LR), optax.trace(0.9)),
    "adamx.chain": lambda: adamx.chain(adamx.clip(1.0), optax.ema(0.9), adamx.rmsprop(LR, momentum=0.9)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(adamx.adamw)(adamx.schedules.warmup_linear(LR, 2, 9)),
    "skip_nonfinite": lambda: adamx.skip_nonfinite(optax.inject_hyperparams(adamx.nadam)(LR), give_up_after=3),
    "store_state": lambda: adamx.store_state(adamx.adam(LR), mu="bfloat16", nu="float16", min_size=0),
    "masked": lambda: optax.masked(adamx.adamax(LR), {"w": True, "half": False}),
    "MultiSteps": lambda: optax.MultiSteps(adamx.adagrad(LR), 2).gradient_transformation(),
}


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_a_stopped_jitted_run_of_a_wrapped_method_continues_too(tmp_path, make):
    tx, params, traces = make(), tree(0), []

    @jax.jit
    def step(params, state, grads):
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = (params, tx.init(params))
    for seed in (1, 2):
        run = step(*run, tree(seed))
    ocp.save(tmp_path / "here", run)
    continued = ocp.load(tmp_path / "here", target(tx))
    assert_same(continued, run)
    for seed in (3, 4, 5):
        run, continued = step(*run, tree(seed)), step(*continued, tree(seed))
    assert_same(continued, run)
    assert len(traces) == 1


def test_a_state_is_restored_onto_other_shards_where_its_parameters_lie(tmp_path):
    tx = optax.chain(optax.clip(1.0), adamx.skip_nonfinite(adamx.amsgrad(LR)))
    params, state = run(tx, tree(0), tx.init(tree(0)), [1])
    saved = params, tx.update(tree(2) | {"w": jnp.full((8, 2), jnp.nan)}, state, params)[1]
    ocp.save(tmp_path / "here", saved)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    specs = {"w": P("d"), "half": P()}
    at = lambda spec: NamedSharding(mesh, spec)
    of_state = optax.tree.map_params(
        tx, lambda _, spec: at(spec), jax.eval_shape(tx.init, tree(0)), specs, transform_non_params=lambda _: at(P())
    )
    of_both = (jax.tree.map(at, specs), of_state)
    shaped = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    restored = ocp.load(tmp_path / "here", jax.tree.map(shaped, saved, of_both))
    assert_same(restored, saved)
    assert jax.tree.map(lambda x: x.sharding, restored) == of_both
    assert adamx.skip_report(*reversed(restored)) == adamx.SkipReport(1, 1, "w")


def test_a_checkpointer_keeps_the_latest_of_several_steps(tmp_path):
    tx = adamx.adam(LR)
    trained = tree(0), tx.init(tree(0))
    with ocp.training.Checkpointer(tmp_path) as checkpoints:
        for seed in (1, 2):
            trained = run(tx, *trained, [seed])
            checkpoints.save(seed, trained)
    with ocp.training.Checkpointer(tmp_path) as checkpoints:
        assert_same(checkpoints.load(abstract_state=target(tx)), trained)
