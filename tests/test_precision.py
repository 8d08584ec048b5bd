"""Parameters in bfloat16 and float16: no step is lost, and `optax.apply_updates` lands where it should, bit for bit."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import adamx
from adamx import codecs

TINY = np.float32(2.0**-126)
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
PRECISIONS = {
    "nearest": codecs.nearest,
    "stochastic": codecs.stochastic,
    "kahan": codecs.kahan,
    "split8": codecs.split8,
    "split8-stochastic": lambda: codecs.split8(stochastic=True),
    "split16": codecs.split16,
    "master": codecs.master,
}
each_precision = pytest.mark.parametrize("name", PRECISIONS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def bits(x):
    x = np.asarray(x)
    return x.view(f"u{x.dtype.itemsize}")


def same_bits(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(bits(a), bits(b))


def is_nan(pattern, dtype):
    return np.isnan(pattern.view(dtype).astype(np.float32))


@cache
def landing(name):
    """Two programs: `optax.apply_updates` of one update of a chain that does nothing, and its step."""
    tx = adamx.store_params(adamx.chain(), PRECISIONS[name](), tile=2**30)

    @jax.jit
    def by_update(p, u, state):
        updates, after = tx.update(u, state, p)
        return optax.apply_updates(p, updates), after

    return tx, by_update, jax.jit(lambda p, u, state: tx.step(u, state, p))


def all_finite(dtype):
    """Every finite number of a dtype of 16 bits: both zeros and all subnormal ones too."""
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    return every[np.isfinite(every.astype(np.float32))]


def updates_for(p, times, seed):
    """Updates of every size: near p and its spacing, and any float32 whose sum with p does not overflow by rounding."""
    rng = np.random.default_rng(seed)
    many = np.repeat(p, times)
    with np.errstate(over="ignore"):
        scaled = np.abs(many.astype(np.float32)) * np.exp2(rng.uniform(-14, 6, many.size)).astype(np.float32)
    scaled = np.where(rng.random(many.size) < 0.5, scaled, -scaled).astype(np.float32)
    free = rng.integers(0, 2**32, many.size, dtype=np.uint32).view(np.float32)
    u = np.where(rng.random(many.size) < 0.5, scaled, free)
    return many, np.where(np.isfinite(u) & (np.abs(u) < 2.0**127), u, np.float32(0)).astype(np.float32)


def flushed(x, least=TINY):
    return np.where(np.abs(x) < least, np.float32(0), x)


def nearest_of(x, dtype):
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def exact_sum(p, u):
    """Of float32 numbers as the CPU adds: what is below 2^-126 is zero, -0 too, and what comes out below 2^-118."""
    with np.errstate(over="ignore"):
        return flushed(flushed(p) + flushed(u), np.float32(2.0**-118)) + np.float32(0)


def half_away(x, dtype):
    """To nearest with ties away from zero, by float32's bits (bfloat16)."""
    return ((x.view(np.uint32) + np.uint32(0x8000)) >> 16).astype(np.uint16).view(dtype)


def visible(name, x, dtype):
    """The number of dtype that the parameter x is seen as, where it is not up to chance."""
    if not name.startswith("split"):
        return nearest_of(x, dtype)
    if dtype == DTYPES["bfloat16"]:
        return half_away(sixteen_bits(x) if name == "split8" else x, dtype)
    places = 16 if name == "split16" else 8
    counts, near, above = counted(x, dtype, places)
    return np.where(np.rint(counts) == 2 ** (places - 1), above, near)


