"""What a chain of parts does to one leaf, from what the state keeps to what it keeps next. No trees.

Slots are decoded, the parts run in order in float32, and what they leave is encoded again; where anything is encoded,
leaf by leaf this is done in tiles, see :mod:`adamx.ground.stream`.
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from adamx.ground import codec, numerics, stream
from adamx.ground.hyper import resolve
from adamx.ground.part import Part, Seen

LANDS = (
    "store_params must come last: it decides which parameter a step lands on, and what stands behind it would move"
    " that; put every link inside store_params(...)."
)


class Hyper:
    """One part's hyper-parameters, of which plain numbers stay what they are and the rest is resolved each step."""

    def __init__(self, tree: Any):
        self.specs, self.structure = jax.tree.flatten(tree)
        self.dynamic = [i for i, spec in enumerate(self.specs) if not numerics.is_number(spec)]

    def resolved(self, count: Array, t: Array, real: Any, told: Mapping[str, Any]) -> list[Array]:
        """The values in this step of what is not a plain number."""
        return [jnp.asarray(resolve(self.specs[i], count, t, real, told)) for i in self.dynamic]

    def filled(self, values: list[Array]) -> Any:
        """The tree with these values in place."""
        out: list[Any] = list(self.specs)
        for i, value in zip(self.dynamic, values, strict=True):
            out[i] = value
        return jax.tree.unflatten(self.structure, out)


class Step(NamedTuple):
    """What all leaves of one stage share in one step.

    Attributes:
      t: int32[], this step, counted from 1.
      hyper: for each part of the stage, what is resolved of its hyper-parameters.
      asked: what the stage's first part asked about the whole tree.
      micro: the place of this gradient in its step, where several make one up.
      skip: bool[], whether to leave everything as it was; None where that is never wanted.
    """

    t: Array
    hyper: list[list[Array]]
    asked: Any
    micro: Any
    skip: Any = None


class Fresh(NamedTuple):
    """A step on one leaf, or on a tile of it, before any of it is kept; in float32 or wider.

    Attributes:
      end: the exact parameter after it, or the update where the stage does not end in a parameter.
      slots: after it.
      before: what there is if the step is to be skipped, as it is kept; empty where none ever is.
    """

    end: Array
    slots: dict[str, Array]
    before: dict[str, Array]


class Glance(NamedTuple):
    """One stage of a step on one leaf, or on a tile of it, in float32 or wider.

    Attributes:
      taps: (tap, what reached the part) for each part with a tap, in order.
      ends: whether the stage is the last.
      grad: the gradient before the first stage.
      update: what the stage made of it, before any rounding.
      param: the exact parameter before the step, or None.
      after: the exact parameter after it as it will be kept; None where the stage does not end the step.
      old, new, stored: the slots before the step, after it, and after it as they will be kept.
    """

    taps: tuple[tuple[str, Array], ...]
    ends: bool
    grad: Array
    update: Array
    param: Any
    after: Any
    old: Mapping[str, Array]
    new: Mapping[str, Array]
    stored: Mapping[str, Array]


