"""A training step is written once and leaves this machine for every platform that JAX knows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import LR, each_method_kind
from jax import export

import adamx

pytestmark = pytest.mark.thin(slow=7)

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def tree():
    normal = np.random.default_rng(0).standard_normal
    return {"kernel": jnp.asarray(normal((3, 2)), jnp.float32), "bias": jnp.asarray(normal(2), jnp.bfloat16)}


def step_of(tx):
    @jax.jit
    def step(params, state, x):
        loss = lambda p: jnp.mean(jnp.square(x @ p["kernel"] + p["bias"].astype(jnp.float32)))
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def inputs(tx):
    return tree(), tx.init(tree()), jnp.asarray(np.random.default_rng(1).standard_normal((4, 3)), jnp.float32)


def exported(tx, *args):
    return export.export(step_of(tx), platforms=PLATFORMS)(*args)


@each_method_kind
def test_a_training_step_lowers_for_every_platform_from_this_machine(case):
    tx = case.make()
    abstract = jax.eval_shape(lambda: inputs(tx))
    whole = exported(tx, *abstract)
    assert whole.platforms == PLATFORMS
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.tree.unflatten(whole.out_tree, whole.out_avals), abstract[:2]
    )  # what comes out goes in again


WRAPPED = {
    "guarded": lambda: adamx.skip_nonfinite(adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(LR))),
    "scheduled": lambda: adamx.adam(adamx.schedules.warmup_cosine(LR, 2, 10)),
    "injected": lambda: optax.inject_hyperparams(adamx.adamw)(LR, mask="kernel"),
    "stored": lambda: adamx.store_state(adamx.adam(LR), mu=jnp.bfloat16, min_size=0),
    "chained": lambda: optax.chain(optax.clip(1.0), adamx.amsgrad(LR), optax.trace(0.9)),
    "adaptively-clipped": lambda: adamx.chain(adamx.adaptive_grad_clip(0.1), adamx.rmsprop(LR)),
}


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_step_lowers_for_every_platform_from_this_machine(make):
    tx = make()
    assert exported(tx, *jax.eval_shape(lambda: inputs(tx))).platforms == PLATFORMS


@pytest.fixture(scope="session")  # once in a process
def state_is_registered():
    export.register_namedtuple_serialization(adamx.State, serialized_name="adamx.State")


@pytest.mark.usefixtures("state_is_registered")
def test_an_exported_step_is_stored_loaded_and_called():
    tx = adamx.amsgrad(LR)
    args = inputs(tx)
    loaded = export.deserialize(exported(tx, *args).serialize())
    by_export = loaded.call(*loaded.call(*args), args[2])
    step = step_of(tx)
    by_hand = step(*step(*args), args[2])
    chex.assert_trees_all_equal_structs(by_export, by_hand)
    chex.assert_trees_all_equal_shapes_and_dtypes(by_export, by_hand)
    chex.assert_trees_all_equal(by_export, by_hand)
