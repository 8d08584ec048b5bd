"""What a run keeps between steps: any method's moments under any codec, beside any precision of its parameters."""

import math
import pickle
import re
from collections import Counter
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import LR, METHODS, each_method_kind, kind_of
from flax import serialization
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

import adamx
from adamx import codecs, projections
from benchmarks.step import gpt2_small

store_state, store_params = adamx.store_state, adamx.store_params

# By name: what store_state is given besides the method. Custom blocks are short, so that small leaves have many.
STORES = {
    "8bit": (("8bit",), {}),
    "4bit": (("4bit",), {}),
    "bf16": (("bf16",), {}),
    "linear8": ((), {"mu": codecs.int8(64, companded=False), "nu": codecs.uint8(64, companded=False)}),
    "dynamic8": ((), {"mu": codecs.dynamic8(64), "nu": codecs.dynamic8(64, signed=False)}),
    "float8": ((), {"mu": codecs.float8_e4m3fn(32), "nu": codecs.float8_e5m2(32)}),
    "float16": ((), {"mu": codecs.float16(), "nu": codecs.bfloat16()}),
    "zero4": ((), {"mu": codecs.int4(16), "nu": codecs.uint4(16, zero=True)}),
    "stochastic": ((), {"mu": codecs.bfloat16(stochastic=True), "nu": codecs.bfloat16(stochastic=True)}),
    "one": ((), {"nu": codecs.uint8(32)}),
    "factored": (("8bit",), {"nu": codecs.reduced(projections.factored())}),
    "pooled": (("8bit",), {"nu": codecs.reduced(projections.pooled(-1))}),
}
PRECISIONS = {
    "nearest": codecs.nearest,
    "stochastic": codecs.stochastic,
    "kahan": codecs.kahan,
    "split8": codecs.split8,
    "split8-stochastic": lambda: codecs.split8(stochastic=True),
    "split16": codecs.split16,
    "master": codecs.master,
}


def slow(*values, name=None):
    return pytest.param(*values, marks=pytest.mark.slow, id=name)


def each_with_one(stores, store, precision):
    """Every storage beside one precision and beside none, and every precision beside one storage and beside none."""
    pairs = [(s, p) for s in stores for p in (precision, None)] + [(s, p) for p in PRECISIONS for s in (store, None)]
    for pair in dict.fromkeys(pairs):
        yield pair if pair == (store, precision) else slow(*pair)


def stored(tx, store, precision=None, **how):
    """A method under a row of STORES and one of PRECISIONS; None for either leaves it out."""
    tile = {k: v for k, v in how.items() if k == "tile"}
    if store is not None:
        preset, moments = STORES[store]
        tx = store_state(tx, *preset, **moments, **how)
    return tx if precision is None else store_params(tx, PRECISIONS[precision](), **tile)


def leaves(seed, dtype, shapes, scale=1.0):
    normal = np.random.default_rng(seed).standard_normal
    return {name: jnp.asarray(scale * normal(shape), dtype) for name, shape in shapes.items()}


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype.name, getattr(x, "weak_type", False)), tree)


def same_bits(got, want):
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(path)


# Every method

SMALL = {"w": (4, 48), "b": (9,), "s": (), "c": (2, 3, 5)}


def assert_keeps_the_contracts(tx, p_dtype, g_dtype):
    """Types of state and updates never change, at init, under eval_shape, and through steps compiled once."""
    params = leaves(0, p_dtype, SMALL)
    state = tx.init(params)
    before = types(state)
    assert types(jax.eval_shape(tx.init, params)) == before
    assert not any(getattr(x, "weak_type", False) for x in jax.tree.leaves(state))

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for seed in (1, 2):
        params, state = step(params, state, leaves(seed, g_dtype, SMALL))
        assert types(state) == before
        assert types(params) == types(leaves(0, p_dtype, SMALL))
    assert step._cache_size() == 1
    chex.assert_tree_all_finite(params)
    chex.assert_tree_all_finite([x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)])


@pytest.mark.thin(default=4, slow=8)
@pytest.mark.parametrize("preset", ["8bit", slow("4bit", name="4bit"), slow("bf16", name="bf16")])
@each_method_kind
def test_every_method_runs_with_every_preset(case, preset):
    assert_keeps_the_contracts(store_state(case.make(), preset, min_size=0), "float32", "float32")


def test_a_preset_stores_every_average_that_has_its_leafs_shape_and_no_copy_of_parameters():
    copies = 0
    for case in METHODS:
        params, tx = leaves(0, "float32", {"w": (16, 256)}), case.make()
        state = jax.eval_shape(store_state(tx, "8bit", min_size=0).init, params)
        exact = {name for part in tx.parts for name in part.exact}
        copies += len(exact)
        assert all(state.moments[name]["w"].dtype == jnp.float32 for name in exact)
        for name in set(case.moments) - set(case.smaller) - exact:
            assert state.moments[name]["w"].dtype in (jnp.int8, jnp.uint8), (case.name, name)
            assert state.moments[name]["w"].shape == (16, 256)
            assert state.moments[f"{name}_scale"]["w"].shape == (16, 1)
    assert copies >= 4  # MADGRAD's and Prodigy's start, Prodigy's sum, AdaMod's limit


