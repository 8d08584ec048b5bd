"""What is wrong with a run, since which step, in which leaves, why, and what to try: rules over a history.

A rule speaks only if it is right: it must hold for several records, and most are silent while the learning rate rises
or has nearly ended, and once a run has converged. What a history does not hold, no rule speaks of.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from adamx.diagnostics import thresholds as T  # noqa: N812 (its names are read often)
from adamx.diagnostics.history import About, History
from adamx.diagnostics.thresholds import WORDS, Words

SEVERITIES = ("error", "warning", "note")
NARROW = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # least relative change that is sure to survive
EXACT_FLOATS = NARROW | {"float32": 2.0**-24}  # codecs that keep each number by itself, to nearest
SHOWN = 3  # names in a sentence
MANY = 10_000  # spikes that are looked at
FIRST, SMOOTH, SMOOTH_GRAD = 8, 32, 5  # losses, losses and gradient norms whose median stands for one
# Of one of several gradients, or of their mean: compared with what a whole gradient reads, they mislead.
PIECEMEAL = frozenset({"momentum_cosine", "sign_agreement", "update_cosine", "direction_rms"})


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
      id: of its rule in :data:`RULES`.
      severity: "error", "warning" or "note".
      leaves: names; empty where it is of the whole run.
      step: the first at which it held; 0 for what is known before any.
      evidence: finite numbers by name.
      says: what was seen, a sentence with the numbers.
      cause: why that happens.
      advice: one change to try.
      source: where the rule is from.
    """

    id: str
    severity: str
    leaves: tuple[str, ...]
    step: int
    evidence: Mapping[str, float]
    says: str
    cause: str
    advice: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return vars(self) | {"leaves": list(self.leaves), "evidence": dict(self.evidence)}

    @classmethod
    def from_dict(cls, read: Mapping[str, Any]) -> "Finding":
        """What :meth:`to_dict` made."""
        return cls(**{**read, "leaves": tuple(read["leaves"]), "evidence": dict(read["evidence"])})


class Rule(NamedTuple):
    """What the doctor looks for.

    Attributes:
      id: its name.
      words: what it looks for, with which numbers, why that happens and what to try.
      checks: finds it in what is known before the first step.
      finds: finds it in a run.
    """

    id: str
    words: Words
    checks: "Callable[[About], Iterable[_Seen]]"
    finds: "Callable[[_Run], Iterable[_Seen]]"


class _Seen(NamedTuple):
    """A finding before its rule's sentences are added; `because` and `instead` stand for the rule's where given."""

    severity: str
    leaves: Sequence[str]
    step: int
    evidence: Mapping[str, float]
    says: str
    because: str = ""
    instead: str = ""


def diagnose(history: History, *, only: Sequence[str] | None = None) -> list[Finding]:
    """Everything that the rules find, worst first, then by step.

    Args:
      history: of any length; statistics that it does not hold leave their rules silent.
      only: ids of the rules to ask; all when left out.

    Raises:
      ValueError: if there is no rule of such an id.
    """
    rules = _chosen(only)
    with np.errstate(all="ignore"):
        whole, sound = _Run(history), _Run(_before_ruin(history))
        found = lambda rule: (whole if rule.id == "NONFINITE" else sound).found(rule.id)
        seen = [(rule, s) for rule in rules for s in (*rule.checks(history.about), *found(rule))]
    return _sorted(seen)


def check(about: About) -> list[Finding]:
    """What can be said before the first step; part of :func:`diagnose`."""
    return _sorted([(rule, seen) for rule in RULES.values() for seen in rule.checks(about)])


def unread(history: History) -> tuple[str, ...]:
    """Ids of the rules that had nothing to read in this history, in the order of :data:`RULES`.

    Their silence says nothing: the watched transformation is not made of adamx's links, no loss was passed, a step
    takes several gradients, or there are no records yet. What a known method does not have (weight decay, moments that
    are stored in fewer bits) needs no rule, and is not counted.
    """
    run, known = _Run(history), "parts" in history.about.method
    missing = lambda rule: not all(any(map(run.reads, names)) for names in _READS[rule])
    needless = {
        "QERR": known and not history.about.method.get("codecs"),
        "DECAY_ONLY": known and not any(history.about.method.get("decays", ())),
    }
    return tuple(rule for rule in RULES if missing(rule) and not needless.get(rule, False))


def explain(rule: str) -> str:
    """What a rule looks for, its thresholds with their sources, the cause, what to try, and what it does not mean.

    Args:
      rule: its id.

    Raises:
      ValueError: if there is no such rule.
    """
    (chosen,) = _chosen([rule])
    words = chosen.words
    numbers = [f"  {t.name} = {t.value:.4g} {t.unit}\n    {t.source}" for t in words.thresholds]
    said = {
        "Cause": words.cause,
        "Try": words.advice,
        "Does not mean": words.does_not_mean,
        "Source": words.source,
    }
    said = [f"{name}: {text}" for name, text in said.items()]
    return "\n".join([f"{rule}: {words.summary}", *(["Thresholds:", *numbers] if numbers else []), *said])


