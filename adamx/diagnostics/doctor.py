"""What is wrong with a run, since which step, in which leaves, why, and what to try: rules over a history.

A rule speaks only if it is right: it must hold for several records, and most are silent while the learning rate rises
or has nearly ended, and once a run has converged. What a history does not hold, no rule speaks of.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from adamx.diagnostics.history import About, History
from adamx.diagnostics.reading import Run, Seen
from adamx.diagnostics.rules import CHECKS, FINDS, READS
from adamx.diagnostics.thresholds import WORDS, Words

SEVERITIES = ("error", "warning", "note")


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
    checks: Callable[[About], Iterable[Seen]]
    finds: Callable[[Run], Iterable[Seen]]


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
        whole, sound = Run(history, FINDS), Run(_before_ruin(history), FINDS)
        found = lambda rule: (whole if rule.id == "NONFINITE" else sound).found(rule.id)
        seen = [(rule, s) for rule in rules for s in (*rule.checks(history.about), *found(rule))]
    return _sorted(seen)


def check(about: About) -> list[Finding]:
    """What can be said before the first step; part of :func:`diagnose`."""
    return _sorted([(rule, seen) for rule in RULES.values() for seen in rule.checks(about)])


def unread(history: History) -> tuple[str, ...]:
    """Ids of the rules that had nothing to read in this history, in the order of :data:`RULES`.

    Their silence says nothing: the watched transformation does not show its links, no loss was passed, a step
    takes several gradients, or there are no records yet. What a known method does not have (weight decay, moments that
    are stored in fewer bits) needs no rule, and is not counted.
    """
    run, known = Run(history, FINDS), "parts" in history.about.method
    missing = lambda rule: not all(any(map(run.reads, names)) for names in READS[rule])
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


def _sorted(found: Iterable[tuple[Rule, Seen]]) -> list[Finding]:
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


_NOTHING = lambda of: ()
RULES: Mapping[str, Rule] = MappingProxyType(
    {name: Rule(name, words, CHECKS.get(name, _NOTHING), FINDS.get(name, _NOTHING)) for name, words in WORDS.items()}
)
