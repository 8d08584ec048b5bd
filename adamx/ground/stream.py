"""A leaf tile by tile, in place, so that what a step computes on the way is never as large as a leaf. No trees.

XLA keeps every float32 array that an encoding needs twice: 9 to 15 bytes a parameter of a leaf-wide step. A loop over
tiles whose carry is the arrays themselves keeps one tile of each.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from adamx.ground import numerics

# Elements of a tile. On CPU both cores of the machine that this was measured on took part from 2^17 on, and 2^19 was
# fastest; elsewhere each tile costs a kernel launch. Leaves no larger than SMALL are not worth a loop.
ON_CPU = 1 << 19
ELSEWHERE = 1 << 22
SMALL = 1 << 15
GLANCE = 1 << 16  # of what is only looked at

Tiles = dict[str, Array]
Corner = tuple[Any, Any]

# XLA's CPU back end before jax 0.12 writes a slice of a bfloat16 array by way of the whole array. So there tiles are
# written to slabs of so many elements, as integers, and only slabs to the array.
_COPIES_NARROW = jax.__version_info__ < (0, 12)
_SLAB = 1 << 21

# What maps every element by itself, for arrays of one shape and scalars.
_ELEMENTWISE = frozenset(
    [
        "abs",
        "add",
        "and",
        "atan2",
        "bitcast_convert_type",
        "broadcast_in_dim",
        "cbrt",
        "ceil",
        "clamp",
        "complex",
        "conj",
        "convert_element_type",
        "copy",
        "copy_p",
        "cos",
        "div",
        "eq",
        "erf",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "ge",
        "gt",
        "imag",
        "integer_pow",
        "is_finite",
        "le",
        "log",
        "log1p",
        "logistic",
        "lt",
        "max",
        "min",
        "mul",
        "ne",
        "neg",
        "nextafter",
        "not",
        "or",
        "pow",
        "real",
        "reduce_precision",
        "rem",
        "round",
        "rsqrt",
        "select_n",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "sin",
        "sqrt",
        "square",
        "squeeze",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "xor",
    ]
)


def is_local(*arrays: Any) -> bool:
    """Whether these lie whole on one device, or are one device's shards: what can be cut without talking to others."""
    for x in arrays:
        at = getattr(jax.typeof(x), "sharding", None)
        if at is None or at.mesh.empty or at.mesh.size == 1:
            continue
        kinds = set(at.mesh.axis_types)
        if kinds == {jax.sharding.AxisType.Manual}:
            continue
        if kinds == {jax.sharding.AxisType.Explicit} and all(a is None for a in at.spec):
            continue
        return False
    return True


def is_elementwise(f: Callable[..., Any], args: Any, shape: tuple[int, ...], tile: tuple[int, ...]) -> bool:
    """Whether f maps every element by itself and alike, on a leaf of `shape` as on a tile of it.

    It is read off the traced program: only elementwise operations on arrays of the leaf's shape and scalars, and the
    same operations with the same numbers for a tile (a factor that depends on the leaf's shape is another number).
    """
    of = lambda want: jax.tree.map(lambda x: jax.ShapeDtypeStruct(want if x.shape == shape else x.shape, x.dtype), args)
    programs = [_program(jax.make_jaxpr(f)(*of(want)).jaxpr, want) for want in (shape, tile)]
    return programs[0] is not None and programs[0] == programs[1]


def _program(jaxpr: Any, shape: tuple[int, ...]) -> list[Any] | None:
    """The operations in order with their numbers, without shapes; None if one is not elementwise."""
    out: list[Any] = []
    for eqn in jaxpr.eqns:
        inner = next((eqn.params[k] for k in ("jaxpr", "call_jaxpr") if k in eqn.params), None)
        if inner is not None:
            below = _program(getattr(inner, "jaxpr", inner), shape)
            if below is None or eqn.primitive.name in ("while", "scan", "cond", "shard_map"):
                return None
            out += below
            continue
        shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
        if eqn.primitive.name not in _ELEMENTWISE or any(math.prod(s) != 1 and s != shape for s in shapes):
            return None
        numbers = [np.asarray(v.val).tobytes() for v in eqn.invars if isinstance(v, jax.extend.core.Literal)]
        chosen = {k: v for k, v in eqn.params.items() if k in ("new_dtype", "y", "exponent_bits", "mantissa_bits")}
        out.append((eqn.primitive.name, tuple(numbers), tuple(sorted((k, str(v)) for k, v in chosen.items()))))
    return out