def to_json(findings: Sequence[Finding]) -> str:
    """A list of :meth:`Finding.to_dict`, as strict JSON."""
    return json.dumps([finding.to_dict() for finding in findings], indent=2, allow_nan=False)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if any is a warning or an error, 0 otherwise."""
    return int(any(finding.severity != "note" for finding in findings))


def _chosen(only: Sequence[str] | None) -> list[Rule]:
    names = list(RULES) if only is None else list(only)
    for name in names:
        if name not in RULES:
            raise ValueError(f"there is no finding {name!r}; there are {', '.join(RULES)}.")
    return [rule for rule in RULES.values() if rule.id in names]


def _sorted(found: Iterable[tuple[Rule, _Seen]]) -> list[Finding]:
    made = []
    for rule, seen in found:
        evidence = {name: float(x) for name, x in seen.evidence.items() if math.isfinite(x)}
        cause, advice = seen.because or rule.words.cause, seen.instead or rule.words.advice
        made.append(
            Finding(
                rule.id,
                seen.severity,
                tuple(seen.leaves),
                int(seen.step),
                evidence,
                seen.says,
                cause,
                advice,
                rule.words.source,
            )
        )
    return sorted(made, key=lambda f: (SEVERITIES.index(f.severity), f.step))


def _before_ruin(history: History) -> History:
    """What was recorded before an update or a parameter was not finite: what follows that is its consequence."""
    tables = [history.leaf[name] for name in ("bad_update", "bad_param") if name in history.leaf]
    ruined = np.any([(x > 0).any(1) for x in tables], axis=0) if tables else np.zeros(0, bool)
    if not ruined.any():
        return history
    rows = np.arange(len(history.steps)) < ruined.argmax()
    beats = history.pulse_steps < history.steps[ruined.argmax()]
    of = lambda table, which: {name: x[which] for name, x in table.items()}
    return replace(
        history,
        steps=history.steps[rows],
        whole=of(history.whole, rows),
        leaf=of(history.leaf, rows),
        pulse_steps=history.pulse_steps[beats],
        pulse=of(history.pulse, beats),
    )


# What a rule reads of a run


class _Held(NamedTuple):
    """Where a condition held for long enough, by column: whether, the row it began at, the row where that was sure."""

    fired: np.ndarray
    first: np.ndarray
    sure: np.ndarray

    def __bool__(self) -> bool:
        return bool(self.fired.any())


class _Spikes(NamedTuple):
    """Rows of the pulse at which a spike began, by how many deviations, and how many times its usual size it was."""

    rows: np.ndarray
    scores: np.ndarray
    times: np.ndarray
    by: str


@dataclass(frozen=True)
class _Run:
    """A history with what all rules ask of it, and what they found in it. R records, L leaves."""

    history: History
    known: "dict[str, tuple[_Seen, ...]]" = field(default_factory=dict)

    def found(self, *rules: str) -> "list[_Seen]":
        """What these rules find; each is asked once."""
        for rule in rules:
            if rule not in self.known:
                self.known[rule] = tuple(RULES[rule].finds(self))
        return [seen for rule in rules for seen in self.known[rule]]

    @property
    def about(self) -> About:
        return self.history.about

    @property
    def steps(self) -> np.ndarray:
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
        return _number(self.about, name)

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
        return _median(np.where(rows >= 0, loss[np.maximum(rows, 0)], np.nan), 1)

    @cached_property
    def converged(self) -> np.ndarray:
        """[R]: so little loss is left, or so little gradient, that small steps are no fault; and from then on.

        A gradient that comes back from there, as Adam's does when its second moment has decayed, changes nothing while
        the loss stays where it was.
        """
        first, loss = _median(self.grad[:FIRST], 0), self.loss_at(self.steps)
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
        squares = _median(np.where(rows >= 0, self.grad[np.maximum(rows, 0)], np.nan), 1) ** 2
        calmer = squares < T.PROGRESS.value * squares[earlier]
        rises = now > then + T.RELAPSE.value * np.abs(then)
        return (now < T.PROGRESS.value * then) | (calmer & ~rises)

    def held(
        self, mask: np.ndarray, records: float = T.PERSIST.value, steps: float = 0, when: np.ndarray | None = None
    ) -> _Held:
        """Where a mask [R] or [R, L] was true in so many records in a row, over as many intervals or `steps`.

        Armed records stand one step apart, so that a count alone would not say how long. `when`, [R], must be true in
        the last of them only.
        """
        mask = mask[:, None] if mask.ndim == 1 else mask
        if not mask.size or not mask.any():
            none = np.zeros(mask.shape[1], np.int64)
            return _Held(none > 0, none, none)
        row = np.arange(len(mask))[:, None]
        start = np.maximum.accumulate(np.where(mask, -1, row), 0) + 1
        start = np.minimum(start, row)
        span = max((records - 1) * self.about.every, steps)
        sure = mask & (row - start + 1 >= records) & (self.steps[:, None] - self.steps[start] >= span)
        sure = sure if when is None else sure & when[:, None]
        at = sure.argmax(0)
        return _Held(np.any(sure, axis=0), start[at, np.arange(mask.shape[1])], at)

    @cached_property
    def as_adam(self) -> np.ndarray:
        """[R, L]: whether the direction is about as long as Adam's; of other methods we know no bounds."""
        length, ratio = self.of("direction_rms"), self.of("signal_to_noise")
        if length is None or ratio is None:
            return np.zeros((len(self.steps), len(self.about.leaves)), bool)
        return (length > T.ADAM_LEAST.value * ratio) & (length < T.ADAM_MOST.value * ratio)

    @cached_property
    def spikes(self) -> _Spikes:
        return _spikes(self)

    def names(self, which: np.ndarray) -> list[str]:
        return [leaf.name for leaf, chosen in zip(self.about.leaves, which, strict=True) if chosen]


def _number(about: About, name: str) -> float | None:
    x = about.method.get(name)
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x):
        return None
    return float(x)


