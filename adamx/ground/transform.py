"""The one transformation type: mathematics written for one leaf, lifted to trees here and only here.

A link is one :class:`Part`, the mathematics of one leaf. :func:`lift` turns a sequence of parts into an optax
transformation under one step count: it knows trees, `None` and masked leaves, dtypes, and that a program with
hundreds of leaves has only a few distinct leaf shapes. :func:`chain` merges neighbours that carry parts.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int32, PyTree

from adamx.ground import numerics, tree
from adamx.ground.codec import Codec
from adamx.ground.leaf import LANDS, Program, Step
from adamx.ground.part import Part, Whole


class State(NamedTuple):
    """The state of every lifted transformation.

    Attributes:
      count: int32[], steps taken; saturates.
      moments: by name ("mu", "nu", "nu_peak"), trees with the parameters' structure, of plain arrays; mostly shaped
        like the parameters, and of their rank where they are smaller (factored and pooled moments).
      scalars: by name ("d"), numbers remembered for the whole tree; empty for most methods.
    """

    count: Int32[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride] (it hides tuple.count; optax's name)
    moments: dict[str, PyTree]
    scalars: dict[str, Array]


class Transformation(optax.GradientTransformationExtraArgs):
    """An ordinary optax transformation that also knows what it is made of.

    Attributes:
      init: `params -> State`.
      update: `(updates, state, params=None, **extra) -> (updates, state)`; unknown extra arguments are ignored.
      step: `(grads, state, params, **extra) -> (params, state)`: update and addition in one. The update is not rounded
        to the gradient's dtype on the way.
      parts: its parts in order; None where it is more than a chain of parts.
      every: how many gradients it takes to a step.
      guarded: `(skip, updates, state, params)`, as update, but where the bool skip is True nothing changes, number by
        number and in place; None where update is more than a chain of parts.
      seen: `(see, grads, state, params) -> list`, what a step would be, seen leaf by leaf while it is computed: for
        leaves that are alike, their positions among those of `grads`, and for each stage what `see` made of them, see
        :meth:`adamx.ground.leaf.Program.seen`. None where there is no chain of parts to look into.
      late: `(never, updates, state, params, stepping)`, update, or step where stepping, which writes nothing before the
        bool never is known, which is False; None where update is more than a chain of parts.
      inside: the parts that `seen` sees: its own, or those of what it wraps.
      lands: whether its updates end on parameters in low precision, so that nothing may change them behind it.
    """

    guarded: Callable[..., Any] | None = None
    seen: Callable[..., Any] | None = None
    late: Callable[..., Any] | None = None
    inside: tuple[Part, ...] = ()
    parts: tuple[Part, ...] | None = None
    every: int = 1
    lands: bool = False
    _step: Callable[..., Any] | None = None

    def __new__(cls, init: Any, update: Any, parts: tuple[Part, ...] | None = None, step: Any = None, every: int = 1):
        """A tuple of init and update, with what the class describes as attributes."""
        self = super().__new__(cls, init, update)
        self.parts, self._step, self.every = parts, step, every
        return self

    def step(self, grads: PyTree, state: PyTree, params: PyTree, **extra: Any) -> tuple[PyTree, PyTree]:
        """Update and addition in one; see the class."""
        if self._step is not None:
            return self._step(grads, state, params, **extra)
        updates, state = self.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state


def check_transformation(tx: Any, who: str, *, alters: bool = False) -> None:
    """Raise a sentence where something is not a gradient transformation.

    Args:
      tx: what may be none.
      who: takes it.
      alters: whether that changes the updates that come out of it.

    Raises:
      TypeError: if it has no init and update (a factory that was not called, say).
      ValueError: if its updates must not be altered and would be.
    """
    if not (isinstance(tx, tuple) and hasattr(tx, "init") and hasattr(tx, "update")):
        hint = "; call it to make one" if callable(tx) else ""
        if callable(getattr(tx, "gradient_transformation", None)):  # optax.MultiSteps
            hint = "; write .gradient_transformation() behind it"
        raise TypeError(f"{who} takes gradient transformations, but got {tx!r:.60}{hint}.")
    if alters and getattr(tx, "lands", False):
        raise ValueError(LANDS)


def chain(*txs: optax.GradientTransformation) -> Transformation:
    """One transformation after another, as `optax.chain`, with neighbours from adamx merged.

    Neighbours that carry parts become one leaf function under one step count, and share one :class:`State`; if
    nothing else stands in the chain, that is the state of the whole. Foreign optax transformations keep their own.

    Args:
      txs: any optax transformations.

    Raises:
      TypeError: if one is not a transformation (a factory that was not called, say).
      ValueError: if two links claim one moment's name, one with a state of its own stands behind `accumulate`, or any
        link behind `store_params`.

    >>> import adamx
    >>> tx = adamx.chain(adamx.scale_by_moments(mu=adamx.ema(0.9)), adamx.bias_correct(0.9), adamx.scale_by_lr(0.1))
    >>> sorted(tx.init({"w": jnp.ones(3)}).moments)
    ['mu']
    """
    groups: list[Any] = []
    for place, tx in enumerate(txs, start=1):
        check_transformation(tx, "chain", alters=place < len(txs))
        parts = getattr(tx, "parts", None)
        if parts is None:
            groups.append(tx)
        elif groups and isinstance(groups[-1], list):
            groups[-1].extend(parts)
        else:
            groups.append(list(parts))
    made = [lift(*g) if isinstance(g, list) else g for g in groups]
    pieces = 1
    for tx in made:
        behind = [
            part.name for part in getattr(tx, "parts", None) or () if part.slots or part.scalars or part.needs_params
        ]
        if pieces > 1 and behind:
            raise ValueError(
                f"{tree.some(behind)} stands behind a method that takes {pieces} gradients to a step, but would act at"
                " every gradient; put it into the method, or use optax.MultiSteps around the whole."
            )
        pieces = max(pieces, getattr(tx, "every", 1))
    if not made:
        return lift()
    if len(made) == 1:
        only = made[0]
        return only if isinstance(only, Transformation) else Transformation(*optax.with_extra_args_support(only))
    whole = Transformation(*optax.chain(*made), every=pieces)
    whole.lands = getattr(made[-1], "lands", False)
    return whole


def lift(*parts: Part, every: int = 1) -> Transformation:
    """The optax transformation that runs `parts` in order on every leaf, under one step count.

    Args:
      parts: in the order in which they run.
      every: gradients that make up one step; the parts must be able to accumulate where it is more than one.

    Raises:
      ValueError: if two parts claim one slot's name, or one scalar's.
    """
    _owners(parts, "moment", lambda part: part.slots)
    keeper = _owners(parts, "number", lambda part: part.scalars)
    program = Program(parts, every)
    codecs, names, stages, hypers = program.codecs, program.names, program.stages, program.hypers
    all_names = [name for kept in names.values() for name in kept.values()]
    _check_names(all_names)
    # One trace for each distinct leaf: shape, dtypes, sharding and label. The cache lives as long as the
    # transformation does.
    leaf = jax.jit(program.leaf, static_argnums=(0, 1, 2))

    def init(params: PyTree) -> State:
        _check_params(params)
        leaves, treedef = tree.flatten(jax.tree.map(_strong, params))
        moments = {}
        for part in parts:
            labels = [()] * len(leaves) if part.labels is None else [(label,) for label in part.labels(params)]
            plain = part.storage.plain(params) if part.storage.plain else [False] * len(leaves)
            for slot, make in part.slots.items():
                made = [None if x is None else make(x, *label) for x, label in zip(leaves, labels, strict=True)]
                if slot not in codecs:
                    moments[slot] = treedef.unflatten(made)
                    continue
                # What is smaller than its leaf already (a mean, a factor) has other axes, and stays as it is.
                narrow = [
                    x is not None and not k and x.shape == p.shape for x, k, p in zip(made, plain, leaves, strict=True)
                ]
                kept = [None if x is None else codecs[slot].start(x, not n) for x, n in zip(made, narrow, strict=True)]
                for what, name in names[slot].items():
                    moments[name] = treedef.unflatten(None if k is None else k[what] for k in kept)
        real = numerics.real_dtype(*(x.dtype for x in leaves if x is not None))
        numbers = {name: start for part in parts for name, start in part.scalars.items()}
        scalars = {name: jnp.full((), x, jnp.int32 if isinstance(x, int) else real) for name, x in numbers.items()}
        return State(jnp.zeros((), jnp.int32), moments, scalars)

    def run(
        grads: PyTree,
        state: State,
        params: PyTree,
        stepping: bool,
        skip: Array | None = None,
        see: Any = None,
        never: Array | None = None,
    ) -> Any:
        for part in parts:
            if part.needs_params and params is None:
                raise ValueError(
                    f"{part.name} reads the parameters: call update(grads, state, params), not update(grads, state)."
                )
        if stepping and params is None:
            raise ValueError("step moves the parameters: call step(grads, state, params).")
        _check_state(state, all_names, [*keeper])
        if never is not None and program.tiled:  # loops over tiles wait for the count, and no gradient is copied
            state, never = state._replace(count=state.count + never), None
        gs, treedef = tree.flatten(grads)
        gs = [_strong(g) for g in gs]
        ps = [None] * len(gs) if params is None else _matching(treedef, params, grads, "parameters")
        ps = [_strong(p) for p in ps]
        slots = {name: _matching(treedef, state.moments[name], grads, f"moment {name!r}") for name in all_names}
        live = [i for i, g in enumerate(gs) if _trained(g, ps[i])]
        unlabelled = [None] * len(gs)
        label = [part.labels(grads if params is None else params) if part.labels else unlabelled for part in parts]
        _check_shapes(live, gs, ps, slots, label, grads, parts, names, codecs)
        count, t = state.count, numerics.increment(state.count)
        after, micro = t, None
        if every > 1:
            micro = count % every
            count, t = count // every, count // every + 1
        dtypes = [x.dtype for i in live for x in (gs[i], ps[i], *(slots[n][i] for n in all_names)) if x is not None]
        real = numerics.real_dtype(*dtypes)
        us = list(gs)
        alike: list[tuple[list[int], list[Any]]] = [] if see is None else _alike(live, gs, ps, slots, label)
        beside = slots[program.residue] if program.residue else [None] * len(gs)
        told: dict[str, Any] = {name: state.scalars[name].astype(_wider(state.scalars[name], real)) for name in keeper}
        for stage, members in enumerate(stages):
            last = stage == len(stages) - 1
            asked = None
            ask = parts[members[0]].ask if members else None
            if ask is not None:
                mine = hypers[members[0]]
                calm = lambda g: g if skip is None else jnp.where(skip, jnp.zeros_like(g), g)
                whole = Whole(
                    [calm(us[i]) for i in live],
                    [None if ps[i] is None else program.exact(ps[i], beside[i]) for i in live],
                    _Loaded({n: [leaves[i] for i in live] for n, leaves in slots.items()}, names, codecs, gs, live),
                    dict(told),
                    t,
                    [label[members[0]][i] for i in live],
                )
                asked = ask(mine.filled(mine.resolved(count, t, real, told)), whole)
                told |= asked if isinstance(asked, dict) else {}
            now = Step(t, [hypers[m].resolved(count, t, real, told) for m in members], asked, micro, skip)
            noisy = any(m in program.random for m in members)
            labels_of = lambda i, members=members: tuple(label[m][i] for m in members)
            kept_of = lambda i, stage=stage: {name: slots[name][i] for name in program.held(stage)}
            if see is not None:
                for places, views in alike:
                    leaves = [(gs[i], us[i], kept_of(i), ps[i], np.uint32(i) if noisy else None) for i in places]
                    views.append(program.seen(stage, labels_of(places[0]), see, now, leaves))
                if last:
                    return alike
            for i in live:
                labels, kept = labels_of(i), kept_of(i)
                at = np.uint32(i) if noisy else None
                ends_as = ("step" if stepping else gs[i].dtype) if last else None
                if never is not None and stage == 0:
                    us[i] = jnp.where(never, jnp.zeros_like(us[i]), us[i])
                us[i], new = leaf(stage, labels, ends_as, now, us[i], kept, ps[i], at)
                for name, value in new.items():
                    slots[name][i] = value
        for i in set(range(len(gs))) - set(live):
            us[i] = ps[i] if stepping else _untrained_update(gs[i], ps[i])
        moments = {name: treedef.unflatten(slots[name]) for name in all_names}
        scalars = {name: told[name].astype(state.scalars[name].dtype) for name in keeper}
        if skip is not None:
            after = jnp.where(skip, state.count, after)
            scalars = {name: jnp.where(skip, state.scalars[name], x) for name, x in scalars.items()}
        return treedef.unflatten(us), State(after, moments, scalars)

    def update(updates: PyTree, state: State, params: PyTree = None, **extra: Any) -> tuple[PyTree, State]:
        del extra
        return run(updates, state, params, stepping=False)

    def step(grads: PyTree, state: State, params: PyTree, **extra: Any) -> tuple[PyTree, State]:
        del extra
        return run(grads, state, params, stepping=True)

    def guarded(skip: Array, updates: PyTree, state: State, params: PyTree = None) -> tuple[PyTree, State]:
        return run(updates, state, params, stepping=False, skip=skip)

    def seen(see: Any, grads: PyTree, state: State, params: PyTree = None) -> list[Any]:
        return run(grads, state, params, stepping=False, see=see)

    def late(never: Array, updates: PyTree, state: State, params: PyTree, stepping: bool) -> tuple[PyTree, State]:
        return run(updates, state, params, stepping, never=never)

    made = Transformation(init, update, tuple(parts) if every == 1 else None, step, every)
    made.late = late
    made.guarded, made.seen, made.inside, made.lands = guarded, seen, tuple(parts), program.precision is not None
    return made


def _alike(
    live: list[int], gs: list, ps: list, slots: Mapping[str, list], label: list
) -> list[tuple[list[int], list[Any]]]:
    """The trained leaves that differ in nothing but their numbers, together; each with an empty list."""
    groups: dict[Any, list[int]] = {}
    for i in live:
        kinds = [None if x is None else jax.typeof(x) for x in (gs[i], ps[i], *(slots[name][i] for name in slots))]
        groups.setdefault((*kinds, *(of[i] for of in label)), []).append(i)
    return [(places, []) for places in groups.values()]


def _owners(parts: Sequence[Part], what: str, names: Callable[[Part], Mapping[str, Any]]) -> dict[str, str]:
    """Which part keeps which name; raises where two claim one."""
    owner: dict[str, str] = {}
    for part in parts:
        for name in names(part):
            if name in owner:
                raise ValueError(
                    f"{part.name} and {owner[name]} both keep a {what} named {name!r} in one chain; name one of them"
                    f" otherwise, as in scale_by_moments({name}2=...), or leave one out."
                )
            owner[name] = part.name
    return owner


def _wider(x: Array, real: Any) -> Any:
    return jnp.promote_types(x.dtype, real) if numerics.is_inexact(x.dtype) else x.dtype


def _strong(x: Any) -> Any:
    """A Python number or NumPy array as a JAX array that is not weakly typed; anything else as it is."""
    foreign = isinstance(x, (int, float, complex, np.generic, np.ndarray))
    return numerics.as_array(x) if foreign and getattr(x, "dtype", None) != jax.dtypes.float0 else x


def _trained(g: Any, p: Any) -> bool:
    """Whether this leaf has a gradient to follow: inexact gradient and parameter."""
    return g is not None and all(x is None or numerics.is_inexact(x.dtype) for x in (g, p))


def _untrained_update(g: Any, p: Any) -> Any:
    """What stands in the updates for a leaf that is not trained: None, or the zero that apply_updates can add."""
    if g is None:
        return None
    if p is not None:
        return jnp.zeros_like(p)
    return g if g.dtype == jax.dtypes.float0 else jnp.zeros_like(g)


def _check_params(params: PyTree) -> None:
    for name, leaf in zip(tree.names(params), tree.flatten(params)[0], strict=True):
        if leaf is None or isinstance(leaf, (int, float, complex)):
            continue
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not hasattr(leaf, "shape") or _opaque(dtype):
            what = f"a {dtype} array" if dtype is not None else f"the {type(leaf).__name__} {leaf!r:.60}"
            raise TypeError(
                f"leaf {name!r} is {what}, which cannot be trained: pass only the parameters, as"
                " nnx.state(model, nnx.Param), variables['params'], or eqx.filter(model, eqx.is_inexact_array)."
            )


def _opaque(dtype: Any) -> bool:
    """Whether it holds no numbers: random keys, strings, objects, dates."""
    return jnp.issubdtype(dtype, jax.dtypes.extended) or np.dtype(dtype).kind in "OSUMm"


def _matching(treedef: Any, other: PyTree, grads: PyTree, what: str) -> list[Any]:
    """The leaves of `other` in the order of the gradients' structure."""
    try:
        leaves = treedef.flatten_up_to(other)
        gs = tree.flatten(grads)[0]
        if not all(g is None or hasattr(x, "shape") or numerics.is_number(x) for g, x in zip(gs, leaves, strict=True)):
            raise ValueError("a gradient stands where there is no array")
        return leaves
    except ValueError as error:
        have, want = set(tree.names(grads)), set(tree.names(other))
        extra, missing = sorted(have - want), sorted(want - have)
        says = [f"only in the gradients: {tree.some(extra)}"] if extra else []
        says += [f"only in the {what}: {tree.some(missing)}"] if missing else []
        raise ValueError(
            f"the gradients have another structure than the {what}"
            f" ({'; '.join(says) or error}); init the optimiser with the tree that is differentiated."
        ) from error