def test_codecs_by_blocks_refuse_copies_of_parameters():
    with pytest.raises(ValueError, match="slow_params is no average of gradients but a copy of parameters"):
        store_state(adamx.lookahead(adamx.adam(1e-4)), slow_params=codecs.int8())


def product():
    """Method × storage × precision × parameter dtype.

    Every method meets every preset, each time with another precision and dtype; AdamW meets them all. By default one of
    each sort runs.
    """
    seen, names = set(), list(PRECISIONS)
    for i, case in enumerate(METHODS):
        for j, store in enumerate(("8bit", "4bit", "bf16")):
            for k, precision in enumerate(names):
                for dtype in ("bfloat16", "float16"):
                    turn = k == (i + 2 * j) % len(names) and (dtype == "float16") == ((i + j) % 2 == 1)
                    if not turn and case.name != "adamw":
                        continue
                    sort = kind_of(case)[3:]
                    marks = [pytest.mark.slow] if sort in seen or not turn else []
                    seen.add(sort) if turn else None
                    yield pytest.param(case, store, precision, dtype, marks=marks,
                                       id="-".join((case.name, store, precision, dtype)))  # fmt: skip


@pytest.mark.thin(slow=11)
@pytest.mark.parametrize(("case", "store", "precision", "dtype"), list(product()))
def test_every_method_storage_precision_and_dtype_meet(case, store, precision, dtype):
    assert_keeps_the_contracts(stored(case.make(), store, precision, min_size=0), dtype, dtype)