def counted(x, dtype, places):
    """How far x is from the nearest number of dtype, in 2^-places of the spacing; that number, and the next above."""
    near = nearest_of(x, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        unit = np.spacing(np.abs(near)).astype(np.float64)
        counts = (x.astype(np.float64) - near.astype(np.float64)) / unit * 2**places
        return counts, near, np.nextafter(near, dtype.type(np.inf))


def sixteen_bits(x):
    """To nearest, ties to even, by float32's bits."""
    whole = x.view(np.uint32).astype(np.uint64)
    return ((whole + 0x7F + ((whole >> 8) & 1)) & ~np.uint64(0xFF)).astype(np.uint32).view(np.float32)


def assert_lands(name, dtype, times, chunk=2**22):
    dtype = DTYPES[dtype]
    tx, by_update, by_step = landing(name)
    every = all_finite(dtype)
    rows = max(chunk // times, 1)
    every = np.concatenate([every, np.zeros(-len(every) % rows, dtype)])
    for start in range(0, len(every), rows):
        p, u = updates_for(every[start : start + rows], times, seed=start)
        state = tx.init(jnp.asarray(p))
        got, _ = by_update(jnp.asarray(p), jnp.asarray(u), state)
        stepped, _ = by_step(jnp.asarray(p), jnp.asarray(u), state)
        got, stepped = np.asarray(got), np.asarray(stepped)
        bad = np.flatnonzero((bits(got) != bits(stepped)) & ~is_nan(got, dtype))
        assert bad.size == 0, (bad.size, p[bad[:3]], u[bad[:3]], got[bad[:3]], stepped[bad[:3]])
        x = exact_sum(p.astype(np.float32), u)
        if name == "split8-stochastic":  # what is nearest to one of the two neighbours in 16 bits
            if dtype == jnp.bfloat16:
                low = bits(x).astype(np.int64) & ~0xFF
                ways = [half_away(np.uint32(low + up).view(np.float32), dtype) for up in (0, 0x100)]
            else:  # the nearest, or the one above where half a spacing, which is one count too many, may be reached
                counts, near, above = counted(x, dtype, 8)
                ways = [near, np.where(np.ceil(counts) == 2**7, above, near)]
            assert (np.logical_or(got == ways[0], got == ways[1]) | ~np.isfinite(x)).all()
            continue
        if name == "stochastic":
            near = nearest_of(x, dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                ways = [near, *(np.nextafter(near, dtype.type(s * np.inf)) for s in (1, -1))]
            assert np.logical_or.reduce([got == w for w in ways]).all()
            exact = near.astype(np.float32) == x
            assert (got == near)[exact].all()
            continue
        want = visible(name, x, dtype)
        bad = np.flatnonzero(got != want)
        assert bad.size == 0, (bad.size, p[bad[:3]], u[bad[:3]], got[bad[:3]], want[bad[:3]])


@each_precision
def test_apply_updates_lands_on_the_next_parameter_from_every_bfloat16(name):
    """65280 numbers, 16 updates each; what the update lands on is what `step` computes and what NumPy says."""
    assert_lands(name, "bfloat16", 16, 2**20)


@pytest.mark.slow
@each_precision
def test_apply_updates_lands_from_every_bfloat16_and_1024_updates_each(name):
    assert_lands(name, "bfloat16", 2**10)


@pytest.mark.thin(default=3)
@each_precision
def test_apply_updates_lands_on_the_next_parameter_from_every_float16(name):
    assert_lands(name, "float16", 16, 2**20)


def test_the_seed_of_each_storage_counts():
    """Of the moments and of the parameters, whichever is larger; the default of both changes nothing."""

    def landed(moments, parameters):
        stored = adamx.store_state(adamx.adam(1e-2), mu=codecs.bfloat16(stochastic=True), seed=moments, min_size=0)
        tx = adamx.store_params(stored, codecs.stochastic(), seed=parameters)
        p = jnp.linspace(0.1, 1, 4096).astype(jnp.bfloat16)
        p, state = jax.jit(tx.step)(p, tx.init(p), p)
        return bits(np.asarray(p)).tobytes(), bits(np.asarray(state.moments["mu"])).tobytes()

    ways = {(m, p): landed(m, p) for m in (0, 7) for p in (0, 3, 4)}
    assert len({of[0] for of in ways.values()}) == len({of[1] for of in ways.values()}) == len(ways)
    assert landed(7, 3) == ways[7, 3]


@pytest.mark.thin(default=2)
@pytest.mark.parametrize("name", ["kahan", "split8", "split8-stochastic", "split16", "master"])
@each_dtype
def test_apply_updates_lands_too_where_something_lies_beside_the_parameter(name, dtype):
    """From states that earlier steps left: three steps of 2^18 parameters, update beside step, all bits the same."""
    tx, by_update, by_step = landing(name)
    rng = np.random.default_rng(0)
    p = (rng.standard_normal(2**18) * np.exp2(rng.uniform(-10, 10, 2**18))).astype(DTYPES[dtype])
    first = second = (jnp.asarray(p), tx.init(jnp.asarray(p)))
    for seed in range(3):
        _, u = updates_for(np.asarray(first[0]), 1, seed)
        u = np.where(np.abs(u) < 1e4, u, np.float32(1e-3))
        first, second = (f(x[0], jnp.asarray(u), x[1]) for f, x in ((by_update, first), (by_step, second)))
        assert np.isfinite(np.asarray(first[0], np.float32)).mean() > 0.99
        same_bits(first, second)


def patterns(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, n, dtype=np.uint32).view(np.float32)


@cache
def there_and_back(name, dtype):
    precision = PRECISIONS[name]()

    def f(x):
        near, beside = precision.encode(x, jnp.dtype(dtype), lambda: jnp.uint32(0))
        p = near.astype(dtype)
        return p, precision.decode(p, beside), precision.encode(precision.decode(p, beside), p.dtype, None)[0]

    return jax.jit(f)


def assert_split16_is_lossless(rounds):
    for seed in range(rounds):
        x = patterns(2**22, seed)
        p, back, _ = (np.asarray(v) for v in there_and_back("split16", "bfloat16")(x))
        nan = np.isnan(x)
        np.testing.assert_array_equal(bits(back)[~nan], bits(x)[~nan])
        assert np.isnan(back[nan]).all()
        np.testing.assert_array_equal(bits(p)[~nan], bits(half_away(x, DTYPES["bfloat16"]))[~nan])
        assert np.isnan(p[nan].astype(np.float32)).all()


def test_bfloat16_and_sixteen_bits_are_float32():
    assert_split16_is_lossless(1)


@pytest.mark.slow
def test_bfloat16_and_sixteen_bits_are_float32_over_a_sixteenth_of_all_patterns():
    assert_split16_is_lossless(64)


def test_float16_and_sixteen_bits_are_float32_from_the_smallest_normal_number_to_the_largest():
    """Where float16 has 11 bits, 13 of float32 are missing; below, spacings are 2^-24 and 16 bits more are 2^-40."""
    x = np.concatenate([patterns(2**22), np.random.default_rng(1).standard_normal(2**20).astype(np.float32)])
    p, back, _ = (np.asarray(v) for v in there_and_back("split16", "float16")(x))
    size = np.abs(x)
    normal = (size >= 2.0**-14) & (size <= 65504)
    assert normal.sum() > 2**20
    np.testing.assert_array_equal(bits(back)[normal], bits(x)[normal])
    near = nearest_of(x, np.dtype(np.float16))
    with np.errstate(invalid="ignore", over="ignore"):
        tie = np.abs(near.astype(np.float64) - x) * 2 == np.spacing(np.abs(near)).astype(np.float64)
    np.testing.assert_array_equal(p[normal & ~tie], near[normal & ~tie])
    small = size < 2.0**-14
    assert (np.abs(back[small].astype(np.float64) - x[small]) <= 2.0**-41).all()
    assert np.isinf(back[(size >= 65520) & ~np.isnan(x)]).all()


# The most that what is kept may be off, relative to it: half of what the last kept bit is worth, of 8 + 8 or 11 + 8.
OFF = {
    ("kahan", "bfloat16"): 2.0**-16,
    ("split8", "bfloat16"): 2.0**-16,
    ("kahan", "float16"): 2.0**-22,
    ("split8", "float16"): 2.0**-19,
    ("nearest", "bfloat16"): 2.0**-8,
    ("nearest", "float16"): 2.0**-11,
    ("stochastic", "bfloat16"): 2.0**-7,
    ("stochastic", "float16"): 2.0**-10,
    ("split16", "bfloat16"): 0,
    ("split16", "float16"): 0,
    ("master", "bfloat16"): 0,
    ("master", "float16"): 0,
}


@pytest.mark.thin(default=2)
@each_dtype
@each_precision
def test_a_run_starts_from_float32_and_ends_in_it_within_what_its_precision_keeps(name, dtype):
    normal = np.random.default_rng(0).standard_normal
    params = {"w": jnp.asarray(normal((40, 50)), jnp.float32), "whole": jnp.arange(3), "kept": jnp.full(2, np.pi)}
    params |= {"s": jnp.float32(np.e)}
    tx = adamx.store_params(adamx.adam(1e-3), PRECISIONS[name]())
    near, state = adamx.split_params(tx, params, dtype, keep="kept")
    assert jax.tree.map(lambda x: x.dtype.name, near) == {"w": dtype, "s": dtype, "whole": "int32", "kept": "float32"}
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(near))
    back = adamx.full_params(state, near)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, params)
    same_bits([back["whole"], back["kept"]], [params["whole"], params["kept"]])
    off = OFF[name.removesuffix("-stochastic"), dtype] * (2 if name == "split8-stochastic" else 1)
    # Below 6.1e-5 numbers of float16 are evenly spaced, and what Kahan keeps is one of them.
    least = 0 if dtype == "bfloat16" else 2.0**-25 if name == "kahan" else 2.0**-13 * off
    for leaf in ("w", "s"):
        far = np.abs(np.asarray(back[leaf], np.float64) - np.asarray(params[leaf]))
        assert (far <= np.maximum(off * np.abs(np.asarray(params[leaf])), least)).all()
    updates, state = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, near), state, near)
    after = optax.apply_updates(near, updates)
    same_bits(back, adamx.full_params(state, after))  # a step of zero moves nothing
    if name != "kahan":  # where what is missing rounds to half a spacing, Kahan's may be added to either neighbour
        same_bits(near, after)


