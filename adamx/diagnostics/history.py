"""A run's records on the host: NumPy arrays named as in :mod:`adamx.diagnostics.metrics`, and what they are of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Leaf(NamedTuple):
    """One leaf of the parameters: its name ("blocks/0/up/kernel"), shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Numbers in it."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class About:
    """What a history is of.

    Attributes:
      leaves: in the order of the records' columns.
      every: steps between records.
      method: what is known of the transformation before the first step; keys that are not known are left out.
        Numbers: "b1", "b2", "eps", "weight_decay", "max_norm" (of a clip), "learning_rate" (if it is a number).
        "parts": list of names. "guards": those of wrappers that keep bad gradients out. "precision": "bf16+int8".
        "codecs": {"mu": "int8(block=256)"}.
        "decays": list of bool by leaf, which leaves weight decay reaches. "smallest_step": the least relative change
        of a parameter that survives a step, 0 if any does.
    """

    leaves: tuple[Leaf, ...]
    every: int
    method: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads."""
        leaves = [[leaf.name, list(leaf.shape), leaf.dtype] for leaf in self.leaves]
        return json.dumps({"leaves": leaves, "every": self.every, "method": dict(self.method)})

    @classmethod
    def from_json(cls, text: str | bytes) -> "About":
        """What :meth:`to_json` wrote."""
        read = json.loads(text)
        leaves = tuple(Leaf(name, tuple(shape), dtype) for name, shape, dtype in read["leaves"])
        return cls(leaves, read["every"], read["method"])


@dataclass(frozen=True)
class History:
    """What was recorded, oldest first. Steps count from 1, and each table's are ascending without repeats.

    Attributes:
      about: what it is of; L leaves.
      steps: int64[R], of the full records.
      whole: by name, float32[R]: numbers of the whole tree.
      leaf: by name, float32[R, L]; NaN where a statistic does not apply to a leaf.
      pulse_steps: int64[F], of what is recorded every step.
      pulse: by name, float32[F]; NaN where it was not known (no loss was passed).
      spread_steps: int64[D], of the distributions.
      spread: by name, float32[D, L, 16]: shares up to each of `metrics.EDGES[name]`, so ascending along the last axis.
    """

    about: About
    steps: np.ndarray
    whole: Mapping[str, np.ndarray]
    leaf: Mapping[str, np.ndarray]
    pulse_steps: np.ndarray
    pulse: Mapping[str, np.ndarray]
    spread_steps: np.ndarray
    spread: Mapping[str, np.ndarray]

    @property
    def begin(self) -> int:
        """The first step of any table; 0 if there is none."""
        return min((int(s[0]) for s in (self.steps, self.pulse_steps, self.spread_steps) if len(s)), default=0)

    @property
    def end(self) -> int:
        """The last step of any table; 0 if there is none."""
        return max((int(s[-1]) for s in (self.steps, self.pulse_steps, self.spread_steps) if len(s)), default=0)

    @property
    def lacks(self) -> tuple[str, ...]:
        """What keeps the doctor's rules from reading it, in words."""
        if not len(self.steps):
            return ("there are no records",)
        found = []
        if "parts" not in self.about.method:
            found.append("the watched transformation does not show its links")
        if not any("loss" in table and not np.isnan(table["loss"]).all() for table in (self.whole, self.pulse)):
            found.append("no loss was passed to update(..., loss=...)")
        return tuple(found) or ("what they read was not recorded",)

    def after(self, record: int, pulse: int, spread: int) -> "History":
        """The part of it behind these steps."""
        return self._rows(self.steps > record, self.pulse_steps > pulse, self.spread_steps > spread)

    def between(self, first: int, last: int) -> "History":
        """The part of it from one step to another, both included."""
        inside = lambda steps: (steps >= first) & (steps <= last)
        return self._rows(inside(self.steps), inside(self.pulse_steps), inside(self.spread_steps))

    def _rows(self, r: np.ndarray, f: np.ndarray, d: np.ndarray) -> "History":
        of = lambda table, rows: {name: x[rows] for name, x in table.items()}
        return History(
            self.about, self.steps[r], of(self.whole, r), of(self.leaf, r), self.pulse_steps[f], of(self.pulse, f),
            self.spread_steps[d], of(self.spread, d),
        )  # fmt: skip

    def then(self, later: "History") -> "History":
        """Both, one after the other; of steps that both have, the later one's stand (a run that was resumed).

        Raises:
          ValueError: if they are of other leaves.
        """
        if self.about.leaves != later.about.leaves:
            raise ValueError(
                f"these histories are of other parameters: one has {len(self.about.leaves)} leaves, the other"
                f" {len(later.about.leaves)}, or they differ in name, shape or dtype."
            )

        def joined(a: np.ndarray, b: np.ndarray, one: Mapping, two: Mapping) -> tuple[np.ndarray, dict]:
            keep = a < b[0] if len(b) else np.ones(len(a), bool)
            nothing = lambda x, n: np.full((n, *x.shape[1:]), np.nan, np.float32)
            both = {}
            for name in dict.fromkeys([*one, *two]):
                first = one[name][keep] if name in one else nothing(two[name], int(keep.sum()))
                both[name] = np.concatenate([first, two[name] if name in two else nothing(one[name], len(b))])
            return np.concatenate([a[keep], b]), both

        steps, whole = joined(self.steps, later.steps, self.whole, later.whole)
        _, leaf = joined(self.steps, later.steps, self.leaf, later.leaf)
        pulse_steps, pulse = joined(self.pulse_steps, later.pulse_steps, self.pulse, later.pulse)
        spread_steps, spread = joined(self.spread_steps, later.spread_steps, self.spread, later.spread)
        return History(later.about, steps, whole, leaf, pulse_steps, pulse, spread_steps, spread)