@pytest.mark.thin(slow=5)
@pytest.mark.parametrize(
    ("p_dtype", "g_dtype"),
    [("float32", "bfloat16"), slow("bfloat16", "float32"), slow("float32", "float32"), slow("float16", "float16")],
)
@pytest.mark.parametrize("store", [s if s == "factored" else slow(s, name=s) for s in STORES])
def test_every_codec_keeps_the_contracts_whatever_the_dtypes_of_parameters_and_gradients(store, p_dtype, g_dtype):
    assert_keeps_the_contracts(stored(adamx.adamw(LR), store, min_size=0), p_dtype, g_dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("store", ["8bit", "bf16", "factored"])
def test_double_precision_and_complex_leaves_are_carried_along(store):
    tx = stored(adamx.adamw(LR), store, min_size=0)
    for dtype in ("float64", "complex64", "complex128"):
        params = {"w": jnp.ones((4, 48), dtype)}
        state = tx.init(params)
        updates, after = jax.jit(tx.update)(params, state, params)
        assert types(after) == types(state)
        assert updates["w"].dtype == dtype
        chex.assert_tree_all_finite(updates)


def test_odd_leaves_are_carried_along_at_any_size():
    params = {
        "integer": jnp.arange(3), "none": None, "empty": jnp.zeros((0, 3)), "none-wide": jnp.zeros((3, 0)),
        "scalar": jnp.float32(2.0), "masked": optax.MaskedNode(), "one": jnp.ones((1, 1)), "w": jnp.ones((3, 40)),
    }  # fmt: skip
    grads = params | {"integer": np.zeros(3, jax.dtypes.float0)}
    for store in ("8bit", "4bit", "factored"):
        tx = stored(adamx.adamw(LR), store, min_size=0)
        state = jax.jit(lambda tx=tx: tx.init(params))()
        updates, after = jax.jit(lambda s, tx=tx: tx.update(grads, s, params))(state)
        assert types(after) == types(state)
        new = optax.apply_updates(params, updates)
        assert types(new) == types(params)


# Bytes


def size_of(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.thin(default=2)
@pytest.mark.parametrize("precision", [None, "split8", *(slow(p, name=p) for p in PRECISIONS if p != "split8")])
@pytest.mark.parametrize("store", [None, "4bit", "factored", slow("8bit", name="8bit")])
def test_a_plan_tells_the_bytes_of_the_real_state(store, precision):
    if store is None and precision is None:
        return
    dtype = "float32" if precision is None else "bfloat16"
    params = leaves(0, dtype, {"w": (40, 300), "v": (5000,), "b": (30,), "s": ()})
    tx = stored(adamx.adamw(LR), store, precision)
    state, plan = tx.init(params), store_state.plan(tx, params)
    assert plan.state_bytes == sum(x.nbytes for x in jax.tree.leaves(state.moments))
    assert plan.parameters == 17031
    assert plan.training_bytes == plan.state_bytes + 2 * sum(x.nbytes for x in jax.tree.leaves(params))
    for row in plan.rows:
        assert row.after == sum(state.moments[name][row.leaf].nbytes for name in state.moments)
        assert row.before == 8 * max(math.prod(row.shape), 1)
    text = str(plan)
    assert str(plan.state_bytes) in text.splitlines()[-2]
    assert all(row.leaf in text for row in plan.rows)
    assert str(store_state.plan(tx, jax.eval_shape(lambda: params))) == text


SIX = ["8bit", "4bit", "bf16", "dynamic8-256", "float8-256", "float16"]


def full_size(name):
    """The codecs of SIX as they come, with the blocks of their defaults."""
    return {
        "dynamic8-256": ((), {"mu": codecs.dynamic8(), "nu": codecs.dynamic8(signed=False)}),
        "float8-256": ((), {"mu": codecs.float8_e4m3fn(), "nu": codecs.float8_e5m2()}),
    }.get(name) or STORES[name]


STATED = {  # bytes a parameter of two moments, as the docstrings of the codecs have them
    "8bit": 2 * (1 + 4 / 256),
    "4bit": 2 * (0.5 + 4 / 128),
    "bf16": 4,
    "dynamic8-256": 2 * (1 + 4 / 256),
    "float8-256": 2 * (1 + 4 / 256),
    "float16": 4,
}
BESIDE = {"nearest": 0, "stochastic": 0, "kahan": 2, "split8": 1, "split8-stochastic": 1, "split16": 2, "master": 4}


@cache
def gpt2(dtype, blocks=12):
    """GPT-2-small's leaves, without any numbers in them; with fewer of its blocks."""
    return {f"leaf{i:03}": jax.ShapeDtypeStruct(s, dtype) for i, s in enumerate(gpt2_small(blocks))}


@pytest.mark.parametrize("precision", [None, *(slow(p, name=p) for p in PRECISIONS)])
@pytest.mark.parametrize("name", STATED)
def test_a_state_of_gpt2_takes_the_stated_bytes(name, precision):
    preset, moments = full_size(name)
    dtype = "float32" if precision is None else "bfloat16"
    tx = store_state(adamx.adamw(LR), *preset, **moments)
    tx = tx if precision is None else store_params(tx, PRECISIONS[precision]())
    plan = store_state.plan(tx, gpt2(dtype))
    n = plan.parameters
    assert n == 124_439_808
    assert plan.state_bytes == size_of(jax.eval_shape(tx.init, gpt2(dtype)).moments)
    # Leaves of fewer than 4096 elements keep float32; they are a thousandth of all.
    assert abs(plan.state_bytes / n - STATED[name] - BESIDE.get(precision, 0)) < 0.01


def test_seven_bytes_are_seven_bytes_and_the_units():
    """2 weight, 2 gradient, 1 residue, 1 + 1 moments; 8 / 256 of units, and 0.006 for leaves below 4096 elements."""
    tx = adamx.seven_bytes(adamx.adamw(LR))
    plan = store_state.plan(tx, gpt2("bfloat16"))
    assert 7 + 8 / 256 < plan.training_bytes / plan.parameters < 7 + 8 / 256 + 0.01
    assert "in training 7.04 with weights and gradients of 2.00 each" in str(plan)
    assert size_of(jax.eval_shape(tx.init, gpt2("bfloat16"))) == plan.state_bytes + 4 * 4  # a count and three names


def test_small_and_kept_leaves_stay_float32():
    params = leaves(0, "float32", {"embed": (64, 256), "w": (64, 256), "b": (256,)})
    kinds = lambda **how: {
        k: x.dtype.name for k, x in store_state(adamx.adam(LR), "8bit", **how).init(params).moments["mu"].items()
    }
    assert kinds() == {"embed": "int8", "w": "int8", "b": "float32"}
    assert kinds(min_size=0) == dict.fromkeys(params, "int8")
    assert kinds(min_size=64 * 256 + 1) == dict.fromkeys(params, "float32")
    assert kinds(min_size=64 * 256) == {"embed": "int8", "w": "int8", "b": "float32"}
    for keep in ("emb*", {"embed": True, "w": False, "b": False}, lambda p: {k: k == "embed" for k in p}):
        assert kinds(keep=keep) == {"embed": "float32", "w": "int8", "b": "float32"}
    assert kinds(min_size=0, keep="emb*") == {"embed": "float32", "w": "int8", "b": "int8"}


def test_leaves_kept_in_float32_are_trained_as_without_storage():
    params = leaves(0, "float32", {"w": (64, 256), "b": (256,)})
    tx, plain = store_state(adamx.adamw(LR), "8bit"), adamx.adamw(LR)
    got, want = (jax.jit(t.update)(params, t.init(params), params) for t in (tx, plain))
    same_bits(got[0]["b"], want[0]["b"])
    assert got[1].moments["mu_scale"]["b"].shape == (1,)


# The update sees fresh moments, and storage changes little


@pytest.mark.parametrize(("store", "within"), [("8bit", 0.05), ("dynamic8", 0.05), ("float8", 0.3), ("bf16", 0.02)])
def test_twenty_stored_steps_follow_float32s(store, within):
    """The root mean square distance of the two runs, relative to how far they went; the first step is the same."""
    shapes = {"w": (16, 256)}
    params = leaves(0, "float32", shapes)
    run = {}
    for name, tx in (("plain", adamx.adamw(LR)), ("stored", stored(adamx.adamw(LR), store, min_size=0))):
        p, state, step = params, tx.init(params), jax.jit(tx.update)
        run[name] = []
        for seed in range(1, 21):
            updates, state = step(leaves(seed, "float32", shapes), state, p)
            p = optax.apply_updates(p, updates)
            run[name].append(p["w"])
    same_bits(run["stored"][0], run["plain"][0])
    rms = lambda x: float(jnp.sqrt(jnp.mean(jnp.square(x))))
    assert rms(run["stored"][-1] - run["plain"][-1]) < within * rms(run["plain"][-1] - params["w"])


# Tiles

RAGGED = {"w": (70, 96), "t": (3, 5, 7, 40), "v": (3001,), "long": (2, 1500), "odd": (33, 77)}


def three_steps(tx, p_dtype, way, shapes, compiled=True):
    """Parameters and state after three steps, compiled or operation by operation."""
    params = leaves(1, p_dtype, shapes)
    state = tx.init(params)

    def step(params, state, grads):
        if way == "step":
            return tx.step(grads, state, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if compiled else step
    for seed in (2, 3, 4):
        with jax.disable_jit(not compiled):
            params, state = step(params, state, leaves(seed, p_dtype, shapes, 0.1))
    assert not compiled or step._cache_size() == 1
    return params, state


@pytest.mark.slow
@pytest.mark.parametrize(("store", "precision"), [("8bit", "split8"), ("4bit", "stochastic"), ("dynamic8", None)])
def test_tiles_are_the_whole_bit_for_bit(store, precision):
    """Operation by operation, by step and by update, in tiles of two sizes that do not go up."""
    make = lambda tile: stored(adamx.adamw(LR), store, precision, tile=tile, min_size=0)
    dtype, shapes = "float32" if precision is None else "bfloat16", {"odd": RAGGED["odd"]}
    whole = three_steps(make(2**30), dtype, "step", shapes, compiled=False)
    same_bits(three_steps(make(900), dtype, "step", shapes, compiled=False), whole)
    same_bits(three_steps(make(700), dtype, "update", shapes, compiled=False), whole)


def assert_the_same_but_for_roundings(got, want):
    """Of two compiled programs, which contract and reorder operations as they see fit.

    A number that is rounded otherwise may get the next code, and the steps after that differ by so much.
    """
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(want), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = np.asarray(a), np.asarray(b)
        far = a != b
        if jnp.issubdtype(a.dtype, jnp.floating):
            a, b = np.float32(a), np.float32(b)
            assert np.isfinite(a).all()
            assert np.isfinite(b).all()
            far = np.abs(a - b) > 1e-5 * np.maximum(np.abs(a), np.abs(b))
            if path[0].idx == 0:  # a parameter is at most a code's difference of three steps away
                assert np.abs(a - b).max() <= 6 * LR + 2.0**-7 * np.abs(b).max()
        assert far.mean() <= 0.01, jax.tree_util.keystr(path)


@pytest.mark.thin(slow=4)
@pytest.mark.parametrize(("store", "precision"), list(each_with_one(STORES, "8bit", "split8")))
def test_compiled_tiles_of_every_storage_and_precision_are_the_whole(store, precision):
    """On bfloat16 parameters, or without a precision on float32."""
    how = {} if store is None else {"min_size": 0}
    make = lambda tile: stored(adamx.adamw(LR), store, precision, tile=tile, **how)
    dtype, shapes = "float32" if precision is None else "bfloat16", {k: RAGGED[k] for k in ("long", "odd")}
    whole = three_steps(make(2**30), dtype, "step", shapes)
    assert_the_same_but_for_roundings(three_steps(make(64), dtype, "step", shapes), whole)
    assert_the_same_but_for_roundings(three_steps(make(500), dtype, "update", shapes), whole)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["8bit", "bf16"])
def test_compiled_tiles_of_float16_parameters_are_the_whole(store):
    make = lambda tile: stored(adamx.adamw(LR), store, "split8", tile=tile, min_size=0)
    whole = three_steps(make(2**30), "float16", "step", RAGGED)
    assert_the_same_but_for_roundings(three_steps(make(500), "float16", "update", RAGGED), whole)


@pytest.mark.thin(slow=6)
@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in METHODS if not c.reduces], ids=lambda c: c.name)
def test_every_elementwise_method_in_compiled_tiles_is_the_whole(case):
    make = lambda tile: stored(case.make(), "8bit", "split8", tile=tile, min_size=0)
    shapes = {k: RAGGED[k] for k in ("t", "v", "odd")}
    whole = three_steps(make(2**30), "bfloat16", "step", shapes)
    assert_the_same_but_for_roundings(three_steps(make(500), "bfloat16", "step", shapes), whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "lamb", "adamp"])
