"""How is a number kept? Codecs for moments, and precisions for parameters.

A moment's codec keeps it in fewer bytes between steps; the step itself computes in float32 and sees the fresh value.
Those by blocks divide each block of the last axis by its largest magnitude, which is kept in float32 beside the codes
(4 / block bytes a parameter), and round to a grid on [-1, 1]. "unit" below is that magnitude.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from adamx.ground import numerics
from adamx.ground.codec import TINY, Codec, Fold, Noise, Precision
from adamx.ground.hyper import whole
from adamx.ground.numerics import from_bits, to_bits, to_int

# Moments: floats


def _floats(name: str, dtype: Any, step: float) -> Codec:
    most = float(jnp.finfo(dtype).max)

    def encode(x: Array, noise: Noise) -> dict[str, Array]:
        if jnp.dtype(dtype) == jnp.float16:  # a moment of inf would stay so
            x = jnp.where(jnp.isfinite(x), jnp.clip(x, -most, most), x)
        return {"": (x if dtype == jnp.float32 else numerics.rounded(x, dtype)).astype(dtype)}

    decode = lambda kept, shape: kept[""].astype(jnp.float32)
    return Codec(name, jnp.dtype(dtype), {"": 1}, encode, decode, True, False, step)


def float32() -> Codec:
    """The number itself, 4 bytes."""
    return _floats("float32", jnp.float32, 2.0**-24)


def bfloat16(*, stochastic: bool = False) -> Codec:
    """8 bits of precision, float32's range; 2 bytes.

    Args:
      stochastic: round up or down with the probability that makes the mean exact. Without it an average with
        1 - b < 2^-9 can never decay, as `nu` of Adam's default b2.

    Error: at most 2^-8 of the number to nearest, 2^-7 stochastically.
    """
    if not stochastic:
        return _floats("bfloat16", jnp.bfloat16, 2.0**-8)
    encode = lambda x, noise: {"": numerics.rounded_by_chance(x, jnp.bfloat16, noise()).astype(jnp.bfloat16)}
    plain = _floats("bfloat16 stochastic", jnp.bfloat16, 0.0)
    return plain._replace(encode=encode, random=True)


def float16() -> Codec:
    """11 bits of precision from 6.1e-5 to 65504, 6e-8 apart below; 2 bytes. Squares of small gradients are lost in it.

    Error: at most 2^-11 of the number, or 3e-8; what is beyond 65504 becomes that.
    """
    return _floats("float16", jnp.float16, 2.0**-11)


# Moments: blocks


def _shape(n: int, block: int) -> tuple[int, int, int]:
    """Of n elements: how long a block is, how many there are, and how many elements they are short of."""
    length = max(min(block, n), 1)
    count = -(-n // length)
    return length, count, count * length - n


def _cut(x: Array, block: int) -> Array:
    length, count, short = _shape(x.shape[-1], block)
    if short:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)])
    return x.reshape(*x.shape[:-1], count, length)


def _joined(x: Array, n: int) -> Array:
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])[..., :n]


def _blocks(
    name: str,
    dtype: Any,
    block: int,
    to_code: Callable[[Array, Array], Array],
    from_code: Callable[[Array], Array],
    *,
    signed: bool,
    step: float,
    unit: Callable[[Array], Array] | None = None,
    packed: bool = False,
) -> Codec:
    """A codec by blocks of the last axis, from a grid on [-1, 1] or [0, 1] that has 1.

    Args:
      name: its name without the block.
      dtype: of the codes, uint8 where `packed`.
      block: elements that share a unit.
      to_code: the code of y; x is y in its own units, to tell what is small from what is zero.
      from_code: the y of a code.
      signed: whether y may be negative.
      step: its smallest step.
      unit: what x is divided by, from (..., blocks, block) to (..., blocks); the largest magnitude.
      packed: two codes to a byte, neighbours together, the first in the low bits.
    """
    whole("block", block)
    if packed and block % 2:
        raise ValueError(f"a block of 4-bit codes must be even, but is {block}.")
    largest = unit or (lambda x: jnp.maximum(jnp.max(x, -1), -jnp.min(x, -1)) if signed else jnp.max(x, -1))

    def encode(x: Array, noise: Noise) -> dict[str, Array]:
        if x.ndim == 0:
            return {k: v[0] for k, v in encode(x[None], noise).items()}
        cut = _cut(x, block)
        most = largest(cut)
        # A product, since compilers make one of the quotient, some of them. Subnormal units make a block of zeros.
        y = cut * (1 / jnp.where(jnp.abs(most) < TINY, 1, most))[..., None]
        codes = _joined(to_code(y, cut), x.shape[-1])
        return {"": _pairs(codes) if packed else codes.astype(dtype), "scale": most}

    def decode(kept: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        codes, most = kept[""], kept["scale"]
        if not shape:
            return decode({"": codes[None], "scale": most[None]}, (1,))[0]
        n = shape[-1]
        codes = _apart(codes, n) if packed else codes
        x = from_code(_cut(codes, block)) * most[..., None]
        if unit is None:
            # Compilers reorder such products. The largest of a block must still come out as it went in, or the unit
            # would shrink from step to step; so y is a little above 1 there, and cut off.
            x = jnp.clip(x, -most[..., None] if signed else None, most[..., None])
        return _joined(x, n)

    said = f"{name}(block={block})"
    cuts = {"": 2 if packed else 1, "scale": block}
    return Codec(said, jnp.dtype(dtype), cuts, encode, decode, signed, False, step)


def _over(n: float) -> np.float32:
    """1 / n, and four units of the last place more."""
    return np.float32((1 + 2.0**-22) / n)


# Two codes share a byte, neighbours together and the first in the low bits. Both ways are spelled as XLA's CPU back end
# likes them: slices of stride two, and before jax 0.12 shifts by an array, take three times as long.


def _pairs(codes: Array) -> Array:
    even = jnp.pad(codes.astype(jnp.uint8), [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    two = even.reshape(*even.shape[:-1], even.shape[-1] // 2, 2)
    return jnp.sum(two * np.array([1, 16], np.uint8), -1, dtype=jnp.uint8)


def _apart(packed: Array, n: int) -> Array:
    both = packed.astype(jnp.uint16)
    return _joined(jax.lax.bitcast_convert_type((both & 15) | ((both >> 4) << 8), jnp.uint8), n)


def int8(block: int = 256, *, companded: bool = True) -> Codec:
    """A signed moment in a byte: 255 levels from -unit to unit.

    Args:
      block: elements that share a unit; 1 + 4 / block bytes a parameter.
      companded: levels denser near zero, by softsign: y -> 2 y / (1 + |y|); otherwise all as far apart.

    Error: 1/254 of the unit where levels are as far apart; companded, (1 + |y|)^2 / 506 of it, so 1/506 at zero.
    """
    if companded:
        to_code = lambda y, x: to_int(254 * (y / (1 + jnp.abs(y))), jnp.int8)
        from_code = lambda c: (k := c.astype(jnp.float32)) / (254 - jnp.abs(k))
        return _blocks("int8", jnp.int8, block, to_code, from_code, signed=True, step=1 / 127)
    to_code = lambda y, x: to_int(127 * y, jnp.int8)
    from_code = lambda c: c.astype(jnp.float32) * _over(127)
    return _blocks("int8 linear", jnp.int8, block, to_code, from_code, signed=True, step=1 / 254)


def uint8(block: int = 256, *, companded: bool = True) -> Codec:
    """A moment that is never negative in a byte: 0 for zero only, and 255 levels up to the unit.

    What is above zero never becomes zero: a second moment of 0 would divide by eps alone.

    Args:
      block: elements that share a unit; 1 + 4 / block bytes a parameter.
      companded: levels of the square root; otherwise of the number itself.

    Error: of the square root, 1/510 of the unit's (1/255 below the first level); otherwise the same of the number.
    """
    coded = lambda level, x: to_int(jnp.where(x > 0, jnp.maximum(level, 1), level), jnp.uint8)
    if companded:
        to_code = lambda y, x: coded(255 * jnp.sqrt(y), x)
        from_code = lambda c: jnp.square(c.astype(jnp.float32) * _over(255))
        return _blocks("uint8", jnp.uint8, block, to_code, from_code, signed=False, step=1 / 255)
    to_code = lambda y, x: coded(255 * y, x)
    from_code = lambda c: c.astype(jnp.float32) * _over(255)
    return _blocks("uint8 linear", jnp.uint8, block, to_code, from_code, signed=False, step=1 / 510)


def float8_e4m3fn(block: int = 256) -> Codec:
    """4 bits of precision over 18 binades below each block's largest magnitude; 1 + 4 / block bytes.

    Error: 2^-4 of the number, and at least 2^-10 / 448 of the unit.
    """
    return _float8("float8_e4m3fn", jnp.float8_e4m3fn, block, 2.0**-4)


def float8_e5m2(block: int = 256) -> Codec:
    """3 bits of precision over 32 binades below each block's largest magnitude; 1 + 4 / block bytes.

    Error: 2^-3 of the number, and at least 2^-17 / 57344 of the unit.
    """
    return _float8("float8_e5m2", jnp.float8_e5m2, block, 2.0**-3)


def _float8(name: str, dtype: Any, block: int, step: float) -> Codec:
    most = float(jnp.finfo(dtype).max)
    to_code = lambda y, x: numerics.rounded(y * most, dtype).astype(dtype)
    from_code = lambda c: c.astype(jnp.float32) * _over(most)
    return _blocks(name, dtype, block, to_code, from_code, signed=True, step=step)


def _decades(bits: int, signed: bool) -> np.ndarray:
    """The dynamic tree map's positive values but 1: each decade in twice as many equal parts as the one below it."""
    free = bits - 1  # of a code, without sign or without the indicator that unsigned codes do not need
    parts = [2**i if signed else 2 ** (i + 1) for i in range(free)]
    edges = [np.linspace(0.1, 1, n + 1) * 10.0 ** (i - free + 1) for i, n in enumerate(parts)]
    return np.concatenate([(e[:-1] + e[1:]) / 2 for e in edges])


