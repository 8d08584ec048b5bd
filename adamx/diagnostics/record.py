"""The watch: a transformation that keeps a record of itself, on the device, in arrays of fixed shape."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32, Int32, PyTree, UInt8

from adamx.diagnostics import stats
from adamx.diagnostics.history import About, History, Leaf
from adamx.diagnostics.metrics import EDGES, LEAF, PULSE, WHOLE
from adamx.diagnostics.thresholds import SPIKE_BEFORE, SPIKE_SIGMA
from adamx.ground import numerics, tree
from adamx.ground.hyper import Derived, above_zero, whole
from adamx.ground.transform import State, Transformation, check_transformation
from adamx.wrap.guard import SkipState
from adamx.wrap.scaling import ScaleState

WINDOW, SPIKE = int(SPIKE_BEFORE.value), SPIKE_SIGMA.value
FEWEST = 64  # steps of the window that there must be for a score
LEAST_SPREAD = 1e-3  # of the loss, and of the norm's logarithm: what the deviation counts as at least
PULSES, SPREADS, BINS = 512, 32, 16  # lengths of ring buffers; edges of a distribution
RECORDED = tuple(name for name in WHOLE if name not in PULSE)
COLUMNS = (*PULSE, *RECORDED)  # of a record of the whole tree


GUARDS = {SkipState: "skip_nonfinite", ScaleState: "loss_scaling"}  # what keeps bad gradients out, by its state
_OF_ANOTHER = (
    "this is not a state of this watch: init it again, or put the state of tx into its `inner`; a watch with"
    " distributions does not go on from one without."
)


class WatchState(NamedTuple):
    """The state of :func:`watch`. R, P and D are lengths of ring buffers, L the number of trained leaves.

    Attributes:
      inner: the watched transformation's state.
      calls: int32[], gradients taken.
      armed: int32[], how many of the next steps are recorded whatever the interval.
      records: int32[], rows written to `whole` and `leaf`.
      steps: int32[R], of the rows; 0 where there is none yet.
      whole: float32[R, W], numbers of the whole tree.
      leaf: float32[R, L, K], the statistics of :data:`adamx.diagnostics.metrics.LEAF`, in its order.
      pulse_steps: int32[P], as `steps`.
      pulse: float32[P, 4], what is recorded every step.
      spread_steps: int32[D], as `steps`; D is 0 and both are () without distributions.
      spread: float32[D, L, 4, 16], shares up to each edge.
      about: uint8[...], JSON text of what is recorded, so that a state can be read alone.
    """

    inner: PyTree
    calls: Int32[Array, ""]
    armed: Int32[Array, ""]
    records: Int32[Array, ""]
    steps: Int32[Array, " R"]
    whole: Float32[Array, "R W"]
    leaf: Float32[Array, "R L K"]
    pulse_steps: Int32[Array, " P"]
    pulse: Float32[Array, "P 4"]
    spread_steps: PyTree
    spread: PyTree
    about: UInt8[Array, " N"]


def watch(
    tx: optax.GradientTransformation,
    *,
    every: int = 10,
    history: int = 256,
    distributions: bool = False,
    max_bytes: int = 32 << 20,
    spike: float = SPIKE,
    arm: int = 16,
) -> Transformation:
    """The same transformation, which records what it does: the same operations on updates and inner state.

    Every `every` steps the statistics of :mod:`adamx.diagnostics.metrics` are written to ring buffers in the state, all
    on the device: no callback, no wait for the host. Each step the loss (if it is passed, `update(..., loss=value)`)
    and the gradient's norm are kept too, and where one of them leaps, the next `arm` steps are recorded in full.
    :func:`drain` reads the records.

    A record looks at gradients, parameters and moments once more, in tiles (leaves of methods that reduce or of
    `reduced` codecs, and those sharded without `shard_map`, as a whole), before the step changes them. Of methods made
    of adamx's links, also inside `skip_nonfinite` and `loss_scaling`, all statistics are recorded; of others, and of
    what `param_groups`, `cautious`, `galore` and `optax.chain` put together, those of gradients, updates and
    parameters, for which a record computes the update once more.

    Where several gradients make up a step (`accumulate`), the pulse is of all of them: their mean loss, the root mean
    square of their norms, the largest score; statistics of the gradient are those of the last, with the moments as they
    were before it.

    Updates are the same bit for bit where no compiler contracts a product and a sum into one rounding.

    Under `vmap` every step costs a record, since a condition becomes a choice there.

    Args:
      tx: any optax transformation. `watch` stands around it, and `optax.chain(clip, watch(tx))` sees what clips leave.
      every: steps between records; 0 records nothing, and is tx itself.
      history: records that are kept until they are drained; fewer if they would take more than max_bytes.
      distributions: also count gradients, second moments, directions and updates by magnitude, in 32 rows.
      max_bytes: that the buffers take at most, see :func:`watch_bytes`.
      spike: deviations from the mean of the last 128 steps, of the loss or of the logarithm of the gradient's norm,
        from which on a step is a spike.
      arm: steps recorded after a spike.

    Raises:
      TypeError: if tx is no transformation; at the first update, if the state is not of this watch.
      ValueError: if a number is out of its range; at init, if not even two records fit into max_bytes, or tx holds
        another watch; at the first update, if the loss is not one number.

    >>> import adamx
    >>> tx = adamx.watch(adamx.adam(1e-3), every=1)
    >>> params = {"w": jnp.ones(3)}
    >>> updates, state = tx.update({"w": jnp.ones(3)}, tx.init(params), params, loss=2.0)
    >>> seen = adamx.drain(state).history()
    >>> print(seen.steps, seen.whole["learning_rate"], seen.leaf["param_rms"], seen.pulse["loss"])
    [1] [0.001] [[1.]] [2.]
    """
    check_transformation(tx, "watch")
    whole("every", every, 0)
    whole("history", history, 2)
    whole("max_bytes", max_bytes)
    whole("arm", arm, 0)
    if not isinstance(distributions, bool):
        raise ValueError(f"distributions must be True or False, but is {distributions!r:.60}.")
    above_zero("spike", spike)
    inner = tx if isinstance(tx, Transformation) else Transformation(*optax.with_extra_args_support(tx))
    if every == 0:
        return inner
    pieces, measure = inner.every, partial(_measured, inner, distributions)

    def init(params: PyTree) -> WatchState:
        kept = inner.init(params)
        if _records(kept):
            raise ValueError("this transformation is watched already; leave one of the two watches out.")
        about = _about(inner, kept, params, every, spike)
        count = max(len(about.leaves), 1)
        rows = _rows(count, len(about.to_json()), history, distributions, max_bytes)
        number = lambda n=0: jnp.full((), n, jnp.int32)
        empty = lambda *shape: jnp.full(shape, jnp.nan, jnp.float32)
        none = lambda n: jnp.zeros(n, jnp.int32)
        return WatchState(
            kept,
            *(number(), number(), number()),
            *(none(rows), empty(rows, len(COLUMNS)), empty(rows, count, len(LEAF))),
            *(none(PULSES), empty(PULSES, len(PULSE))),
            *((none(SPREADS), empty(SPREADS, count, len(EDGES), BINS)) if distributions else ((), ())),
            jnp.asarray(np.frombuffer(about.to_json().encode(), np.uint8)),
        )

    def watched(grads: PyTree, state: WatchState, params: PyTree, extra: Mapping[str, Any]) -> tuple[WatchState, Array]:
        """The state with this step's records and the inner state as it was; and a bool known after the record only."""
        piece, step = state.calls % pieces, state.calls // pieces + 1
        final = piece == pieces - 1
        beat, leaps = _pulse(grads, extra, state, step, spike)
        due = final & ((step % every == 0) | (step == 1) | (state.armed > 0) | leaps)
        old = lambda ring, at: ring.at[at].get(mode="promise_in_bounds")
        put = lambda ring, at, row: ring.at[at].set(row, mode="promise_in_bounds")
        put_if_due = lambda ring, at, row: put(ring, at, jnp.where(due, row, old(ring, at)))
        at, beat_at, spread_at = state.records % len(state.steps), (step - 1) % PULSES, state.records % SPREADS
        kept = (
            old(state.whole, at)[len(PULSE) :],
            old(state.leaf, at),
            old(state.spread, spread_at) if distributions else (),
        )

        def take() -> Any:
            rows = measure(grads, state.inner, params, extra, kept)
            return rows, jnp.any(rows[0] == jnp.inf) & jnp.all(rows[0] == -jnp.inf)

        (whole_row, leaf_row, spread_row), never = jax.lax.cond(due, take, lambda: (kept, state.calls < 0))
        if pieces > 1:
            beat = _with_earlier(old(state.pulse, beat_at), beat, piece)
        state = state._replace(
            calls=numerics.increment(state.calls),
            armed=jnp.where(leaps, arm + ~final, jnp.maximum(state.armed - final, 0)),
            records=state.records + due,
            steps=put_if_due(state.steps, at, step),
            whole=put_if_due(state.whole, at, jnp.concatenate([beat, whole_row])),
            leaf=put(state.leaf, at, leaf_row),
            pulse_steps=put(state.pulse_steps, beat_at, jnp.where(final, step, old(state.pulse_steps, beat_at))),
            pulse=put(state.pulse, beat_at, beat),
        )
        if not distributions:
            return state, never
        spread_steps = put_if_due(state.spread_steps, spread_at, step)
        return state._replace(spread_steps=spread_steps, spread=put(state.spread, spread_at, spread_row)), never

    def moved(
        grads: PyTree, state: WatchState, params: PyTree, extra: Mapping[str, Any], stepping: bool
    ) -> tuple[PyTree, WatchState]:
        """What the watched transformation makes of this step, computed after the record: it reads what is then written.

        A compiler that is free to write first copies all parameters and moments instead, in every step. A barrier does
        not hold it: XLA's CPU back end before jax 0.12 removes those before it decides. So what is written depends on a
        bool that is never true.
        """
        if not isinstance(state, WatchState) or distributions == isinstance(state.spread, tuple):
            raise TypeError(_OF_ANOTHER)
        new, never = watched(grads, state, params, extra)
        if inner.late is not None:
            out, kept = inner.late(never, grads, new.inner, params, stepping)
        else:
            move = inner.step if stepping else inner.update
            out, kept = move(*_tied(never, inner, grads, new.inner), params, **extra)
        return out, new._replace(inner=kept)

    def update(updates: PyTree, state: WatchState, params: PyTree = None, **extra: Any) -> tuple[PyTree, WatchState]:
        return moved(updates, state, params, extra, stepping=False)

    def step(grads: PyTree, state: WatchState, params: PyTree, **extra: Any) -> tuple[PyTree, WatchState]:
        return moved(grads, state, params, extra, stepping=True)

    made = Transformation(init, update, step=step, every=pieces)
    made.lands = inner.lands
    return made