def test_a_state_inside_others_gives_its_parameters_back():
    params = {"w": jnp.asarray(np.random.default_rng(0).standard_normal(100), jnp.float32)}
    tx = optax.chain(optax.clip(1.0), adamx.skip_nonfinite(adamx.store_params(adamx.adam(1e-3), codecs.split16())))
    near, state = adamx.split_params(tx, params)
    same_bits(adamx.full_params(state, near), params)


@pytest.mark.parametrize("name", ["nearest", "kahan", "split8", "split16", "master"])
def test_the_smallest_step_survives_from_every_parameter_and_nothing_much_smaller_from_some(name):
    """For bfloat16, up and down, from numbers that it keeps and that are somewhere between visible ones."""
    precision = PRECISIONS[name]()
    x = np.random.default_rng(0).uniform(1, 2, 1000).astype(np.float32)
    x = np.asarray(there_and_back(name, "bfloat16")(x)[1]).astype(np.float64)

    def survives(share):
        moved = []
        for sign in (1, -1):
            _, back, _ = there_and_back(name, "bfloat16")(np.float32(x * (1 + sign * share * precision.smallest_step)))
            moved.append(np.asarray(back) != x)
        return np.concatenate(moved)

    assert survives(1.01).all()
    assert not survives(0.45).all()  # the spacing of numbers just below 2 is half that of 1, relative to them


