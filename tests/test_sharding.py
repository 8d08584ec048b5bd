"""State lies where its parameters lie, and a step on shards talks to nobody unless its mathematics must.

Eight fake CPU devices; `make_mesh` makes explicit axes unless it is told otherwise, so every test says which.
"""

import re
from collections import Counter
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import ALL, LR, each_elementwise_kind, each_layout, each_reducing, each_shaped_kind
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx

pytestmark = pytest.mark.thin(slow=7)

SPECS = {"rows": P("d", None), "columns": P(None, "d"), "vector": P("d"), "whole": P(None)}
SHAPES = {"rows": (16, 3), "columns": (2, 8), "vector": (8,), "whole": (3,)}


@cache
def _made(name):
    return next(case for case in ALL if case.name == name).make()


def made(case):
    """The transformation, made once: under the run-time checks of annotations a factory takes a tenth of a second."""
    return _made(case.name)


def assert_same(case, got, want):
    """Bit for bit; but XLA contracts a multiply-add in one program and not in another, and a square doubles that."""
    if case.contracts:
        chex.assert_trees_all_close(got, want, rtol=2.0**-21, atol=1e-10)
    else:
        chex.assert_trees_all_equal(got, want)


def mesh(kind):
    return jax.make_mesh((8,), ("d",), axis_types=(kind,))


def tree(seed):
    normal = np.random.default_rng(seed).standard_normal
    return {name: jnp.asarray(normal(shape), jnp.float32) for name, shape in SHAPES.items()}


def placed(kind, specs=SPECS):
    return {name: NamedSharding(mesh(kind), spec) for name, spec in specs.items()}


def on_devices(seed, kind):
    return jax.device_put(tree(seed), placed(kind))


def shardings(tx, params, of_params, of_the_rest):
    """Where the state belongs: each moment with its parameter, the rest wherever it is told."""
    state = jax.eval_shape(tx.init, params)
    return optax.tree.map_params(tx, lambda _, s: s, state, of_params, transform_non_params=lambda _: of_the_rest)


def step_of(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@cache
def unsharded(name):
    """Parameters and state after three jitted steps on one device."""
    tx, params = _made(name), tree(0)
    step, state = jax.jit(step_of(tx)), tx.init(params)
    for seed in (1, 2, 3):
        params, state = step(params, state, tree(seed))
    return jax.device_get((params, state))


COLLECTIVE = re.compile(
    r"\b(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\("
)


def collectives(compiled):
    return Counter(COLLECTIVE.findall(compiled.as_text()))


def compiled_step(tx):
    """A donated step whose outputs are pinned to where its inputs lie."""
    at = placed(AxisType.Auto)
    of_state = shardings(tx, tree(0), at, NamedSharding(mesh(AxisType.Auto), P()))
    abstract = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    params = jax.tree.map(abstract, jax.eval_shape(lambda: tree(0)), at)
    state = jax.tree.map(abstract, jax.eval_shape(tx.init, params), of_state)
    step = jax.jit(step_of(tx), out_shardings=(at, of_state), donate_argnums=(0, 1))
    return step.lower(params, state, params).compile(), of_state


# An automatic mesh


@each_shaped_kind
def test_eager_init_puts_each_moment_where_its_parameter_lies(case):
    params, tx = on_devices(0, AxisType.Auto), made(case)
    alike = lambda leaf, p: leaf.sharding == p.sharding
    assert all(
        jax.tree.leaves(optax.tree.map_params(tx, alike, tx.init(params), params, transform_non_params=lambda _: True))
    )


@each_elementwise_kind
def test_a_donated_step_keeps_its_shards_and_needs_no_collectives(case):
    tx = made(case)
    step, of_state = compiled_step(tx)
    assert not collectives(step)
    params = on_devices(0, AxisType.Auto)
    state = jax.device_put(tx.init(params), of_state)
    given = jax.tree.leaves((params, state))
    for seed in (1, 2):
        params, state = step(params, state, on_devices(seed, AxisType.Auto))  # refuses any other sharding or type
    assert jax.tree.map(lambda x: x.sharding, (params, state)) == (placed(AxisType.Auto), of_state)
    assert all(x.is_deleted() for x in given)


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(LR)), {"all-reduce": 1}),
        (optax.chain(optax.clip_by_global_norm(1.0), adamx.adamw(LR)), {"all-reduce": 1}),
        (adamx.chain(adamx.adam(LR), adamx.clip_by_global_norm(1.0)), {"all-reduce": 1}),
        (adamx.skip_nonfinite(adamx.adam(LR)), {"all-reduce": 1}),
        (adamx.chain(adamx.clip(1.0), adamx.adam(LR)), {}),
    ],
    ids=["clip_by_global_norm", "optax.clip_by_global_norm", "clip_by_global_norm-last", "skip_nonfinite", "clip"],
)
def test_what_reads_all_leaves_costs_one_all_reduce(tx, expected):
    assert collectives(compiled_step(tx)[0]) == expected