def _tied(never: Array, tx: Transformation, grads: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    """Gradients and state, of which what a step waits for is known after the record only."""
    if any(part.storage.codecs or part.storage.precision for part in tx.inside):
        later = lambda s: s._replace(count=s.count + never) if isinstance(s, State) else s
        return grads, jax.tree.map(later, state, is_leaf=lambda s: isinstance(s, State))
    return jax.tree.map(lambda g: jnp.where(never, jnp.zeros_like(g), g) if _is_trained(g) else g, grads), state


# What a state holds


def watch_bytes(leaves: int, history: int = 256, *, distributions: bool = False, about: int = 0) -> int:
    """Bytes that :func:`watch` adds to a state: 12 + 4 R (1 + W + L K) + 20 P, and 4 D (1 + 64 L) for distributions.

    W and K are the lengths of the whole tree's row and a leaf's, P = 512 and D = 32.

    Args:
      leaves: L, how many are trained.
      history: R, records.
      distributions: whether they are kept.
      about: bytes of the text that describes them.

    Raises:
      ValueError: if one of the numbers is below 0.
    """
    for name, value in (("leaves", leaves), ("history", history), ("about", about)):
        whole(name, value, 0)
    spread = 4 * SPREADS * (1 + leaves * len(EDGES) * BINS) if distributions else 0
    rings = 4 * history * (1 + len(COLUMNS) + leaves * len(LEAF)) + 4 * PULSES * (1 + len(PULSE))
    return 12 + rings + spread + about


def _rows(leaves: int, about: int, history: int, distributions: bool, max_bytes: int) -> int:
    size = lambda rows: watch_bytes(leaves, rows, distributions=distributions, about=about)
    rows = min(history, (max_bytes - size(0)) // (size(1) - size(0)))
    if rows < 2:
        raise ValueError(
            f"max_bytes={max_bytes} holds {max(rows, 0)} records of {leaves} leaves; two take {size(2)} bytes"
            f"{' (with distributions)' if distributions else ''}: raise max_bytes."
        )
    return rows


def _trained(params: PyTree) -> list[int]:
    """The positions of the leaves that have a row."""
    leaves = tree.flatten(params)[0]
    return [i for i, x in enumerate(leaves) if _is_trained(x)]


def _is_trained(x: Any) -> bool:
    return hasattr(x, "dtype") and numerics.is_inexact(x.dtype)


def _about(tx: Transformation, state: PyTree, params: PyTree, every: int, spike: float) -> About:
    leaves, names = tree.flatten(params)[0], tree.names(params)
    mine = _trained(params)
    method = _method(tx.inside, params, mine) if tx.inside else {}
    guards = [name for kind, name in GUARDS.items() if _holds(state, kind)]
    method |= {"guards": guards} if guards else {}
    method |= {"pieces": tx.every} if tx.every > 1 else {}
    method |= {"spike": float(spike)} if spike != SPIKE else {}
    return About(tuple(Leaf(names[i], np.shape(leaves[i]), leaves[i].dtype.name) for i in mine), every, method)


def _holds(state: PyTree, kind: type) -> bool:
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return any(isinstance(x, kind) for x in found)


def _method(parts: Sequence[Any], params: PyTree, mine: list[int]) -> dict[str, Any]:
    """What is known of a method before its first step; numbers only where they are Python numbers."""
    found: dict[str, Any] = {"parts": [part.name for part in parts]}

    def number(name: str, value: Any, of: Callable[[float], float] = float) -> None:
        value = value.args[0] if isinstance(value, Derived) and value.args else value
        if numerics.is_number(value):
            found[name] = of(value)

    for part in parts:
        h = part.hyper
        if part.tap == "moments":
            for name, slot in (("b1", "mu"), ("b2", "nu")):
                decays = [
                    own["decay"] for own in h["moments"].get(slot, ()) if isinstance(own, Mapping) and "decay" in own
                ]
                number(name, decays[0] if decays else None)
            number("eps", h["rule"].get("eps"))
        elif part.tap == "decay":
            number("weight_decay", h["factor"])
            chosen = part.labels(params) if part.labels else [True] * len(tree.flatten(params)[0])
            found["decays"] = [bool(chosen[i]) for i in mine]
        elif part.tap == "rate":
            number("learning_rate", h["factor"], abs)
        elif part.tap == "clip":
            number("max_norm", h["max"])
        precision = part.storage.precision
        codecs = {slot: codec.name for slot, codec in part.storage.codecs.items()}
        found |= {"codecs": found.get("codecs", {}) | codecs} if codecs else {}
        if precision is not None:
            found |= {"precision": precision.name, "smallest_step": precision.smallest_step}
    return found


# What a step is


def _pulse(
    grads: PyTree, extra: Mapping[str, Any], state: WatchState, step: Array, spike: float
) -> tuple[Array, Array]:
    """What is recorded every step, in the order of `PULSE`; and whether it leaps.

    It is the cost of a step at which no record is due: few operations, each a loop of its own on CPU.
    """
    given = next((extra[name] for name in ("loss", "value") if extra.get(name) is not None), None)
    if given is not None and np.size(given) != 1:
        raise ValueError(f"the loss must be one number, but has shape {np.shape(given)}; pass its mean.")
    loss = jnp.full((), jnp.nan, jnp.float32) if given is None else _mean(jnp.asarray(given, jnp.float32).reshape(()))
    trained = [x for x in tree.flatten(grads)[0] if _is_trained(x)]
    squares = _over_devices([stats.squares(stats.wide(x)) for x in trained], jax.lax.psum)
    norm = jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))
    recent = (state.pulse_steps > 0) & (step - 1 - state.pulse_steps < WINDOW)
    logs = lambda x: jnp.where(jnp.array([False, True]), jnp.log(x), x)  # of norms, whose size may drift by decades
    ways = _usual(logs(state.pulse[:, :2]), recent[:, None])
    scores = [_score(loss, jnp.abs(loss), *ways[0]), _score(jnp.log(norm), 1.0, *ways[1])]
    broken = ~jnp.isfinite(norm) if given is None else ~(jnp.isfinite(norm) & jnp.isfinite(loss))
    return jnp.stack([loss, norm, *scores]), broken | (scores[0] > spike) | (scores[1] > spike)