def hundred(tx, p, g):
    """The parameters after a hundred steps in one program."""

    def step(carry, _):
        updates, state = tx.update(g, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=100)[0])(p)


@pytest.mark.thin(default=2)
@each_dtype
@each_precision
def test_a_hundred_steps_below_the_spacing_move_all_but_nearest(name, dtype):
    """From 1 down by 100 steps of a fortieth of the spacing below 1, each a number of float32 that rounds in no sum."""
    step = {"bfloat16": 1678 * 2.0**-24, "float16": 205 * 2.0**-24}[dtype]
    tx = adamx.store_params(adamx.sgd(step), PRECISIONS[name]())
    p, state = hundred(tx, jnp.ones(4096, dtype), jnp.ones(4096, jnp.float32))
    if name == "nearest":
        same_bits(p, jnp.ones(4096, dtype))
        return
    full = np.asarray(adamx.full_params(state, p), np.float64)
    spacing = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    if name == "stochastic":
        up = step / spacing
        standard_error = spacing * np.sqrt(100 * up * (1 - up) / 4096)
        assert abs(full.mean() - (1 - 100 * step)) < 4 * standard_error
        assert full.std() > 0
    elif name == "split8-stochastic":
        # Each of the 100 is rounded by chance to a 256th of the spacing, which adds at most a quarter of its square.
        assert abs(full.mean() - (1 - 100 * step)) < 4 * spacing / 256 * np.sqrt(100 / 4 / 4096)
    else:
        # Each may round by half of what the last kept bit is worth, all in one direction.
        last = {"kahan": 2.0**-9, "split8": 2.0**-8, "split16": 2.0**-16, "master": 2.0**-16}[name] * spacing
        assert np.abs(full - (1 - 100 * step)).max() <= 100 * max(last / 2, 2.0**-25)
    moved = np.asarray(p, np.float64)
    assert np.abs(moved - full).max() <= spacing / 2


def leaves(seed, dtype=jnp.float32):
    normal = np.random.default_rng(seed).standard_normal
    return {"w": jnp.asarray(normal((4, 6)), dtype), "b": jnp.asarray(normal(6), dtype)}


def test_adamw_on_bfloat16_and_sixteen_bits_is_float32_adamw_to_the_bit_op_by_op():
    """Compiled programs contract multiply-adds as they see fit; operation by operation there is one result."""
    make = lambda: adamx.adamw(1e-3, weight_decay=0.1)
    full, tx = leaves(0), make()
    stored = adamx.store_params(make(), codecs.split16())
    with jax.disable_jit():
        near, near_state = adamx.split_params(stored, full)
        state = tx.init(full)
        for seed in range(1, 21):
            g = leaves(seed)
            updates, state = tx.update(g, state, full)
            full = optax.apply_updates(full, updates)
            updates, near_state = stored.update(g, near_state, near)
            near = optax.apply_updates(near, updates)
            same_bits(adamx.full_params(near_state, near), full)
            same_bits(near, jax.tree.map(lambda x: jnp.asarray(half_away(np.asarray(x), DTYPES["bfloat16"])), full))
        same_bits({k: near_state.moments[k] for k in ("mu", "nu")}, state.moments)


# Inside and around others


def trained(tx, dtype="bfloat16", steps=4, apply=optax.apply_updates):
    """Parameters and state after some jitted steps."""
    p = leaves(0, dtype)
    state = tx.init(p)

    @jax.jit
    def step(p, state, g):
        updates, state = tx.update(g, state, p)
        return apply(p, updates), state

    for seed in range(1, steps + 1):
        p, state = step(p, state, leaves(seed, dtype))
    assert step._cache_size() == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(state, jax.eval_shape(tx.init, p))
    return p, state