def test_what_reduces_over_a_leaf_is_not_cut(name):
    case = next(c for c in METHODS if c.name == name)
    make = lambda tile: stored(case.make(), "8bit", "split8", tile=tile, min_size=0)
    same_bits(three_steps(make(64), "bfloat16", "step", RAGGED), three_steps(make(2**30), "bfloat16", "step", RAGGED))


# Temporaries


def temporaries(tx, p_dtype, g_dtype, way, params):
    """Bytes of temporaries of a compiled, donated step, in all."""
    grads = {k: jax.ShapeDtypeStruct(x.shape, g_dtype) for k, x in params.items()}
    state = jax.eval_shape(tx.init, params)

    def step(params, state, grads):
        if way == "step":
            return tx.step(grads, state, params)
        grads = jax.tree.map(lambda g: (g * 0.5).astype(g.dtype), grads)  # made in the same program
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes > 0.999 * size_of((params, state))  # some of the smallest leaves may be copied
    return memory.temp_size_in_bytes


def parameters(params):
    return sum(math.prod(x.shape) for x in params.values())


def configured(store, precision):
    """(the method, the dtype of its parameters and gradients)"""
    tx = adamx.adamw(LR)
    if store is not None:
        preset, moments = full_size(store)
        tx = store_state(tx, *preset, **moments)
    if precision is not None:
        tx = store_params(tx, PRECISIONS[precision]())
    return tx, "float32" if precision is None else "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "precision", "way"),
    [
        ("8bit", "split8", "step"),
        ("8bit", "split8", "update"),
        ("4bit", None, "step"),
        ("bf16", "kahan", "step"),
        ("factored", "split8", "step"),
    ],
)
def test_a_step_of_gpt2_holds_a_quarter_byte_of_temporaries(store, precision, way):
    """And update with addition no more than that on top of the gradients, if these are made in the same program."""
    tx, dtype = configured(store, precision)
    params = gpt2(dtype)
    gradients = jnp.dtype(dtype).itemsize if way == "update" else 0
    assert temporaries(tx, dtype, dtype, way, params) <= (gradients + 0.25) * parameters(params)