class Program:
    """What a chain of parts does to one leaf.

    Attributes:
      parts: in order.
      every: gradients that make up one step.
      stages: the parts' positions, cut before every part that asks about the whole tree.
      hypers: of each part.
      codecs: by slot, where there is one.
      names: by slot, the names in the state of what it keeps; "" is the slot itself.
      precision: how parameters are kept; None as they are.
      residue: the name in the state of what lies beside the parameters, or "".
      tiled: whether anything is encoded, so that large leaves are stepped tile by tile.
      random: which parts draw noise.
    """

    def __init__(self, parts: Sequence[Part], every: int):
        self.parts, self.every = parts, every
        self.stages = _stages(parts)
        self.hypers = [Hyper(part.hyper) for part in parts]
        slots = [slot for part in parts for slot in part.slots]
        self.codecs = {slot: c for part in parts for slot, c in part.storage.codecs.items()}
        self.names = {s: self.codecs[s].names(s) if s in self.codecs else {"": s} for s in slots}
        self.precision = parts[-1].storage.precision if parts else None
        self.residue = (self.precision.keeps if self.precision else None) or ""
        self.tiled = bool(self.codecs) or self.precision is not None
        self.random = {i for i, part in enumerate(parts) if part.random or _draws(part.storage)}
        # Of all that draw; zeros, the default, change nothing.
        self.seed = functools.reduce(lambda a, b: (31 * a + b) % 2**32, [part.storage.seed for part in parts], 0)
        self.tiles = [part.storage.tile for part in parts if part.storage.tile is not None]
        if any(part.storage.precision for part in parts[:-1]):
            raise ValueError(LANDS)

    def held(self, stage: int) -> list[str]:
        """The names in the state that a stage reads: of its parts' slots, and what lies beside the parameters."""
        slots = [slot for i in self.stages[stage] for slot in self.parts[i].slots]
        names = [name for slot in slots for name in self.names[slot].values()]
        return list(dict.fromkeys([*names, *([self.residue] if self.residue else [])]))

    def exact(self, p: Array, residue: Array | None) -> Array:
        """A parameter in full: float32 where it is kept in a narrower precision."""
        return self.precision.decode(p, residue) if self.precision is not None and is_narrow(p.dtype) else p

    def leaf(
        self,
        stage: int,
        labels: tuple[Hashable, ...],
        out_dtype: Any,
        now: Step,
        g: Array,
        kept: dict[str, Array],
        p: Any,
        at: Any,
    ) -> tuple[Array, dict[str, Array]]:
        """One stage on one leaf: `(update, what is kept)`.

        Args:
          stage: its position.
          labels: of each of its parts.
          out_dtype: None for a stage that others follow, whose update stays as it was computed; "step" for the new
            parameter instead of the update; else the update's dtype, if no precision needs float32.
          now: of this step.
          g: the gradient, or what the stage before made of it.
          kept: by the names of `held`.
          p: the visible parameter, or None.
          at: uint32[], the leaf's position, where noise is drawn.
        """
        return Leaf(self, stage, labels, out_dtype, now, g, kept, p, at).run()

    def seen(
        self,
        stage: int,
        labels: tuple[Hashable, ...],
        see: Callable[..., tuple[PyTree, PyTree]],
        now: Step,
        leaves: Sequence[tuple[Array, Array, dict[str, Array], Any, Any]],
    ) -> tuple[PyTree, PyTree]:
        """What `see(glance, parts, hyper, t)` makes of one stage on leaves that are alike, `(sums, maxima)` by leaf.

        In tiles where the step is elementwise; nothing is changed.

        Args:
          stage, labels, now: as of `leaf`.
          see: returns two trees of arrays, which are added up over tiles, or of which the maximum is taken. It is
            given the stage's parts and their hyper-parameters in this step, in order.
          leaves: of each, the gradient before the first stage and then g, kept, p, at, as of `leaf`.
        """
        ends_as = leaves[0][0].dtype if stage == len(self.stages) - 1 else None
        parts = [self.parts[i] for i in self.stages[stage]]
        hyper = [self.hypers[i].filled(v) for i, v in zip(self.stages[stage], now.hyper, strict=True)]
        _, g, kept, p, at = leaves[0]
        like = lambda at: Leaf(self, stage, labels, ends_as, now, g, kept, p, at)
        wholes = [{"g0": raw, "g": g} | ({} if p is None else {"p": p}) | kept for raw, g, kept, p, _ in leaves]
        places = None if at is None else jnp.stack([jnp.asarray(leaf[4]) for leaf in leaves])

        def one(tiles: dict[str, Array], first: tuple[Any, Any], i: Array) -> tuple[PyTree, PyTree]:
            return see(like(None if places is None else places[i]).glance(tiles, first), parts, hyper, now.t)

        cuts, cut = like(at).cut(wholes[0])
        return stream.gathered(one, wholes, cuts, cut)