@pytest.mark.thin(default=2)
@each_dtype
@each_precision
def test_another_librarys_method_is_stored_like_ones_own(name, dtype):
    """optax's AdamW sees float32 parameters and gradients, and ends where its float32 run does, to what is kept."""
    p, state = trained(adamx.store_params(optax.adamw(0.01), PRECISIONS[name]()), dtype)
    full = jax.tree.map(lambda x: x.astype(jnp.float32), leaves(0, dtype))
    alone = optax.adamw(0.01)
    inner = alone.init(full)
    for seed in range(1, 5):
        updates, inner = jax.jit(alone.update)(
            jax.tree.map(lambda x: x.astype(jnp.float32), leaves(seed, dtype)), inner, full
        )
        full = optax.apply_updates(full, updates)
    # Four roundings of the visible parameter, of up to its spacing each; numbers here are below 4.
    spacing = {"bfloat16": 2.0**-6, "float16": 2.0**-9}[dtype]
    coarse = {"nearest": 1, "stochastic": 1, "kahan": 2.0**-8, "split16": 2.0**-16, "master": 0}.get(name, 2.0**-8)
    # and of the direction, which weight decay takes from the parameter: four ulps of float32
    back = adamx.full_params(state, p)
    chex.assert_trees_all_close(back, full, rtol=0, atol=4 * coarse * spacing + 4 * 2.0**-23)


SURROUNDED = {
    "optax.chain": lambda tx: optax.chain(optax.identity(), tx),
    "adamx.chain": lambda tx: adamx.chain(optax.identity(), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "skip_nonfinite": adamx.skip_nonfinite,
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": True}),
    "partition": lambda tx: optax.partition({"all": tx}, {"w": "all", "b": "all"}),
    "named_chain": lambda tx: optax.named_chain(("stored", tx)),
}


@pytest.mark.thin(default=2)
@pytest.mark.parametrize("around", SURROUNDED.values(), ids=SURROUNDED)
@pytest.mark.parametrize("name", ["split8", "stochastic"])
def test_what_stands_around_it_changes_no_bit(name, around):
    make = lambda: adamx.store_params(adamx.adamw(0.01), PRECISIONS[name]())
    expected, _ = trained(make())
    got, state = trained(around(make()))
    same_bits(got, expected)
    adamx.full_params(state, got)


def test_it_counts_the_gradients_of_a_step_inside_multisteps():
    """Two equal gradients are one step of it; in between nothing moves."""
    tx = optax.MultiSteps(adamx.store_params(adamx.sgd(1e-3), codecs.split8()), 2).gradient_transformation()
    p = leaves(0, jnp.bfloat16)
    state, step = tx.init(p), jax.jit(tx.update)
    plain = adamx.store_params(adamx.sgd(1e-3), codecs.split8())
    want, plain_state = p, plain.init(p)
    for seed in (1, 2, 3):
        for last in (False, True):
            before = p
            updates, state = step(leaves(seed, jnp.bfloat16), state, p)
            p = optax.apply_updates(p, updates)
            if not last:
                same_bits(p, before)
        updates, plain_state = jax.jit(plain.update)(leaves(seed, jnp.bfloat16), plain_state, want)
        want = optax.apply_updates(want, updates)
        same_bits(p, want)


def test_a_skipped_step_moves_no_bit_of_the_parameter_or_of_what_lies_beside():
    tx = adamx.skip_nonfinite(adamx.store_params(adamx.adam(1e-2), codecs.split8(stochastic=True)))
    p, state = trained(tx)
    updates, after = jax.jit(tx.update)(leaves(9, jnp.bfloat16) | {"b": jnp.full(6, jnp.nan, jnp.bfloat16)}, state, p)
    same_bits(optax.apply_updates(p, updates), p)
    same_bits(adamx.full_params(after, p), adamx.full_params(state, p))


def test_float16_training_with_a_loss_scale_lands_where_unscaled_gradients_land():
    """A scale is a power of two, so that it changes no bit of these gradients."""
    make = lambda: adamx.store_params(adamx.adamw(0.01), codecs.split8())
    plain, scaled = make(), adamx.loss_scaling(make(), init_scale=2.0**4)
    p = want = leaves(0, jnp.float16)
    state, plain_state = scaled.init(p), plain.init(want)
    update, plain_update = jax.jit(scaled.update), jax.jit(plain.update)
    for seed in (1, 2, 3):
        g = leaves(seed, jnp.float16)
        scale = adamx.loss_scale(state).astype(jnp.float16)
        updates, state = update(jax.tree.map(lambda x, scale=scale: x * scale, g), state, p)
        p = optax.apply_updates(p, updates)
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), g)
        updates, plain_state = plain_update(wide, plain_state, want)
        want = optax.apply_updates(want, updates)
    same_bits(p, want)
    updates, _ = update(jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), p), state, p)
    same_bits(optax.apply_updates(p, updates), p)