@pytest.mark.thin(slow=4)
@pytest.mark.parametrize("way", ["step", slow("update", name="update")])
@pytest.mark.parametrize(("store", "precision"), list(each_with_one([*SIX, "factored"], "8bit", "split8")))
def test_temporaries_of_codecs_and_precisions_do_not_grow_with_the_model(store, precision, way):
    """With the two ends of GPT-2-small and one of its blocks they are what all twelve may hold, above the gradients."""
    tx, dtype = configured(store, precision)
    few = gpt2(dtype, 1)
    gradients = jnp.dtype(dtype).itemsize * parameters(few) if way == "update" else 0
    assert temporaries(tx, dtype, dtype, way, few) <= gradients + 0.25 * parameters(gpt2(dtype))


def test_a_step_that_is_not_cut_holds_many_bytes_of_temporaries():
    """The control of the tests above: one leaf of GPT-2 in one piece."""
    whole = stored(adamx.adamw(LR), "8bit", "split8", tile=2**31)
    params = {"w": jax.ShapeDtypeStruct((3072, 768), "bfloat16")}
    assert temporaries(whole, "bfloat16", "bfloat16", "step", params) > 4 * parameters(params)


@pytest.mark.parametrize(
    ("axes", "precision"),
    [
        ("rows and columns", "split8"),
        slow("rows and columns", None),
        (0, None),
        *(slow(*row) for row in [(-1, None), (None, None), (0, "split8"), (None, "split8")]),
    ],
)
def test_what_keeps_less_than_every_element_is_stepped_some_rows_at_a_time(axes, precision):
    projection = projections.factored() if axes == "rows and columns" else projections.pooled(axes)

    def make(tile):
        tx = store_state(adamx.adamw(LR), mu=codecs.int8(), nu=codecs.reduced(projection), tile=tile)
        return tx if precision is None else store_params(tx, PRECISIONS[precision]())

    dtype = "float32" if precision is None else "bfloat16"
    params = {"w": jax.ShapeDtypeStruct((3072, 768), dtype)}
    if precision is None:  # narrow parameters are written by slabs as large as this leaf
        assert temporaries(make(2**14), dtype, dtype, "step", params) <= 0.25 * parameters(params)
        assert temporaries(make(2**31), dtype, dtype, "step", params) > 4 * parameters(params)
    shapes = {"w": (37, 300), "tall": (5000, 1), "row": (1, 5000), "three": (3, 5, 300)}
    whole, tiles = (three_steps(adamx.skip_nonfinite(make(tile)), dtype, "update", shapes) for tile in (2**31, 1000))
    assert_the_same_but_for_roundings(tiles, whole)
    params, state = tiles
    bad = {k: p.at[0, 0].set(jnp.nan) for k, p in params.items()}
    _, after = jax.jit(adamx.skip_nonfinite(make(1000)).update)(bad, state, params)
    same_bits(after.inner.moments, state.inner.moments)


def test_inside_shard_map_and_vmap_some_rows_at_a_time_are_a_devices_rows():
    """Whether or not `shard_map` checks along which axes a value differs between devices."""
    tx = store_state(adamx.adamw(LR), mu=codecs.int8(), nu=projections.factored(), tile=1000, min_size=0)
    params = {name: x.reshape(8, 16, 300) for name, x in leaves(0, "float32", {"w": (128, 300)}).items()}

    def two_steps(params):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return params

    alone = [jax.jit(two_steps)({"w": params["w"][i]})["w"] for i in range(8)]
    np.testing.assert_allclose(jax.jit(jax.vmap(two_steps))(params)["w"], jnp.stack(alone), rtol=1e-6)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    for check in (True, False):
        mapped = jax.shard_map(two_steps, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=check)
        got = jax.jit(mapped)({"w": params["w"].reshape(128, 300)})["w"]
        np.testing.assert_allclose(got, jnp.concatenate(alone), rtol=1e-6)


# Shards

SHARDED = {"rows": P("d", None), "columns": P(None, "d")}
COLLECTIVE = re.compile(
    r"\b(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(?:-start)?\("
)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("d",), axis_types=(kind,))


