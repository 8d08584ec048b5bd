"""What all rules of the doctor ask of a run, computed once: where something held for long, progress, spikes."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from adamx.diagnostics import thresholds as T  # noqa: N812 (a table of names)
from adamx.diagnostics.history import About, History

MANY = 10_000  # spikes that are looked at
FIRST, SMOOTH, SMOOTH_GRAD = 8, 32, 5  # losses, losses and gradient norms whose median stands for one
# Of one of several gradients, or of their mean: compared with what a whole gradient reads, they mislead.
PIECEMEAL = frozenset({"momentum_cosine", "sign_agreement", "update_cosine", "direction_rms"})


class Seen(NamedTuple):
    """A finding before its rule's sentences are added; `because` and `instead` stand for the rule's where given."""

    severity: str
    leaves: Sequence[str]
    step: int
    evidence: Mapping[str, float]
    says: str
    because: str = ""
    instead: str = ""


class Held(NamedTuple):
    """Where a condition held for long enough, by column: whether, the row it began at, the row where that was sure."""

    fired: np.ndarray
    first: np.ndarray
    sure: np.ndarray

    def __bool__(self) -> bool:
        return bool(self.fired.any())


class Spikes(NamedTuple):
    """Rows of the pulse at which a spike began, by how many deviations, and how many times its usual size it was."""

    rows: np.ndarray
    scores: np.ndarray
    times: np.ndarray
    by: str


@dataclass(frozen=True)
class Run:
    """A history with what all rules ask of it, and what they found in it. R records, L leaves.

    Attributes:
      history: of the run.
      finds: the rules, by id; each may ask what another found.
      known: what those that were asked have found.
    """

    history: History
    finds: "Mapping[str, Callable[[Run], Iterable[Seen]]]"
    known: dict[str, tuple[Seen, ...]] = field(default_factory=dict)

    def found(self, *rules: str) -> list[Seen]:
        """What these rules find; each is asked once."""
        for rule in rules:
            if rule not in self.known:
                self.known[rule] = tuple(self.finds[rule](self)) if rule in self.finds else ()
        return [seen for rule in rules for seen in self.known[rule]]

    @property
    def about(self) -> About:
        """What the run is of."""
        return self.history.about

    @property
    def steps(self) -> np.ndarray:
        """[R]: the step of each record."""
        return self.history.steps

    def of(self, name: str) -> np.ndarray | None:
        """A statistic of leaves, [R, L], or None where there is not one number of it that can be judged."""
        x = self.history.leaf.get(name)
        return x if x is not None and self.judges(name) and np.isfinite(x).any() else None

    def judges(self, name: str) -> bool:
        """Whether a statistic is what its rules take it for."""
        return name not in PIECEMEAL or (self.number("pieces") or 1) <= 1

    def reads(self, name: str) -> bool:
        """Whether something is known of a statistic of leaves, of the whole tree or of the pulse, or of the method."""
        tables = (self.history.leaf, self.history.whole, self.history.pulse)
        known = any(name in table and not np.isnan(table[name]).all() for table in tables)
        return (known and self.judges(name)) or name in self.about.method

    def number(self, name: str) -> float | None:
        """A number that is known of the method; None where it is not."""
        return number(self.about, name)

    @property
    def sigma(self) -> float:
        """Deviations at which a step is a spike, as the watch was told."""
        return self.number("spike") or T.SPIKE_SIGMA.value

    @property
    def long(self) -> float:
        """Steps that a stretch of this run must have to count as long."""
        return max(T.LONG_RUN.value * (self.steps[-1] if len(self.steps) else 0), T.FEWEST_STEPS.value)

    @cached_property
    def sizes(self) -> np.ndarray:
        """[L]: elements of each leaf."""
        return np.asarray([leaf.size for leaf in self.about.leaves], np.float64)

    @cached_property
    def matrices(self) -> np.ndarray:
        """Which leaves have rows and columns: those whose size of update means something."""
        return np.asarray([len(leaf.shape) > 1 and leaf.size > 1 for leaf in self.about.leaves], bool)

    @cached_property
    def live(self) -> np.ndarray:
        """[R]: behind the warm-up, and the learning rate is not nearly over."""
        live = self.steps > T.WARM_UP.value * (self.steps[-1] if len(self.steps) else 0)
        rate = self.history.whole.get("learning_rate")
        if rate is None or not np.isfinite(rate).any():
            return live
        peak = np.max(rate[np.isfinite(rate)])
        risen = np.maximum.accumulate(np.where(np.isfinite(rate), rate, -np.inf)) >= T.PEAK.value * peak
        return live & risen & ~(rate < T.LOW_RATE.value * peak)

    @cached_property
    def grad(self) -> np.ndarray:
        """The gradient's norm at each record, [R]; NaN where it is not known."""
        norm, rms = self.history.whole.get("grad_norm"), self.of("grad_rms")
        if norm is not None and np.isfinite(norm).any():
            return norm.astype(np.float64)
        if rms is None:
            return np.full(len(self.steps), np.nan)
        known = np.isfinite(rms)
        squares = np.where(known, rms, 0).astype(np.float64) ** 2 @ self.sizes
        return np.where(known.any(1), np.sqrt(squares), np.nan)

    @cached_property
    def loss(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and losses, finite ones only."""
        loss = self.history.pulse.get("loss")
        if loss is None:
            return np.zeros(0, np.int64), np.zeros(0)
        known = np.isfinite(loss)
        return self.history.pulse_steps[known], loss[known].astype(np.float64)

    @cached_property
    def first_loss(self) -> float:
        """The median of the first losses; NaN where the run's beginning is not in the history."""
        steps, loss = self.loss
        begins = len(steps) and (not len(self.steps) or steps[0] <= self.steps[0] + T.FEWEST_STEPS.value)
        return float(np.median(loss[:FIRST])) if begins else math.nan

    def loss_at(self, steps: np.ndarray) -> np.ndarray:
        """The median of the last losses up to each of these steps; NaN where there is none."""
        at, loss = self.loss
        if not len(at):
            return np.full(len(steps), np.nan)
        end = np.searchsorted(at, steps, "right")
        rows = end[:, None] - np.arange(1, SMOOTH + 1)
        return median(np.where(rows >= 0, loss[np.maximum(rows, 0)], np.nan), 1)

    @cached_property
    def converged(self) -> np.ndarray:
        """[R]: so little loss is left, or so little gradient, that small steps are no fault; and from then on.

        A gradient that comes back from there, as Adam's does when its second moment has decayed, changes nothing while
        the loss stays where it was.
        """
        first, loss = median(self.grad[:FIRST], 0), self.loss_at(self.steps)
        little = T.CONVERGED_LOSS.value * self.first_loss if self.first_loss > 0 else 0.0
        done = (self.grad < T.CONVERGED_GRAD.value * first) | (np.abs(loss) < little)
        lowest = np.fmin.accumulate(loss) if len(loss) else loss
        stays = loss <= lowest + T.RELAPSE.value * np.abs(lowest) + little
        row = np.arange(len(done))  # one batch without a gradient is not the end
        lasts = row - np.maximum.accumulate(np.where(done, -1, row)) >= T.PERSIST.value if len(done) else done
        return done | (np.logical_or.accumulate(lasts) & stays)

    @property
    def diverged(self) -> np.ndarray:
        """[R]: behind a divergence, whose gradients later ones are small against, and which leaves dead units."""
        return self.steps >= min((seen.step for seen in self.found("LOSS_ROSE")), default=math.inf)

    @cached_property
    def idle(self) -> np.ndarray:
        """[R]: where steps that are too small would be a fault: neither converged nor thrown back by a divergence."""
        return ~self.converged & ~self.diverged

    def progresses(self, before: float) -> np.ndarray:
        """[R]: whether within so many steps the loss has halved, or the gradient's square while the loss did not rise.

        A loss that ends above zero no longer halves when it is nearly there, but its gradient does.
        """
        now, then = self.loss_at(self.steps), self.loss_at(self.steps - before)
        then = np.where(np.isnan(then), self.first_loss, then)
        earlier = np.maximum(np.searchsorted(self.steps, self.steps - before, "right") - 1, 0)
        rows = np.arange(len(self.steps))[:, None] - np.arange(SMOOTH_GRAD)
        squares = median(np.where(rows >= 0, self.grad[np.maximum(rows, 0)], np.nan), 1) ** 2
        calmer = squares < T.PROGRESS.value * squares[earlier]
        rises = now > then + T.RELAPSE.value * np.abs(then)
        return (now < T.PROGRESS.value * then) | (calmer & ~rises)

    def held(
        self, mask: np.ndarray, records: float = T.PERSIST.value, steps: float = 0, when: np.ndarray | None = None
    ) -> Held:
        """Where a mask [R] or [R, L] was true in so many records in a row, over as many intervals or `steps`.

        Armed records stand one step apart, so that a count alone would not say how long. `when`, [R], must be true in
        the last of them only.
        """
        mask = mask[:, None] if mask.ndim == 1 else mask
        if not mask.size or not mask.any():
            none = np.zeros(mask.shape[1], np.int64)
            return Held(none > 0, none, none)
        row = np.arange(len(mask))[:, None]
        start = np.maximum.accumulate(np.where(mask, -1, row), 0) + 1
        start = np.minimum(start, row)
        span = max((records - 1) * self.about.every, steps)
        sure = mask & (row - start + 1 >= records) & (self.steps[:, None] - self.steps[start] >= span)
        sure = sure if when is None else sure & when[:, None]
        at = sure.argmax(0)
        return Held(np.any(sure, axis=0), start[at, np.arange(mask.shape[1])], at)

    @cached_property
    def as_adam(self) -> np.ndarray:
        """[R, L]: whether the direction is about as long as Adam's; of other methods we know no bounds."""
        length, ratio = self.of("direction_rms"), self.of("signal_to_noise")
        if length is None or ratio is None:
            return np.zeros((len(self.steps), len(self.about.leaves)), bool)
        return (length > T.ADAM_LEAST.value * ratio) & (length < T.ADAM_MOST.value * ratio)

    @cached_property
    def spikes(self) -> Spikes:
        """Where the loss leapt, or the gradient where no loss was passed, and stayed for some steps."""
        return _spikes(self)

    def names(self, which: np.ndarray) -> list[str]:
        """Of the leaves that a mask [L] chooses."""
        return [leaf.name for leaf, chosen in zip(self.about.leaves, which, strict=True) if chosen]


def number(about: About, name: str) -> float | None:
    """A finite number that is known of the method; None where there is none."""
    x = about.method.get(name)
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x):
        return None
    return float(x)