def _usual(past: Array, recent: Array) -> list[tuple[Array, Array, Array]]:
    """Of each column the number, mean and deviation of its recent finite values.

    Args:
      past: float32[P, K].
      recent: bool[P, 1], which rows count.
    """
    known = recent & jnp.isfinite(past)
    n, total = jnp.split(jnp.sum(jnp.concatenate([known.astype(jnp.float32), jnp.where(known, past, 0)], 1), 0), 2)
    mean = total / jnp.maximum(n, 1)
    spread = jnp.sqrt(jnp.sum(jnp.where(known, jnp.square(past - mean), 0), 0) / jnp.maximum(n - 1, 1))
    return [(n[k], mean[k], spread[k]) for k in range(past.shape[1])]


def _score(x: Array, unit: Any, n: Array, mean: Array, spread: Array) -> Array:
    """Deviations from the mean; 0 while there are few, NaN where x is not finite. A thousandth of unit is the least."""
    score = (x - mean) / jnp.maximum(spread, LEAST_SPREAD * unit + stats.TINY)
    return jnp.where(jnp.isfinite(x), jnp.where(n >= FEWEST, score, 0), jnp.nan)


def _with_earlier(earlier: Array, beat: Array, piece: Array) -> Array:
    """The pulse of a step's gradients so far: the mean loss, the root mean square of norms, the largest scores."""
    loss, norm, *scores = beat
    share = 1 / (piece + 1)
    mean = earlier[0] + (loss - earlier[0]) * share
    root = jnp.sqrt(jnp.square(earlier[1]) + (jnp.square(norm) - jnp.square(earlier[1])) * share)
    so_far = jnp.stack([mean, root, *jnp.maximum(earlier[2:], jnp.stack(scores))])
    return jnp.where(piece == 0, beat, so_far)