def test_nnx_and_train_state_train_the_visible_parameters():
    make = lambda: adamx.store_params(adamx.adamw(0.01), codecs.split8())
    model = nnx.Linear(4, 6, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    start = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    start = jax.tree.map(jnp.copy, start)
    optimizer = nnx.Optimizer(model, make(), wrt=nnx.Param)
    trainer = TrainState.create(apply_fn=None, params=start, tx=make())
    tx, p = make(), start
    state = tx.init(p)

    @nnx.jit
    def step(model, optimizer, g):
        grads = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(grads, g)
        optimizer.update(model, grads)

    for seed in (1, 2, 3):
        normal = np.random.default_rng(seed).standard_normal
        g = jax.tree.map(lambda x, normal=normal: jnp.asarray(normal(x.shape), x.dtype), start)
        step(model, optimizer, g)
        trainer = jax.jit(lambda t, g: t.apply_gradients(grads=g))(trainer, g)
        updates, state = jax.jit(tx.update)(g, state, p)
        p = optax.apply_updates(p, updates)
    same_bits(nnx.to_pure_dict(nnx.state(model, nnx.Param)), p)
    same_bits(trainer.params, p)
    assert trainer.opt_state.moments["residue_int8"]["kernel"].dtype == jnp.int8


def test_scalars_empty_leaves_and_other_dtypes_are_carried_along():
    for name in ("stochastic", "kahan", "split8"):
        make = PRECISIONS[name]
        params = {
            "scalar": jnp.asarray(1.5, jnp.bfloat16),
            "empty": jnp.zeros((0, 3), jnp.bfloat16),
            "float32": jnp.ones(3),
            "half": jnp.ones(5, jnp.float16),
            "integer": jnp.arange(3),
            "none": None,
        }
        tx = adamx.store_params(adamx.adam(0.1), make())
        state = tx.init(params)
        grads = params | {"integer": np.zeros(3, jax.dtypes.float0)}
        updates, after = jax.jit(lambda s, tx=tx, p=params, g=grads: tx.update(g, s, p))(state)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        new = optax.apply_updates(params, updates)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, params)
        assert new["scalar"] != params["scalar"], name
        np.testing.assert_array_equal(new["integer"], params["integer"])


# Nothing is lost to excess precision


def step_of(tx):
    def step(p, state, g):
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    return step


@pytest.mark.thin(default=2)
@each_dtype
@each_precision
def test_two_steps_in_one_program_are_two_programs_of_one_step(name, dtype):
    """An unrounded parameter that a compiler kept in float32 between the two would land elsewhere.

    SGD, whose product with a power of two is exact: there is no sum that could be contracted otherwise.
    """
    tx = adamx.store_params(adamx.sgd(2.0**-12), PRECISIONS[name]())
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.standard_normal((64, 64)), dtype)
    g1, g2 = (jnp.asarray(rng.standard_normal((64, 64)), dtype) for _ in range(2))
    step = step_of(tx)
    together = jax.jit(lambda p, s, g1, g2: step(*step(p, s, g1), g2))(p, tx.init(p), g1, g2)
    one = jax.jit(step)
    same_bits(together, one(*one(p, tx.init(p), g1), g2))
    stepped = jax.jit(lambda p, s, g: tx.step(g, s, p))
    same_bits(stepped(*stepped(p, tx.init(p), g1), g2), together)


@pytest.mark.thin(default=2)
@pytest.mark.parametrize(
    "codec",
    [codecs.bfloat16(), codecs.bfloat16(stochastic=True), codecs.float16(), codecs.float8_e4m3fn(), codecs.int8(),
     codecs.int4()],
    ids=lambda codec: codec.name,
)  # fmt: skip
def test_two_steps_of_stored_moments_in_one_program_are_two_programs_of_one_step(codec):
    """A moment that a compiler kept unrounded between the two would go on otherwise; an average by halves is exact."""
    links = adamx.chain(adamx.scale_by_moments(mu=adamx.ema(0.5)), adamx.scale_by_lr(2.0**-6))
    tx, rng = adamx.store_state(links, mu=codec, min_size=0), np.random.default_rng(0)
    p, g1, g2 = (jnp.asarray(rng.standard_normal((64, 256)), jnp.float32) for _ in range(3))
    step = lambda s, g: tx.update(g, s, p)[1]
    together = jax.jit(lambda s, g1, g2: step(step(s, g1), g2))(tx.init(p), g1, g2)
    one = jax.jit(step)
    same_bits(one(one(tx.init(p), g1), g2), together)


ROUNDS = {  # what the lowered program must hold for bfloat16
    "nearest": "reduce_precision",
    "kahan": "reduce_precision",
    "master": "reduce_precision",
    "stochastic": "and",
    "split8": "and",
    "split16": "and",
}