def _check_shapes(
    live: list[int],
    gs: list,
    ps: list,
    slots: Mapping[str, list],
    labels: list,
    grads: PyTree,
    parts: Sequence[Part],
    names: Mapping[str, Mapping[str, str]],
    codecs: Mapping[str, Codec],
) -> None:
    for g, p, name in zip(gs, ps, tree.names(grads), strict=True):
        if g is not None and p is not None and jnp.issubdtype(g.dtype, jnp.integer) and numerics.is_inexact(p.dtype):
            raise TypeError(f"leaf {name!r} has an {g.dtype} gradient but a {p.dtype} parameter; cast the gradient.")
        if g is not None and p is not None and _trained(g, p) and jnp.iscomplexobj(g) != jnp.iscomplexobj(p):
            raise TypeError(
                f"leaf {name!r} has a {g.dtype} gradient but a {p.dtype} parameter; one of them is complex."
            )
    expected: dict[Any, dict[str, tuple[int, ...]]] = {}

    def shapes(slot: str, make: Callable[..., Array], label: tuple[Hashable, ...], g: Any, plain: bool):
        """What init makes of this slot for a parameter shaped like the gradient, by name."""
        at = (slot, label, g.shape, g.dtype, plain)
        if at not in expected:
            like = jax.ShapeDtypeStruct(g.shape, g.dtype)
            one = jax.eval_shape(lambda p: make(p, *label), like)
            made = jax.eval_shape(lambda x: codecs[slot].start(x, plain), one) if slot in codecs else {"": one}
            expected[at] = {names[slot][part]: x.shape for part, x in made.items()}
        return expected[at]

    for i in live:
        want = np.shape(gs[i])
        wrong = [("parameter", ps[i])] if ps[i] is not None and np.shape(ps[i]) != want else []
        for part, own in zip(parts, labels, strict=True):
            label = (own[i],) if part.labels else ()
            for slot, make in part.slots.items():
                here = {name: np.shape(slots[name][i]) for name in names[slot].values()}
                if wrong or all(shape == want for shape in here.values()):
                    continue
                # A factored, pooled or encoded moment is smaller than its leaf; its own init knows how small.
                if all(
                    here != shapes(slot, make, label, gs[i], plain) for plain in (False, True)[: 1 + (slot in codecs)]
                ):
                    name = next(iter(here))
                    wrong = [(f"moment {name!r}", slots[name][i])]
        for what, other in wrong:
            raise ValueError(
                f"leaf {tree.names(grads)[i]!r} has a gradient of shape {want} but a {what} of shape"
                f" {np.shape(other)}; init the optimiser with the parameters that are differentiated."
            )