def divided(block):
    """Shapes whose shards, on eight devices, are two blocks wide."""
    return {"rows": (16, 2 * block), "columns": (4, 16 * block)}


def on_devices(seed, shapes, dtype="float32", kind=AxisType.Auto):
    at = {k: NamedSharding(mesh(kind), spec) for k, spec in SHARDED.items()}
    return jax.device_put(leaves(seed, dtype, shapes), at), at


def sharded_step(tx, shapes, dtype="float32"):
    """A compiled, donated step whose state lies as eager init puts it."""
    params, at = on_devices(0, shapes, dtype)
    state = tx.init(params)
    everywhere = NamedSharding(mesh(), P())
    of_state = jax.tree.map(lambda x: x.sharding if x.ndim else everywhere, state)
    state = jax.device_put(state, of_state)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, out_shardings=(at, of_state), donate_argnums=(0, 1))
    return jitted.lower(params, state, params).compile(), params, state


def collectives(compiled):
    return Counter(COLLECTIVE.findall(compiled.as_text()))


LOCAL = ["8bit", "4bit", "bf16", "dynamic8", "float8", "float16"]


@pytest.mark.thin(slow=4)
@pytest.mark.parametrize(
    ("store", "precision"),
    [
        ("8bit", "split8"),
        *(slow(s, p) for s in LOCAL for p in (None, "split8", "stochastic", "kahan") if (s, p) != ("8bit", "split8")),
    ],
)
def test_a_step_on_shards_talks_to_nobody_and_is_the_unsharded_step(store, precision):
    block = {"8bit": 256, "4bit": 128, "dynamic8": 64, "float8": 32}.get(store, 16)
    shapes, dtype = divided(block), "float32" if precision is None else "bfloat16"
    tx = stored(adamx.adamw(LR), store, precision, min_size=0)
    compiled, params, state = sharded_step(tx, shapes, dtype)
    assert not collectives(compiled)
    for name, moment in state.moments.items():
        for leaf, x in moment.items():
            if x.shape == shapes[leaf] or name.endswith("_scale") or store == "4bit":
                assert x.sharding.is_equivalent_to(NamedSharding(mesh(), SHARDED[leaf]), x.ndim), (name, leaf)
    plain_params = leaves(0, dtype, shapes)
    plain = tx.init(plain_params)
    step = jax.jit(lambda p, s, g: (lambda u: (optax.apply_updates(p, u[0]), u[1]))(tx.update(g, s, p)))
    for seed in (1, 2):
        params, state = compiled(params, state, on_devices(seed, shapes, dtype)[0])
        plain_params, plain = step(plain_params, plain, leaves(seed, dtype, shapes))
    same_bits(jax.device_get((params, state)), jax.device_get((plain_params, plain)))


def test_blocks_that_do_not_divide_a_shard_need_collectives():
    """The control of the test above."""
    tx = store_state(adamx.adamw(LR), "8bit", min_size=0)
    shapes = divided(256) | {"columns": (4, 16 * 100)}
    params, at = on_devices(0, shapes)
    step = jax.jit(tx.update, out_shardings=(at, None)).lower(params, tx.init(params), params).compile()
    assert collectives(step)


def test_an_explicit_mesh_is_followed_where_blocks_divide_the_shards():
    tx = stored(adamx.adamw(LR), "8bit", "split8", min_size=0)
    shapes = divided(256)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        params, _ = on_devices(0, shapes, "bfloat16", AxisType.Explicit)
        state = jax.jit(tx.init)(params)
        types = lambda tree: jax.tree.map(lambda x: (str(jax.typeof(x)), jax.typeof(x).sharding.spec), tree)
        before = types((params, state))
        step = jax.jit(lambda p, s, g: (lambda u: (optax.apply_updates(p, u[0]), u[1]))(tx.update(g, s, p)))
        for seed in (1, 2):
            params, state = step(params, state, on_devices(seed, shapes, "bfloat16", AxisType.Explicit)[0])
            assert types((params, state)) == before
        got = jax.device_get(params)
    plain = leaves(0, "bfloat16", shapes)
    plain_state, step = tx.init(plain), jax.jit(tx.update)
    for seed in (1, 2):
        updates, plain_state = step(leaves(seed, "bfloat16", shapes), plain_state, plain)
        plain = optax.apply_updates(plain, updates)
    same_bits(got, jax.device_get(plain))


@pytest.mark.parametrize("store", ["8bit", "4bit"])
def test_an_explicit_mesh_whose_shards_do_not_fit_is_refused_in_a_sentence(store):
    tx = stored(adamx.adamw(LR), store, min_size=0)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        x = jax.device_put(jnp.ones((4, 800)), NamedSharding(mesh(AxisType.Explicit), P(None, "d")))
        for init in (tx.init, jax.jit(tx.init), lambda p: jax.eval_shape(tx.init, p)):
            with pytest.raises(ValueError, match=r"each device has 100 of its 800 elements.*or keep this leaf whole\."):
                init({"w": x})
        assert jax.tree.leaves(stored(adamx.adamw(LR), store, min_size=0, keep="w").init({"w": x}))