def median(x: np.ndarray, axis: int) -> np.ndarray:
    """Of what is no NaN; NaN where that is nothing."""
    x = np.sort(x, axis)  # NaN last
    n = np.sum(~np.isnan(x), axis, keepdims=True)
    if not x.shape[axis]:
        return np.full(n.shape, np.nan).squeeze(axis)
    low, high = (np.take_along_axis(x, np.maximum(k, 0), axis) for k in ((n - 1) // 2, n // 2))
    return ((low + high) / 2).squeeze(axis)


def _spikes(run: Run) -> Spikes:
    """Of the loss, or of the gradient's norm where no loss was passed; only such as last."""
    pulse = run.history.pulse
    loss = pulse.get("loss")
    by = "loss" if loss is not None and np.isfinite(loss).any() else "grad"
    x, score = (pulse.get(name) for name in (("loss", "loss_score") if by == "loss" else ("grad_norm", "grad_score")))
    if x is None or score is None:
        return Spikes(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), by)
    rows = np.flatnonzero((score > run.sigma) & np.isfinite(x))[:MANY]
    x = x.astype(np.float64) if by == "loss" else np.log(x.astype(np.float64))
    window = lambda at: np.where((at >= 0) & (at < len(x)), x[np.clip(at, 0, len(x) - 1)], np.nan)
    lasts = int(T.SPIKE_LASTS.value)
    after = window(rows[:, None] + np.arange(lasts))
    back = int(T.SPIKE_BEFORE.value)
    mean = median(window(rows[:, None] - np.arange(1, back + 1)), 1)
    # The deviation that the score was made with, since (x - mean) / deviation is what was recorded.
    spread = (x[rows] - mean) / score[rows]
    lasting = (np.isfinite(after).sum(1) == lasts) & (median(after, 1) > mean + T.SPIKE_STAYS.value * spread)
    if by == "loss":
        rise = x[rows] - mean
        learned = run.first_loss - mean
        large = ~(rise < T.SPIKE_RISE.value * learned) & ~(x[rows] < T.CONVERGED_LOSS.value * run.first_loss)
        times = x[rows] / mean
    else:
        times = np.exp(x[rows] - mean)
        large = times > T.SPIKE_GRAD.value
    keep = np.flatnonzero(lasting & large)
    fresh = np.diff(rows[keep], prepend=-back - 1) > back  # what is still in its window is the same spike
    return Spikes(rows[keep][fresh], score[rows][keep][fresh], times[keep][fresh], by)