def _median(x: np.ndarray, axis: int) -> np.ndarray:
    """Of what is no NaN; NaN where that is nothing."""
    x = np.sort(x, axis)  # NaN last
    n = np.sum(~np.isnan(x), axis, keepdims=True)
    if not x.shape[axis]:
        return np.full(n.shape, np.nan).squeeze(axis)
    low, high = (np.take_along_axis(x, np.maximum(k, 0), axis) for k in ((n - 1) // 2, n // 2))
    return ((low + high) / 2).squeeze(axis)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _seen(
    run: _Run,
    held: _Held,
    x: np.ndarray,
    of: str,
    says: str,
    *,
    severity: str = "warning",
    least: bool = False,
    **more: float,
) -> Iterator[_Seen]:
    """A finding of the leaves where something held; `says` may use {leaves}, {worst}, {step} and what `more` has.

    Args:
      run: the run.
      held: of each leaf.
      x: [R, L], the statistic; what it was in the worst leaf when the rule was sure is the evidence, as `of`.
      of: its name.
      says: the sentence.
      severity: of the finding.
      least: whether the worst is the least.
      more: further evidence.
    """
    if not held:
        return
    values = x[held.sure, np.arange(x.shape[1])][held.fired]
    leaves, step = run.names(held.fired), int(run.steps[held.first[held.fired].min()])
    worst = float(values.min() if least else values.max())
    text = says.format(leaves=_some(leaves), worst=worst, step=step, **more)
    yield _Seen(severity, leaves, step, {of: worst, "leaves": len(leaves), **more}, text)


# Every step


def _nonfinite(run: _Run) -> Iterator[_Seen]:
    """What was not finite first; a loss besides, where that was before."""
    tensors, loss = list(_nonfinite_tensors(run)), list(_nonfinite_loss(run))
    yield from tensors
    yield from (seen for seen in loss if not tensors or seen.step < tensors[0].step)


def _nonfinite_tensors(run: _Run) -> Iterator[_Seen]:
    """The gradient alone is bad where a guard kept it out: no harm was done, and loss scaling does so by design."""
    kinds = {"bad_grad": "gradient", "bad_update": "update", "bad_param": "parameters"}
    tables = {kind: x for kind in kinds if (x := run.history.leaf.get(kind)) is not None and x.size}
    counts = {kind: np.where(np.isnan(x), 0, x) for kind, x in tables.items()}
    harmed = any((x > 0).any() for kind, x in counts.items() if kind != "bad_grad")
    if "loss_scaling" in run.about.method.get("parts", ()) and not harmed:
        return
    bad = [(x > 0).any(1) for x in counts.values()]
    if bad and np.logical_or.reduce(bad).any():
        row = int(np.logical_or.reduce(bad).argmax())
        where = np.logical_or.reduce([x[row] > 0 for x in counts.values()])
        leaves, step = run.names(where), int(run.steps[row])
        found = {kind: float(x[row].sum()) for kind, x in counts.items() if x[row].any()}
        listed = ", ".join(f"{n:.0f} of the {kinds[kind]}" for kind, n in found.items())
        says = f"at step {step} numbers were not finite: {listed}; in {_some(leaves)}."
        yield _Seen("error" if harmed else "warning", leaves, step, found, says)
        return
    x = run.history.pulse.get("grad_norm")
    if x is not None and (at := ~np.isfinite(x) & np.isfinite(x).any() | np.isinf(x)).any():
        yield _at_step(run, at, "the gradient's norm was")


def _nonfinite_loss(run: _Run) -> Iterator[_Seen]:
    loss, norm = run.history.pulse.get("loss"), run.history.pulse.get("grad_norm")
    if loss is None:
        return
    at = np.isinf(loss) | _became_nan(loss)
    if "loss_scaling" in run.about.method.get("parts", ()) and norm is not None:
        at &= np.isfinite(norm)  # it takes both back
    if at.any():
        yield _at_step(run, at, "the loss was")._replace(
            because="the loss as it was passed. Its gradient may be finite all the same: where a mean over nothing or a"
            " logarithm of zero has none, or where the loss was no longer passed, which is recorded as NaN too.",
            instead="compute the loss of that step's batch again, and look for its first term that is not finite.",
        )


def _became_nan(loss: np.ndarray) -> np.ndarray:
    """Where a loss is NaN that was passed: a loss that was not is NaN too.

    Behind so many losses in a row that they were passed every step, or behind fewer and NaN to the end.
    """
    known, row = np.isfinite(loss), np.arange(len(loss))
    first = int(known.argmin()) if not known.all() else len(loss)
    if 0 < first < len(loss) and not known[first:].any():
        return np.isnan(loss) & (row >= first)
    unbroken = np.diff(np.maximum.accumulate(np.where(known, -1, row)), prepend=-1)  # since the last that was not
    return np.isnan(loss) & np.logical_or.accumulate(unbroken > FIRST)


def _at_step(run: _Run, at: np.ndarray, what: str) -> _Seen:
    step = int(run.history.pulse_steps[at.argmax()])
    often = "" if at.sum() == 1 else f", and {int(at.sum())} times in all"
    return _Seen("error", (), step, {"steps": float(at.sum())}, f"{what} not finite at step {step}{often}.")


def _spikes(run: _Run) -> _Spikes:
    """Of the loss, or of the gradient's norm where no loss was passed; only such as last."""
    pulse = run.history.pulse
    loss = pulse.get("loss")
    by = "loss" if loss is not None and np.isfinite(loss).any() else "grad"
    x, score = (pulse.get(name) for name in (("loss", "loss_score") if by == "loss" else ("grad_norm", "grad_score")))
    if x is None or score is None:
        return _Spikes(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), by)
    rows = np.flatnonzero((score > run.sigma) & np.isfinite(x))[:MANY]
    x = x.astype(np.float64) if by == "loss" else np.log(x.astype(np.float64))
    window = lambda at: np.where((at >= 0) & (at < len(x)), x[np.clip(at, 0, len(x) - 1)], np.nan)
    lasts = int(T.SPIKE_LASTS.value)
    after = window(rows[:, None] + np.arange(lasts))
    back = int(T.SPIKE_BEFORE.value)
    mean = _median(window(rows[:, None] - np.arange(1, back + 1)), 1)
    # The deviation that the score was made with, since (x - mean) / deviation is what was recorded.
    spread = (x[rows] - mean) / score[rows]
    lasting = (np.isfinite(after).sum(1) == lasts) & (_median(after, 1) > mean + T.SPIKE_STAYS.value * spread)
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
    return _Spikes(rows[keep][fresh], score[rows][keep][fresh], times[keep][fresh], by)


def _spike(run: _Run) -> Iterator[_Seen]:
    rows, scores, times, by = run.spikes
    if len(rows):
        step = int(run.history.pulse_steps[rows[0]])
        what = "the loss" if by == "loss" else "the gradient's norm"
        times_over = "" if len(rows) == 1 else f"; it happened {len(rows)} times"
        says = (
            f"{what} rose to {times[0]:.3g} times its usual size at step {step}, {scores[0]:.1f} deviations, and stayed"
            f" high{times_over}."
        )
        yield _Seen("warning", (), step, {"deviations": scores[0], "times": times[0], "spikes": len(rows)}, says)


def _spike_score(run: _Run) -> Iterator[_Seen]:
    score = run.history.pulse.get("loss_score" if run.spikes.by == "loss" else "grad_score")
    if score is None or len(run.spikes.rows) < T.SPIKE_TIMES.value:
        return
    first = max(len(score) - int(T.SPIKE_WINDOW.value), 0)
    score, rows = score[first:], run.spikes.rows[run.spikes.rows >= first]
    scored = np.isfinite(score)
    share = float((score[scored] > run.sigma).mean()) if scored.any() else 0.0
    if scored.sum() >= T.SPIKE_SCORED.value and len(rows) >= T.SPIKE_TIMES.value and share > T.SPIKE_SHARE.value:
        says = f"{share:.2%} of the last {scored.sum()} steps were spikes, in {len(rows)} places."
        step = int(run.history.pulse_steps[rows[0]])
        yield _Seen("warning", (), step, {"share": share, "spikes": len(rows), "steps": scored.sum()}, says)


def _loss_rose(run: _Run) -> Iterator[_Seen]:
    """Medians are compared with the first losses' median; and with the very first, since a run may diverge in a step.

    One batch may be lucky, so that what must be exceeded grows with the loss's scatter from step to step.
    """
    loss, steps = run.history.pulse.get("loss"), run.history.pulse_steps
    n = int(T.RISEN_STEPS.value)
    if loss is None or len(loss) < n or steps[0] != 1 or not np.all((loss[:n] > 0) & (loss[:n] < np.inf)):
        return
    loss = loss.astype(np.float64)
    logs = np.log(np.where((loss > 0) & np.isfinite(loss), loss, np.nan))
    # The median magnitude of a difference of two normal numbers is 0.954 of their deviation.
    scatter = float(_median(np.abs(np.diff(logs)), 0)) / 0.954
    medians = _median(np.lib.stride_tricks.sliding_window_view(np.where(np.isfinite(loss), loss, np.nan), n), 1)
    for first, share in ((float(np.median(loss[:n])), 2 / math.sqrt(n)), (float(loss[0]), 1.0)):
        least = first * T.RISEN_TIMES.value * math.exp(share * T.RISEN_SCATTER.value * scatter)
        high = medians > least
        if high.any():
            begun = int(high.argmax())
            begun += int((loss[begun : begun + n] > least).argmax())
            known = np.where(np.isfinite(loss), loss, -np.inf)
            peak, now = int(known.argmax()), float(_median(loss[-n:], 0))
            says = (
                f"the loss began at {first:.3g}, rose from step {int(steps[begun])} on to {loss[peak]:.3g} at step"
                f" {int(steps[peak])}, and is {now:.3g} now."
            )
            numbers = {"first": first, "highest": loss[peak], "peak": float(steps[peak]), "now": now}
            yield _Seen("warning", (), int(steps[begun]), numbers, says)
            return


def _stale_v(run: _Run) -> Iterator[_Seen]:
    x = run.of("surprise_before")
    if x is None:
        return
    for row in run.spikes.rows:
        at = run.history.pulse_steps[row]
        near = (run.steps >= at - T.STALE_BEFORE.value) & (run.steps < at)
        if not near.any():
            continue
        earlier = x[: near.argmax()]
        usual = np.sort(np.where(np.isfinite(earlier), earlier, -np.inf), 0)
        place = max(math.ceil(T.STALE_QUANTILE.value * len(usual)) - 1, 0)
        least = np.maximum(usual[place] if len(usual) else -np.inf, T.STALE_SURPRISE.value)
        held = run.held(near[:, None] & (x > least), 1)
        if held:
            says = (
                f"{{leaves}} had gradients up to {{worst:.3g}} times what the second moment expected, from step"
                f" {{step}} on, and a spike followed at step {at}."
            )
            yield from _seen(run, held, x, "surprise_before", says, spike=float(at))
            return


# Second moments


def _v_coasting(run: _Run) -> Iterator[_Seen]:
    coasting, surprise = run.of("coasting"), run.of("surprise")
    if coasting is None or surprise is None or not len(run.steps):
        return
    b2 = run.number("b2")
    memory = 1 / (1 - b2) if b2 is not None and b2 < 1 else math.inf
    span = min(max(memory, T.FEWEST_STEPS.value), run.long)
    small = (surprise > 0) & (surprise < T.COASTING_SURPRISE.value)  # 0 is a leaf without a gradient: DEAD_LEAF
    calm = (coasting > T.COASTING_SHARE.value) & small & run.idle[:, None]
    held = run.held(calm, T.PERSIST_LONG.value, span, ~run.progresses(span))
    # One leaf may have learned all it can; without a loss nothing says whether the others have more to learn.
    share = T.COASTING_LEAVES.value if len(run.loss[0]) else T.MOST_LEAVES.value
    if held and run.sizes[held.fired].sum() >= share * run.sizes.sum():
        times = float(1 / surprise[held.sure, np.arange(surprise.shape[1])][held.fired].max())
        says = (
            "the gradients of {leaves} have been {times:.3g} times or more below the root of the second moment since"
            " step {step}; it only decays, and steps are as many times too small."
        )
        yield from _seen(run, held, coasting, "coasting", says, times=times, span=float(span))


def _of_those_with_gradient(run: _Run, share: np.ndarray) -> np.ndarray:
    """The least that the share can be among numbers whose gradient is not zero.

    Rows of an embedding that no batch used have no second moment, and no step either.
    """
    zero = run.history.leaf.get("zero_grad")
    zero = np.zeros(1) if zero is None else np.where(np.isnan(zero), 0, zero)
    return np.where(zero < 1, (share - zero) / np.where(zero < 1, 1 - zero, 1), 0)


def _eps_at_first(run: _Run) -> _Held:
    half = run.of("eps_half")
    if half is None:
        return run.held(np.zeros((len(run.steps), len(run.about.leaves)), bool))
    above = _of_those_with_gradient(run, half) > T.EPS_FIRST_SHARE.value
    held = run.held(above)
    fired = held.fired & (held.first == 0)
    most = run.sizes[fired].sum() >= T.MOST_LEAVES.value * run.sizes.sum()
    return held._replace(fired=fired & most)


def _eps_large(run: _Run) -> Iterator[_Seen]:
    held = _eps_at_first(run)
    if held:
        says = "eps = {eps:.3g} is above the root of the second moment of {worst:.0%} of {leaves} from step {step} on."
        half = _of_those_with_gradient(run, run.history.leaf["eps_half"])
        yield from _seen(run, held, half, "eps_half", says, eps=_or_nan(run.number("eps")))


def _eps_large_static(about: About) -> Iterator[_Seen]:
    eps = _number(about, "eps")
    if eps is not None and eps > T.EPS_LARGE.value:
        says = (
            f"eps = {eps:.3g} is large for gradients of single numbers, which are mostly below {T.EPS_LARGE.value:g}."
        )
        yield _Seen("note", (), 0, {"eps": eps}, says)


def _eps_dominant(run: _Run) -> Iterator[_Seen]:
    tenth, size = run.of("eps_tenth"), run.of("grad_rms")
    if tenth is None or size is None:
        return
    share = _of_those_with_gradient(run, tenth)
    begin = max(math.ceil(T.WARM_UP.value * len(size)), int(T.PERSIST.value))
    vanished = size < T.EPS_VANISHED.value * _median(np.where(np.isfinite(size), size, np.nan)[:begin], 0)
    above = (share > T.EPS_SHARE.value) & ~vanished & (run.live & run.idle)[:, None]
    held = run.held(above)
    if _eps_at_first(run):  # EPS_LARGE says it
        return
    says = "eps = {eps:.3g} is a tenth of the denominator or more for {worst:.0%} of {leaves}, from step {step} on."
    yield from _seen(run, held, share, "eps_tenth", says, eps=_or_nan(run.number("eps")))


def _or_nan(x: float | None) -> float:
    return math.nan if x is None else x


def _v_frozen_static(about: About) -> Iterator[_Seen]:
    """Only codecs that keep each number by itself, to nearest, can freeze.

    v' = v - (1 - b2) v without a gradient. A number of p bits has neighbours 2^-p (just below a power of two) to
    2^(1-p) (just above it) of itself away; nearest keeps it if it moves less than half of that. With s = 2^-p, the
    smallest step of bfloat16 being 2^-8: 1 - b2 < s / 2 moves no number, 1 - b2 < s none of those just above a power
    of two, where every decay then ends. Stochastic rounding moves each by the right mean. In codecs by blocks a code is
    a share of the block's largest, which is kept in float32 and decays exactly: codes stand still at any b2 above
    1 - 1/255, but every number falls with its block. What they lose is a number that falls against its neighbours,
    and `nu_stale` does not see that; QERR does.
    """
    b2, codec = _number(about, "b2"), about.method.get("codecs", {}).get("nu")
    step = EXACT_FLOATS.get(codec or "", 0.0)
    if b2 is None or not 0 < 1 - b2 < T.FROZEN_SOME.value * step:
        return
    never = 1 - b2 < T.FROZEN_NEVER.value * step
    what = "can never decay" if never else "stops within a factor of two of where its decay began"
    says = (
        f"the second moment in {codec} {what}: b2 = {b2:g} changes it by {1 - b2:.3g} of itself a step, and rounding"
        f" needs {(T.FROZEN_NEVER.value if never else T.FROZEN_SOME.value) * step:.3g}."
    )
    yield _Seen("error" if never else "warning", (), 0, {"b2": b2, "change": 1 - b2, "smallest_step": step}, says)


def _v_frozen(run: _Run) -> Iterator[_Seen]:
    stale = run.of("nu_stale")
    by_chance = "stochastic" in run.about.method.get("codecs", {}).get("nu", "")  # few change in one step, all in many
    if stale is not None and not by_chance:
        held = run.held((stale > T.FROZEN_STALE.value) & (run.live & ~run.converged)[:, None])
        says = "up to {worst:.0%} of the second moments of {leaves} should have changed in a step and did not."
        all_but = run.held((stale > T.FROZEN_STALE_ERROR.value) & (run.live & ~run.converged)[:, None])
        yield from _seen(run, held, stale, "nu_stale", says, severity="error" if all_but else "warning")


def _v_underflow(run: _Run) -> Iterator[_Seen]:
    zero = run.of("nu_zero")
    if zero is not None:
        says = "up to {worst:.2%} of the second moments of {leaves} are stored as zero although they are not."
        yield from _seen(run, run.held(zero > T.UNDERFLOW_SHARE.value), zero, "nu_zero", says)


def _qerr(run: _Run) -> Iterator[_Seen]:
    error = run.of("direction_error")
    if error is not None:
        live = (run.live & ~run.converged)[:, None]
        says = "storing the moments changes the direction of {leaves} by up to {worst:.0%}."
        severity = "error" if run.held((error > T.CODEC_ERROR_ERROR.value) & live) else "warning"
        held = run.held((error > T.CODEC_ERROR.value) & live)
        yield from _seen(run, held, error, "direction_error", says, severity=severity)


# Directions and updates


def _of_matrices(run: _Run, x: np.ndarray | None) -> np.ndarray:
    """The median over the matrices, [R]; over all leaves where there is no matrix."""
    if x is None or not x.size:
        return np.full(len(run.steps), np.nan)
    return _median(x[:, run.matrices] if run.matrices.any() else x, 1)


def _update_ratio(run: _Run) -> Iterator[_Seen]:
    ratio, size = run.of("update_ratio"), run.of("param_rms")
    if ratio is None or not run.matrices.any():
        return
    # What starts at zero is all update at first. Step 1 is always recorded, with the parameters before it.
    judged = run.matrices if size is None else run.matrices & (size[0] != 0)
    ratio = np.where(judged, ratio, np.nan)
    high = (ratio > T.RATIO_HIGH.value) & run.live[:, None]
    most = high.sum(1) >= T.RATIO_MOST.value * np.isfinite(ratio).sum(1)
    says = "each step changes {leaves} by up to {worst:.2g} of their norm, from step {step} on."
    held = run.held(high & most[:, None], when=~run.progresses(run.long))
    yield from _seen(run, held, ratio, "update_ratio", says)
    cosine = run.of("momentum_cosine")
    if cosine is None or run.found("V_COASTING", "EPS_DOMINANT", "EPS_LARGE"):  # they name why steps are small
        return
    low = (ratio < T.RATIO_LOW.value) & (cosine > T.RATIO_AGREES.value) & (run.live & run.idle)[:, None]
    low = run.held(low, T.PERSIST_LONG.value, when=~run.progresses(run.long))
    says = (
        "each step changes {leaves} by as little as {worst:.2g} of their norm, from step {step} on, while gradients"
        " agree step after step."
    )
    for seen in _seen(run, low, ratio, "update_ratio", says, least=True):
        yield seen._replace(
            because="the learning rate is too low for these leaves.",
            instead="raise the learning rate tenfold.",
        )


def _direction_rms(run: _Run) -> Iterator[_Seen]:
    x, b1, surprise = run.of("direction_rms"), run.number("b1"), run.of("surprise")
    corrected = "bias_correct" in run.about.method.get("parts", ())  # what is not has other sizes at first
    if x is None or surprise is None or not corrected or b1 is None or not 0 <= b1 < 1:
        return
    x = np.where((surprise > 0) & run.as_adam, x, np.nan)
    middle, noise = _of_matrices(run, x), math.sqrt((1 - b1) / (1 + b1))
    held = run.held((middle > T.DIRECTION_HIGH.value) & run.live)
    says = (
        "the direction's root mean square is {worst:.3g} in most leaves from step {step} on; noise gives {noise:.3g}."
    )
    yield from _whole(run, held, middle, "direction_rms", says, noise=noise)
    if run.found("V_COASTING", "EPS_DOMINANT", "EPS_LARGE"):
        return  # they name the reason of a short direction
    short = (middle < T.DIRECTION_LOW.value * noise) & run.live & run.idle
    held = run.held(short, T.PERSIST_LONG.value, run.long, ~run.progresses(run.long))
    for seen in _whole(run, held, middle, "direction_rms", says, noise=noise):
        yield seen._replace(
            because="the second moment is made of rare gradients that are far larger than most, so that most steps are"
            " small: it is not old, and eps is not above it.",
            instead="clip the gradient at a few times its usual norm, or lower b2.",
        )


def _whole(run: _Run, held: _Held, x: np.ndarray, of: str, says: str, **more: float) -> Iterator[_Seen]:
    """A finding of the whole run, from a condition over [R]."""
    if held:
        step, value = int(run.steps[held.first[0]]), float(x[held.sure[0]])
        yield _Seen("warning", (), step, {of: value, **more}, says.format(worst=value, step=step, **more))


def _bimodal(run: _Run) -> Iterator[_Seen]:
    saturated, cosine, b1 = run.of("saturated"), run.of("update_cosine"), run.number("b1")
    if saturated is None or cosine is None or b1 is None or not 0 <= b1 < 1:
        return
    floor = T.SATURATED_COSINE.value * math.sqrt(1 - b1 * b1)
    both = (saturated > T.SATURATED_SHARE.value) & (cosine < floor) & run.live[:, None]
    both &= run.as_adam & run.matrices  # those that take signs are saturated by design
    says = (
        "{worst:.0%} of the direction of {leaves} is near +1 or -1 from step {step} on, and it does not point down the"
        " gradient."
    )
    yield from _seen(run, run.held(both), saturated, "saturated", says, floor=floor)


def _momentum_fight(run: _Run) -> Iterator[_Seen]:
    """A note: many runs that learn do so at the edge of stability; a warning where the loss rises meanwhile."""
    middle = _of_matrices(run, run.of("momentum_cosine"))
    fights = (middle < T.FIGHT_COSINE.value) & run.live & ~run.converged
    loss = run.loss_at(run.steps)
    lowest = np.fmin.accumulate(loss) if len(loss) else loss
    hold = lambda when: run.held(fights, T.PERSIST_LONG.value, T.FEWEST_STEPS.value, when)
    rises = hold(loss > T.FIGHT_RISE.value * np.abs(lowest))
    held = rises or hold(~run.progresses(run.long))
    says = "gradients point against the mean of those before them, with a cosine of {worst:.2f}, from step {step} on."
    for seen in _whole(run, held, middle, "momentum_cosine", says):
        yield seen if rises else seen._replace(severity="note")


def _imbalance(run: _Run) -> Iterator[_Seen]:
    ratio = run.of("update_ratio")
    used = run.live & ~run.converged
    if ratio is None or used.sum() < T.PERSIST_LONG.value:
        return
    usual = _median(np.where(np.isfinite(ratio[used]) & (ratio[used] > 0), ratio[used], np.nan), 0)
    roles: dict[str, list[int]] = {}
    for i, leaf in enumerate(run.about.leaves):
        if run.matrices[i] and np.isfinite(usual[i]):
            roles.setdefault(role(leaf.name), []).append(i)
    for name, members in roles.items():
        of = usual[members]
        times = float(of.max() / of.min())
        if len(members) >= T.IMBALANCE_LEAVES.value and times > T.IMBALANCE_RATIO.value:
            most, least = (run.about.leaves[members[i]].name for i in (int(of.argmax()), int(of.argmin())))
            says = f"updates of {name} differ {times:.3g} times over depth: the most in {most}, the least in {least}."
            step = int(run.steps[used.argmax()])
            yield _Seen("warning", (most, least), step, {"times": times, "most": of.max(), "least": of.min()}, says)


def role(name: str) -> str:
    """A leaf's name without the digits of its path, which tell layers apart.

    >>> role("blocks/11/up/kernel"), role("Dense_3/bias")
    ('blocks/up/kernel', 'Dense/bias')
    """
    parts = (re.sub(r"[_.-]*\d+", "", part) for part in name.split("/"))
    return "/".join(part for part in parts if part)


# Precision of parameters


def _survives(about: About, dtype: str) -> float:
    """The least relative change that a parameter of this dtype keeps; 0 where any is kept."""
    if dtype not in NARROW:
        return 0.0
    step = _number(about, "smallest_step")
    return NARROW[dtype] if step is None else step


def _bf16_stall_static(about: About) -> Iterator[_Seen]:
    rate, b1 = _number(about, "learning_rate"), _number(about, "b1")
    if rate is None or b1 is None or not 0 <= b1 < 1:
        return
    noise = math.sqrt((1 - b1) / (1 + b1) / max(_number(about, "pieces") or 1, 1))  # a mean of several is smaller
    found = []
    for leaf in about.leaves:
        step = _survives(about, leaf.dtype)
        if len(leaf.shape) < 2 or not leaf.size or not step:
            continue
        fan = leaf.size / min(leaf.shape[0], leaf.shape[-1])
        share = rate * noise * math.sqrt(fan) / (T.STALL_STEP.value * step)
        if share < 1:
            found.append((leaf.name, share))
    if found:
        names, least = [name for name, _ in found], min(share for _, share in found)
        says = (
            f"a learning rate of {rate:g} moves parameters of {_some(names)} by {least:.2g} of the least that"
            f" {about.method.get('precision', 'their dtype')} keeps, if they are as large as at their start."
        )
        yield _Seen("warning", names, 0, {"share": least, "learning_rate": rate}, says)


def _bf16_stall(run: _Run) -> Iterator[_Seen]:
    stalled = run.of("stalled")
    if stalled is None:
        return
    keeps = np.asarray([_survives(run.about, leaf.dtype) > 0 for leaf in run.about.leaves], bool)
    live = (run.live & ~run.converged)[:, None] & keeps
    held = run.held((stalled > T.STALL_SHARE.value) & live)
    severity = "error" if run.held((stalled > T.STALL_SHARE_ERROR.value) & live) else "warning"
    says = "up to {worst:.0%} of the updates of {leaves} leave the parameter as it was, from step {step} on."
    yield from _seen(run, held, stalled, "stalled", says, severity=severity)


# Clips, dead leaves, decay


def _clips(run: _Run) -> tuple[np.ndarray, float] | None:
    """What the clip leaves in each record that knows it, and its norm; None where there is no clip or too little."""
    left, norm = run.history.whole.get("clip"), run.number("max_norm")
    if left is None or norm is None or np.isfinite(left).sum() < T.CLIP_RECORDS.value:
        return None
    return left, norm


def _clip_always(run: _Run) -> Iterator[_Seen]:
    if (found := _clips(run)) is None:
        return
    left, norm = found
    rows = np.flatnonzero(np.isfinite(left))[-int(T.CLIP_RECORDS.value) :]
    share = float((left[rows] < T.CLIP_EXACT.value).mean())
    usual = float(_median(left[rows], 0))
    if share > T.CLIP_SHARE.value and usual < T.CLIP_FACTOR.value:
        says = (
            f"the clip at {norm:g} shortened the gradient in {share:.0%} of the last {len(rows)} records, usually to"
            f" {usual:.2g} of itself."
        )
        yield _Seen("warning", (), int(run.steps[rows[0]]), {"share": share, "clip": usual, "max_norm": norm}, says)


def _clip_never(run: _Run) -> Iterator[_Seen]:
    if (found := _clips(run)) is None:
        return
    left, norm = found
    norms = np.concatenate([run.grad, run.history.pulse.get("grad_norm", np.zeros(0))])
    norms = norms[np.isfinite(norms)]
    if not (left < T.CLIP_EXACT.value).any() and len(norms) and norms.max() < T.CLIP_REACH.value * norm:
        says = f"the clip at {norm:g} never acted: the largest gradient's norm was {norms.max():.3g}."
        yield _Seen("note", (), int(run.steps[0]), {"max_norm": norm, "largest": norms.max()}, says)


def _dead(run: _Run) -> tuple[_Held, np.ndarray]:
    """Leaves whose gradients were zero for long, and which of them weight decay moves all the same."""
    size, share = run.of("grad_max"), run.of("decay_share")
    none = np.zeros((len(run.steps), len(run.about.leaves)), bool)
    filled = np.asarray([leaf.size > 0 for leaf in run.about.leaves], bool)
    held = run.held(none if size is None else (size == 0) & filled, T.DEAD_RECORDS.value, T.FEWEST_STEPS.value)
    moved = none if share is None else share > T.DECAY_SHARE.value
    return held, moved[held.sure, np.arange(len(held.sure))] if held else held.fired


def _dead_leaf(run: _Run) -> Iterator[_Seen]:
    held, moved = _dead(run)
    if held:
        says = "{leaves} had no gradient from step {step} on."
        held = held._replace(fired=held.fired & ~moved)
        yield from _seen(run, held, run.history.leaf["grad_max"], "grad_max", says)


def _decay_only(run: _Run) -> Iterator[_Seen]:
    held, moved = _dead(run)
    if held:
        says = (
            "{leaves} had no gradient from step {step} on, and weight decay, {worst:.0%} of the update, shrinks them."
        )
        held = held._replace(fired=held.fired & moved)
        share = run.history.leaf.get("decay_share", run.history.leaf["grad_max"])
        yield from _seen(run, held, share, "decay_share", says)


def _sparse_leaf(run: _Run) -> Iterator[_Seen]:
    zero = run.of("zero_grad")
    if zero is not None:
        sparse = (zero > T.SPARSE_SHARE.value) & (zero < 1) & run.matrices & ~run.diverged[:, None]
        says = "{worst:.1%} of the gradient of {leaves} is zero in every record from step {step} on."
        held = run.held(sparse, T.PERSIST_LONG.value, T.FEWEST_STEPS.value)
        yield from _seen(run, held, zero, "zero_grad", says, severity="note")


def _decay_on_norms(about: About) -> Iterator[_Seen]:
    decay, decays = _number(about, "weight_decay"), about.method.get("decays", ())
    if decay is None or decay <= T.DECAY_LEAST.value or len(decays) != len(about.leaves):
        return
    flat = [leaf.name for leaf, reached in zip(about.leaves, decays, strict=True) if reached and len(leaf.shape) < 2]
    if flat and len(flat) < sum(map(bool, decays)):
        says = f"weight decay of {decay:g} reaches {len(flat)} leaves without rows: {_some(flat)}."
        yield _Seen("note", flat, 0, {"weight_decay": decay, "leaves": len(flat)}, says)


_CHECKS: dict[str, Callable[[About], Iterable[_Seen]]] = {
    "EPS_LARGE": _eps_large_static,
    "BF16_STALL": _bf16_stall_static,
    "V_FROZEN": _v_frozen_static,
    "DECAY_ON_NORMS": _decay_on_norms,
}
_FINDS: dict[str, Callable[[_Run], Iterable[_Seen]]] = {
    "NONFINITE": _nonfinite,
    "SPIKE": _spike,
    "SPIKE_SCORE": _spike_score,
    "LOSS_ROSE": _loss_rose,
    "STALE_V": _stale_v,
    "V_COASTING": _v_coasting,
    "EPS_DOMINANT": _eps_dominant,
    "EPS_LARGE": _eps_large,
    "UPDATE_RATIO": _update_ratio,
    "DIRECTION_RMS": _direction_rms,
    "BIMODAL": _bimodal,
    "MOMENTUM_FIGHT": _momentum_fight,
    "BF16_STALL": _bf16_stall,
    "V_FROZEN": _v_frozen,
    "V_UNDERFLOW": _v_underflow,
    "QERR": _qerr,
    "CLIP_ALWAYS": _clip_always,
    "CLIP_NEVER": _clip_never,
    "DEAD_LEAF": _dead_leaf,
    "DECAY_ONLY": _decay_only,
    "SPARSE_LEAF": _sparse_leaf,
    "IMBALANCE": _imbalance,
}
_SCORES, _ADAM = ("loss_score", "grad_score"), (("direction_rms",), ("signal_to_noise",))
_READS: dict[str, tuple[tuple[str, ...], ...]] = {  # of each tuple one statistic, or something known of the method
    "NONFINITE": (("bad_grad", "bad_update", "bad_param", "grad_norm", "loss"),),
    "SPIKE": (_SCORES,),
    "SPIKE_SCORE": (_SCORES,),
    "LOSS_ROSE": (("loss",),),
    "STALE_V": (("surprise_before",), _SCORES),
    "V_COASTING": (("coasting",), ("surprise",)),
    "EPS_DOMINANT": (("eps_tenth",), ("grad_rms",)),
    "EPS_LARGE": (("eps_half", "eps"),),
    "UPDATE_RATIO": (("update_ratio",),),
    "DIRECTION_RMS": (("surprise",), *_ADAM),
    "BIMODAL": (("saturated",), ("update_cosine",), *_ADAM),
    "MOMENTUM_FIGHT": (("momentum_cosine",),),
    "BF16_STALL": (("stalled",),),
    "V_FROZEN": (("nu_stale",),),
    "V_UNDERFLOW": (("nu_zero",),),
    "QERR": (("direction_error",),),
    "CLIP_ALWAYS": (("clip",),),
    "CLIP_NEVER": (("clip",),),
    "DEAD_LEAF": (("grad_max",),),
    "DECAY_ONLY": (("grad_max",), ("decay_share",)),
    "SPARSE_LEAF": (("zero_grad",),),
    "IMBALANCE": (("update_ratio",),),
    "DECAY_ON_NORMS": (("parts",),),
}
_NOTHING = lambda of: ()
RULES: Mapping[str, Rule] = MappingProxyType(
    {name: Rule(name, words, _CHECKS.get(name, _NOTHING), _FINDS.get(name, _NOTHING)) for name, words in WORDS.items()}
)
