"""The laws that every method, link and wrapper keeps, whatever the parameters are made of."""

import inspect
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import ALL, METHODS, each, each_kind, each_merged, each_method, each_method_kind

import adamx

pytestmark = pytest.mark.thin(slow=7)

DTYPES = ["float64", "float32", "bfloat16", "float16", "complex64"]
SHAPES = {"w": (4, 3), "b": (3,), "s": ()}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def filled(dtype, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    made = {k: scale * rng.standard_normal(s) + (1j * rng.standard_normal(s) if dtype == "complex64" else 0)
            for k, s in SHAPES.items()}  # fmt: skip
    return {k: jnp.asarray(v, dtype) for k, v in made.items()}


def avals(tree):
    """Shapes, dtypes and weak types; jax.typeof also shows shardings."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), tree)


def pairs():
    """Parameter and gradient dtypes that can meet: complex with complex, real with real."""
    for p, g in itertools.product(DTYPES, DTYPES):
        if (p == "complex64") == (g == "complex64"):
            yield p, g


@pytest.mark.thin(default=3, slow=7)
@pytest.mark.usefixtures("x64")
@each
def test_state_avals_never_change_and_updates_have_the_gradients_dtype(case):
    for p_dtype, g_dtype in pairs():
        if p_dtype == "complex64" and not case.complex_update:
            continue
        tx, params, grads = case.make(), filled(p_dtype), filled(g_dtype, 1)
        abstract = jax.eval_shape(tx.init, params)
        before = avals(abstract)
        assert not any(x.weak_type for x in jax.tree.leaves(abstract))
        updates, after = jax.eval_shape(tx.update, grads, abstract, params)
        assert avals(after) == before, f"{p_dtype} parameters, {g_dtype} gradients"
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, jax.eval_shape(lambda grads=grads: grads))
        assert not any(x.weak_type for x in jax.tree.leaves(updates))
        if p_dtype == g_dtype:
            assert avals(tx.init(params)) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
@each_method
def test_moments_are_at_least_float32_and_named_as_the_table_says(case, dtype):
    params = filled(dtype)
    state = case.make().init(params)
    assert isinstance(state, adamx.State)
    assert tuple(sorted(state.moments)) == tuple(sorted(case.moments))
    assert tuple(sorted(state.scalars)) == tuple(sorted(case.scalars))
    for name, moment in state.moments.items():
        if name not in case.smaller:
            chex.assert_trees_all_equal_shapes(moment, params)
        chex.assert_trees_all_equal_structs(moment, params)
        assert all(x.ndim == p.ndim for x, p in zip(*map(jax.tree.leaves, (moment, params)), strict=True))
        assert {x.dtype.name for x in jax.tree.leaves(moment)} <= {"float32", "complex64"}
    assert optax.tree.get(state, "count").dtype == jnp.int32
    if dtype == "float32":
        size = sum(x.size for x in jax.tree.leaves(params))
        whole = {name: moment for name, moment in state.moments.items() if name not in case.smaller}
        assert sum(x.nbytes for x in jax.tree.leaves(whole)) == 4 * size * len(whole)


@pytest.mark.thin(default=3, slow=7)
@pytest.mark.parametrize(("p_dtype", "g_dtype"), [("bfloat16", "float32"), slow("float16", "float16")])
@each
def test_a_step_compiles_once(case, p_dtype, g_dtype):
    tx, params, grads = case.make(), filled(p_dtype), filled(g_dtype, 1)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state, grads)
    assert step._cache_size() == 1
    chex.assert_tree_all_finite(params)


@pytest.mark.thin(default=3, slow=7)
@pytest.mark.parametrize("dtype", ["float16", "complex64", *map(slow, ["float32", "bfloat16"])])
@each_method
def test_a_zero_gradient_moves_nothing_but_by_decay(case, dtype):
    params = jax.tree.map(jnp.zeros_like, filled(dtype))  # weight decay of 0 is 0
    tx = case.make()
    step, state = jax.jit(tx.update), tx.init(params)
    for _ in range(2):
        updates, state = step(params, state, params)
        if case.starts_moving:
            chex.assert_tree_all_finite(updates)
        else:
            chex.assert_trees_all_equal(jax.tree.map(jnp.abs, updates), jax.tree.map(jnp.abs, params))


@pytest.mark.thin(default=3, slow=7)
@each_method
def test_hyper_parameters_survive_injection_on_bfloat16_parameters(case):
    params, grads = filled("bfloat16"), filled("float32", 1)
    injected = optax.inject_hyperparams(case.factory)(0.01, **case.args)
    state = injected.init(params)
    defaults = {k: p.default for k, p in inspect.signature(case.factory).parameters.items()}
    given = {k: v for k, v in (defaults | case.args | {"learning_rate": 0.01}).items() if isinstance(v, float)}
    scheduled = {k for k, v in defaults.items() if callable(v) and not isinstance(v, type) and v is not inspect._empty}
    assert state.hyperparams.keys() == given.keys() | scheduled
    for name, value in given.items():
        assert state.hyperparams[name].dtype == jnp.float32
        assert state.hyperparams[name] == np.float32(value)
    plain = case.make()
    updates, _ = jax.jit(injected.update)(grads, state, params)
    expected, _ = jax.jit(plain.update)(grads, plain.init(params), params)
    # 1 - b2 of a float32 array is 1 - float32(b2): 5e-5 of it at 0.999, and 2e-4 for ADOPT's 0.9999
    averages = [b for k, b in given.items() if k in ("b1", "b2", "b3") and b < 1]
    lost = [abs((1 - float(np.float32(b))) / (1 - b) - 1) for b in averages]
    chex.assert_trees_all_close(updates, expected, rtol=max(1e-4, 2 * max(lost, default=0)))


@pytest.mark.thin(default=6, slow=7)
@each_method
def test_meta_gradients_are_finite_where_gradients_are_zero(case):
    """Through five steps, with respect to learning rate, parameters and gradients, half or all of these being zero."""
    start = jnp.linspace(-1, 1, 6)

    def trained(lr, start, mask):
        tx = case.make(lr)

        def step(carry, _):
            p, state = carry
            updates, state = tx.update(mask * p, state, p)
            return (p + updates, state), None

        return jnp.sum(jax.lax.scan(step, (start, tx.init(start)), length=5)[0][0] ** 2)

    derivative = jax.jit(jax.grad(trained, argnums=(0, 1, 2)))
    for mask in (jnp.arange(6) % 2.0, jnp.zeros(6)):
        chex.assert_tree_all_finite(derivative(0.01, start, mask))


@each_kind
def test_a_step_can_be_donated_right_after_eager_init(case):
    tx = case.make()
    params, grads = ({"w": jnp.full((64, 32), x), "b": jnp.full(512, x)} for x in (1.0, 0.1))
    state = tx.init(params)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    held = sum(x.nbytes for x in jax.tree.leaves((params, state)))
    assert run.memory_analysis().alias_size_in_bytes >= held - 64  # the counts may be copied
    params, state = run(params, state, grads)
    params, state = run(params, state, grads)
    chex.assert_tree_all_finite(params)


ODD = {
    "integer": jnp.arange(3),
    "bool": jnp.array([True, False]),
    "none": None,
    "empty": {},
    "zero-size": jnp.zeros((0, 3)),
    "scalar": jnp.float32(2.0),
    "number": 1.5,
    "numpy": np.ones(2, np.float32),
    "masked": optax.MaskedNode(),
    "nested": [{"kernel": jnp.ones((2, 2))}, (jnp.ones(1),)],
}


@pytest.mark.thin(default=2, slow=7)
@each_kind
def test_odd_leaves_are_carried_along(case):
    tx = case.make()
    grads = ODD | {"integer": np.zeros(3, jax.dtypes.float0), "bool": np.zeros(2, jax.dtypes.float0)}
    state = tx.init(ODD)
    before = avals(state)
    for _ in range(2):
        updates, state = jax.jit(lambda s: tx.update(grads, s, ODD))(state)
        assert avals(state) == before
    assert jax.tree.structure(updates) == jax.tree.structure(ODD)
    new = optax.apply_updates(ODD, updates)
    chex.assert_trees_all_equal(new["integer"], ODD["integer"])
    chex.assert_trees_all_equal(new["bool"], ODD["bool"])
    chex.assert_shape(new["zero-size"], (0, 3))
    assert new["none"] is None
    assert new["empty"] == {}


@each_kind
def test_an_empty_tree_is_fine(case):
    tx = case.make()
    updates, state = tx.update({}, tx.init({}), {})
    assert updates == {}
    assert avals(state) == avals(tx.init({}))


@each_method_kind
def test_a_gradient_that_is_none_leaves_its_leaf_alone(case):
    tx, params = case.make(), filled("float32")
    state = tx.init(params)
    updates, after = tx.update(filled("float32", 1) | {"b": None}, state, params)
    assert updates["b"] is None
    for moment, old in zip(after.moments.values(), state.moments.values(), strict=True):
        chex.assert_trees_all_equal(moment["b"], old["b"])


@pytest.mark.thin(default=2, slow=7)
@each_kind
def test_step_is_update_and_addition(case):
    tx, params, grads = case.make(), filled("float32"), filled("float32", 1)
    state = tx.init(params)

    @jax.jit
    def apart(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    chex.assert_trees_all_equal(jax.jit(tx.step)(grads, state, params), apart(params, state, grads))


def test_step_does_not_round_the_update_to_the_gradients_dtype():
    params, grads = {"w": jnp.ones(64)}, {"w": jnp.linspace(0.5, 2, 64, dtype=jnp.bfloat16)}
    tx = adamx.sgd(0.1)
    stepped, _ = tx.step(grads, tx.init(params), params)
    exact = 1 - 0.1 * np.asarray(grads["w"], np.float64)
    np.testing.assert_allclose(stepped["w"], exact, atol=1e-7, rtol=0)
    assert not np.allclose(optax.apply_updates(params, tx.update(grads, tx.init(params))[0])["w"], exact, atol=1e-5)


@pytest.mark.thin(default=2, slow=7)
@each_merged
def test_merging_changes_nothing(case):
    """adamx.chain against optax.chain of the same parts, one by one."""
    tx, params = case.make(), filled("float32")
    alone = optax.chain(*(adamx.lift(part) for part in tx.parts))
    state, states = tx.init(params), alone.init(params)
    for seed in range(1, 4):
        grads = filled("float32", seed)
        updates, state = jax.jit(tx.update)(grads, state, params)
        expected, states = jax.jit(alone.update)(grads, states, params)
        chex.assert_trees_all_equal(updates, expected)


# Methods of optax.contrib whose signatures are kept too; muon's has arguments that are other spellings here.
OWN = {*dir(optax.contrib)} - {"muon"}
SWEEPS = {"b1": [0.5, 0.9], "b2": [0.9, 0.99], "eps": [1e-8, 1e-2], "weight_decay": [0.0, 0.1], "momentum": [0.5, 0.9]}


@pytest.mark.thin(default=6, slow=7)
@each_method
def test_vmap_over_hyper_parameters_equals_the_loop(case):
    with jax.enable_x64(case.wide):  # a batched eigh rounds otherwise
        params, grads = filled("float64" if case.wide else "float32"), filled("float64" if case.wide else "float32", 1)
        accepts = inspect.signature(case.factory).parameters
        swept = {k: jnp.float32(v) for k, v in SWEEPS.items() if k in accepts and (k != "momentum" or k in case.args)}
        swept["learning_rate"] = jnp.float32([1e-3, 1e-1])

        def trained(hyper):
            tx = case.factory(**(case.args | hyper))
            p, state = params, tx.init(params)
            for _ in range(3):
                updates, state = tx.update(grads, state, p)
                p = optax.apply_updates(p, updates)
            return p

        run = jax.jit(trained)
        looped = [run({k: v[i] for k, v in swept.items()}) for i in range(2)]
        together = jax.jit(jax.vmap(trained))(swept)
        apart = jax.tree.map(lambda *x: jnp.stack(x), *looped)
        moved = jax.tree.map(lambda x, p: jnp.max(jnp.abs(x - p)), apart, params)
        longest = max(1.0, *map(float, jax.tree.leaves(moved)))  # simplified AdEMAMix steps further than parameters lie
        chex.assert_trees_all_close(together, apart, rtol=0, atol=2e-7 * longest)


@pytest.mark.parametrize("name", sorted({case.factory.__name__ for case in METHODS} & {*dir(optax), *OWN}))
def test_a_user_changes_optax_to_adamx_and_nothing_else(name):
    theirs = inspect.signature(getattr(optax, name, None) or getattr(optax.contrib, name)).parameters
    ours = inspect.signature(getattr(adamx, name)).parameters
    assert [k for k in ours if k in theirs] == list(theirs)
    for k, p in theirs.items():
        assert ours[k].kind == p.kind
        if callable(p.default) and not isinstance(p.default, type):
            assert ours[k].default(81.0) == p.default(81.0)
        else:
            assert ours[k].default == p.default, k
    assert all(ours[k].kind == inspect.Parameter.KEYWORD_ONLY for k in ours if k not in theirs)


def test_the_table_holds_every_method_that_is_exported():
    import importlib
    import pkgutil

    import adamx.family

    exported = {m.name for m in pkgutil.iter_modules(adamx.family.__path__)}
    assert all(hasattr(adamx, name) for name in exported)
    assert {case.factory.__name__ for case in METHODS} == exported
    assert all(importlib.import_module(f"adamx.family.{name}").__doc__ for name in exported)
    assert len({case.name for case in ALL}) == len(ALL)
