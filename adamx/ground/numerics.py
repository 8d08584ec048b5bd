"""Scalar and elementwise facts that stay exact near zero and near one. No trees."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

# p + NO_CHANGE is p bit for bit, where p + 0.0 would turn -0.0 into +0.0. (XLA's CPU back end reads subnormal numbers
# as zero in any sum; there is no update that keeps those.)
NO_CHANGE = -0.0
FLOAT32 = jnp.float32


def is_number(x: Any) -> bool:
    """Whether x is a plain Python number, known at construction (a bool is not a number)."""
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def is_zero(x: Any) -> bool:
    """Whether x is the Python number 0; False for what is only known later."""
    return is_number(x) and x == 0


def is_inexact(dtype: Any) -> bool:
    """Whether dtype is floating or complex: what can be trained."""
    return jnp.issubdtype(dtype, jnp.inexact)


def real_dtype(*dtypes: Any) -> jnp.dtype:
    """The real dtype that mathematics on these runs in: float32, or float64 where one of them is as wide."""
    wide = jnp.result_type(jnp.float32, *(d for d in dtypes if is_inexact(d) and jnp.dtype(d).itemsize >= 4))
    return jnp.finfo(wide).dtype


def like(dtype: Any, real: Any) -> jnp.dtype:
    """The dtype as wide as `real` that is complex where `dtype` is complex."""
    return jnp.result_type(real, jnp.complex64) if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.dtype(real)


def one_minus_power(b: float | Float[Array, ""], t: Float[Array, ""]) -> Float[Array, ""]:
    """1 - b^t for b in [0, 1) and t >= 1, to rounding in the dtype of t.

    `1 - b**t` in float32 loses 13 ppm at b = 0.999, t = 1 and everything at b = 1 - 1e-8. The logarithm of a Python
    number is taken in float64; that of an array goes through 1 - b, which is exact for b in [1/2, 1].

    >>> print(f"{one_minus_power(1 - 1e-8, jnp.float32(3)):.5e}, {1 - jnp.float32(1 - 1e-8) ** 3:.0f} the plain way")
    3.00000e-08, 0 the plain way
    """
    if is_number(b):
        return -jnp.expm1(t * math.log1p(-(1 - b))) if b > 0 else jnp.ones_like(t)
    kept = jnp.where(b > 0, b, 0.5)  # so that the derivative is finite at 0 too
    return jnp.where(b > 0, -jnp.expm1(t * jnp.log1p(-(1 - kept))), 1)


def lerp(
    old: Inexact[Array, "*s"], new: Inexact[Array, "*s"], b: float | Float[Array, ""], gap: Any = None
) -> Inexact[Array, "*s"]:
    """B * old + (1 - b) * new, with 1 - b exact and, for b >= 1/2, one rounding that matters.

    `gap` is 1 - b, where it is known better than by subtracting an array.

    `old + (1 - b) * (new - old)` does not depend on the rounding of b itself, which `b * old` turns into a wrong
    fixed point (3e-5 at b = 0.999 in float32). Below 1/2 its rounding is relative to `old`, which is about to be
    forgotten, so the plain form is used there.
    """
    gap = 1 - b if gap is None else gap
    plain, steady = b * old + gap * new, old + gap * (new - old)
    if is_number(b):
        return steady if b >= 0.5 else plain
    return jnp.where(b >= 0.5, steady, plain)


def abs_square(x: Inexact[Array, "*s"]) -> Float[Array, "*s"]:
    """|x|^2, real for complex x."""
    return jnp.real(x * jnp.conj(x)) if jnp.iscomplexobj(x) else x * x


@jax.custom_jvp
def sqrt(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The square root whose derivative at 0 is 0 instead of infinite, so that meta-gradients stay finite."""
    return jnp.sqrt(x)


@sqrt.defjvp
def _sqrt_jvp(primals: tuple, tangents: tuple) -> tuple:
    root = sqrt(*primals)
    return root, tangents[0] * jnp.where(root > 0, 0.5 / jnp.where(root > 0, root, 1), 0)


