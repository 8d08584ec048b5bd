"""The laws of every moment codec: over random arrays, over all codes, and over all bit patterns where they are few.

Where a law has a slack, it is of float32 arithmetic: a quotient, a product, a level and its square are four roundings
of 2^-24, levels stand up to 2^-21 above their places (`codecs._over`), and the CPU reads what is below 2^-126 as zero.
"""

from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from adamx import codecs, projections
from adamx.ground import codec, numerics

TINY = 2.0**-126
ULPS = 4 * 2.0**-24 + 2.0**-21
BLOCK = 8
# By blocks of 8: every codec that has them.
BY_BLOCKS = {
    "int8": codecs.int8(BLOCK),
    "int8-linear": codecs.int8(BLOCK, companded=False),
    "uint8": codecs.uint8(BLOCK),
    "uint8-linear": codecs.uint8(BLOCK, companded=False),
    "float8_e4m3fn": codecs.float8_e4m3fn(BLOCK),
    "float8_e5m2": codecs.float8_e5m2(BLOCK),
    "dynamic8": codecs.dynamic8(BLOCK),
    "dynamic8-unsigned": codecs.dynamic8(BLOCK, signed=False),
    "int4": codecs.int4(BLOCK),
    "uint4": codecs.uint4(BLOCK),
    "uint4-zero": codecs.uint4(BLOCK, zero=True),
}
FLOATS = {
    "float32": codecs.float32(),
    "bfloat16": codecs.bfloat16(),
    "bfloat16-stochastic": codecs.bfloat16(stochastic=True),
    "float16": codecs.float16(),
}
REDUCED = {
    "factored": codecs.reduced(projections.factored()),
    "pooled": codecs.reduced(projections.pooled(-1)),
}
CODECS = BY_BLOCKS | FLOATS | REDUCED
PACKED = ("int4", "uint4", "uint4-zero")
SHAPES = [(), (1,), (8,), (19,), (2, 3, 13), (2, 1, 3, 9)]

each_codec = pytest.mark.parametrize("name", CODECS)
each_block_codec = pytest.mark.parametrize("name", BY_BLOCKS)


def seeded(shape, seed=0):
    return lambda: codec.noise(jnp.uint32([seed, 1]), shape)


@cache
def _coded(name, shape):
    c = CODECS[name]

    @jax.jit
    def f(x):
        kept = c.encode(x, seeded(shape))
        return kept, c.decode(kept, shape)

    return f


def coded(name, x):
    """What is kept of x, and what that decodes to, in NumPy; one compiled program for each codec and shape."""
    kept, back = jax.device_get(_coded(name, np.shape(x))(np.asarray(x, np.float32)))
    return kept, back


def bits(x):
    return np.asarray(x, np.float32).view(np.uint32)


def units(x, block=BLOCK):
    """The largest magnitude of each element's block, shaped like x."""
    flat = np.abs(np.atleast_1d(x))
    out = np.empty_like(flat)
    for first in range(0, flat.shape[-1], block):
        here = flat[..., first : first + block]
        out[..., first : first + block] = here.max(-1, keepdims=True)
    return out.reshape(np.shape(x))