class Plan(NamedTuple):
    """Where a leaf is cut: into `rows` rows of all columns, or, where a row is longer than a tile, into stretches.

    Attributes:
      shape: of the leaf.
      rows, columns: of a tile.
    """

    shape: tuple[int, ...]
    rows: int
    columns: int

    @property
    def tile(self) -> tuple[int, ...]:
        """A tile's shape, of the leaf's rank."""
        return (1,) * (len(self.shape) - 2) + (self.rows, self.columns)[-len(self.shape) :]


def plan(shape: tuple[int, ...], unit: int, size: int) -> Plan | None:
    """How to cut a leaf into tiles of at most `size` elements, or one unit; None where it is small.

    A leaf that is one tile still goes through a loop, so that other leaves can use the memory after it.
    """
    if not shape or math.prod(shape) <= min(size, SMALL):
        return None
    rows, columns = math.prod(shape[:-1]), shape[-1]
    if columns <= size:
        most = min(size // columns, rows)
        # Rows that go up without a rest need no second loop, if there is such a number nearby.
        even = next((r for r in range(most, most // 2, -1) if rows % r == 0), most)
        return Plan(shape, even, columns)
    wide = max(unit, size // unit * unit)
    return Plan(shape, 1, wide) if wide < columns else Plan(shape, 1, columns)


def run(
    fresh: Callable[[Tiles], Any],
    settled: Callable[[Any, Mapping[str, Any], Corner], Tiles],
    carried: Mapping[str, Array],
    read: Mapping[str, Array],
    cuts: Mapping[str, int],
    at: Plan,
    always: Array,
    summed: Mapping[str, Array] = MappingProxyType({}),
) -> Tiles:
    """`carried` after every tile of it has been replaced, computed in the arrays' own buffers, and `summed`.

    Args:
      fresh: what is computed of a tile, from tiles by name to a tree of arrays. All that is read is read here.
      settled: `(what fresh made, tiles by name as descriptions, (row, column)) -> tiles of what is carried`.
      carried: arrays that are replaced. Those of one element stay.
      read: arrays that are only read; as a whole by every tile if they are neither of the leaf's shape nor in `cuts`.
      cuts: by name, how many of the leaf's columns one entry stands for; 1 where it is left out.
      at: from :func:`plan`.
      always: a bool that is True, and that the compiler does not know to be.
      summed: zeros, to which what `settled` makes of each tile under these names is added.
    """
    rows, columns = math.prod(at.shape[:-1]), at.shape[-1]
    loose = lambda k, x: math.prod(x.shape) == 1 or (x.shape != at.shape and k not in cuts)
    still = {k: x for k, x in (*carried.items(), *read.items()) if loose(k, x)}
    flat = lambda xs: {k: x.reshape(rows, x.shape[-1]) for k, x in xs.items() if k not in still}
    dtypes = {k: x.dtype for k, x in (*carried.items(), *read.items())}
    lead = (1,) * (len(at.shape) - 2)
    fixed = flat(read)
    narrow = [k for k, x in carried.items() if _COPIES_NARROW and k not in still and _is_narrow(x.dtype)]

    def place(name: str, corner: Corner) -> Corner:
        return corner[0], corner[1] // cuts.get(name, 1)

    def cut(name: str, x: Array, corner: Corner, size: tuple[int, int]) -> Array:
        return jax.lax.dynamic_slice(x, place(name, corner), (size[0], -(-size[1] // cuts.get(name, 1))))

    def tiles(carry: Tiles, origin: Corner, corner: Corner, count: tuple[int, int], size: tuple[int, int]) -> Tiles:
        """All tiles of one size: `count` of them down and across, from `corner` of a slab that lies at `origin`."""

        def one(i: Array, carry: Tiles) -> Tiles:
            local = (corner[0] + i // count[1] * size[0], corner[1] + i % count[1] * size[1])
            there = (origin[0] + local[0], origin[1] + local[1])
            # Of a slab's arrays the slab is at hand only.
            corner_of = lambda k: local if k in narrow else there

            def tile(name: str, x: Array) -> Array:
                piece = _from_bits(cut(name, x, corner_of(name), size), dtypes[name])
                return piece.reshape((*lead, *piece.shape) if len(at.shape) > 1 else piece.shape[1:])

            tiled = lambda carry, fixed: {k: tile(k, x) for k, x in (carry | fixed).items() if k not in summed}
            compute = lambda carry, fixed: fresh(tiled(carry, fixed) | still)
            # Behind a branch that the compiler cannot see through, and all that is read is read in there: otherwise it
            # copies whole arrays in each turn. The rest is computed while it is written, without a pass of its own.
            zeros = lambda *all_of: jax.tree.map(_zeros, compute(*all_of))  # of its kind; it is not computed for them
            made = jax.lax.cond(always, compute, zeros, carry, fixed)
            new = settled(made, jax.eval_shape(tiled, carry, fixed) | still, there)
            bits = lambda k: (_as_bits(new[k]) if k in narrow else new[k]).reshape(size[0], -1)
            put = lambda k: jax.lax.dynamic_update_slice(carry[k], bits(k), place(k, corner_of(k)))
            return {k: carry[k] + new[k] if k in summed else put(k) for k in carry}

        return _loop(count[0] * count[1], one, carry, always)

    def slab(carry: Tiles, origin: Corner, extent: tuple[int, int]) -> Tiles:
        """All tiles of a stretch of the leaf."""
        held = carry | {k: _as_bits(cut(k, carry[k], origin, extent)) for k in narrow}
        down, across = extent[0] // at.rows, extent[1] // at.columns
        rest = (extent[0] - down * at.rows, extent[1] - across * at.columns)
        held = tiles(held, origin, (0, 0), (down, across), (at.rows, at.columns))
        if rest[1]:  # rows are one by one then
            held = tiles(held, origin, (0, extent[1] - rest[1]), (down, 1), (at.rows, rest[1]))
        if rest[0]:
            held = tiles(held, origin, (extent[0] - rest[0], 0), (1, across), (rest[0], at.columns))
        back = lambda k: jax.lax.dynamic_update_slice(carry[k], _from_bits(held[k], dtypes[k]), place(k, origin))
        return held | {k: back(k) for k in narrow}

    carry = {**flat(carried), **summed}
    if narrow:
        extent = (max(_SLAB // columns // at.rows * at.rows, at.rows), columns)
        if at.columns < columns:
            extent = (1, min(max(_SLAB // at.columns, 1) * at.columns, columns))
        extent = (min(extent[0], rows), extent[1])
        down, across = rows // extent[0], columns // extent[1]
        rest = (rows - down * extent[0], columns - across * extent[1])
        turn = lambda i: (i // across * extent[0], i % across * extent[1])
        carry = _loop(down * across, lambda i, c: slab(c, turn(i), extent), carry, always)
        if rest[1]:
            last = (1, rest[1])
            carry = _loop(down, lambda i, c: slab(c, (i, columns - rest[1]), last), carry, always)
        if rest[0]:
            last = (rest[0], columns)
            carry = _loop(1, lambda i, c: slab(c, (rows - rest[0], i * 0), last), carry, always)
    else:
        carry = slab(carry, (0, 0), (rows, columns))
    return {k: carry[k].reshape(x.shape) if k in carry else x for k, x in (*carried.items(), *summed.items())}


def gathered(
    f: Callable[[Tiles, Corner, Array], tuple[Any, Any]],
    leaves: Sequence[Mapping[str, Array]],
    cuts: Mapping[str, int],
    at: Plan | None,
) -> tuple[Any, Any]:
    """The sums and the maxima of what f makes of the tiles of each leaf, stacked along a first axis.

    One loop for all leaves, so that f is compiled once and not for each.

    Args:
      f: `(tiles by name, corner, which leaf) -> (sums, maxima)`, two trees of arrays.
      leaves: what is read of each, alike in shapes and dtypes.
      cuts: by name, how many of a leaf's columns one entry stands for; 1 where it is left out.
      at: from :func:`plan`; None for whole leaves.
    """
    if at is None:
        pick = [lambda x=x: dict(x) for x in leaves]
        of = lambda i: f(jax.lax.switch(i, pick) if pick[1:] else pick[0](), (0, 0), i)
        return _collected([(lambda i: (i, of(i)), len(leaves))], len(leaves))
    rows, columns = math.prod(at.shape[:-1]), at.shape[-1]
    flat = [{k: x.reshape(rows, x.shape[-1]) for k, x in leaf.items()} for leaf in leaves]
    lead = (1,) * (len(at.shape) - 2)

    def turns(first: Corner, count: tuple[int, int], size: tuple[int, int]) -> tuple[Callable[[Array], Any], int]:
        """All tiles of one size of all leaves: `count` of them down and across, from a corner on."""

        def piece(name: str, x: Array, corner: Corner) -> Array:
            wide = cuts.get(name, 1)
            out = jax.lax.dynamic_slice(x, (corner[0], corner[1] // wide), (size[0], -(-size[1] // wide)))
            return out.reshape((*lead, *out.shape) if len(at.shape) > 1 else out.shape[1:])

        def one(turn: Array) -> Any:
            leaf, i = turn // (count[0] * count[1]), turn % (count[0] * count[1])
            corner = (first[0] + i // count[1] * size[0], first[1] + i % count[1] * size[1])
            cut = [lambda x=x: {k: piece(k, y, corner) for k, y in x.items()} for x in flat]
            tiles = jax.lax.switch(leaf, cut) if cut[1:] else cut[0]()
            return leaf, f(tiles, corner, leaf)

        return one, len(leaves) * count[0] * count[1]

    down, across = rows // at.rows, columns // at.columns
    rest = (rows - down * at.rows, columns - across * at.columns)
    loops = [turns((0, 0), (down, across), (at.rows, at.columns))]
    if rest[1]:  # rows are one by one then
        loops.append(turns((0, columns - rest[1]), (down, 1), (at.rows, rest[1])))
    if rest[0]:
        loops.append(turns((rows - rest[0], 0), (1, across), (rest[0], at.columns)))
    return _collected(loops, len(leaves))


def _collected(loops: Sequence[tuple[Callable[[Array], Any], int]], leaves: int) -> tuple[Any, Any]:
    """What all turns of some loops make, `(which leaf, (sums, maxima))` each, by leaf."""
    starts: list[Any] = []  # read inside the trace: what comes out of it has forgotten along which axes it differs

    def look(i: Array) -> None:
        both = zip((0, -np.inf), loops[0][0](i)[1], strict=True)
        starts.append([jax.tree.map(lambda x, value=value: _Start(x, value), named) for value, named in both])

    jax.eval_shape(look, jnp.int32(0))
    carry = jax.tree.map(lambda s: s.of(leaves), tuple(starts[0]), is_leaf=lambda s: isinstance(s, _Start))

    def turned(one: Callable[[Array], Any], i: Array, carry: Any) -> Any:
        leaf, (sums, maxima) = one(i)
        added = jax.tree.map(lambda total, x: total.at[leaf].add(x), carry[0], sums)
        return added, jax.tree.map(lambda total, x: total.at[leaf].max(x), carry[1], maxima)

    for one, count in loops:
        carry = jax.lax.fori_loop(0, count, lambda i, carry, one=one: turned(one, i, carry), carry)
    return carry


class _Start:
    """What a sum or a maximum begins with, of the kind of its first term."""

    def __init__(self, x: Array, value: float):
        self.shape, self.dtype, self.axes, self.value = x.shape, x.dtype, numerics.device_axes(x), value

    def of(self, leaves: int) -> Array:
        x = jnp.full((leaves, *self.shape), self.value, self.dtype)
        return jax.lax.pcast(x, self.axes, to="varying") if self.axes else x


def empty_sum(like: Array, terms: Iterable[Array]) -> Array:
    """Zeros of the shape and dtype of `like`, which differ between devices as what is computed from `terms` does."""
    axes = sorted({axis for x in terms for axis in numerics.device_axes(x)} - {*numerics.device_axes(like)})
    return jax.lax.pcast(_zeros(like), tuple(axes), to="varying") if axes else _zeros(like)


def _zeros(like: Array) -> Array:
    """Of the same kind; jnp.zeros_like forgets an explicit mesh that is not the one set."""
    return jnp.where(False, like, jnp.zeros((), like.dtype))


def _loop(turns: int, one: Callable[[Array, Tiles], Tiles], carry: Tiles, always: Array) -> Tiles:
    """A loop that stays one: a compiler unrolls those of one turn, and copies then."""
    if not turns:
        return carry
    return jax.lax.fori_loop(0, turns if turns > 1 else jnp.where(always, 1, 0), one, carry)


def _is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4


def _as_bits(x: Array) -> Array:
    """Narrow floats as integers; others as they are."""
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") if _is_narrow(x.dtype) else x


def _from_bits(x: Array, dtype: Any) -> Array:
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)
