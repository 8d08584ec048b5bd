"""A step in one kernel: every byte is read once and written once, and no number in between reaches the memory.

The kernel's body is the plain path's own, `Leaf.body`, traced on a tile. So mathematics, codecs and landing are
written in their own rooms only.
"""

import copy
import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from adamx.ground import codec, numerics, stream, tree
from adamx.ground.leaf import Leaf, Program, Step, key_of
from adamx.ground.part import Part
from adamx.ground.transform import State, Transformation
from adamx.kernels import grid
from adamx.kernels.grid import Cut

PLATFORMS = ("tpu", "cuda")


def fused(
    tx: Transformation, *, specs: PyTree = None, mesh: Any = None, interpret: str | None = None
) -> Transformation:
    """The same method and state, with a `step` that is one Pallas kernel for each large leaf on TPU and CUDA.

    State is that of tx, so that a run can change from one to the other at any step. `update` is that of tx, too: chains
    and wrappers around it, which call that, do without the kernel. Leaves that the kernel does not take are stepped by
    tx in the same call, as all are on other platforms: those that keep their moments in float32 (norms, biases), whose
    last axis is no multiple of the block, that have fewer than 32 rows, that specs cut unevenly or along a middle axis,
    and those not computed element by element.

    It has not been measured on an accelerator yet, and nothing chooses it by itself; `python -m benchmarks.kernel`
    says what it brings on yours.

    Args:
      tx: a method under `store_state` by blocks, `store_params`, or both, such as `seven_bytes(adamw(...))`.
      specs: `PartitionSpec`s of the parameters, a tree of their structure or a prefix of one, with at most as many
        entries as a leaf has axes; None for what is on every device whole. Each device then runs the kernel on its own
        shard (`jax.shard_map`) and talks to nobody. Left out, leaves that are known to be sharded are stepped by tx;
        inside a `shard_map` of your own they are not sharded any more.
      mesh: of the specs; left out, the one that `jax.set_mesh` set.
      interpret: "tpu" or "cuda" to run that platform's kernel in Pallas's interpreter, anywhere and slowly.

    Raises:
      TypeError: if tx is not made of adamx's links.
      ValueError: if a link asks about the whole tree (clipping by the global norm), or interpret names no platform; by
        its `init`, and by a `step` under another mesh, if specs do not fit the parameters or name no axis of the mesh.

    >>> import adamx
    >>> tx = adamx.seven_bytes(adamx.adamw(1e-2))
    >>> p, g = {"w": jnp.ones((32, 256), jnp.bfloat16)}, {"w": jnp.ones((32, 256), jnp.bfloat16)}
    >>> plain, _ = tx.step(g, tx.init(p), p)
    >>> kernel, _ = fused(tx, interpret="tpu").step(g, tx.init(p), p)
    >>> bool(jnp.all(plain["w"] == kernel["w"])), float(kernel["w"][0, 0])
    (True, 0.98828125)
    """
    parts = getattr(tx, "parts", None)
    if parts is None:
        raise TypeError(f"fused takes a method or a chain of links, with its storage inside, not {tx!r:.60}.")
    asks = [part.name for part in parts if part.ask is not None]
    if asks:
        raise ValueError(
            f"{tree.some(asks)} asks about the whole tree, which a kernel for one leaf cannot see; do that to the"
            " gradients before the step."
        )
    if interpret not in (None, *PLATFORMS):
        raise ValueError(f"interpret must be one of {', '.join(map(repr, PLATFORMS))}, but is {interpret!r}.")
    programs = {platform: _Fused(parts, platform, interpret is not None, mesh) for platform in PLATFORMS}
    # One trace for each distinct leaf.
    kernels = {platform: jax.jit(program.kernel, static_argnums=(0, 1, 2)) for platform, program in programs.items()}

    def on(platform: str, grads: PyTree, state: State, params: PyTree) -> tuple[PyTree, State]:
        program = programs[platform]
        gs, treedef = tree.flatten(grads)
        trees = {"p": params, "g": grads} | {name: state.moments[name] for name in program.held(0)}
        leaves = {name: treedef.flatten_up_to(x) for name, x in trees.items()}
        labels = [part.labels(params) if part.labels else [None] * len(gs) for part in parts]
        places = [None] * len(gs) if specs is None else _spread(specs, params, mesh, run=True)
        t = numerics.increment(state.count)
        now = Step(t, [h.resolved(state.count, t, jnp.float32, {}) for h in program.hypers], None, None)
        taken: dict[int, dict[str, Array]] = {}
        for i in range(len(gs)):
            arrays, label = {name: x[i] for name, x in leaves.items()}, tuple(label[i] for label in labels)
            cut = program.cut(label, places[i], now, arrays)
            if cut is not None:
                moved = {name: arrays[name] for name in (*cut.written, "g")}
                taken[i] = kernels[platform](cut, label, places[i], now, np.uint32(i), moved)
        # The others by the plain path; to it, a leaf without a gradient stays as it is.
        rest = treedef.unflatten(None if i in taken else g for i, g in enumerate(gs))
        params, after = tx.step(rest, state, params)

        def put(name: str, old: PyTree) -> PyTree:
            return treedef.unflatten(taken.get(i, {}).get(name, x) for i, x in enumerate(treedef.flatten_up_to(old)))

        return put("p", params), after._replace(moments={name: put(name, x) for name, x in after.moments.items()})

    def step(grads: PyTree, state: State, params: PyTree) -> tuple[PyTree, State]:
        jax.eval_shape(tx.step, grads, state, params)  # raises what is to be raised
        if interpret is not None:
            return on(interpret, grads, state, params)
        each: dict[str, Any] = {name: lambda name=name: on(name, grads, state, params) for name in PLATFORMS}
        return jax.lax.platform_dependent(**each, default=lambda: tx.step(grads, state, params))

    def init(params: PyTree) -> Any:
        _spread(specs, params, mesh)
        return tx.init(params)

    made = Transformation(tx.init if specs is None else init, tx.update, parts, step)
    made.guarded, made.seen, made.inside, made.lands = tx.guarded, tx.seen, tx.inside, tx.lands
    return made