def _dynamic(name: str, bits: int, block: int, signed: bool) -> Codec:
    """The dynamic tree map of so many bits; codes are positions in the sorted table, as in bitsandbytes."""
    free = bits - 1
    table = _decades(bits, signed)
    zero = len(table) if signed else 0  # the code of 0; that of 1 is the last
    sizes = [2**i if signed else 2 ** (i + 1) for i in range(free)]
    ends = np.cumsum(sizes)
    # Half way between the last value of a decade and the first of the next, and of 0 and 1.
    starts = [float(table[0] / 2)] + [float((table[e - 1] + table[e]) / 2) for e in ends[:-1]]
    top = float((table[-1] + 1) / 2)

    def to_code(y: Array, x: Array) -> Array:
        a = jnp.abs(y)
        decade = sum(((a >= s).astype(jnp.int32) for s in starts[1:]), jnp.zeros_like(a, jnp.int32))
        size = (1 if signed else 2) << decade
        tens = _choose(decade, [10.0 ** (free - 1 - i) for i in range(free)])
        place = jnp.floor((a * tens - 0.1) * (1 / 0.9) * size.astype(jnp.float32)).astype(jnp.int32)
        place = jnp.clip(place, 0, size - 1) + size - (0 if signed else 1)
        place = jnp.where(a < starts[0], 0, jnp.where(a >= top, len(table) + 1, place))
        # The map has no -1: the other end of a block, if it is as far, is the next level inwards.
        return jnp.where(y < 0, jnp.maximum(zero - place, 0), zero + place) if signed else place

    def from_code(c: Array) -> Array:
        k = c.astype(jnp.int32) - zero
        size_of = jnp.abs(k) if signed else k + 1
        # The exponent of an integer as float32 is its decade, the mantissa its place there.
        pattern = to_bits(size_of.astype(jnp.float32))
        decade = (pattern >> 23) - 127 - (0 if signed else 1)
        share = from_bits((pattern & 0x7FFFFF) | 0x3F800000) - 1
        middle = share + 0.5 / ((1 if signed else 2) << jnp.clip(decade, 0, free)).astype(jnp.float32)
        value = _choose(decade, [10.0 ** (i - free + 1) for i in range(free)]) * (0.1 + 0.9 * middle)
        value = jnp.where(jnp.abs(k) == len(table) + 1, 1, jnp.where(k == 0, 0, value))
        return jnp.where(k < 0, -value, value)

    unit = _farthest if signed else None
    step = float(np.max(np.diff(np.append(table, 1.0)))) / 2
    return _blocks(name, jnp.uint8, block, to_code, from_code, signed=signed, step=step, unit=unit, packed=bits == 4)