@pytest.mark.parametrize("name", ROUNDS)
def test_the_rounding_is_in_the_program_of_every_platform(name):
    """As an operation of its own or in integers (a mask of the upper half), which no compiler may take out."""
    tx = adamx.store_params(adamx.adamw(0.01), PRECISIONS[name]())
    p = jnp.ones((16, 16), jnp.bfloat16)
    traced = jax.jit(step_of(tx)).trace(*jax.eval_shape(lambda: (p, tx.init(p), p)))
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        if ROUNDS[name] == "and":
            assert "stablehlo.and" in text
            assert "bitcast_convert" in text
            assert any(mask in text for mask in ("dense<-65536>", "dense<4294901760>"))
        else:
            assert "stablehlo.reduce_precision" in text
            assert "e8m7" in text
    compiled = traced.lower().compile().as_text()
    if ROUNDS[name] == "and":
        assert "and(" in compiled
        assert "65536" in compiled or "4294901760" in compiled
    else:
        assert "reduce-precision(" in compiled
        assert "exponent_bits=8, mantissa_bits=7" in compiled


def test_a_pair_of_casts_would_not_be_found_there():
    """The control of the test above."""
    text = jax.jit(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32)).lower(jnp.ones(3)).as_text()
    assert "reduce_precision" not in text


# Sentences


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: adamx.chain(adamx.store_params(adamx.sgd(1.0), codecs.split8()), adamx.clip(1.0)),
         ValueError, "store_params must come last"),
        (lambda: adamx.store_params(adamx.store_params(adamx.sgd(1.0), codecs.split8()), codecs.split16()),
         ValueError, "store_params must come last"),
        (lambda: adamx.store_params(adamx.sgd(1.0), codecs.int8()), TypeError, "moments are store_state's"),
        (lambda: adamx.store_params(adamx.sgd(1.0), codecs.split8), TypeError, "precision must be one such as"),
        (lambda: adamx.store_params(adamx.sgd, codecs.split8()), TypeError, "call it to make one"),
        (lambda: adamx.store_params(adamx.sgd(1.0), codecs.split8(), seed=-1), ValueError, "seed"),
        (lambda: adamx.store_params(adamx.sgd(1.0), codecs.split8(), seed=2**32), ValueError, "seed must be below"),
        (lambda: adamx.store_params(adamx.sgd(1.0), codecs.split8(), tile=0), ValueError, "tile"),
        (lambda: adamx.split_params(adamx.store_params(adamx.sgd(1.0), codecs.split8()), {}, jnp.float32),
         ValueError, "dtype must be jnp.bfloat16 or jnp.float16, but is <class 'jax.numpy.float32'>."),
        (lambda: adamx.split_params(adamx.store_params(adamx.sgd(1.0), codecs.split8()), {}, "bf16"),
         ValueError, "dtype must be jnp.bfloat16 or jnp.float16, but is 'bf16'."),
        (lambda: adamx.split_params(adamx.sgd(1.0), {}), ValueError, "there is none in this transformation"),
        (lambda: adamx.split_params(None, {}), TypeError, "split_params takes gradient transformations, but got None"),
        (lambda: adamx.split_params(adamx.seven_bytes(adamx.sgd(1.0)), {"w": np.ones(2), "v": np.float32(1)}),
         ValueError, "splits float32 parameters, but w is float64: cast"),
        (lambda: adamx.full_params(adamx.adam(1.0).init(jnp.ones(2)), jnp.ones(2)),
         ValueError, "reads a state of store_params, and there is none in this one"),
        (lambda: adamx.full_params(jnp.ones(2), adamx.seven_bytes(adamx.sgd(1.0)).init(jnp.ones(2))),
         ValueError, "reads a state of store_params, and there is none in this one"),
        (lambda: adamx.cautious(adamx.seven_bytes(adamx.sgd(1.0))), ValueError, "store_params must come last"),
        (lambda: adamx.galore(adamx.seven_bytes(adamx.sgd(1.0))), ValueError, "store_params must come last"),
        (lambda: adamx.chain(adamx.seven_bytes(adamx.sgd(1.0)), optax.scale(0.5)),
         ValueError, "store_params must come last"),
        (lambda: adamx.lookahead(adamx.loss_scaling(adamx.seven_bytes(adamx.sgd(1.0)))),
         ValueError, "store_params must come last"),
        (lambda: adamx.cautious(adamx.watch(adamx.store_params(optax.sgd(1.0), codecs.split8()))),
         ValueError, "store_params must come last"),
        (lambda: adamx.store_params(adamx.chain(optax.identity(), adamx.seven_bytes(adamx.sgd(1.0))), codecs.split8()),
         ValueError, "store_params must come last"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(call, error, says):
    with pytest.raises(error, match=says) as caught:
        call()
    assert str(caught.value).endswith((".", "..."))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inner", [adamx.sgd, optax.sgd])
def test_an_update_without_parameters_is_refused_in_a_sentence(inner):
    tx = adamx.store_params(inner(1.0), codecs.split8())
    p = jnp.ones(3, jnp.bfloat16)
    with pytest.raises(ValueError, match="store_params reads the parameters: call update"):
        tx.update(p, tx.init(p))


# Entry and exit where other transformations hide leaves


def test_the_parts_of_a_partition_are_entered_and_left_each_in_its_own_way():
    parts = {"a": adamx.store_params(adamx.adam(1e-2), codecs.split16()),
             "b": adamx.store_params(adamx.sgd(1e-2), codecs.master()),
             "c": adamx.store_params(adamx.sgd(1e-2), codecs.stochastic())}  # fmt: skip
    tx = optax.partition(parts, {"w": "a", "b": "b", "v": "c"})
    start = leaves(0, jnp.float32) | {"v": jnp.ones(5)}
    p, state = adamx.split_params(tx, start)
    assert {x.dtype for x in jax.tree.leaves(p)} == {jnp.dtype(jnp.bfloat16)}
    same_bits(adamx.full_params(state, p), start)
    updates, state = jax.jit(tx.update)(p, state, p)
    p = optax.apply_updates(p, updates)
    wanted = jax.tree.map(lambda x: x - 1e-2 * x.astype(jnp.bfloat16).astype(jnp.float32), start)
    np.testing.assert_allclose(adamx.full_params(state, p)["b"], wanted["b"], rtol=1e-6)


def test_what_a_mask_hides_stays_float32():
    tx = optax.masked(adamx.seven_bytes(adamx.adam(1e-2)), {"w": True, "b": False})
    start = leaves(0, jnp.float32)
    p, state = adamx.split_params(tx, start)
    assert (p["w"].dtype, p["b"].dtype) == (jnp.bfloat16, jnp.float32)
    chex.assert_trees_all_close(adamx.full_params(state, p), start, rtol=2.0**-15)


def test_a_parameter_that_is_kept_twice_is_not_guessed_at():
    once, twice = (adamx.store_params(adamx.sgd(1.0), f()) for f in (codecs.split8, codecs.split16))
    p = {"a": jnp.ones(3, jnp.bfloat16)}
    with pytest.raises(ValueError, match="this state keeps the parameter 'a' in two ways"):
        adamx.full_params((once.init(p), twice.init(p)), p)


def test_a_state_of_other_parameters_is_refused_in_a_sentence():
    tx = adamx.store_params(adamx.sgd(1.0), codecs.split8())
    state = tx.init({"a": jnp.ones((3, 1), jnp.bfloat16)})
    with pytest.raises(ValueError, match=r"'a' has shape \(3, 2\), but its residue_int8 \(3, 1\)"):
        adamx.full_params(state, {"a": jnp.ones((3, 2), jnp.bfloat16)})
    with pytest.raises(ValueError, match="keeps residue_int8 of 1 leaves, but params has 2"):
        adamx.full_params(state, {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3)})


