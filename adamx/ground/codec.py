"""How a number is kept: the interface that storage has, for moments and for parameters. No trees."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from adamx.ground import numerics

TINY = float(np.finfo(np.float32).tiny)
LEAST = TINY * 2**8  # numbers of bfloat16 from here on are apart by TINY or more
Noise = Callable[[], UInt32[Array, "..."]]  # independent bits for every element of the leaf, the same every time asked


class Fold(NamedTuple):
    """How a codec that keeps less than every element of a matrix reads and makes that some whole rows at a time.

    Of what it keeps, an array has an entry for each row, of length 1 along the columns, or is one for all rows.

    Attributes:
      ready: `(kept, shape) -> ready`, what rows are decoded from, of the same shapes; once for a leaf.
      decode: `(ready's rows, shape of the rows) -> x`, float32.
      encode: `(x of the rows, shape of the leaf) -> kept`; of the arrays for all rows their share, to be added up.
    """

    ready: Callable[[Mapping[str, Array], tuple[int, ...]], dict[str, Array]]
    decode: Callable[[Mapping[str, Array], tuple[int, ...]], Array]
    encode: Callable[[Array, tuple[int, ...]], dict[str, Array]]


class Codec(NamedTuple):
    """How a moment is kept between steps: `decode(encode(x))` is near x, in fewer bytes.

    Attributes:
      name: what plans print and states carry, such as "int8(block=256)".
      dtype: of the codes.
      cuts: what is kept, the codes under "" and the rest by name ("scale", in the state "mu_scale"), and how many
        elements of the leaf's last axis each entry stands for, so that a tile never cuts through one; 0 where entries
        stand for more than a stretch of one row.
      encode: `(x, noise) -> {"": codes, "scale": ...}` for float32 x of one leaf; every array has the leaf's rank.
      decode: `(kept, shape) -> x`, float32.
      signed: whether negative numbers can be kept.
      random: whether `encode` draws from its noise.
      smallest_step: the least change that is sure to survive, relative to the number for floats and to the largest of
        its block for blocks; 0 where changes of any size survive on average.
      fold: where `cuts` says 0, how to do it by rows; None where a leaf must be whole.
    """

    name: str
    dtype: Any
    cuts: Mapping[str, int]
    encode: Callable[[Array, Noise], dict[str, Array]]
    decode: Callable[[Mapping[str, Array], tuple[int, ...]], Array]
    signed: bool
    random: bool
    smallest_step: float
    fold: Fold | None = None

    def names(self, slot: str) -> dict[str, str]:
        """The names in the state, by what is kept: {"": "mu", "scale": "mu_scale"}."""
        return {part: f"{slot}_{part}" if part else slot for part in self.cuts}

    def start(self, x: Array, plain: bool) -> dict[str, Array]:
        """What is kept of a first value: the number itself where `plain`, or where codes would not be smaller."""
        if not plain and not jnp.iscomplexobj(x):
            _check_shards(self, x)
            encode = lambda x: self.encode(x.astype(jnp.float32), lambda: jnp.zeros(x.shape, jnp.uint32))
            if sum(map(nbytes, jax.eval_shape(encode, x).values())) < nbytes(x):
                # Behind a barrier: a compiler would compute the codes of a constant itself, slowly.
                return encode(jax.lax.optimization_barrier(x))
        # Arrays of the leaf's rank and never empty, which some checkpoints refuse.
        return {part: jnp.ones((1,) * x.ndim, jnp.float32) if part else x for part in self.cuts}

    def encoded(self, kept: Mapping[str, Array], shape: tuple[int, ...]) -> bool:
        """Whether these are codes of a leaf of this shape, and not the numbers themselves."""
        return kept[""].dtype == self.dtype and (self.cuts[""] != 0 or kept[""].shape != shape)

    def load(self, kept: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """The numbers."""
        return self.decode(kept, shape) if self.encoded(kept, shape) else kept[""]

    def save(self, x: Array, like: Mapping[str, Array], noise: Noise) -> dict[str, Array]:
        """What is kept of x, in the way that `like` is kept."""
        if self.encoded(like, x.shape):
            return self.encode(x.astype(jnp.float32), noise)
        return {**like, "": x.astype(like[""].dtype)}


class Precision(NamedTuple):
    """How parameters are kept: the visible ones in low precision, and what is missing from them beside.

    Attributes:
      name: what plans print and states carry, such as "bf16+int8".
      keeps: name in the state of what lies beside the parameter ("residue_int8"), or None.
      start: `(x, dtype) -> beside` for the exact float32 x of a parameter that is visible in dtype.
      decode: `(p, beside) -> x`, float32.
      encode: `(x, dtype, noise) -> (rounded, beside)`; rounded is float32 with a value of dtype, and no cast pair has
        made it, which compilers may take out.
      smallest_step: the least change of a parameter, relative to it, that is sure to survive a step; 0 where changes of
        any size survive, each or on average.
      random: whether `encode` draws from its noise.
    """

    name: str
    keeps: str | None
    start: Callable[[Array, Any], Array] | None
    decode: Callable[[Array, Any], Array]
    encode: Callable[[Array, Any, Noise], tuple[Array, Any]]
    smallest_step: float
    random: bool


class Storage(NamedTuple):
    """How the slots of one part, and the parameters that a chain ends in, are kept.

    Attributes:
      codecs: by slot; slots without one are kept as they are.
      precision: of the parameters; None where they are kept as they are.
      plain: `params -> list`, which leaves keep the moments themselves.
      seed: of the noise that codecs and precisions draw from.
      tile: how many elements of a leaf are computed at a time; None for what suits the platform.
    """

    codecs: Mapping[str, Codec] = MappingProxyType({})
    precision: Precision | None = None
    plain: Callable[[Any], list[bool]] | None = None
    seed: int = 0
    tile: int | None = None


def nbytes(x: Any) -> int:
    """Of an array or its description."""
    return int(np.prod(x.shape)) * x.dtype.itemsize


def _check_shards(codec: Codec, x: Any) -> None:
    """Explicit sharding has no way to cut a shard into blocks that do not fit; say so before the trace does."""
    at = getattr(jax.typeof(x), "sharding", None)
    unit = max(codec.cuts.values())
    if at is None or at.mesh.empty or unit < 2 or x.ndim == 0 or len(at.spec) < x.ndim or at.spec[-1] is None:
        return
    axes = at.spec[-1] if isinstance(at.spec[-1], tuple) else (at.spec[-1],)
    local = x.shape[-1] // int(np.prod([at.mesh.shape[a] for a in axes]))
    if local % unit:
        raise ValueError(
            f"{codec.name} cuts the last axis of a leaf of shape {x.shape} into blocks, but each device has"
            f" {local} of its {x.shape[-1]} elements, which is no multiple of {unit}; choose a block that divides"
            f" {local}, or keep this leaf whole."
        )


def noise(key: UInt32[Array, "2"], shape: tuple[int, ...], first: tuple[Any, Any] = (0, 0)) -> Array:
    """32 random bits for every element of a leaf, which depend on its place and the key and on nothing else.

    So they are the same for a whole leaf and for its tiles, on one device and on eight, under jit and vmap. A hash of
    the place, since a leaf's bits from a generator could be made only all at once (4 bytes a parameter).

    Args:
      key: of this leaf, slot and step.
      shape: of the leaf or tile.
      first: the row (all axes but the last, flattened) and the column at which it begins.

    References: the hash is the 32-bit one of least bias in C. Wellons, hash-prospector, 2018.
    """
    if not shape:
        return noise(key, (1,), first)[0]
    rows = jnp.full((1,) * len(shape), first[0], jnp.uint32)
    stride = 1
    for axis in range(len(shape) - 2, -1, -1):
        rows += jax.lax.broadcasted_iota(jnp.uint32, (*shape[:-1], 1), axis) * np.uint32(stride % 2**32)
        stride *= shape[axis]
    columns = jax.lax.broadcasted_iota(jnp.uint32, (1,) * (len(shape) - 1) + shape[-1:], len(shape) - 1)
    columns += jnp.asarray(first[1], jnp.uint32)
    return numerics.mixed(numerics.mixed(rows ^ key[0]) + columns ^ key[1])