def bound(name, x):
    """How far the decoded number may be from x, as the codec's docstring says, in float64."""
    x = np.asarray(x, np.float64)
    unit = units(x) if name in BY_BLOCKS else None
    y = np.abs(x) / np.where(unit == 0, 1, unit) if unit is not None else None
    largest = {"float8_e4m3fn": 448, "float8_e5m2": 57344}.get(name)
    # Error of the square root: e away from sqrt(y) is e (2 sqrt(y) + e) away from y.
    root = lambda e: e * (2 * np.sqrt(y) + e)
    decade = lambda: np.floor(np.log10(np.maximum(y, 1e-7) * (1 - 1e-6)))
    return {
        "float32": lambda: 0 * x,
        "bfloat16": lambda: 2.0**-8 * np.abs(x),
        "bfloat16-stochastic": lambda: 2.0**-7 * np.abs(x),
        "float16": lambda: np.maximum(np.maximum(2.0**-11 * np.abs(x), 3e-8), np.abs(x) - 65504),
        "int8": lambda: (1 + y) ** 2 / 506 * unit,
        "int8-linear": lambda: unit / 254,
        "uint8": lambda: np.where(np.sqrt(y) < 1 / 255, root(1 / 255), root(1 / 510)) * unit,
        "uint8-linear": lambda: np.where(y < 1 / 255, 1 / 255, 1 / 510) * unit,
        "float8_e4m3fn": lambda: np.maximum(2.0**-4 * np.abs(x), 2.0**-10 / largest * unit),
        "float8_e5m2": lambda: np.maximum(2.0**-3 * np.abs(x), 2.0**-17 / largest * unit),
        "dynamic8": lambda: np.maximum(0.0071 * 5.0 ** (decade() + 1), 2.8e-7) * unit,
        "dynamic8-unsigned": lambda: np.maximum(0.00355 * 5.0 ** (decade() + 1), 1.7e-7) * unit,
        "int4": lambda: np.maximum(0.1125 * 5.0 ** (decade() + 1), 2.8e-3) * unit,
        "uint4": lambda: np.where(y < 1 / 16, 1 / 16, 1 / 32) * unit,
        "uint4-zero": lambda: unit / 30,
    }[name]()


# Random arrays: any floats at all, numbers of one scale, and numbers of all decades in one array.

_SCALES = st.integers(-30, 30).map(lambda e: 10.0**e)
_NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5]),
    st.floats(-1, 1, width=32, allow_subnormal=False),
    st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False),
    st.builds(lambda m, e: m * 10.0**e, st.floats(-10, 10), st.integers(-30, 29)),
)


@st.composite
def numbers(draw, signed=True):
    shape = draw(st.sampled_from(SHAPES))
    if draw(st.booleans()):
        x = draw(hnp.arrays(np.float64, shape, elements=_NUMBERS))
    else:
        seed = draw(st.integers(0, 2**32 - 1))
        rng = np.random.default_rng(seed)
        x = draw(_SCALES) * rng.standard_normal(shape) * (rng.random(shape) > draw(st.sampled_from([0.0, 0.5])))
    x = np.asarray(x, np.float32)
    x = np.where(np.abs(x) < TINY, np.float32(0), np.clip(x, -1e30, 1e30)).astype(np.float32)
    return x if signed else np.abs(x)


def examples(n):
    return settings(max_examples=n, deadline=None, derandomize=True, database=None)


@each_codec
def test_zeros_are_kept_as_zeros(name):
    for shape in [(), (19,), (2, 3, 13), (0,), (3, 0), (0, 3)]:
        kept, back = coded(name, np.zeros(shape))
        assert back.shape == shape
        assert not back.any()
        assert all(not k.any() for k in kept.values()) or name in ("dynamic8", "int4")  # 0 is in the middle there


@each_codec
def test_what_is_kept_is_within_the_stated_bound_and_keeps_itself(name):
    """Error, idempotence and leading axes together, since each array is drawn once."""

    @examples(100)
    @given(numbers(signed=CODECS[name].signed))
    def law(x):
        kept, back = coded(name, x)
        assert back.dtype == np.float32
        assert back.shape == x.shape
        assert all(k.ndim == x.ndim for k in kept.values())
        assert all(k.shape[:-1] == x.shape[:-1] for k in kept.values() if name != "factored")
        _, twice = coded(name, back)
        if name not in REDUCED:  # means of means round otherwise
            np.testing.assert_array_equal(bits(twice), bits(back))
            far = np.abs(back.astype(np.float64) - x)
            allowed = bound(name, x) + ULPS * np.maximum(np.abs(x), np.abs(back)) + TINY
            assert (far <= allowed).all(), (x[far > allowed], back[far > allowed])

    law()


@pytest.mark.parametrize("name", REDUCED)
def test_a_mean_of_what_was_kept_of_means_is_the_same_mean(name):
    """To rounding: a mean of n numbers takes n roundings, rows over their mean and times columns two more."""
    for seed, shape in enumerate(SHAPES):
        x = np.abs(np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)
        _, once = coded(name, x)
        _, twice = coded(name, once)
        np.testing.assert_allclose(twice, once, rtol=2 * (x.size + 2) * 2.0**-24)
        axis = tuple(range(len(shape)))[-1:]
        np.testing.assert_allclose(once.mean(axis), x.mean(axis), rtol=2 * (x.size + 2) * 2.0**-24)