@pytest.mark.thin(default=2, slow=7)
@each_layout
def test_a_sharded_run_is_the_unsharded_run(case):
    tx, at = made(case), placed(AxisType.Auto)
    of_state = shardings(tx, tree(0), at, NamedSharding(mesh(AxisType.Auto), P()))
    step = jax.jit(step_of(tx), out_shardings=(at, of_state), donate_argnums=(0, 1))
    params = on_devices(0, AxisType.Auto)
    state = jax.jit(tx.init, out_shardings=of_state)(params)
    for seed in (1, 2, 3):
        params, state = step(params, state, on_devices(seed, AxisType.Auto))
    assert step._cache_size() == 1
    assert_same(case, jax.device_get((params, state)), unsharded(case.name))


@pytest.mark.thin(default=2, slow=7)
@each_reducing
def test_a_method_that_reduces_runs_on_shards_to_rounding(case):
    tx, params, expected = made(case), on_devices(0, AxisType.Auto), tree(0)
    state, expected_state = tx.init(params), tx.init(expected)
    step = jax.jit(step_of(tx))
    for seed in (1, 2):
        params, state = step(params, state, on_devices(seed, AxisType.Auto))
        expected, expected_state = step(expected, expected_state, tree(seed))
    chex.assert_trees_all_close(jax.device_get(params), jax.device_get(expected), rtol=1e-4, atol=1e-5)


def test_a_clipped_sharded_run_is_the_unsharded_run_to_rounding():
    tx = adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(LR))
    step, of_state = compiled_step(tx)
    params, expected = on_devices(0, AxisType.Auto), tree(0)
    state, expected_state = jax.device_put(tx.init(params), of_state), tx.init(expected)
    params, state = step(params, state, on_devices(1, AxisType.Auto))
    expected, expected_state = step_of(tx)(expected, expected_state, tree(1))
    chex.assert_trees_all_close(jax.device_get(params), jax.device_get(expected), rtol=1e-6)
    chex.assert_trees_all_close(jax.device_get(state), jax.device_get(expected_state), rtol=1e-5)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.clip(1.0), adamx.amsgrad(LR), optax.trace(0.9)),
        optax.inject_hyperparams(adamx.adamw)(LR, weight_decay=optax.constant_schedule(0.1)),
        adamx.skip_nonfinite(adamx.chain(adamx.clip(1.0), adamx.rmsprop(LR, momentum=0.9), optax.ema(0.9))),
        optax.masked(adamx.nadam(LR), dict.fromkeys(SHAPES, True)),
    ],
    ids=["chain", "inject_hyperparams", "skip_nonfinite", "masked"],
)
def test_shardings_are_derived_through_wrappers(tx):
    params, at, rest = on_devices(0, AxisType.Auto), placed(AxisType.Auto), NamedSharding(mesh(AxisType.Auto), P())
    of_state = shardings(tx, params, at, rest)
    state = jax.jit(tx.init, out_shardings=of_state)(params)
    eager = tx.init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, eager)
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = getattr(path[-1], "key", None)
        assert leaf.sharding == (at[name] if name in SHAPES else rest)


# An explicit mesh


@pytest.fixture
def explicit():
    with jax.set_mesh(mesh(AxisType.Explicit)) as inside:
        yield inside


def types(tree):
    """Shapes, dtypes, weak types and shardings: what an explicit mesh makes part of a type."""
    return jax.tree.map(lambda x: (jax.typeof(x).str_short(), x.weak_type, jax.typeof(x).sharding.spec), tree)