@jax.custom_jvp
def cbrt(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The cube root of x >= 0, whose derivative at 0 is 0 instead of infinite.

    One step of Newton's iteration from exp(log(x) / 3) brings it to rounding; compilers vectorise that and not the
    library's cube root (nine times as fast on CPU, XLA of 2026).
    """
    zero = x <= 0
    safe = jnp.where(zero, 1, x)
    y = jnp.exp(jnp.log(safe) / 3)
    return jnp.where(zero, 0, y - (y - safe / (y * y)) / 3)


@cbrt.defjvp
def _cbrt_jvp(primals: tuple, tangents: tuple) -> tuple:
    root = cbrt(*primals)
    return root, tangents[0] * jnp.where(root != 0, 1 / (3 * jnp.where(root != 0, root, 1) ** 2), 0)


# Of atan(w) / w in w^2 on [0, (sqrt(2) - 1)^2], by interpolation in Chebyshev points; relative error 1e-9.
_ATAN = np.polynomial.Chebyshev.interpolate(
    lambda s: np.arctan(np.sqrt(s)) / np.sqrt(s), 6, domain=[0, (math.sqrt(2) - 1) ** 2]
).convert(kind=np.polynomial.Polynomial)


def angle(y: Float[Array, "*s"], x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Atan2(y, x) for y, x >= 0; 0 with derivative 0 at (0, 0).

    In float32 by a polynomial after halving the angle, which vectorises where the library's does not (ten times as
    fast on CPU, XLA of 2026), within two units of the last place; in float64 the library's.
    """
    none = (x == 0) & (y == 0)
    x = jnp.where(none, 1, x)
    if x.dtype != jnp.float32:
        return jnp.where(none, 0, jnp.arctan2(y, x))
    small, large = jnp.minimum(x, y), jnp.maximum(x, y)
    z = small / large
    w = z / (1 + jnp.sqrt(1 + z * z))
    series = jnp.zeros_like(w)
    for c in reversed(_ATAN.coef):
        series = series * (w * w) + float(c)
    low = 2 * w * series
    return jnp.where(none, 0, jnp.where(y > x, math.pi / 2 - low, low))


def unit(x: Inexact[Array, "*s"]) -> Inexact[Array, "*s"]:
    """The sign of x: -1, 0 or 1, and x / |x| where x is complex."""
    return divide(x, magnitude(x)) if jnp.iscomplexobj(x) else jnp.sign(x)


def magnitude(x: Inexact[Array, "*s"]) -> Float[Array, "*s"]:
    """|x|, real, with derivative 0 at 0 for complex x too."""
    return sqrt(abs_square(x)) if jnp.iscomplexobj(x) else jnp.abs(x)


def rms(x: Inexact[Array, "*s"]) -> Float[Array, ""]:
    """The root of the mean of |x|^2; 0 where there is nothing, and with derivative 0 at 0."""
    return sqrt(jnp.mean(abs_square(x))) if x.size else jnp.zeros((), real_dtype(x.dtype))


def inner(a: Inexact[Array, "*s"], b: Inexact[Array, "*s"]) -> Float[Array, ""]:
    """The real inner product of all elements, Re sum conj(a) b.

    >>> float(inner(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])))
    11.0
    """
    return jnp.sum(jnp.real(jnp.conj(a) * b))


def divide(a: Inexact[Array, "..."], b: Float[Array, "..."]) -> Inexact[Array, "..."]:
    """A / b, and 0 where b is 0, with a finite derivative there too."""
    zero = b == 0
    return jnp.where(zero, 0, a / jnp.where(zero, 1, b))


def norm(*arrays: Array) -> Float[Array, ""]:
    """The Euclidean norm of all elements together, summed in at least float32; its derivative at 0 is 0.

    >>> float(norm(jnp.array([3.0]), jnp.array([4.0])))
    5.0
    """
    real = real_dtype(*(x.dtype for x in arrays))
    squares = (jnp.sum(abs_square(x.astype(like(x.dtype, real)))) for x in arrays)
    return sqrt(sum(squares, jnp.zeros((), real)))


def increment(count: Array) -> Array:
    """Count + 1, staying at the largest integer of its dtype instead of wrapping around."""
    top = jnp.iinfo(count.dtype).max
    return jnp.where(count < top, count + 1, top).astype(count.dtype)


def as_array(x: Any) -> Array:
    """X as a JAX array that is never weakly typed."""
    return jax.lax.convert_element_type(x, jnp.result_type(x))


def mixed(x: Array) -> Array:
    """A hash of uint32 to uint32, one to one, in which every bit depends on every bit."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def to_bits(x: Float[Array, "*s"]) -> Array:
    """The bits of float32 numbers, as int32."""
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def from_bits(bits: Array) -> Float[Array, "*s"]:
    """The float32 numbers that have these bits."""
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


_MAGIC = np.float32(1.5 * 2**23)  # x + _MAGIC has no digits behind the point, and x's integer in its low bits


def to_int(x: Float[Array, "*s"], dtype: Any) -> Array:
    """The nearest integer, ties to even, for |x| < 2^22; a quarter faster on CPU than round and a cast."""
    return to_bits(x + _MAGIC).astype(dtype)


def spacing(x: Float[Array, "*s"], dtype: Any) -> Float[Array, "*s"]:
    """The distance between neighbours of float32 x in float16 or coarser, such as float8; a power of two."""
    info = jnp.finfo(dtype)
    exponent = jnp.maximum((to_bits(x) >> 23) & 0xFF, 127 + int(info.minexp))
    return from_bits((exponent - int(info.nmant)) << 23)


def rounded(x: Float[Array, "*s"], dtype: Any) -> Float[Array, "*s"]:
    """X rounded to nearest in a narrower dtype, but still float32.

    A pair of casts would do, if compilers were not free to take it out (XLA's `allow_excess_precision`).
    """
    if jnp.dtype(dtype) == jnp.bfloat16:
        return jax.lax.reduce_precision(x, 8, 7)
    # reduce_precision would turn float16's subnormal numbers into zeros.
    most = 2 * float(jnp.finfo(dtype).max)
    inside = jnp.clip(x, -most, most)
    shift = _MAGIC * spacing(inside, dtype)
    near = (inside + shift) - shift
    return jnp.where(jnp.isfinite(x), _overflowing(near, dtype), x)


def rounded_by_chance(x: Float[Array, "*s"], dtype: Any, bits: Array) -> Float[Array, "*s"]:
    """X rounded down or up in a narrower dtype, up with the probability that makes the mean x; still float32.

    Args:
      x: float32.
      dtype: bfloat16 or float16.
      bits: uint32, random.
    """
    if jnp.dtype(dtype) == jnp.bfloat16:
        whole = jax.lax.bitcast_convert_type(x, jnp.uint32)
        up = (whole + (bits >> 16)) & np.uint32(0xFFFF0000)
        out = jax.lax.bitcast_convert_type(up, jnp.float32)
    else:
        unit = spacing(x, dtype)
        count = jnp.abs(x) / unit  # exact, below 2^11
        below = jnp.floor(count)
        up = (bits >> 8).astype(jnp.float32) * np.float32(2.0**-24) < count - below
        size = (below + up.astype(jnp.float32)) * unit
        out = _overflowing(jnp.where((x < 0) & (size > 0), -size, size), dtype)  # 0 has no sign
    return jnp.where(jnp.isfinite(x), out, x)


def _overflowing(x: Array, dtype: Any) -> Array:
    return jnp.where(jnp.abs(x) > float(jnp.finfo(dtype).max), jnp.sign(x) * jnp.inf, x)


def device_axes(x: Any) -> tuple[str, ...]:
    """The mesh axes along which x, inside a `shard_map`, differs from device to device; empty elsewhere."""
    kind = jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)
    return tuple(sorted(manual.varying if manual is not None else getattr(kind, "vma", ())))