def test_what_a_run_starts_from_may_be_donated():
    start = {"w": jnp.ones((4, 4)), "kept": jnp.ones(3)}
    tx = adamx.store_params(adamx.adam(1e-2), codecs.master())
    p, state = adamx.split_params(tx, start, keep="kept")
    step = jax.jit(lambda p, s: tx.step(jax.tree.map(jnp.ones_like, p), s, p), donate_argnums=(0, 1))
    step(p, state)
    assert float(sum(x.sum() for x in start.values())) == 19


def test_nnx_and_train_state_start_from_a_split_too():
    model = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    start = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    tx = adamx.store_params(adamx.adamw(0.01), codecs.split16())
    params, state = adamx.split_params(tx, nnx.state(model, nnx.Param))
    started = optax.GradientTransformation(lambda _: state, tx.update)
    nnx.update(model, params)
    optimizer = nnx.Optimizer(model, started, wrt=nnx.Param)
    same_bits(nnx.to_pure_dict(adamx.full_params(optimizer.opt_state, nnx.state(model, nnx.Param))), start)
    trainer = TrainState.create(apply_fn=None, params=params, tx=started)
    same_bits(nnx.to_pure_dict(adamx.full_params(trainer.opt_state, trainer.params)), start)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    trainer = trainer.apply_gradients(grads=grads)
    same_bits(nnx.to_pure_dict(nnx.state(model, nnx.Param)), nnx.to_pure_dict(trainer.params))


def test_seven_bytes_lose_no_step_that_is_below_the_residues_last_bit():
    """Steps of 2^-18 down from 1, where 16 bits are 2^-16 apart: none would survive rounding to nearest.

    The mean of 4096 parameters after 1000 steps, within five of its standard errors.
    """
    tx = adamx.seven_bytes(adamx.sgd(2.0**-18))
    p, state = adamx.split_params(tx, {"w": jnp.ones((16, 256))})
    g = jax.tree.map(jnp.ones_like, p)
    (p, state), _ = jax.jit(
        lambda p, s: jax.lax.scan(lambda c, _: (tx.step(g, c[1], c[0]), None), (p, s), None, length=1000)
    )(p, state)
    full = np.asarray(adamx.full_params(state, p)["w"])
    error = full.std() / 64
    assert 0 < error < 1e-4
    assert abs(full.mean() - (1 - 1000 * 2.0**-18)) < 5 * error