def _farthest(x: Array) -> Array:
    """The number of largest magnitude with its sign, so that it stands at +1, which the map has and -1 it has not."""
    high, low = jnp.max(x, -1), jnp.min(x, -1)
    return jnp.where(high >= -low, high, low)


def _choose(i: Array, values: list[float]) -> Array:
    out = jnp.full_like(i, values[0], dtype=jnp.float32)
    for k, value in enumerate(values[1:], 1):
        out = jnp.where(i >= k, np.float32(value), out)
    return out


def dynamic8(block: int = 256, *, signed: bool = True) -> Codec:
    """The dynamic tree map: seven decades below the unit, each twice as fine as the one below it.

    Args:
      block: elements that share a unit; 1 + 4 / block bytes a parameter.
      signed: 127 levels on each side of 0; otherwise 255 above it.

    Error: 0.0071 of the unit down to a tenth of it (half of that unsigned), and a fifth of it for each decade below;
    what is below 2.7e-7 of the unit (1.6e-7 unsigned) becomes 0.

    References: Dettmers, Lewis, Shleifer & Zettlemoyer, 8-bit Optimizers via Block-wise Quantization, ICLR 2022,
    section 2.1 (arXiv:2110.02861).
    """
    return _dynamic("dynamic8" if signed else "dynamic8 unsigned", 8, block, signed)