@pytest.mark.usefixtures("explicit")
@each_shaped_kind
def test_explicit_types_are_those_of_the_parameters_at_init_and_through_a_scan(case):
    tx = made(case)

    def trained(params, grads):
        state = tx.init(params)
        assert types(tx.init(params)) == types(state)

        def step(carry, g):
            updates, after = tx.update(g, carry[1], carry[0])
            assert types(updates) == types(g)
            return (optax.apply_updates(carry[0], updates), after), None

        carry, _ = jax.lax.scan(step, (params, state), jax.tree.map(lambda g: jnp.stack([g, g]), grads))
        assert types(carry) == types((params, state))
        return state

    params = on_devices(0, AxisType.Explicit)
    specs = lambda leaf, p: leaf.sharding.spec == p.sharding.spec
    for state in (jax.eval_shape(trained, params, params), tx.init(params)):
        same = optax.tree.map_params(tx, specs, state, params, transform_non_params=lambda _: True)
        assert all(jax.tree.leaves(same))


@pytest.mark.usefixtures("explicit")
@each_layout
def test_a_run_on_an_explicit_mesh_is_the_unsharded_run(case):
    tx = made(case)
    params = on_devices(0, AxisType.Explicit)
    state = jax.jit(tx.init)(params)
    before = types((params, state))
    step = jax.jit(step_of(tx), donate_argnums=(0, 1))
    for seed in (1, 2, 3):
        params, state = step(params, state, on_devices(seed, AxisType.Explicit))
        assert types((params, state)) == before
    assert step._cache_size() == 1
    assert_same(case, jax.device_get((params, state)), unsharded(case.name))


# Inside shard_map


def scanned(tx):
    def two_steps(params, grads):
        step = lambda carry, g: (step_of(tx)(*carry, g), None)
        return jax.lax.scan(step, (params, tx.init(params)), grads)[0]

    return two_steps


def two_gradients():
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), tree(1), tree(2))


@cache
def unmapped(name):
    return jax.device_get(jax.jit(scanned(_made(name)))(tree(0), two_gradients()))


@pytest.mark.thin(default=3, slow=7)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@each_layout
def test_inside_shard_map_each_device_runs_its_shard(kind, case):
    tx = made(case)
    of_grads = {name: P(None, *spec) for name, spec in SPECS.items()}
    out_specs = (SPECS, shardings(tx, tree(0), SPECS, P()))
    mapped = jax.shard_map(scanned(tx), mesh=mesh(kind), in_specs=(SPECS, of_grads), out_specs=out_specs)
    with jax.set_mesh(mesh(kind)):
        params, grads = jax.device_put((tree(0), two_gradients()), (placed(kind), placed(kind, of_grads)))
        step = jax.jit(mapped).lower(params, grads).compile()
    assert not collectives(step)
    assert_same(case, jax.device_get(step(params, grads)), unmapped(case.name))


@pytest.mark.thin(default=4, slow=7)
@pytest.mark.parametrize("kind", ["8bit", "watched", "8bit watched", "8bit skipping", "factored 8bit skipping"])
@pytest.mark.parametrize(("devices", "spec"), [(1, P("d", None)), (8, P()), (8, P("d", None))], ids=str)
def test_an_explicit_mesh_need_not_be_set_nor_have_several_devices(kind, devices, spec):
    """What is computed in tiles, and what is written to rings, keeps the types of arrays on such a mesh."""
    tx = adamx.adam(LR)
    nu = {"nu": adamx.projections.factored()} if "factored" in kind else {}
    tx = adamx.store_state(tx, "8bit", tile=4096, **nu) if "8bit" in kind else tx
    tx = adamx.skip_nonfinite(tx) if "skipping" in kind else tx
    tx = adamx.watch(tx, every=1, max_bytes=1 << 16) if "watched" in kind else tx
    on = jax.make_mesh((devices,), ("d",), devices=jax.devices()[:devices], axis_types=(AxisType.Explicit,))
    there = jax.device_put(jnp.ones((16, 1024)), NamedSharding(on, spec))
    update, here = jax.jit(tx.update), jnp.ones((16, 1024))
    expected, state = update(here, tx.init(here), here)
    got, after = update(there, tx.init(there), there)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