class _Fused(Program):
    """A program whose leaves a kernel can step.

    Attributes:
      known: how leaves are cut, by what they look like.
    """

    def __init__(self, parts: tuple[Part, ...], platform: str, interpret: bool, mesh: Any):
        super().__init__(parts, 1)
        self.platform, self.interpret, self.mesh = platform, interpret, mesh
        self.known: dict[Any, Cut | None] = {}
        self.noisy, self.random = bool(self.random), set()  # the key is made outside the kernel

    def cut(self, labels: tuple[Hashable, ...], spec: Any, now: Step, arrays: dict[str, Any]) -> Cut | None:
        """How the kernel cuts this leaf; None where it cannot."""
        if not all(isinstance(x, jax.Array) and x.dtype.itemsize <= 4 for x in arrays.values()):
            return None
        like = (labels, spec, jax.sharding.get_abstract_mesh(), *((name, jax.typeof(x)) for name, x in arrays.items()))
        if like not in self.known:
            self.known[like] = self._cut(labels, spec, now, arrays)
        return self.known[like]

    def _cut(self, labels: tuple[Hashable, ...], spec: Any, now: Step, arrays: dict[str, Array]) -> Cut | None:
        g, p = arrays["g"], arrays["p"]
        if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (g, p)):
            return None
        columns = {self.names[slot][what]: n for slot, c in self.codecs.items() for what, n in c.cuts.items()}
        unit, shape = max(columns.values(), default=1), g.shape
        unit = 256 if unit == 1 else unit  # any, where there are no blocks
        leaf = self._leaf(labels, now, arrays)
        alone = {self.residue} if not leaf.lands else set()  # one number, beside a wide parameter
        rest = {name: x for name, x in arrays.items() if name not in alone}
        if spec is not None:
            sizes = (self.mesh or jax.sharding.get_abstract_mesh()).shape
            pieces = [math.prod(sizes[a] for a in axes) for axes in grid.axes(spec, len(shape))]
            if any(n > 1 for n in pieces[1:-1]):  # a shard's rows would be no stretch of the leaf's
                return None
            if any(n % k for n, k in zip(shape, pieces, strict=True)):
                return None
            shape = tuple(n // k for n, k in zip(shape, pieces, strict=True))
        fits = (
            len(shape) > 1
            and math.prod(shape[:-1]) >= grid.CHUNK
            # Joining the leading axes is free where a TPU's tiles of the last two stay whole.
            and (len(shape) == 2 or shape[-2] % grid.CHUNK == 0)
            and unit in (128, 256, 512, 1024)
            and set(columns.values()) <= {1, unit}
            and shape[-1] % unit == 0
            and len(leaf.encoded) == len(self.codecs)
            and (spec is not None or stream.is_local(*arrays.values()))
            and all(x.shape == (*g.shape[:-1], g.shape[-1] // columns.get(name, 1)) for name, x in rest.items())
        )
        if not fits:
            return None
        wide = jax.ShapeDtypeStruct(shape, jnp.float32)
        tile = (1,) * (len(shape) - 1) + (unit,)
        if not stream.is_elementwise(leaf.mathematics, (wide, dict.fromkeys(leaf.mine, wide), wide), shape, tile):
            return None
        scales = frozenset(name for name, n in columns.items() if n > 1)
        return Cut(shape, unit, scales, tuple(name for name in rest if name != "g"))

    def _drawing(self, draw: Any) -> "_Fused":
        """The same, but its storage draws `draw(place, x)`: inside a kernel a key is two scalars and no array."""
        out = copy.copy(self)
        slots = [slot for part in self.parts for slot in part.slots if slot != self.residue]
        place = {slot: i for i, slot in enumerate(slots)}
        own = lambda c, at: c._replace(encode=lambda x, *rest: c.encode(x, *rest[:-1], lambda: draw(at, x)))
        out.codecs = {slot: own(c, place[slot]) for slot, c in self.codecs.items()}
        out.precision = self.precision and own(self.precision, len(slots))
        return out

    def _leaf(self, labels: Any, now: Step, arrays: dict[str, Array]) -> Leaf:
        kept = {name: x for name, x in arrays.items() if name not in ("g", "p")}
        return Leaf(self, 0, labels, "step", now, arrays["g"], kept, arrays["p"], np.uint32(0))

    def kernel(self, cut: Cut, labels: Any, spec: Any, now: Step, at: Array, arrays: dict[str, Array]):
        """What a step replaces of one leaf, each device its own shard."""
        key = key_of(self.seed, now.t, at, arrays["g"]) if self.noisy else jnp.zeros(2, jnp.uint32)
        _, structure = jax.tree.flatten(now.hyper)

        def body(t: Array, numbers: list[Array], key: Any, tiles: dict[str, Array], first: Any):
            now = Step(t, structure.unflatten(numbers), None, None)
            stirred = lambda place: [numerics.mixed(k + np.uint32(place)) for k in key]
            draw = lambda place, x: codec.noise(stirred(place), x.shape, first)  # pyright: ignore[reportArgumentType]
            return self._drawing(draw)._leaf(labels, now, tiles).body(tiles, first)

        def local(now: Step, key: Array, arrays: dict[str, Array]) -> dict[str, Array]:
            bits = jax.lax.bitcast_convert_type(key, jnp.int32)
            whole = jnp.stack([now.t, *bits, *grid.corner(cut.shape, spec)])
            broken = jnp.stack([*jax.tree.leaves(now.hyper), jnp.float32(0)])
            return grid.run(body, cut, self.platform, self.interpret, whole, broken, arrays)

        if spec is None:
            return local(now, key, arrays)
        each, out = dict.fromkeys(arrays, spec), dict.fromkeys(cut.written, spec)
        sharded = jax.shard_map(local, mesh=self.mesh, in_specs=(P(), P(), each), out_specs=out, check_vma=False)
        return sharded(now, key, arrays)


def _spread(specs: PyTree, params: PyTree, mesh: Any, run: bool = False) -> list[Any]:
    """The specification of every leaf; to run it a mesh must be there."""
    is_spec = lambda x: x is None or isinstance(x, P)
    below = lambda spec, part: jax.tree.map(lambda _: P() if spec is None else spec, part)
    leaves, treedef = tree.flatten(params)
    found: list[Any]
    try:
        found = tree.flatten(jax.tree.map(below, specs, treedef.unflatten(range(len(leaves))), is_leaf=is_spec))[0]
    except (ValueError, TypeError):
        found = [None]
    entry = lambda a: a is None or isinstance(a, (str, tuple))
    if not all(isinstance(spec, P) and all(map(entry, spec)) for spec in found):
        raise ValueError(
            "specs must be PartitionSpecs of axes' names in a tree of the parameters' structure, or in a prefix of it,"
            f" not {specs!r:.80}; the parameters are {tree.some(tree.names(params))}."
        )
    there = (mesh or jax.sharding.get_abstract_mesh()).axis_names
    for spec, leaf, name in zip(found, leaves, tree.names(params), strict=True):
        if leaf is None:
            continue
        if len(spec) > np.ndim(leaf):
            raise ValueError(f"{spec} cuts {len(spec)} axes, but {name} has the shape {np.shape(leaf)}.")
        axes = [a for each in grid.axes(spec, np.ndim(leaf)) for a in each]
        if axes and run and not there:
            raise ValueError(
                f"{name} is cut along {tree.some(axes)}, but there is no mesh: pass mesh= or jax.set_mesh."
            )
        unknown = [a for a in axes if there and a not in there]
        if unknown:
            raise ValueError(f"{name} is cut along {tree.some(unknown)}, but the mesh has the axes {tree.some(there)}.")
    return found