def int4(block: int = 128) -> Codec:
    """A signed moment in half a byte: the dynamic tree map of 16 values, three decades; 0.5 + 4 / block bytes.

    Error: 0.1125 of the unit down to a tenth of it, and a fifth of it for each decade below; what is below 0.0027 of
    the unit becomes 0.

    References: Li, Chen & Zhu, Memory Efficient Optimizers with 4-bit States, NeurIPS 2023, section 3
    (arXiv:2309.01507).
    """
    return _dynamic("int4", 4, block, True)


def uint4(block: int = 128, *, zero: bool = False) -> Codec:
    """A moment that is never negative in half a byte: 16 levels as far apart; 0.5 + 4 / block bytes a parameter.

    Args:
      block: elements that share a unit.
      zero: whether 0 is one of the levels (0, 1/15, ..., 1). By default it is not (1/16, ..., 1): a second moment that
        is rounded to zero makes a step of any length, and training fails.

    Error: half a level; 1/16 of the unit below the first. A block of zeros is kept as zeros either way.

    References: Li, Chen & Zhu, NeurIPS 2023, section 4.1 (arXiv:2309.01507).
    """
    if zero:
        to_code, from_code = (
            lambda y, x: to_int(15 * y, jnp.uint8),
            lambda c: c.astype(jnp.float32) * _over(15),
        )
        return _blocks("uint4 with zero", jnp.uint8, block, to_code, from_code, signed=False, step=1 / 30, packed=True)
    to_code = lambda y, x: to_int(jnp.maximum(16 * y - 1, 0), jnp.uint8)
    from_code = lambda c: (c.astype(jnp.float32) + 1) * np.float32(1 / 16)
    return _blocks("uint4", jnp.uint8, block, to_code, from_code, signed=False, step=1 / 32, packed=True)