class _Loaded(Mapping[str, list[Array]]):
    """Every slot of the trained leaves as numbers, decoded when it is read."""

    def __init__(self, kept: Mapping[str, list[Array]], names: Mapping, codecs: Mapping, gs: list, live: list[int]):
        self.kept, self.names, self.codecs, self.shapes = kept, names, codecs, [gs[i].shape for i in live]

    def __getitem__(self, slot: str) -> list[Array]:
        if slot not in self.codecs:
            return self.kept[slot]
        each = [{part: self.kept[name][k] for part, name in self.names[slot].items()} for k in range(len(self.shapes))]
        return [self.codecs[slot].load(kept, shape) for kept, shape in zip(each, self.shapes, strict=True)]

    def __iter__(self):
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"two things that the state keeps would be named {tree.some(twice)}; rename the moment.")


def _check_state(state: Any, moments: list[str], scalars: list[str]) -> None:
    if isinstance(state, State) and set(moments) == state.moments.keys() and set(scalars) == state.scalars.keys():
        return
    have = [*state.moments, *state.scalars] if isinstance(state, State) else []
    has = f"the moments {tree.some(have)}" if isinstance(state, State) else f"{state!r:.60}"
    keeps = tree.some([*moments, *scalars]) or "a count only"
    raise TypeError(
        f"this state holds {has}, but the optimiser keeps {keeps}; make it with this"
        " optimiser's init, or restore the checkpoint that it wrote."
    )


def each_leaf(f: Callable[..., Any], first: PyTree, *rest: PyTree) -> PyTree:
    """F on the trained leaves of trees of one structure, in at least float32; other leaves of the first as they are.

    What f returns is cast back to the first tree's dtype.
    """
    leaves, treedef = tree.flatten(first)
    others = [treedef.flatten_up_to(other) for other in rest]

    def one(x: Any, *ys: Any) -> Any:
        if any(v is None or not hasattr(v, "dtype") or not numerics.is_inexact(v.dtype) for v in (x, *ys)):
            return x
        real = numerics.real_dtype(*(v.dtype for v in (x, *ys)))
        return f(*(v.astype(numerics.like(v.dtype, real)) for v in (x, *ys))).astype(x.dtype)

    return treedef.unflatten([one(*xs) for xs in zip([_strong(x) for x in leaves], *others, strict=True)])


def states(state: PyTree) -> list[State]:
    """Every :class:`State` in a state, such as that of a chain, a wrapper or `nnx.Optimizer`."""
    is_state = lambda x: isinstance(x, State)
    return [x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)]