def test_inside_shard_map_tiles_run_on_each_devices_shard():
    """Bit for bit the run on one device, since blocks divide shards; noise depends on the place, so not stochastic."""
    shapes = {"w": (16, 512)}
    tx = stored(adamx.adamw(LR), "8bit", "split8", min_size=0, tile=500)
    specs = {"w": P("d", None)}

    def two(params, first, second):
        state = tx.init(params)
        for g in (first, second):
            params, state = tx.step(g, state, params)
        return params

    args = [leaves(seed, "bfloat16", shapes) for seed in (0, 1, 2)]
    mapped = jax.jit(jax.shard_map(two, mesh=mesh(), in_specs=(specs,) * 3, out_specs=specs))
    compiled = mapped.lower(*args).compile()
    assert not collectives(compiled)
    assert " while(" in compiled.as_text()  # in tiles
    same_bits(jax.device_get(mapped(*args)), jax.device_get(jax.jit(two)(*args)))


# Checkpoints


def a_state(tx):
    params = leaves(0, "bfloat16", {"w": (8, 64)})
    updates, state = tx.update(params, tx.init(params), params)
    return optax.apply_updates(params, updates), state


CONFIGURATIONS = {
    "plain": lambda: adamx.adamw(LR),
    "8bit": lambda: stored(adamx.adamw(LR), "8bit", min_size=0),
    "other-map": lambda: store_state(adamx.adamw(LR), mu=codecs.int8(companded=False), nu=codecs.uint8(), min_size=0),
    "other-block": lambda: store_state(adamx.adamw(LR), mu=codecs.int8(64), nu=codecs.uint8(64), min_size=0),
    "dynamic": lambda: store_state(adamx.adamw(LR), mu=codecs.int8(), nu=codecs.dynamic8(signed=False), min_size=0),
    "split8": lambda: store_params(adamx.adamw(LR), codecs.split8()),
    "split8-stochastic": lambda: store_params(adamx.adamw(LR), codecs.split8(stochastic=True)),
    "split16": lambda: store_params(adamx.adamw(LR), codecs.split16()),
    "nearest": lambda: store_params(adamx.adamw(LR), codecs.nearest()),
    "both": lambda: stored(adamx.adamw(LR), "8bit", "split8", min_size=0),
}


@pytest.mark.thin(default=3)
@pytest.mark.parametrize("name", [n for n in CONFIGURATIONS if n != "plain"])
def test_a_state_is_saved_with_the_names_of_its_codecs_and_trains_on(tmp_path, name):
    tx = CONFIGURATIONS[name]()
    params, state = a_state(tx)
    assert any(" as " in scalar for scalar in state.scalars)
    ocp.save(tmp_path / "orbax", state)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state)
    restored = {
        "pickle": pickle.loads(pickle.dumps(jax.device_get(state))),
        "flax": serialization.from_bytes(tx.init(params), serialization.to_bytes(state)),
        "orbax": ocp.load(tmp_path / "orbax", target),
    }
    expected = jax.jit(tx.update)(params, state, params)
    for again in restored.values():
        same_bits(again, state)
        same_bits(jax.jit(tx.update)(params, again, params), expected)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_state_of_another_configuration_is_refused_in_a_sentence(name):
    """Of the same shapes and dtypes too: another map, another block length, another way of rounding; or of none."""
    params, state = a_state(CONFIGURATIONS[name]())
    restored = pickle.loads(pickle.dumps(state))
    for other in CONFIGURATIONS.keys() - {name}:
        with pytest.raises(TypeError) as caught:
            CONFIGURATIONS[other]().update(params, restored, params)
        said = str(caught.value)
        assert said.startswith("this state holds"), other
        assert said.endswith("make it with this optimiser's init, or restore the checkpoint that it wrote.")


def test_orbax_and_flax_refuse_another_configuration_too(tmp_path):
    """Names are keys of the state, so that a restore into another has nowhere to put them."""
    params, state = a_state(CONFIGURATIONS["8bit"]())
    other = CONFIGURATIONS["other-map"]().init(params)
    with pytest.raises(ValueError, match="int8"):
        serialization.from_bytes(other, serialization.to_bytes(state))
    ocp.save(tmp_path / "orbax", state)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), other)
    with pytest.raises(ValueError, match="mu as int8"):
        ocp.load(tmp_path / "orbax", target)


# Other libraries' methods


EVERY_PRESET = ("8bit", "4bit", "bf16")
FOREIGN = {
    "adam": lambda: optax.adam(LR),
    "adamw": lambda: optax.adamw(LR),
    "sgd": lambda: optax.sgd(LR, momentum=0.9),
    "amsgrad": lambda: optax.amsgrad(LR),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LR)),
}


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("adam", "8bit"),
        ("sgd", "4bit"),
        *(slow(n, p) for n in FOREIGN for p in EVERY_PRESET if (n, p) not in (("adam", "8bit"), ("sgd", "4bit"))),
    ],
)
def test_another_librarys_method_is_stored_too(name, preset):
    make = FOREIGN[name]
    tx = store_state(make(), preset, min_size=0)
    assert_keeps_the_contracts(tx, "float32", "float32")
    params = leaves(0, "float32", {"w": (16, 256)})
    state, plain = tx.init(params), make()
    assert size_of(state) < 0.6 * size_of(plain.init(params))
    first = jax.jit(tx.update)(params, state, params)[0]
    chex.assert_trees_all_close(first, jax.jit(plain.update)(params, plain.init(params), params)[0], rtol=1e-6)