# Moments: smaller than their leaf


class Reduction(Protocol):
    """What :func:`reduced` takes: a projection of :mod:`adamx.projections`."""

    name: str
    slots: tuple[str, ...]

    def share(self, x: Array, shape: tuple[int, ...]) -> dict[str, Array]:
        """What some whole rows of a leaf of `shape` contribute to what is kept, linear in x.

        Of each array the axes are the leaf's or have length 1; where the first has, contributions are added up.
        """
        ...

    def ready(self, kept: dict[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        """What `spread` takes, in arrays of the same shapes, computed once for a leaf."""
        ...

    def spread(self, ready: dict[str, Array]) -> Array:
        """An array that broadcasts to the leaf, or to the rows of it that `ready` has."""
        ...


def reduced(projection: Reduction) -> Codec:
    """A moment kept as rows and columns, or as means: `projections.factored()`, `projections.pooled(axes)`.

    Unlike `ema(..., of=projection)`, the update sees the fresh value, not what is kept of it.

    Raises:
      TypeError: if it is no projection.
      ValueError: if it sums.
    """
    if not hasattr(projection, "share"):
        raise TypeError(f"reduced takes a projection, such as adamx.projections.factored(), not {projection!r:.60}.")
    if getattr(projection, "sum", False):
        raise ValueError("total() keeps the sum of a leaf, which its elements are not near; keep their mean, pooled().")
    first, *rest = projection.slots
    dtype = jnp.dtype(jnp.float32)
    theirs = lambda kept: {first: kept[""]} | {name: kept[name] for name in rest}
    ours = lambda kept: {"": kept[first]} | {name: kept[name] for name in rest}
    fold = Fold(
        ready=lambda kept, shape: ours(projection.ready(theirs(kept), shape)),
        decode=lambda ready, shape: jnp.broadcast_to(projection.spread(theirs(ready)), shape),
        encode=lambda x, shape: ours(projection.share(x, shape)),
    )
    encode = lambda x, noise: fold.encode(x, x.shape)
    decode = lambda kept, shape: fold.decode(fold.ready(kept, shape), shape)
    cuts = {"": 0} | dict.fromkeys(rest, 0)
    # A mean of numbers of both signs is their mean; the mean that rows are divided by may not be zero.
    return Codec(projection.name, dtype, cuts, encode, decode, not rest, False, 0.0, fold)


# Parameters


def nearest() -> Precision:
    """Nothing beside the parameter; steps below half its spacing (2^-9 of it in bfloat16) are lost.

    Training stops where learning_rate is below that. It is here to be measured against.
    """
    encode = lambda x, dtype, noise: (numerics.rounded(x, dtype), None)
    return Precision("nearest", None, None, lambda p, beside: _wide(p), encode, 2.0**-8, False)


def stochastic() -> Precision:
    """Nothing beside the parameter: it is rounded up or down with the probability that makes the mean exact.

    No step is lost on average, but each adds noise of up to the parameter's spacing.
    """
    encode = lambda x, dtype, noise: (numerics.rounded_by_chance(x, dtype, noise()), None)
    return Precision("stochastic", None, None, lambda p, beside: _wide(p), encode, 0.0, True)


def kahan() -> Precision:
    """What rounding took from the parameter, in the parameter's own dtype: 2 bytes, about 16 bits of precision.

    It is Kahan's compensation (1965), which decays into the parameter as it grows. In float16 it is no finer than 6e-8.
    """

    def encode(x: Array, dtype: Any, noise: Noise):
        near = numerics.rounded(x, dtype)
        return near, jnp.where(jnp.isfinite(near), x - near, 0).astype(dtype)

    start = lambda x, dtype: encode(x, dtype, _silent)[1]
    return Precision("kahan", "residue_kahan", start, lambda p, c: _wide(p) + _wide(c), encode, 2.0**-16, False)


def split8(*, stochastic: bool = False) -> Precision:
    """A byte beside the parameter with the next 8 bits of it: 16 bits of precision in bfloat16, 19 in float16.

    Args:
      stochastic: round the byte up or down by chance, so that no step is lost on average.
    """
    name = "split8 stochastic" if stochastic else "split8"
    return _split(name, "residue_int8", jnp.int8, stochastic)


def split16() -> Precision:
    """Two bytes beside the parameter with the rest of it; bfloat16 and int16 are float32, bit for bit.

    float16 and int16 are so from 6.1e-5 to 65504, and 9e-13 apart below.
    """
    return _split("split16", "residue_int16", jnp.int16, False)


def master() -> Precision:
    """The parameter itself in float32 beside: 4 bytes."""
    encode = lambda x, dtype, noise: (numerics.rounded(x, dtype), x)
    return Precision("master", "master", lambda x, dtype: x, lambda p, x: x, encode, 2.0**-24, False)


def _split(name: str, keeps: str, kept: Any, by_chance: bool) -> Precision:
    """A number in so many bits more than the visible dtype has: the nearest visible one, and how far it is from there.

    The distance is counted in 2^-bits of the visible number's spacing. The number is rounded to those first, and split
    then; so half a spacing, which is one count too many for the integer, falls to the next visible number.
    """
    bits = jnp.iinfo(kept).bits

    def encode(x: Array, dtype: Any, noise: Noise):
        if dtype == jnp.bfloat16:  # the upper and lower half of float32's bits; ties away from zero
            whole = to_bits(x)
            if bits == 8:
                add = (noise() >> 24).astype(jnp.int32) if by_chance else 127 + ((whole >> 8) & 1)
                whole = (whole + add) & ~0xFF
            high = jnp.where(jnp.isnan(x), to_bits(x) | 0x400000, whole + 0x8000) & ~0xFFFF
            return from_bits(high), (jnp.where(jnp.isnan(x), 0, whole - high) >> (16 - bits)).astype(kept)
        near = numerics.rounded(x, dtype)
        unit = numerics.spacing(near, dtype)
        count = jnp.where(jnp.isfinite(near), (x - near) / unit, 0) * 2.0**bits
        chance = lambda: (noise() >> 8).astype(jnp.float32) * np.float32(2.0**-24)
        count = jnp.floor(count + chance()) if by_chance else jnp.round(count)
        up = count >= 2 ** (bits - 1)
        near = jnp.where(up, near + unit, near)
        count = jnp.where(up, (unit / numerics.spacing(near, dtype)) * -(2.0 ** (bits - 1)), count)
        return jnp.where(near > float(jnp.finfo(dtype).max), jnp.inf, near), count.astype(kept)

    def decode(p: Array, beside: Array) -> Array:
        parts = beside.astype(jnp.int32) << (16 - bits)
        if p.dtype == jnp.bfloat16:
            return from_bits(to_bits(_wide(p)) + parts)
        return _wide(p) + parts.astype(jnp.float32) * 2.0**-16 * numerics.spacing(_wide(p), p.dtype)

    step = 0.0 if by_chance else 2.0 ** -(8 + bits)
    return Precision(name, keeps, lambda x, dtype: encode(x, dtype, _silent)[1], decode, encode, step, by_chance)


def _silent() -> Any:
    return np.uint32(1 << 31)


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32)
