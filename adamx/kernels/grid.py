"""One leaf as a grid of tiles, and the kernel that goes over it once, for a TPU or a GPU. It knows no mathematics."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

CHUNK = 32  # rows that a TPU computes at a time: its registers hold int8 as 32 by 128
ON_TPU = 1 << 17  # elements that a TPU moves at a time, of all arrays, in and out, twice: of its 16 MiB
ON_GPU = 8  # rows of one program

Tiles = dict[str, Array]
# `(t, numbers, the two of the key, tiles by name, (row, column) of the leaf) -> tiles of what is replaced`.
Body = Callable[[Array, list[Array], Any, Tiles, tuple[Any, Any]], Tiles]


class Cut(NamedTuple):
    """How a leaf is cut, and what a step reads and writes of it.

    Attributes:
      shape: of the leaf, or of one device's shard.
      unit: columns of a tile.
      scales: the names of what has one entry for each row of a tile.
      written: the names of what a step replaces, the parameter as "p".
    """

    shape: tuple[int, ...]
    unit: int
    scales: frozenset[str]
    written: tuple[str, ...]


class Piece(NamedTuple):
    """Rows of a leaf that one kernel takes.

    Attributes:
      block: how many are moved at a time.
      chunk: how many are computed at a time.
      skipped: the blocks before the first.
      blocks: how many there are.
      width: how many scales of each row are moved with a tile: its own, or all.
    """

    block: int
    chunk: int
    skipped: int
    blocks: int
    width: int


def run(
    body: Body, cut: Cut, platform: str, interpret: bool, whole: Array, broken: Array, arrays: Tiles
) -> dict[str, Array]:
    """What `body` makes of every tile, written where the old was.

    Args:
      body: what a step does to a tile.
      cut: of the leaf.
      platform: "tpu" or "cuda".
      interpret: whether Pallas's interpreter runs it.
      whole: int32[5]: the step, the two of the key, the row and the column at which these arrays begin.
      broken: the float32 numbers that body wants, and one more.
      arrays: of the leaf, or of one device's shard.
    """
    rows = math.prod(cut.shape[:-1])
    flat = {name: x.reshape(rows, -1) for name, x in arrays.items()}
    for piece in pieces(platform, rows, cut):
        flat |= _call(body, cut, platform, interpret, piece, whole[None], broken[None], flat)
    return {name: flat[name].reshape(arrays[name].shape) for name in cut.written}


def pieces(platform: str, rows: int, cut: Cut) -> list[Piece]:
    """A TPU writes nothing beyond the last row, so that its last block may stand out; a GPU would."""
    if platform == "tpu":
        width = cut.shape[-1] // cut.unit
        block = max(min(rows, ON_TPU // max(cut.unit, width)) // CHUNK, 1) * CHUNK
        return [Piece(block, CHUNK, 0, -(-rows // block), width)]
    even, rest = divmod(rows, ON_GPU)
    last = Piece(1, 1, even * ON_GPU, rest, 1)
    return [Piece(ON_GPU, ON_GPU, 0, even, 1), *([last] if rest else [])]


def _call(
    body: Body,
    cut: Cut,
    platform: str,
    interpret: bool,
    piece: Piece,
    whole: Array,
    broken: Array,
    flat: Tiles,
) -> Tiles:
    """The kernel over one piece; other rows stay, since arrays are replaced where they lie."""
    from jax.experimental import pallas as pl  # a tenth of a second, which no one pays who has no kernel

    block, chunk, skipped, blocks, width = piece

    def kernel(whole: Any, broken: Any, *refs: Any) -> None:
        read = dict(zip(flat, refs, strict=False))
        written = dict(zip(cut.written, refs[len(flat) :], strict=True))
        t, *key, top, left = (whole[0, k] for k in range(5))
        numbers = [broken[0, k] for k in range(broken.shape[1] - 1)]
        row, column = pl.program_id(0) + skipped, pl.program_id(1)

        def rows(k: Any, _: Any = None) -> None:
            here = pl.ds(k * chunk, chunk)
            tiles = {name: ref[here, :] for name, ref in read.items()}
            before = {name: tiles[name] for name in cut.scales}
            mine = jax.lax.broadcasted_iota(jnp.int32, (chunk, width), 1) == column
            if width > 1:  # no single columns on TPU: the whole row comes, and this tile's entry is chosen
                tiles |= {name: jnp.sum(jnp.where(mine, x, 0), -1, keepdims=True) for name, x in before.items()}
            new = body(
                t,
                numbers,
                [x.astype(jnp.uint32) for x in key],
                tiles,
                (top + row * block + k * chunk, left + column * cut.unit),
            )
            for name, ref in written.items():
                if name in cut.scales and width > 1:  # the row stays where it is until its last tile has come
                    ref[here, :] = jnp.where(mine, new[name], jnp.where(column == 0, before[name], ref[here, :]))
                else:
                    ref[here, :] = new[name]

        if block == chunk:
            rows(0)
        else:
            jax.lax.fori_loop(0, block // chunk, rows, None)

    scalars, options = _platform(platform)
    tile = pl.BlockSpec((block, cut.unit), lambda i, j: (i + skipped, j))
    beside = pl.BlockSpec((block, width), lambda i, j: (i + skipped, 0 if width > 1 else j))
    each = {name: beside if name in cut.scales else tile for name in flat}
    out = pl.pallas_call(
        kernel,
        grid=(blocks, cut.shape[-1] // cut.unit),
        in_specs=[scalars, scalars, *each.values()],
        out_specs=[each[name] for name in cut.written],
        out_shape=[jax.ShapeDtypeStruct(flat[name].shape, flat[name].dtype) for name in cut.written],
        input_output_aliases={2 + list(flat).index(name): k for k, name in enumerate(cut.written)},
        interpret=interpret,
        compiler_params=options,
        name="adamx_step",
    )(whole, broken, *flat.values())
    return dict(zip(cut.written, out, strict=True))


def _platform(name: str) -> tuple[Any, Any]:
    """Where scalars lie, and what the compiler is told."""
    from jax.experimental import pallas as pl

    if name == "tpu":
        from jax.experimental.pallas import tpu

        # Rows' scales wait for their last tile, so that columns go in order.
        return pl.BlockSpec(memory_space=tpu.SMEM), tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"))
    # Triton, although deprecated: Mosaic GPU lowers no maximum of a tile's rows, and before jax 0.12 no square root.
    from jax.experimental.pallas import triton

    return pl.no_block_spec, triton.CompilerParams(num_warps=4)


def axes(spec: Any, rank: int) -> list[tuple[str, ...]]:
    """The mesh axes that cut each axis."""
    return [(a,) if isinstance(a, str) else tuple(a or ()) for a in (*spec, *[None] * (rank - len(spec)))]


def corner(shape: tuple[int, ...], spec: Any) -> tuple[Any, Any]:
    """The row and the column of the leaf at which this device's shard begins."""
    if spec is None:
        return jnp.int32(0), jnp.int32(0)
    first, *_, last = (jax.lax.axis_index(names) if names else jnp.int32(0) for names in axes(spec, len(shape)))
    return first * math.prod(shape[:-1]), last * shape[-1]