def _mean(x: Array) -> Array:
    """Over the devices of a `shard_map`, where they differ."""
    axes = numerics.device_axes(x)
    return jax.lax.pmean(x, axes) if axes else x


def _over_devices(xs: Sequence[Array], join: Callable[..., Array]) -> list[Array]:
    """Each number joined over the axes of a `shard_map` along which it differs; one collective for each set of axes."""
    out = list(xs)
    for axes in dict.fromkeys(axes for axes in map(numerics.device_axes, xs) if axes):
        mine = [i for i, x in enumerate(xs) if numerics.device_axes(x) == axes]
        flat = join(jnp.concatenate([xs[i].reshape(-1) for i in mine]), axes)
        ends = np.cumsum([xs[i].size for i in mine])[:-1]
        for i, piece in zip(mine, jnp.split(flat, ends), strict=True):
            out[i] = piece.reshape(xs[i].shape)
    return out


def _devices(x: Array) -> int:
    """How many devices have a piece of their own of x, inside `shard_map`."""
    return math.prod(jax.lax.axis_size(axis) for axis in numerics.device_axes(x))


def _measured(
    tx: Transformation, deep: bool, grads: PyTree, state: PyTree, params: PyTree, extra: Mapping[str, Any], blank: Any
) -> Any:
    """The rows of a record: of the whole tree, of each leaf, and of distributions."""
    reference = grads if params is None else params
    gs, mine = tree.flatten(grads)[0], _trained(reference)
    if len(mine) != len(blank[1]) and mine:
        raise ValueError(
            f"the watch was made for {len(blank[1])} trained leaves, but sees {len(mine)}: init the optimiser with the"
            " tree that is differentiated."
        )
    if not mine:
        return blank
    groups: list[tuple[list[int], list[Any]]] = []
    if tx.seen is not None:
        groups = tx.seen(stats.of_step_deep if deep else stats.of_step, grads, state, params)
    else:
        updates = tree.flatten(tx.update(grads, state, params, **extra)[0])[0]
        ps = [None] * len(gs) if params is None else tree.flatten(params)[0]
        for i, (g, u, p) in enumerate(zip(gs, updates, ps, strict=True)):
            if _is_trained(g) and _is_trained(u):
                groups.append(([i], [jax.tree.map(lambda x: x[None], stats.of_any(g, u, p))]))
    sums, maxima = (_table([(at, [s[kind] for s in stages]) for at, stages in groups], kind, mine) for kind in (0, 1))
    seen = {i for places, _ in groups for i in places}
    n = jnp.asarray([gs[i].size * _devices(gs[i]) if i in seen else np.nan for i in mine], jnp.float32)
    of = stats.finished(sums, maxima, n)
    present, nan = ~jnp.isnan(n), jnp.float32(jnp.nan)
    total = lambda name: jnp.sqrt(jnp.sum(jnp.where(present, sums[name], 0))) if name in sums else nan
    numbers = {
        "clip": jnp.where(total("grad") > 0, total("entering") / total("grad"), 1),
        "update_norm": total("update"),
        "param_norm": total("param"),
        "learning_rate": jnp.nanmax(maxima["rate"]) if "rate" in maxima else nan,
    }
    spread = blank[2]
    if deep:
        shares = [sums.get(f"spread {name}", jnp.full((len(mine), BINS), jnp.nan)) for name in EDGES]
        spread = jnp.stack(shares, 1) / n[:, None, None]
    rows = jnp.stack([numbers[name] for name in RECORDED]), jnp.stack(list(of.values()), -1), spread
    return jax.tree.map(lambda x, like: x.astype(like.dtype), rows, blank)