def test_a_factored_moment_of_a_product_of_rows_and_columns_is_that_product():
    rng = np.random.default_rng(0)
    x = rng.random((3, 5, 1)) * rng.random((3, 1, 7))
    np.testing.assert_allclose(coded("factored", x)[1], x, rtol=1e-6)  # a dozen roundings


@pytest.mark.parametrize("name", [*BY_BLOCKS, *FLOATS])
def test_leading_axes_are_kept_apart(name):
    """Row by row, what is kept is the same: nothing mixes rows, and nothing needs to talk across them."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 13)), jnp.float32)
    x = x if CODECS[name].signed else jnp.abs(x)
    row = jnp.arange(13, dtype=jnp.uint32) << 28  # the same noise in all rows
    encode = jax.jit(lambda x: CODECS[name].encode(x, lambda: jnp.broadcast_to(row, x.shape)))
    together = encode(x)
    for i, j in np.ndindex(2, 3):
        alone = encode(x[i, j])
        for part, k in together.items():
            np.testing.assert_array_equal(np.asarray(k[i, j]), np.asarray(alone[part]))


@each_codec
@pytest.mark.parametrize("shape", [(), (300,), (3, 7, 1000)])
def test_codes_and_units_have_the_stated_shapes_dtypes_and_bytes(name, shape):
    """At the default block, where a codec has one: 256, and 128 for 4 bits."""
    factory = {
        "int8": codecs.int8,
        "int8-linear": lambda: codecs.int8(companded=False),
        "uint8": codecs.uint8,
        "uint8-linear": lambda: codecs.uint8(companded=False),
        "float8_e4m3fn": codecs.float8_e4m3fn,
        "float8_e5m2": codecs.float8_e5m2,
        "dynamic8": codecs.dynamic8,
        "dynamic8-unsigned": lambda: codecs.dynamic8(signed=False),
        "int4": codecs.int4,
        "uint4": codecs.uint4,
        "uint4-zero": lambda: codecs.uint4(zero=True),
    }
    c = factory[name]() if name in factory else CODECS[name]
    kept = jax.eval_shape(lambda x: c.encode(x, seeded(shape)), jax.ShapeDtypeStruct(shape, jnp.float32))
    assert kept.keys() == c.cuts.keys()
    assert kept[""].dtype == c.dtype
    assert all(k.ndim == len(shape) for k in kept.values())
    n, rows = (shape[-1], int(np.prod(shape[:-1]))) if shape else (1, 1)
    size = sum(codec.nbytes(k) for k in kept.values())
    if name in BY_BLOCKS:
        block = 128 if name in PACKED else 256
        width = -(-n // 2) if name in PACKED else n
        assert kept[""].shape == (*shape[:-1], width)[: len(shape)]
        assert kept["scale"].shape == (*shape[:-1], -(-n // block))[: len(shape)]
        assert kept["scale"].dtype == jnp.float32
        assert size == rows * (width + 4 * -(-n // block))
    elif name in FLOATS:
        assert kept[""].shape == shape
        assert size == rows * n * (4 if name == "float32" else 2)
    elif name == "pooled" and shape:
        assert size == 4 * rows
    elif name == "factored" and len(shape) == 3:
        assert size == 4 * shape[0] * (shape[1] + shape[2])


# All codes, and all bit patterns


def all_codes(name):
    """Every code once, in one block, with unit 1."""
    c = CODECS[name]
    if name in PACKED:
        return np.arange(16, dtype=np.uint8)
    return np.arange(256, dtype=np.uint8).view(c.dtype)


def from_all_codes(c, codes, unit):
    packed = codes[0::2] | codes[1::2] << 4 if c.cuts[""] == 2 else codes
    kept = {"": jnp.asarray(packed), "scale": jnp.full((-(-len(codes) // c.cuts["scale"]),), unit, jnp.float32)}
    return np.asarray(c.decode(kept, codes.shape))


def whole_block(name):
    """The codec with one block for all of its codes."""
    kinds = {
        "int8": lambda b: codecs.int8(b),
        "int8-linear": lambda b: codecs.int8(b, companded=False),
        "uint8": lambda b: codecs.uint8(b),
        "uint8-linear": lambda b: codecs.uint8(b, companded=False),
        "float8_e4m3fn": lambda b: codecs.float8_e4m3fn(b),
        "float8_e5m2": lambda b: codecs.float8_e5m2(b),
        "dynamic8": lambda b: codecs.dynamic8(b),
        "dynamic8-unsigned": lambda b: codecs.dynamic8(b, signed=False),
        "int4": lambda b: codecs.int4(b),
        "uint4": lambda b: codecs.uint4(b),
        "uint4-zero": lambda b: codecs.uint4(b, zero=True),
    }
    return kinds[name](256)


def levels(name):
    """All numbers of a block with unit 1, by code; those of codes that encode never writes are NaN."""
    codes = all_codes(name)
    y = from_all_codes(whole_block(name), codes, 1)
    unused = ~np.isfinite(codes.astype(np.float32)) if name.startswith("float8") else codes.astype(np.float32) == -128
    return np.where(unused, np.nan, y)


@each_block_codec
@pytest.mark.parametrize(
    "unit", [0.1, pytest.param(3.7e-20, marks=pytest.mark.slow), pytest.param(1e30, marks=pytest.mark.slow)]
)
def test_every_code_is_the_code_of_its_own_number(name, unit):
    c = whole_block(name)
    codes = all_codes(name)
    used = codes[np.isfinite(levels(name))]
    used = used if len(used) % 2 == 0 else used[1:]
    numbers = from_all_codes(c, used, unit)
    back = c.encode(jnp.asarray(numbers), None)
    again = np.asarray(c.decode(back, numbers.shape))
    np.testing.assert_array_equal(again, numbers)  # -0 of float8 is 0
    got = np.asarray(back[""])
    got = np.stack([got & 15, got >> 4], -1).reshape(-1) if name in PACKED else got
    if name.startswith("float8"):
        used, got = used.astype(np.float32), got.astype(np.float32)
    np.testing.assert_array_equal(got, used)


@each_block_codec
def test_levels_are_where_the_docstring_says(name):
    y = levels(name)
    k = np.arange(256)
    signed = k.astype(np.uint8).view(np.int8) / 127.0
    says = {
        "int8": lambda: signed / (2 - np.abs(signed)),
        "int8-linear": lambda: signed,
        "uint8": lambda: (k / 255) ** 2,
        "uint8-linear": lambda: k / 255,
        "float8_e4m3fn": lambda: k.astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64) / 448,
        "float8_e5m2": lambda: k.astype(np.uint8).view(ml_dtypes.float8_e5m2).astype(np.float64) / 57344,
        "dynamic8": lambda: dynamic_map(True, 7, 8),
        "dynamic8-unsigned": lambda: dynamic_map(False, 7, 8),
        "int4": lambda: dynamic_map(True, 3, 4),
        "uint4": lambda: (k[:16] + 1) / 16,
        "uint4-zero": lambda: k[:16] / 15,
    }[name]()
    used = np.isfinite(y)
    assert used.sum() == {"int8": 255, "int8-linear": 255, "float8_e4m3fn": 254, "float8_e5m2": 248}.get(name, len(y))
    np.testing.assert_allclose(y[used], says[used], rtol=ULPS)
    assert np.nanmax(y) == 1


def dynamic_map(signed, exponent_bits, total_bits):
    """Written from arXiv:2110.02861, section 2.1, in the order of its reference code (bitsandbytes' functional.py).

    A number is a sign, zeros that count powers of ten, an indicator one, and a linear fraction in the bits that are
    left; the fraction's levels are the middles of equal parts of [0.1, 1].
    """
    data = [0.0, 1.0]
    for i in range(exponent_bits):
        free = i + (total_bits - 1) - exponent_bits
        parts = 2**free if signed else 2 ** (free + 1)
        boundaries = [0.1 + 0.9 * k / parts for k in range(parts + 1)]
        for low, high in pairwise(boundaries):
            value = 10.0 ** (i - exponent_bits + 1) * (low + high) / 2
            data += [value, -value] if signed else [value]
    assert len(data) == 2**total_bits
    return np.sort(data)


@each_block_codec
def test_the_nearest_level_is_taken(name):
    """Brute force over 2^17 numbers, and over the middles between levels to two units of the last place."""
    rng = np.random.default_rng(0)
    grid = np.sort(levels(name)[np.isfinite(levels(name))].astype(np.float64))
    middles = ((grid[1:] + grid[:-1]) / 2).astype(np.float32)
    near = [np.nextafter(middles, np.float32(s), dtype=np.float32) for s in (-2, 2)]
    logs = 10.0 ** rng.uniform(-9, 0, 2**16) * rng.choice([-1, 1], 2**16)
    x = np.concatenate([rng.uniform(-1, 1, 2**16), logs, middles, *near]).astype(np.float32)
    x = x if CODECS[name].signed else np.abs(x)
    x = np.clip(x, -1, 1)
    n = len(x) // (BLOCK - 1) * (BLOCK - 1)
    blocks = np.concatenate([np.ones((n // (BLOCK - 1), 1), np.float32), x[:n].reshape(-1, BLOCK - 1)], 1)
    back = np.asarray(CODECS[name].decode(CODECS[name].encode(jnp.asarray(blocks), None), blocks.shape))
    x, back = blocks[:, 1:].ravel().astype(np.float64), back[:, 1:].ravel().astype(np.float64)
    # Companded levels are nearest where they are evenly spaced; uint8's first level is for all that is above zero.
    wide = {
        "int8": lambda v: 2 * v / (1 + np.abs(v)),
        "uint8": np.sqrt,
    }.get(name, lambda v: v)
    where = np.searchsorted(grid, x).clip(1, len(grid) - 1)
    best = np.minimum(np.abs(wide(x) - wide(grid[where - 1])), np.abs(wide(x) - wide(grid[where])))
    far = np.abs(wide(x) - wide(back))
    lifted = (x > 0) & (back == grid[1]) if name.startswith("uint8") else np.zeros(len(x), bool)
    assert (far <= best + ULPS * (1 + np.abs(wide(x))) / 2)[~lifted].all()
    assert (x[lifted] < grid[2]).all()


def test_all_bfloat16_and_float16_patterns_keep_themselves():
    patterns = np.arange(2**16, dtype=np.uint16)
    for name, dtype in (("bfloat16", ml_dtypes.bfloat16), ("bfloat16-stochastic", ml_dtypes.bfloat16),
                        ("float16", np.float16)):  # fmt: skip
        x = patterns.view(dtype).astype(np.float32)
        kept = np.asarray(coded(name, x)[0][""])
        real = np.isfinite(x)
        same = kept.view(np.uint16) == patterns
        signless = (x == 0) & (kept == 0)  # float16's -0 becomes 0
        assert (same | signless)[real].all()
        np.testing.assert_array_equal(kept.astype(np.float32)[~real], x[~real])  # infinities and NaNs stay visible


def test_neighbours_share_a_byte_with_the_first_in_the_low_bits():
    for name in PACKED:
        c = CODECS[name]
        x = np.abs(np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32))
        byte = np.asarray(c.encode(jnp.asarray(x), None)[""])
        for column in range(16):
            other = x.copy()
            other[:, column] = x[:, column - column % BLOCK : column - column % BLOCK + BLOCK].max(1)  # the last code
            changed = np.asarray(c.encode(jnp.asarray(other), None)[""])
            assert ((changed[:, column // 2] >> 4 * (column % 2)) & 15 == 15).all()
            same = np.ones(8, bool)
            same[column // 2] = False
            np.testing.assert_array_equal(changed[:, same], byte[:, same])
            half = 0xF0 if column % 2 == 0 else 0x0F
            np.testing.assert_array_equal(changed[:, column // 2] & half, byte[:, column // 2] & half)


def test_an_odd_row_ends_in_half_a_byte_of_zero():
    kept = codecs.uint4(zero=True).encode(jnp.ones((2, 5)), None)
    np.testing.assert_array_equal(np.asarray(kept[""]), [[0xFF, 0xFF, 0x0F]] * 2)


@pytest.mark.parametrize("name", ["uint8", "uint8-linear", "uint4"])
def test_what_is_above_zero_never_becomes_zero(name):
    """Down to the product of the smallest level and unit that float32 can hold."""
    for unit in (1.0, 1e-25, 1e30):
        x = np.full((40, BLOCK), unit, np.float32)
        x[:, 1:] = (unit * 10.0 ** -np.arange(40.0))[:, None]
        x = np.maximum(x, np.float32(TINY))
        assert (coded(name, x)[1] > 0).all()


@pytest.mark.parametrize(
    ("name", "bad"),
    [(k, bad) for k, c in CODECS.items() for bad in (np.nan, np.inf, -np.inf) if c.signed or bad != -np.inf],
)
def test_a_moment_that_is_not_finite_stays_visible(name, bad):
    x = np.abs(np.random.default_rng(0).standard_normal((3, 16))).astype(np.float32)
    x[1, 3] = bad
    _, back = coded(name, x)
    assert not np.isfinite(back[1, 3])
    if name != "factored":
        assert np.isfinite(back[[0, 2]]).all()
    if name in BY_BLOCKS:
        assert np.isfinite(back[1, BLOCK:]).all()
    if name in FLOATS:
        np.testing.assert_array_equal(back[1, 3], x[1, 3])


@pytest.mark.parametrize("name", [*BY_BLOCKS, "bfloat16", "float16", "float32"])
def test_the_smallest_step_survives_from_every_level_and_nothing_smaller_from_some(name):
    """Upwards and downwards from all numbers that can be kept, as long as the block's unit stays."""
    c = CODECS[name]
    if name in BY_BLOCKS:
        y = np.unique(np.abs(levels(name)[np.isfinite(levels(name))])).astype(np.float64)
    else:
        y = np.linspace(1, 2, 2**16)[:-1].astype(np.float32)
        y = np.unique(coded(name, y)[1]).astype(np.float64)
    relative = name not in BY_BLOCKS or name.startswith("float8")
    # The share is of normal numbers, and nothing moves from the first level of uint8 and uint4 towards zero.
    first = {"uint8": 1 / 255**2, "uint8-linear": 1 / 255, "uint4": 1 / 16}.get(name, 0)
    lowest = 2.0**-6 / 448 if relative else first

    def survives(share):
        step = share * c.smallest_step * (y if relative else 1)
        here, there = np.concatenate([y, y]), np.concatenate([y + step, y - step])
        fits = (there <= 1 if name in BY_BLOCKS else there < 2) & (there >= 0) & (np.minimum(here, there) >= lowest)
        block = np.stack([np.ones_like(here), here, there, *[np.zeros_like(here)] * 5], -1)
        back = coded(name, block)[1]
        return (back[:, 1] != back[:, 2])[fits]

    if name == "float32":
        assert survives(2).all()
        return
    assert survives(1.01).all()
    assert not survives(0.95).all()


# Rounding


def around(dtype, extra):
    """float32 patterns: every number of a narrow dtype, every middle of two, five neighbours of each, and others."""
    size = np.dtype(dtype).itemsize
    every = np.arange(2 ** (8 * size), dtype=np.uint32).astype(f"u{size}").view(dtype).astype(np.float32)
    finite = np.unique(every[np.isfinite(every)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    edge = np.float32([np.finfo(np.float32).max, -np.finfo(np.float32).max, np.inf, -np.inf, np.nan])
    centre = np.concatenate([every, middles, edge]).view(np.int32)
    near = np.concatenate([centre + d for d in range(-2, 3)]).view(np.uint32)
    more = np.random.default_rng(0).integers(0, 2**32, extra, dtype=np.uint32)
    return np.concatenate([near, more]).view(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_rounding_is_the_cast_of_ml_dtypes(dtype):
    """On 2^22 patterns and around every number of the dtype and every tie; a zero may lose its sign in float16."""
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x = around(dtype, 2**22)
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(dtype)
        got = np.asarray(jax.jit(lambda x: numerics.rounded(x, dtype))(x))
        held = got.astype(dtype)
    inside = np.isfinite(got)
    np.testing.assert_array_equal(held.astype(np.float32)[inside], got[inside])  # a number of the dtype already
    np.testing.assert_array_equal(held.astype(np.float32), want.astype(np.float32))
    if dtype == ml_dtypes.bfloat16:
        real = ~np.isnan(x)
        np.testing.assert_array_equal(held.view(np.uint16)[real], want.view(np.uint16)[real])


NARROW = ["bfloat16", "float16"]


def neighbours(x, dtype):
    """The numbers of dtype next to x, below and above, by NumPy."""
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    with np.errstate(over="ignore"):
        near = x.astype(dtype)
        down = np.nextafter(near, dtype.type(-np.inf))
        up = np.nextafter(near, dtype.type(np.inf))
    low = np.where(near.astype(np.float32) > x, down, near).astype(np.float32)
    high = np.where(near.astype(np.float32) < x, up, near).astype(np.float32)
    return low, high


def draws(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32))


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_by_chance_yields_the_two_neighbours_only(dtype):
    x = np.random.default_rng(0).integers(0, 2**32, 2**20, dtype=np.uint32).view(np.float32)
    if dtype == "float16":
        x = np.concatenate([x, np.random.default_rng(1).standard_normal(2**18).astype(np.float32) * 1e-6])
    x = x[np.isfinite(x) & (np.abs(x) >= TINY)]
    low, high = neighbours(x, dtype)
    for noise in (jnp.zeros(len(x), jnp.uint32), jnp.full(len(x), 2**32 - 1, jnp.uint32), draws(len(x))):
        got = np.asarray(numerics.rounded_by_chance(jnp.asarray(x), dtype, noise))
        assert ((got == low) | (got == high)).all()
    beyond = jnp.float32([np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(numerics.rounded_by_chance(beyond, dtype, draws(3)), beyond)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("x", [1.001, -3.3e-3, 1e-6, -250.7, 1.00001])
def test_rounding_by_chance_is_right_on_average(dtype, x):
    """10^6 draws: the mean's distance from x in standard errors, which four exceed once in 16,000 such tests."""
    x = np.float32(x)
    n = 10**6
    got = np.asarray(numerics.rounded_by_chance(jnp.full(n, x), dtype, draws(n)), np.float64)
    low, high = (float(v[0]) for v in neighbours(np.array([x]), dtype))
    share = (float(x) - low) / (high - low)
    up = int((got == high).sum())
    assert up + (got == low).sum() == n
    assert abs(up - n * share) < 4 * np.sqrt(n * share * (1 - share)) + n * 2.0**-16  # of bits that are used: 16
    # (the last term, 15 draws of 10^6, is what bfloat16's 16 bits may be off by; it is below a third of the first)


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_by_chance_over_many_numbers_is_right_on_average(dtype):
    n = 2**20
    x = np.random.default_rng(1).standard_normal(n).astype(np.float32)
    got = np.asarray(numerics.rounded_by_chance(jnp.asarray(x), dtype, draws(n)), np.float64)
    low, high = (v.astype(np.float64) for v in neighbours(x, dtype))
    variance = (high - x) * (x - low)
    z = (got - x).sum() / np.sqrt(variance.sum())
    assert abs(z) < 4


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_by_chance_is_the_same_under_jit_vmap_and_on_eight_devices(dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 32)), jnp.float32)
    key = jnp.uint32([3, 4])
    f = lambda x: numerics.rounded_by_chance(x, dtype, codec.noise(key, x.shape))
    whole = np.asarray(f(x))
    np.testing.assert_array_equal(jax.jit(f)(x), whole)
    batch = jnp.stack([x, x + 1, -x])
    looped = np.stack([np.asarray(f(b)) for b in batch])
    np.testing.assert_array_equal(jax.vmap(f)(batch), looped)
    np.testing.assert_array_equal(jax.jit(jax.vmap(f))(batch), looped)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    for spec in (P("d", None), P(None, "d")):
        there = jax.device_put(x, NamedSharding(mesh, spec))
        got = jax.jit(f, out_shardings=NamedSharding(mesh, spec))(there)
        np.testing.assert_array_equal(jax.device_get(got), whole)


# Noise


def noise(key, shape, first=(0, 0)):
    return np.asarray(codec.noise(jnp.uint32(key), shape, first))


def apart(a, b):
    """How far two arrays of bits are from agreeing in half of them, in standard deviations, for each of 32 places."""
    agree = [np.mean(((a ^ b) >> k) & 1) for k in range(32)]
    return np.abs(np.array(agree) - 0.5) * 2 * np.sqrt(a.size)


def test_every_bit_of_the_noise_is_balanced_and_as_good_as_independent_of_its_neighbours():
    """Five standard deviations: one in 1.7 million, over some 400 numbers."""
    here = noise([1, 2], (1024, 1024))
    assert apart(here, np.zeros_like(here)).max() < 5
    assert apart(here[:, 1:], here[:, :-1]).max() < 5
    assert apart(here[1:], here[:-1]).max() < 5
    assert apart(here[1:, 1:], here[:-1, :-1]).max() < 5
    assert apart(here, np.roll(here, 1) << 1 | np.roll(here, 1) >> 31).max() < 5
    for other in ([1, 3], [2, 2], [2, 1], [0, 2]):
        assert apart(here, noise(other, here.shape)).max() < 5
    assert apart(here, np.ascontiguousarray(here.T))[:].max() < 5 * np.sqrt(2)  # pairs are counted twice


def test_the_noise_fills_its_range_evenly():
    """Chi-square over 256 cells of the highest and the lowest byte: mean 255, standard deviation sqrt(510)."""
    here = noise([7, 9], (512, 2048))
    for byte in (here >> 24, here & 255):
        counts = np.bincount(byte.ravel(), minlength=256)
        expected = here.size / 256
        assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * np.sqrt(510)
    columns = here.astype(np.float64).mean(0) / 2**32
    assert abs(((columns - 0.5) ** 2 * 12 * 512).mean() - 1) < 5 * np.sqrt(2 / 2048)


def test_a_tile_of_noise_is_that_piece_of_the_whole():
    whole = noise([5, 6], (4, 6, 50)).reshape(24, 50)
    np.testing.assert_array_equal(noise([5, 6], (24, 50)), whole)
    np.testing.assert_array_equal(noise([5, 6], (1, 3, 50), (7, 0)).reshape(3, 50), whole[7:10])
    np.testing.assert_array_equal(noise([5, 6], (1, 1, 12), (9, 30)).reshape(12), whole[9, 30:42])
    np.testing.assert_array_equal(noise([5, 6], (12,), (0, 30)), whole[0, 30:42])
    np.testing.assert_array_equal(noise([5, 6], ()), whole[0, 0])


def test_noise_differs_between_leaves_of_more_than_two_to_the_sixteen_rows():
    tall = noise([1, 1], (2**18, 1))
    assert len(np.unique(tall)) > 2**18 - 50  # of 2^18 draws of 2^32, eight collide on average


# Construction


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: codecs.int8(0), ValueError, "block"),
        (lambda: codecs.int8(2.5), (ValueError, TypeError), "block"),
        (lambda: codecs.int4(127), ValueError, "a block of 4-bit codes must be even, but is 127."),
        (lambda: codecs.uint4(3), ValueError, "a block of 4-bit codes must be even, but is 3."),
        (lambda: codecs.reduced(codecs.int8()), TypeError, "reduced takes a projection"),
        (lambda: codecs.reduced(projections.total()), ValueError, "keeps the sum of a leaf"),
    ],
)
def test_a_codec_that_cannot_be_is_refused_in_a_sentence(make, error, says):
    with pytest.raises(error, match=says) as caught:
        make()
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_the_name_of_a_codec_tells_it_from_every_other():
    made = [*CODECS.values(), codecs.int8(64), codecs.int8(64, companded=False), codecs.dynamic8(64)]
    made += [
        codecs.reduced(p) for p in (projections.factored(floor=1e-30), projections.pooled(), projections.pooled(0))
    ]
    assert len({c.name for c in made}) == len(made)