class Leaf:
    """One call of `Program.leaf`: the choices that depend on the leaf, made once."""

    def __init__(
        self, program: Program, stage: int, labels: Any, out_dtype: Any, now: Step, g: Any, kept: Any, p: Any, at: Any
    ):
        self.program, self.labels, self.out_dtype, self.now, self.at = program, labels, out_dtype, now, at
        self.members = program.stages[stage]
        self.mine = [slot for i in self.members for slot in program.parts[i].slots if slot != program.residue]
        self.whole = {"g": g} | ({} if p is None else {"p": p}) | kept
        self.shape = g.shape
        self.real = numerics.real_dtype(g.dtype, *(x.dtype for x in self.whole.values()))
        # How the step ends on this leaf: the precision that its parameter is kept in, if it is narrow.
        self.kept_narrow = program.precision is not None and p is not None and is_narrow(p.dtype)
        self.ending, self.stepping = out_dtype is not None, out_dtype == "step"
        self.lands = self.kept_narrow and self.ending
        self.encoded = [
            s for s in self.mine if s in program.codecs and self._codec(s).encoded(self._of(s, kept), g.shape)
        ]
        # Of which less than every element is kept, and which can be stepped some rows at a time all the same.
        self.folds = {s: fold for s in self.encoded if len(self.shape) == 2 and (fold := self._codec(s).fold)}
        self.returned = "p" if self.stepping else "g"
        # Where the gradient is wide enough, the next parameter is written over it; the update is their difference.
        self.over_gradient = p is not None and g.dtype in (p.dtype, jnp.float32)
        noisy = any(i in program.random for i in self.members)
        self.key = key_of(program.seed, now.t, at, g) if noisy else jnp.zeros(2, jnp.uint32)

    def _codec(self, slot: str) -> codec.Codec:
        return self.program.codecs[slot]

    def _of(self, slot: str, kept: Mapping[str, Array]) -> dict[str, Array]:
        """What a slot keeps, without the slot's name."""
        return {what: kept[name] for what, name in self.program.names[slot].items()}

    def _widened(self, x: Array) -> Array:
        return x.astype(numerics.like(x.dtype, self.real))

    def mathematics(
        self, u: Array, slots: dict[str, Array], p: Any, taps: list[tuple[str, Array]] | None = None
    ) -> tuple[Any, dict[str, Array]]:
        """What the parts compute, from wide numbers to wide numbers; `taps` gets what reaches those with a tap."""
        new: dict[str, Array] = {}
        micro = None if self.now.micro is None else (self.now.micro, self.program.every)
        for i, label, values in zip(self.members, self.labels, self.now.hyper, strict=True):
            part = self.program.parts[i]
            if part.storage.precision is not None:
                continue
            hyper = self.program.hypers[i].filled([v.astype(self.real) for v in values])
            if taps is not None and part.tap:
                taps.append((part.tap, u))
            asked = self.now.asked if i == self.members[0] else None
            shape, seen = u.shape, Seen(self.now.t, label, asked, {}, self.at, micro)
            u, left = part.update(hyper, u, {name: slots[name] for name in part.slots}, p, seen)
            if getattr(u, "shape", None) != shape:
                several = "several: it stands in scale_by_moments only"
                what = f"one of shape {u.shape}" if hasattr(u, "shape") else several
                raise ValueError(f"{part.name} turned a leaf of shape {shape} into {what}.")
            new |= {name: left[name] for name in part.slots}
        return u, new

    def body(self, tiles: dict[str, Array], first: tuple[Any, Any]) -> dict[str, Array]:
        """From what the state keeps to what it keeps next, of a tile that begins at row and column `first`.

        The update comes out as "g", or the new parameter as "p".
        """
        return self.settled(self.fresh(tiles), tiles, first)

    def fresh(self, tiles: Mapping[str, Array]) -> Fresh:
        """All that reads what the state keeps."""
        g, skip = tiles["g"], self.now.skip
        if skip is not None:
            # Zeros instead of what is not finite, so that derivatives through a skipped step are finite too.
            g = jnp.where(skip, jnp.zeros_like(g), g)
        exact = self._exact(tiles)
        u, new = self.mathematics(self._widened(g), self._loaded(tiles), exact)
        if self.ending and self.program.every > 1:  # only the last gradient of a step moves the parameters
            u = jnp.where(self.now.micro == self.program.every - 1, u, numerics.NO_CHANGE)
        before = {} if skip is None else {name: tiles[name] for name in self.whole if name != "g" and name in tiles}
        return Fresh(exact + u if self.stepping or self.lands else u, new, before)

    def settled(self, fresh: Fresh, like: Mapping[str, Any], first: tuple[Any, Any]) -> dict[str, Array]:
        """What is kept of it, in shapes and dtypes as of `like`."""
        kept, x = self._saved(fresh.slots, like, fresh.end.shape, first), fresh.end
        if self.lands:
            landed, beside = self._landed(x, like["p"], len(fresh.slots), first)
            dtype = like["p"].dtype if self.stepping else like["g"].dtype if self.over_gradient else jnp.float32
            kept |= beside | {self.returned: landed.astype(dtype)}
        elif self.stepping:
            kept["p"] = x.astype(like["p"].dtype)
        else:
            kept["g"] = x.astype(self.out_dtype) if self.ending else x
        was = fresh.before
        return {name: jnp.where(self.now.skip, was[name], x) if name in was else x for name, x in kept.items()}

    def _exact(self, tiles: Mapping[str, Array]) -> Any:
        """The parameter in full, as wide as the step computes; None where there is none."""
        p = tiles.get("p")
        return None if p is None else self._widened(self.program.exact(p, tiles.get(self.program.residue)))

    def _loaded(self, tiles: Mapping[str, Array]) -> dict[str, Array]:
        """The slots, as wide as the step computes."""
        codecs, shape = self.program.codecs, tiles["g"].shape

        def loaded(slot: str) -> Array:
            ready = {what: _ready(name) for what, name in self.program.names[slot].items()}
            if slot in self.folds and ready[""] in tiles:
                return self.folds[slot].decode({what: tiles[name] for what, name in ready.items()}, shape)
            return codecs[slot].load(self._of(slot, tiles), shape) if slot in codecs else tiles[slot]

        return {slot: self._widened(loaded(slot)) for slot in self.mine}

    def _made_ready(self, whole: Mapping[str, Array]) -> dict[str, Array]:
        """What rows of the slots with folds are decoded from, under names of their own."""
        out = {}
        for slot, fold in self.folds.items():
            ready = fold.ready(self._of(slot, whole), self.shape)
            out |= {_ready(name): ready[what] for what, name in self.program.names[slot].items()}
        return out

    def _noise(self, place: int, shape: tuple[int, ...], first: tuple[Any, Any]) -> codec.Noise:
        return lambda: codec.noise(numerics.mixed(self.key + np.uint32(place)), shape, first)

    def _saved(
        self, new: Mapping[str, Array], like: Mapping[str, Any], shape: tuple[int, ...], first: tuple[Any, Any]
    ) -> dict[str, Array]:
        """The slots as the state keeps them."""
        kept = {}
        for place, (slot, x) in enumerate(new.items()):
            if slot in self.folds:
                saved = self.folds[slot].encode(x.astype(jnp.float32), self.shape)
            elif slot in self.program.codecs:
                saved = self._codec(slot).save(x, self._of(slot, like), self._noise(place, shape, first))
            else:
                saved = {"": x.astype(like[slot].dtype)}
            kept |= {self.program.names[slot][what]: value for what, value in saved.items()}
        return kept

    def _landed(self, x: Array, p: Array, place: int, first: tuple[Any, Any]) -> tuple[Array, dict[str, Array]]:
        """The visible parameter of x, in float32, and by name what lies beside it."""
        precision = self.program.precision
        assert precision is not None
        # A difference below 1e-38 would be read as zero by some additions and not by others, and -0 + 0 is 0.
        x = x.astype(jnp.float32)
        x = jnp.where(jnp.abs(x) < codec.LEAST, 0, x)
        landed, left = precision.encode(x, p.dtype, self._noise(place, p.shape, first))
        return landed, {self.program.residue: left} if self.program.residue else {}

    def glance(self, tiles: dict[str, Array], first: tuple[Any, Any]) -> Glance:
        """The step on a tile as it would be, with what lies between its beginning and its end."""
        p, exact, old, taps = tiles.get("p"), self._exact(tiles), self._loaded(tiles), []
        u, new = self.mathematics(self._widened(tiles["g"]), old, exact, taps)
        stored = self._loaded(tiles | self._saved(new, tiles, tiles["g"].shape, first))
        after = None
        if p is not None and self.ending:
            dtype = self.out_dtype
            given = numerics.rounded(u, dtype) if is_narrow(dtype) and not self.lands else u  # as apply_updates gets it
            # Behind a barrier, since a compiler may know that (w + u) - w is u, which rounding says it is not.
            x = jax.lax.optimization_barrier(exact + given)
            after = self._widened(numerics.rounded(x, p.dtype) if is_narrow(p.dtype) else x.astype(p.dtype))
            if self.lands:
                shown, beside = self._landed(x, p, len(new), first)
                after = self._exact(tiles | beside | {"p": shown.astype(p.dtype)})
        return Glance(tuple(taps), self.ending, self._widened(tiles["g0"]), u, exact, after, old, new, stored)

    def cut(self, whole: Mapping[str, Array]) -> tuple[dict[str, int], stream.Plan | None]:
        """How many columns an entry of each array stands for, and how to cut the leaf to look at it; None for whole."""
        cuts = {self.program.names[s][what]: n for s in self.encoded for what, n in self._codec(s).cuts.items()}
        odd = any(x.shape != self.shape for name, x in whole.items() if name not in cuts)
        if odd or 0 in cuts.values() or not stream.is_local(*whole.values()):
            return cuts, None
        at = stream.plan(self.shape, math.lcm(1, *cuts.values()), stream.GLANCE)
        elementwise = at is None or stream.is_elementwise(self.mathematics, self._arguments(), self.shape, at.tile)
        return cuts, at if elementwise else None

    def run(self) -> tuple[Array, dict[str, Array]]:
        """The whole leaf, in tiles where that saves memory and changes nothing."""
        new = self._cut() if (self.encoded or self.lands) and stream.is_local(*self.whole.values()) else None
        new = self.body(self.whole, (0, 0)) if new is None else new
        u = new[self.returned]
        if self.lands and not self.stepping:
            u = u.astype(jnp.float32) - self.whole["p"].astype(jnp.float32)
        if self.now.skip is not None and self.ending:
            u = jnp.where(self.now.skip, jnp.full_like(u, numerics.NO_CHANGE), u)
        return u, {name: x for name, x in new.items() if name not in ("g", "p")}

    def _cut(self) -> dict[str, Array] | None:
        """In tiles; None where it has to be whole."""
        cuts, sums = self._cuts()
        odd = [k for k, x in self.whole.items() if x.shape != self.shape and k not in (*cuts, *sums) and x.size != 1]
        if odd or 0 in cuts.values():
            return None
        if self.program.tiles:
            return self._in_tiles(cuts, sums, min(self.program.tiles))(self.whole)
        if math.prod(self.shape) <= stream.SMALL:
            return None
        here, there = (self._in_tiles(cuts, sums, size) for size in (stream.ON_CPU, stream.ELSEWHERE))
        return jax.lax.platform_dependent(self.whole, cpu=here, default=there)

    def _cuts(self) -> tuple[dict[str, int], list[str]]:
        """How many columns an entry of each array stands for, 0 if no tile can do; and which are sums over the rows."""
        cuts, sums = {}, []
        for slot in self.encoded:
            for what, n in self._codec(slot).cuts.items():
                name = self.program.names[slot][what]
                if slot in self.folds and self.whole[name].shape[0] == 1:
                    sums.append(name)
                else:
                    cuts[name] = self.shape[-1] if slot in self.folds and self.whole[name].shape[-1] == 1 else n
        return cuts, sums

    def _arguments(self) -> tuple[Any, dict[str, Any], Any]:
        """Descriptions of what `mathematics` takes."""
        wide = jax.ShapeDtypeStruct(self.shape, self.real)
        single = jax.ShapeDtypeStruct((1,) * len(self.shape), self.real)
        first = lambda slot: self.whole[self.program.names[slot][""]]
        slots = {s: single if s not in self.encoded and first(s).size == 1 else wide for s in self.mine}
        return wide, slots, wide if "p" in self.whole else None

    def _in_tiles(self, cuts: Mapping[str, int], sums: Sequence[str], size: int) -> Callable[..., dict[str, Array]]:
        out = jax.eval_shape(lambda tiles: self.body(tiles, (0, 0)), self.whole)
        arguments = self._arguments()

        def f(whole: dict[str, Array]) -> dict[str, Array]:
            unit = math.lcm(1, *cuts.values(), *(self.shape[-1:] if self.folds else ()))
            at = stream.plan(self.shape, unit, size)
            if at is None or not stream.is_elementwise(self.mathematics, arguments, self.shape, at.tile):
                return self.body(whole, (0, 0))
            replaced = [name for name in whole if name in out and name not in sums]
            carried = {name: whole[name] for name in replaced if whole[name].dtype == out[name].dtype}
            beside = {} if self.returned in carried else {"u": jnp.zeros_like(whole["g"], out[self.returned].dtype)}

            def settled(fresh: Fresh, like: Mapping[str, Any], first: tuple[Any, Any]) -> dict[str, Array]:
                new = self.settled(fresh, like, first)
                return new | dict.fromkeys(beside, new[self.returned])

            read = {name: x for name, x in whole.items() if name not in carried and name not in sums}
            ready, wide = self._made_ready(whole), {_ready(name): n for name, n in cuts.items()}
            summed = {name: stream.empty_sum(whole[name], whole.values()) for name in sums}
            args = (carried | beside, read | ready, {**cuts, **wide}, at, self.now.t > 0, summed)
            new = stream.run(self.fresh, settled, *args)
            if self.now.skip is not None:
                new |= {name: jnp.where(self.now.skip, whole[name], new[name]) for name in sums}
            return {name: new["u" if name == self.returned and beside else name] for name in out}

        return f


def _ready(name: str) -> str:
    return f"{name} ready"


def is_narrow(dtype: Any) -> bool:
    """Whether parameters of this dtype have a precision to be kept in: bfloat16 and float16."""
    return dtype in (jnp.bfloat16, jnp.float16)


def _draws(storage: codec.Storage) -> bool:
    precise = storage.precision is not None and storage.precision.random
    return precise or any(c.random for c in storage.codecs.values())


def key_of(seed: int, t: Array, at: Any, g: Array) -> Array:
    """Of this leaf in this step, from the generator that every configuration of JAX has.

    Inside `shard_map` each device has a key of its own for what it has to itself.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    for axis in numerics.device_axes(g):
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, t), at))


def _stages(parts: Sequence[Part]) -> list[list[int]]:
    """The parts' positions, cut before every part that asks about the whole tree."""
    stages: list[list[int]] = [[]]
    for i, part in enumerate(parts):
        if part.ask is not None and stages[-1]:
            stages.append([])
        stages[-1].append(i)
    return stages