def _table(groups: Sequence[tuple[list[int], list[stats.Sums]]], kind: int, mine: list[int]) -> stats.Sums:
    """By name, one row for each of the leaves `mine`: NaN where no stage of a leaf's group has that name."""
    merged = [(places, {k: x for stage in stages for k, x in stage.items()}) for places, stages in groups]
    flat, treedef = jax.tree.flatten([named for _, named in merged])
    joined = treedef.unflatten(_over_devices(flat, (jax.lax.psum, jax.lax.pmax)[kind]))
    places = [i for at, _ in merged for i in at]
    order = np.asarray([places.index(i) if i in places else len(places) for i in mine])
    table = {}
    for name in dict.fromkeys(name for named in joined for name in named):
        like = next(named[name] for named in joined if name in named)
        gap = lambda rows, like=like: jnp.full((rows, *like.shape[1:]), jnp.nan, like.dtype)
        rows = [named.get(name, gap(len(at))) for (at, _), named in zip(merged, joined, strict=True)]
        table[name] = jnp.concatenate([*rows, gap(1)])[order]
    return table


# What the host reads


class Drained:
    """Records on their way to the host."""

    def __init__(self, fields: Mapping[str, Any]):
        self._fields = fields

    def history(self) -> History:
        """The records, oldest first; waits until they have arrived."""
        at: dict[str, Any] = {name: None if x is None else np.asarray(x) for name, x in self._fields.items()}
        if at["calls"].shape:
            raise ValueError("this state is swept by vmap: drain one of its runs, jax.tree.map(lambda x: x[i], state).")
        about = About.from_json(at["about"].tobytes())
        count = len(about.leaves)

        def ordered(steps: Any, *tables: Any) -> list[np.ndarray]:
            order = np.argsort(steps, kind="stable")
            order = order[steps[order] > 0]
            return [steps[order].astype(np.int64), *(table[order] for table in tables)]

        steps, row, leaf = ordered(at["steps"], at["whole"], at["leaf"])
        pulse_steps, pulse = ordered(at["pulse_steps"], at["pulse"])
        spread_steps, spread = np.zeros(0, np.int64), {}
        if at["spread"] is not None:
            spread_steps, table = ordered(at["spread_steps"], at["spread"])
            spread = {name: table[:, :count, i] for i, name in enumerate(EDGES)}
        return History(
            about,
            steps,
            {name: row[:, i] for i, name in enumerate(COLUMNS)},
            {name: leaf[:, :count, i] for i, name in enumerate(LEAF)},
            pulse_steps,
            {name: pulse[:, i] for i, name in enumerate(PULSE)},
            spread_steps,
            spread,
        )


def drain(state: PyTree) -> Drained:
    """Start to copy a state's records to the host, and go on: the copies wait for the device, not this call.

    The records are copied on the device first, so that the next step may be given the state itself (donated).

    Args:
      state: one with the state of :func:`watch` somewhere in it, such as that of a chain or of `nnx.Optimizer`.

    Returns:
      What `history()` makes a :class:`adamx.diagnostics.history.History` of, once it is wanted.

    Raises:
      ValueError: if there is no such state, or several; by `history()`, if the state is swept by vmap.
    """
    found = _records(state)
    if len(found) != 1:
        says = "drain the state of one of them" if found else "wrap the method in it"
        raise ValueError(f"this state holds {len(found)} records of adamx.watch, not one: {says}.")
    fields = {}
    for name in WatchState._fields[1:]:
        leaves = jax.tree.leaves(getattr(found[0], name))  # Flax keeps each in a variable
        fields[name] = jnp.copy(leaves[0]) if leaves else None
        if leaves:
            fields[name].copy_to_host_async()
    return Drained(fields)


def _records(state: PyTree) -> list[WatchState]:
    is_watch = lambda x: isinstance(x, WatchState)
    return [x for x in jax.tree.leaves(state, is_leaf=is_watch) if is_watch(x)]