def test_another_librarys_fields_are_stored_by_name():
    params = leaves(0, "float32", {"w": (16, 256), "b": (3,)})
    tx = store_state(optax.adam(LR), nu=codecs.uint8())
    state = tx.init(params)
    assert optax.tree.get(state, "nu")["w"].dtype == jnp.uint8
    assert optax.tree.get(state, "nu")["b"].dtype == jnp.float32
    assert optax.tree.get(state, "mu")["w"].dtype == jnp.float32
    other = store_state(optax.adam(LR), nu=codecs.dynamic8(signed=False))
    with pytest.raises(TypeError, match=r"the optimiser keeps nu as dynamic8 unsigned\(block=256\), nu_scale"):
        other.update(params, state, params)
    more = store_state(optax.adam(LR), "8bit", min_size=0).init(params)
    with pytest.raises(
        TypeError, match=r"this state holds .*mu as int8\(block=256\).* the optimiser keeps nu as uint8"
    ):
        tx.update(params, more, params)
    with pytest.raises(ValueError, match="there is no field 'm' to store"):
        store_state(optax.adam(LR), m=codecs.int8()).init(params)


def test_a_plan_of_another_librarys_method_counts_the_bytes_of_its_stored_fields():
    params = leaves(0, "float32", {"w": (64, 256), "b": (3,)})
    tx = store_state(optax.adam(LR), "8bit")
    plan, state = store_state.plan(tx, params), tx.init(params)
    fields = [optax.tree.get(state, name) for name in ("mu", "nu")] + [state.beside[f"{n}_scale"] for n in ("mu", "nu")]
    assert plan.state_bytes == size_of(fields)
    assert {row.leaf: row.kept["nu"] for row in plan.rows} == {"b": "float32", "w": "uint8(block=256)"}
    seven = store_state.plan(adamx.seven_bytes(optax.adam(LR)), jax.tree.map(jnp.bfloat16, params))
    w = next(row for row in seven.rows if row.leaf == "w")
    assert (w.before, w.after) == (8 * w.parameter // 2, (3 + 8 / 256) * w.parameter // 2)


# Sentences


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: store_state(adamx.adam, "8bit"), TypeError, "call it to make one"),
        (lambda: store_state(adamx.adam(LR)), ValueError, "store_state needs a preset or a moment"),
        (lambda: store_state(adamx.adam(LR), "7bit"), ValueError, "there is no preset '7bit'"),
        (lambda: store_state(adamx.adam(LR), codecs.int8()), ValueError, "codecs go by name, as in mu=int8"),
        (lambda: store_state(optax.adan(LR), m=codecs.uint8()).init(jnp.ones(3)), ValueError, "but m may have some"),
        (lambda: store_state(adamx.adam(LR), xi=codecs.int8()), ValueError, "there is no moment 'xi' to store"),
        (lambda: store_state(adamx.adam(LR), mu=codecs.uint8()), ValueError, "keeps no number below zero, but mu has"),
        (lambda: store_state(adamx.adam(LR), mu=codecs.uint4()), ValueError, "keeps no number below zero, but mu has"),
        (lambda: store_state(adamx.adam(LR), mu=codecs.reduced(projections.factored())),
         ValueError, "keeps no number below zero, but mu has"),
        (lambda: store_state(adamx.adam(LR), mu=codecs.int8), TypeError, "mu must be stored by a codec"),
        (lambda: store_state(adamx.adam(LR), mu=codecs.split8()), TypeError, "mu must be stored by a codec"),
        (lambda: store_state(adamx.adam(LR), mu="int7"), TypeError, "mu must be stored by a codec"),
        (lambda: store_state(adamx.adam(LR), "8bit", min_size=-1), ValueError, "min_size"),
        (lambda: store_state(adamx.adam(LR), "8bit", tile=0), ValueError, "tile"),
        (lambda: store_state(adamx.adam(LR), "8bit", seed=2**32), ValueError, "seed must be below 2"),
        (lambda: store_state(store_state(adamx.adam(LR), "8bit"), "4bit"), ValueError, "is stored already"),
        (lambda: store_state(adamx.skip_nonfinite(adamx.adam(LR)), "8bit"), TypeError, "wrappers stand around it"),
        (lambda: store_state.plan(optax.adam(LR), {}), TypeError, "is not known"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused_in_a_sentence(call, error, says):
    with pytest.raises(error, match=says) as caught:
        call()
    assert str(caught.value).endswith((".", "..."))
    assert "\n" not in str(caught.value)


def test_a_state_of_other_shapes_is_refused_in_a_sentence():
    tx = stored(adamx.adamw(LR), "8bit", min_size=0)
    state = tx.init(leaves(0, "float32", {"w": (8, 64)}))
    other = leaves(0, "float32", {"w": (8, 32)})
    with pytest.raises(ValueError, match="leaf 'w' has a gradient of shape"):
        tx.update(other, state, other)
