"""The doctor names what was broken, in which leaf and since when, and is silent about what was not."""

import inspect
import json
import math
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adamx
from adamx import codecs
from adamx.diagnostics import doctor, metrics, reading, rules, thresholds
from adamx.diagnostics.doctor import RULES, Finding, check, diagnose, exit_code, explain, to_json, unread
from adamx.diagnostics.history import About, History, Leaf
from adamx.diagnostics.rules import EXACT_FLOATS, READS, role

EVERY, RECORDS = 10, 140
KERNELS = [Leaf(f"blocks/{i}/up/kernel", (64, 64), "float32") for i in range(4)]
LEAVES = (*KERNELS, Leaf("embed", (512, 64), "float32"), Leaf("norm/scale", (64,), "float32"))
SECOND, EMBED, NORM = 1, 4, 5  # columns
METHOD = {
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "decays": [True] * 5 + [False],
    "parts": ["scale_by_moments(mu, nu)", "bias_correct", "scale_by_lr"],
}

# What noise reads, of a run that learns.
USUAL = {
    "grad_rms": 1e-3, "grad_max": 5e-3, "clipped": 1.0, "param_rms": 0.1, "update_ratio": 2e-3, "update_cosine": 0.4,
    "decay_share": 0.05, "direction_rms": 0.23, "saturated": 1e-3, "momentum_cosine": 0.0, "sign_agreement": 0.5,
    "signal_to_noise": 0.18, "surprise": 1.0, "surprise_before": 1.0, "coasting": 0.25,
}  # fmt: skip


class Draft:
    """A healthy run, to be broken: what a history holds, in mutable dictionaries."""

    def __init__(self, records: int = RECORDS, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.leaves, self.every, self.method = list(LEAVES), EVERY, dict(METHOD)
        self.steps = np.asarray([1, *range(EVERY, records * EVERY, EVERY)][:records])
        shape = (records, len(LEAVES))
        self.leaf = {
            name: (USUAL.get(name, 0.0) * np.exp(0.1 * rng.normal(size=shape))).astype(np.float32)
            for name in metrics.LEAF
        }
        self.leaf["momentum_cosine"] += 0.1 * rng.normal(size=shape).astype(np.float32)
        self.whole = {
            name: np.full(records, value, np.float32)
            for name, value in {"clip": 1, "update_norm": 0.1, "param_norm": 10, "learning_rate": 1e-3}.items()
        }
        self.pulse_steps = np.arange(1, int(self.steps[-1]) + 1)
        n = len(self.pulse_steps)
        self.pulse = {
            "loss": 2 + 3 * np.exp(-np.arange(n) / 200) + 0.05 * rng.normal(size=n),
            "grad_norm": np.exp(0.1 * rng.normal(size=n)),
            "loss_score": rng.normal(size=n),
            "grad_score": rng.normal(size=n),
        }

    def put(self, name: str, value: float, at: int = 60, n: int = 3, leaf: Any = SECOND) -> "Draft":
        """A statistic in n records from row `at` on."""
        self.leaf[name][at : at + n, leaf] = value
        return self

    def spike(
        self, step: int = 500, high: float = 4.0, score: float = 8.0, lasts: int = 12, then: float | None = None
    ) -> "Draft":
        """A loss that jumps at a step and stays high, or at `then`, for so many; before step 500 its mean is 2.34."""
        self.pulse["loss"][step - 1 : step - 1 + lasts] = high if then is None else then
        self.pulse["loss"][step - 1] = high
        self.pulse["loss_score"][step - 1] = score
        return self

    def history(self) -> History:
        return History(
            About(tuple(self.leaves), self.every, self.method),
            self.steps.astype(np.int64), self.whole, self.leaf,
            self.pulse_steps.astype(np.int64), {k: x.astype(np.float32) for k, x in self.pulse.items()},
            np.zeros(0, np.int64), {},
        )  # fmt: skip

    def cut(self, records: int) -> History:
        """Its first records."""
        h = self.history()
        last = int(h.steps[records - 1]) if records else 0
        head = lambda table, n: {name: x[:n] for name, x in table.items()}
        return History(
            h.about, h.steps[:records], head(h.whole, records), head(h.leaf, records),
            h.pulse_steps[:last], head(h.pulse, last), h.spread_steps, {},
        )  # fmt: skip


class Disaster(NamedTuple):
    """What breaks a run, what nearly does, and what must be found.

    Attributes:
      id: of the finding.
      broken: of a fresh draft.
      nearly: drafts just on the other side of a threshold, or too short.
      leaves: columns that it must name.
      step: at which it began.
      severity: of the finding.
    """

    id: str
    broken: Callable[[Draft], Draft]
    nearly: list[Callable[[Draft], Draft]]
    leaves: tuple[int, ...]
    step: int
    severity: str = "warning"


def known(**method: Any) -> Callable[[Draft], Draft]:
    """Something of the method, or its absence."""

    def change(d: Draft) -> Draft:
        d.method = {name: x for name, x in (METHOD | method).items() if x is not None}
        return d

    return change


def narrow(dtype: str = "bfloat16", *, rate: float | None = None, **method: Any) -> Callable[[Draft], Draft]:
    """The kernels are of fewer bits."""

    def change(d: Draft) -> Draft:
        d = known(learning_rate=rate, **method)(d)
        d.leaves = [leaf._replace(dtype=dtype) if "kernel" in leaf.name else leaf for leaf in d.leaves]
        return d

    return change


def grown(score: float, lasts: int, times: float, step: int = 500) -> Callable[[Draft], Draft]:
    """No loss is known, and the gradient's norm jumps."""

    def change(d: Draft) -> Draft:
        d.pulse["loss"][:] = np.nan
        d.pulse["grad_norm"][step - 1 : step - 1 + lasts] = times
        d.pulse["grad_score"][step - 1] = score
        return d

    return change


def spikes(steps: range, length: int = 14000, scored: int = 4) -> Callable[[Draft], Draft]:
    """A longer run with many, each of so many steps above the line."""

    def change(d: Draft) -> Draft:
        d.__init__(length // EVERY)
        for step in steps:
            d.spike(step)
            d.pulse["loss_score"][step : step + scored - 1] = 7.0
        return d

    return change


def risen(times: float, lasts: int = 8, begins: int = 1, scatter: float = 0.0, first: float = 1.0) -> Callable:
    """A loss at so many times three of its first, for some steps; of a pulse that begins at a step.

    Args:
      times: of three first losses.
      lasts: steps.
      begins: at which the pulse begins.
      scatter: deviation of the loss's logarithm from step to step.
      first: the first loss, in shares of what it would be.
    """

    def change(d: Draft) -> Draft:
        d.pulse["loss"][:] = 5 * np.exp(scatter * np.random.default_rng(0).normal(size=len(d.pulse_steps)))
        d.pulse["loss"][0] *= first
        d.spike(400, 15 * times, 0.0, lasts)
        d.pulse_steps = d.pulse_steps[begins - 1 :]
        d.pulse = {name: x[begins - 1 :] for name, x in d.pulse.items()}
        return d

    return change


def leapt(steps: int = 1, back: float = 1.0) -> Callable[[Draft], Draft]:
    """A loss that is 100 times as high from the second step on, falls again from the 20th on, and never learns."""

    def change(d: Draft) -> Draft:
        d.pulse["loss"][:] = back * d.pulse["loss"][0]
        d.pulse["loss"][0] = 5.0
        d.pulse["loss"][1 : 1 + steps] = 500.0
        return d

    return change


def stale(
    surprise: float, row: int = 49, usual: float = 1.0, spike: bool = True, lasts: int = 12
) -> Callable[[Draft], Draft]:
    """Surprise in the record before the spike at step 500, row 49 being step 490."""

    def change(d: Draft) -> Draft:
        d.leaf["surprise_before"][row - 30, SECOND] = usual
        d.put("surprise_before", surprise, row, 1)
        return d.spike(500, lasts=lasts) if spike else d

    return change


def shrunk(
    surprise: float = 0.05, coasting: float = 0.9, n: int = 48, loss: float | None = None, leaf: Any = SECOND
) -> Callable[[Draft], Draft]:
    """Gradients shrink at step 600; the second moment remembers 100 steps."""

    def change(d: Draft) -> Draft:
        d.put("surprise", surprise, 60, n, leaf).put("coasting", coasting, 60, n, leaf)
        if loss is not None:
            d.pulse["loss"][650:] = loss
        return d

    return change


def blind(change: Callable[[Draft], Draft]) -> Callable[[Draft], Draft]:
    """The same without a loss."""

    def changed(d: Draft) -> Draft:
        d = change(d)
        d.pulse["loss"][:] = np.nan
        return d

    return changed


def small_eps(
    share: float, n: int = 3, zero: float = 0.0, size: float = 1e-3, at: int = 60
) -> Callable[[Draft], Draft]:
    return lambda d: d.put("eps_tenth", share, at, n).put("zero_grad", zero, at, n).put("grad_rms", size, at, n)


def eps_from_first(share: float, leaf: Any = slice(None), at: int = 0, n: int = 4) -> Callable[[Draft], Draft]:
    return lambda d: d.put("eps_half", share, at, n, leaf)


def ratios(
    value: float, leaf: Any, n: int = 3, zero: bool = False, loss: float | None = None
) -> Callable[[Draft], Draft]:
    def change(d: Draft) -> Draft:
        if loss is not None:
            d.pulse["loss"][550:] = loss
        if zero:
            d.put("param_rms", 0.0, 0, 1, leaf)
        return d.put("update_ratio", value, 60, n, leaf)

    return change


def timid(ratio: float, cosine: float, n: int = 10, at: int = 60, loss: float | None = None) -> Callable:
    def change(d: Draft) -> Draft:
        if loss is not None:
            d.pulse["loss"][300:] = loss
        return d.put("update_ratio", ratio, at, n).put("momentum_cosine", cosine, at, n)

    return change


def directed(
    value: float, n: int = 3, leaf: Any = slice(None), over: float = 1.25, **method: Any
) -> Callable[[Draft], Draft]:
    """A direction of this length, `over` times the mean of first moment over root of the second."""
    put = lambda d: d.put("direction_rms", value, 60, n, leaf).put("signal_to_noise", value / over, 60, n, leaf)
    return lambda d: put(known(**method)(d))


def fights(cosine: float, n: int = 11, leaf: Any = slice(None), loss: float | None = None) -> Callable[[Draft], Draft]:
    """Gradients against their mean, and perhaps another loss from step 651 on."""

    def change(d: Draft) -> Draft:
        if loss is not None:
            d.pulse["loss"][650:] = loss
        return d.put("momentum_cosine", cosine, 60, n, leaf)

    return change


def bimodal(share: float, cosine: float, n: int = 3, leaf: int = SECOND) -> Callable[[Draft], Draft]:
    return lambda d: d.put("saturated", share, 60, n, leaf).put("update_cosine", cosine, 60, n, leaf)


def stalled(share: float, n: int = 3, dtype: str = "bfloat16", at: int = 60, **method: Any) -> Callable[[Draft], Draft]:
    return lambda d: narrow(dtype, **method)(d).put("stalled", share, at, n)


def clipped(left: float, n: int = 128, norm: float | None = 1.0) -> Callable[[Draft], Draft]:
    def change(d: Draft) -> Draft:
        d = known(max_norm=norm)(d)
        d.whole["clip"][-n:] = left
        return d

    return change


def loose(norm: float, acted: int = 0) -> Callable[[Draft], Draft]:
    def change(d: Draft) -> Draft:
        d = known(max_norm=norm)(d)
        d.pulse["grad_norm"] = np.minimum(d.pulse["grad_norm"], 1.0)
        d.whole["clip"][:acted] = 0.5
        return d

    return change


def dead(share: float = 0.05, n: int = 11, size: float = 0.0) -> Callable[[Draft], Draft]:
    return lambda d: d.put("grad_max", size, 60, n).put("decay_share", share, 60, n)


def every_20(change: Callable[[Draft], Draft]) -> Callable[[Draft], Draft]:
    """The same with half as many records a step."""

    def changed(d: Draft) -> Draft:
        d = change(d)
        d.every, d.steps = 2 * EVERY, 2 * d.steps
        return d

    return changed


def sparse(share: float, n: int = 11, leaf: int = EMBED) -> Callable[[Draft], Draft]:
    return lambda d: d.put("zero_grad", share, 60, n, leaf)


def uneven(times: float, leaf: int = 3, records: int = RECORDS, layers: int = 4) -> Callable[[Draft], Draft]:
    def change(d: Draft) -> Draft:
        d.__init__(records)
        d.leaves[: 4 - layers] = [leaf._replace(name=f"other{'abc'[i]}") for i, leaf in enumerate(KERNELS[layers:])]
        d.leaf["update_ratio"][:, :4] = 1e-3
        d.leaf["update_ratio"][:, leaf] = 1e-3 * times
        return d

    return change


def bad(kind: str, count: float = 3.0) -> Callable[[Draft], Draft]:
    return lambda d: d.put(kind, count, 60, 1)


def bad_pulse(name: str, value: float) -> Callable[[Draft], Draft]:
    def change(d: Draft) -> Draft:
        d.pulse[name][699] = value
        return d

    return change


def passed(steps: int) -> Callable[[Draft], Draft]:
    """The loss is known in the first so many steps of every ten."""

    def change(d: Draft) -> Draft:
        d.pulse["loss"][(d.pulse_steps - 1) % 10 >= steps] = np.nan
        return d

    return change


def lost(steps: int) -> Callable[[Draft], Draft]:
    """Behind so many steps the loss is NaN."""

    def change(d: Draft) -> Draft:
        d.pulse["loss"][steps:] = np.nan
        return d

    return change


def then(*changes: Callable[[Draft], Draft]) -> Callable[[Draft], Draft]:
    def change(d: Draft) -> Draft:
        for each in changes:
            d = each(d)
        return d

    return change


def ends(rate: float) -> Callable[[Draft], Draft]:
    """The learning rate falls to so much of its peak from row 60 on."""

    def change(d: Draft) -> Draft:
        d.whole["learning_rate"][60:] = rate * 1e-3
        return d

    return change


ALL = slice(None)
DISASTERS = [
    Disaster("NONFINITE", bad("bad_update"), [bad("bad_update", 0), bad("bad_update", np.nan)], (1,), 600, "error"),
    Disaster("NONFINITE", bad("bad_param"), [bad("bad_param", 0)], (1,), 600, "error"),
    Disaster("NONFINITE", bad("bad_grad"), [then(known(guards=["loss_scaling"]), bad("bad_grad"))], (1,), 600),
    Disaster("NONFINITE", bad_pulse("grad_norm", np.nan), [bad_pulse("grad_norm", 1e30)], (), 700, "error"),
    Disaster("NONFINITE", bad_pulse("loss", np.inf), [bad_pulse("loss", 1e30)], (), 700, "error"),
    Disaster("NONFINITE", bad_pulse("loss", np.nan), [passed(7), lost(0)], (), 700, "error"),
    Disaster("NONFINITE", passed(8), [passed(7), passed(1)], (), 9, "error"),
    Disaster("NONFINITE", lost(699), [blind(lambda d: d)], (), 700, "error"),
    Disaster("NONFINITE", lost(1), [], (), 2, "error"),
    Disaster(
        "SPIKE",
        lambda d: d.spike(score=6.1),
        [
            lambda d: d.spike(score=5.9),
            lambda d: d.spike(lasts=3),  # one hard batch
            lambda d: d.spike(high=2.3),  # many deviations of a constant loss
            lambda d: d.spike(int(d.pulse_steps[-1]) - 6),  # not yet known to last
        ],
        (),
        500,
    ),
    Disaster("SPIKE", lambda d: d.spike(lasts=5), [lambda d: d.spike(lasts=3)], (), 500),
    Disaster("SPIKE", lambda d: d.spike(then=3.07), [lambda d: d.spike(then=2.86)], (), 500),
    Disaster("SPIKE", lambda d: d.spike(high=2.52), [lambda d: d.spike(high=2.44)], (), 500),
    Disaster("SPIKE", grown(7, 12, 12.0), [grown(7, 12, 9.0), grown(7, 3, 12.0), grown(5.9, 12, 12.0)], (), 500),
    Disaster(
        "SPIKE_SCORE",
        spikes(range(5000, 9000, 1500)),
        [
            spikes(range(5000, 7000, 1500), scored=8),
            spikes(range(5000, 9000, 1500), scored=3),
            spikes(range(100, 4000, 1000), scored=8),
            spikes(range(300, 900, 200), 980),
        ],
        (),
        5000,
    ),
    Disaster(
        "LOSS_ROSE", risen(1.02), [risen(0.98), risen(1.02, lasts=3), risen(1.02, begins=2), risen(1e30, 1)], (), 400
    ),
    Disaster("LOSS_ROSE", risen(1.02, lasts=5), [], (), 400),
    Disaster("LOSS_ROSE", risen(25.0, scatter=1.0, lasts=200), [risen(10.0, scatter=1.0, lasts=200)], (), 400),
    Disaster("LOSS_ROSE", leapt(20), [leapt(3), risen(0.3, scatter=1.0, first=0.05)], (), 2),
    Disaster(
        "STALE_V",
        stale(3.1),
        [stale(2.9), stale(3.1, usual=4.0), stale(9.0, row=47), stale(9.0, row=50), stale(9.0, spike=False),
         stale(9.0, lasts=1)],
        (1,),
        490,
    ),
    Disaster(
        "V_COASTING",
        shrunk(),
        [shrunk(surprise=0.11), shrunk(coasting=0.49), shrunk(n=10), shrunk(n=12, loss=0.9), shrunk(loss=2e-3),
         shrunk(surprise=0.0), blind(shrunk())],
        (1,),
        600,
    ),
    Disaster("SPIKE_SCORE", spikes(range(300, 950, 300), 1100), [spikes(range(300, 950, 300), 990)], (), 300),
    Disaster("V_COASTING", shrunk(loss=5.5e-3), [shrunk(loss=4.5e-3)], (1,), 600),  # the first loss is 5
    Disaster(
        "V_COASTING",
        blind(then(shrunk(leaf=ALL), lambda d: d.put("grad_rms", 1.1e-7, 60, 80, ALL))),
        [blind(then(shrunk(leaf=ALL), lambda d: d.put("grad_rms", 0.9e-7, 60, 80, ALL)))],
        (0, 1, 2, 3, 4, 5),
        600,
    ),
    Disaster("V_COASTING", blind(shrunk(leaf=[1, 4])), [blind(shrunk(leaf=[0, 1, 2, 3]))], (1, 4), 600),
    Disaster(
        "EPS_DOMINANT",
        small_eps(0.55),
        [small_eps(0.49), small_eps(1.0, n=2), small_eps(0.98, zero=0.97), small_eps(1.0, size=5e-6),
         small_eps(1.0, at=5), small_eps(1.0, zero=1.0)],
        (1,),
        600,
    ),
    Disaster("EPS_DOMINANT", small_eps(0.99, zero=0.97), [], (1,), 600),
    Disaster("EPS_DOMINANT", small_eps(1.0, size=1.15e-5), [small_eps(1.0, size=8.5e-6)], (1,), 600),
    Disaster(
        "EPS_LARGE",
        eps_from_first(0.95),
        [eps_from_first(0.89), eps_from_first(0.95, n=2), eps_from_first(0.95, leaf=[0, 1, 2, 3]),
         eps_from_first(0.95, at=1)],
        (0, 1, 2, 3, 4, 5),
        1,
    ),
    Disaster("EPS_LARGE", known(eps=1.1e-3), [known(eps=1e-3), known(eps=None)], (), 0, "note"),
    Disaster(
        "UPDATE_RATIO",
        ratios(0.026, [0, 1, 2, 3]),
        [ratios(0.024, [0, 1, 2, 3]), ratios(0.026, [0, 1, 2]), ratios(0.026, [0, 1, 2, 3], n=2),
         ratios(0.026, [0, 1, 2, 3], loss=0.9), ratios(0.5, [0, 1, 2, 3], zero=True), ratios(0.5, NORM, n=40)],
        (0, 1, 2, 3),
        600,
    ),
    Disaster(
        "UPDATE_RATIO",
        timid(9e-5, 0.6),
        [timid(1.1e-4, 0.6), timid(9e-5, 0.4), timid(9e-5, 0.6, n=9), timid(9e-5, 0.6, loss=1e-3),
         timid(9e-5, 0.6, at=4)],
        (1,),
        600,
    ),
    Disaster(
        "DIRECTION_RMS",
        directed(1.05),
        [directed(0.98), directed(1.05, n=2), directed(1.05, leaf=[0, 1]), directed(1.05, b1=None),
         directed(1.05, over=4.2), directed(1.05, over=0.45), directed(1.05, parts=["scale_by_moments(mu, nu)"])],
        (),
        600,
    ),
    Disaster("DIRECTION_RMS", directed(1.05, over=3.8), [], (), 600),
    Disaster("DIRECTION_RMS", directed(1.05, over=0.55), [], (), 600),
    Disaster("DIRECTION_RMS", directed(0.011, 50), [directed(0.012, 50), directed(0.011, 40)], (), 600),
    Disaster(
        "BIMODAL",
        bimodal(0.11, 0.10),
        [bimodal(0.09, 0.10), bimodal(0.11, 0.12), bimodal(0.11, 0.10, n=2), bimodal(0.5, 0.0, leaf=NORM),
         lambda d: bimodal(1.0, 0.0, n=50)(d).put("direction_rms", 1.0, 0, RECORDS, ALL)],
        (1,),
        600,
    ),
    Disaster(
        "MOMENTUM_FIGHT",
        fights(-0.31),
        [fights(-0.29), fights(-0.31, n=10), fights(-0.9, leaf=[0, 1]), fights(-0.9, loss=0.9)],
        (),
        600,
        "note",
    ),
    Disaster("MOMENTUM_FIGHT", fights(-0.31, loss=6.0), [], (), 600),
    Disaster(
        "BF16_STALL",
        stalled(0.55),
        [stalled(0.45), stalled(0.55, n=2), stalled(0.55, dtype="float32"), stalled(1.0, smallest_step=0.0),
         stalled(1.0, at=10), then(stalled(1.0), ends(0.09))],
        (1,),
        600,
    ),
    Disaster("BF16_STALL", then(stalled(0.55), ends(0.11)), [then(stalled(0.55), ends(0.09))], (1,), 600),
    Disaster("BF16_STALL", stalled(0.95, smallest_step=2.0**-8), [], (1,), 600, "error"),
    # 2^-9 / 8 / 0.2294 = 1.06e-3, for parameters of 1 / sqrt(64)
    Disaster(
        "BF16_STALL",
        narrow(rate=1.05e-3),
        [narrow(rate=1.08e-3), narrow("float32", rate=1e-6), narrow(rate=1.05e-3, smallest_step=2.0**-16)],
        (0, 1, 2, 3),
        0,
    ),
    Disaster(
        "V_FROZEN",
        lambda d: d.put("nu_stale", 0.55),
        [lambda d: d.put("nu_stale", 0.49), lambda d: d.put("nu_stale", 0.55, n=2),
         lambda d: known(codecs={"nu": "bfloat16 stochastic"})(d).put("nu_stale", 1.0)],
        (1,),
        600,
    ),
    Disaster("V_FROZEN", lambda d: d.put("nu_stale", 0.95), [], (1,), 600, "error"),
    Disaster(
        "V_FROZEN",
        known(b2=0.999, codecs={"nu": "bfloat16"}),
        [known(b2=0.999, codecs={"nu": "bfloat16 stochastic"}), known(b2=0.995, codecs={"nu": "bfloat16"}),
         known(b2=0.999, codecs={"nu": "float16"}), known(b2=0.9999, codecs={"nu": "uint8(block=256)"}),
         known(b2=0.999, codecs={"mu": "bfloat16"}), known(b2=None, codecs={"nu": "bfloat16"})],
        (),
        0,
        "error",
    ),
    Disaster("V_FROZEN", known(b2=0.9998, codecs={"nu": "float16"}), [], (), 0, "error"),
    Disaster("V_FROZEN", known(b2=0.997, codecs={"nu": "bfloat16"}), [], (), 0),
    Disaster("V_FROZEN", known(b2=1 - 1e-8, codecs={"nu": "float32"}), [known(b2=1 - 1e-7)], (), 0, "error"),
    Disaster(
        "V_UNDERFLOW",
        lambda d: d.put("nu_zero", 1.1e-3),
        [lambda d: d.put("nu_zero", 0.9e-3), lambda d: d.put("nu_zero", 1.0, n=2)],
        (1,),
        600,
    ),
    Disaster(
        "QERR",
        lambda d: d.put("direction_error", 0.26),
        [lambda d: d.put("direction_error", 0.24), lambda d: d.put("direction_error", 0.26, n=2)],
        (1,),
        600,
    ),
    Disaster("QERR", lambda d: d.put("direction_error", 0.51), [], (1,), 600, "error"),
    Disaster(
        "CLIP_ALWAYS",
        clipped(0.45),
        [clipped(0.55), clipped(0.45, n=120), clipped(0.45, norm=None), lambda d: clipped(0.45)(Draft(127))],
        (),
        120,
    ),
    Disaster("CLIP_NEVER", loose(11.0), [loose(9.0), loose(11.0, 1), lambda d: loose(11.0)(Draft(127))], (), 1, "note"),
    Disaster("DEAD_LEAF", dead(), [dead(n=10), dead(size=1e-30)], (1,), 600),
    Disaster("DEAD_LEAF", every_20(dead(n=10)), [every_20(dead(n=9))], (1,), 1200),
    Disaster("DECAY_ONLY", dead(0.95), [dead(0.85), dead(0.95, n=10)], (1,), 600),
    Disaster("SPARSE_LEAF", sparse(0.995), [sparse(0.985), sparse(0.995, n=10), sparse(0.995, leaf=NORM)], (4,), 600,
             "note"),
    Disaster(
        "IMBALANCE",
        uneven(31),
        [uneven(29), uneven(31, leaf=EMBED), uneven(31, records=10), uneven(31, layers=2)],
        (3, 0),
        140,
    ),
    Disaster(
        "DECAY_ON_NORMS",
        known(decays=[True] * 6, weight_decay=1.1e-3),
        [known(decays=[True] * 6, weight_decay=1e-3), known(decays=None), known(decays=[False] * 5 + [True])],
        (5,),
        0,
        "note",
    ),
]  # fmt: skip
IDS = [f"{d.id}-{i}" for i, d in enumerate(DISASTERS)]


@pytest.mark.parametrize("disaster", DISASTERS, ids=IDS)
def test_a_disaster_is_found_in_the_right_leaf_and_step(disaster):
    found = diagnose(disaster.broken(Draft()).history(), only=[disaster.id])
    assert [(f.id, f.severity, f.step) for f in found] == [(disaster.id, disaster.severity, disaster.step)]
    assert found[0].leaves == tuple(LEAVES[i].name for i in disaster.leaves)
    assert found[0].evidence
    assert "nan" not in found[0].says
    for name in found[0].leaves[:1]:
        assert name in found[0].says


@pytest.mark.parametrize(
    ("disaster", "nearly"),
    [
        pytest.param(d, n, id=f"{name}-{i}")
        for d, name in zip(DISASTERS, IDS, strict=True)
        for i, n in enumerate(d.nearly)
    ],
)
def test_its_nearest_healthy_neighbour_is_not(disaster, nearly):
    assert diagnose(nearly(Draft()).history(), only=[disaster.id]) == []


def test_every_rule_has_a_disaster():
    assert {d.id for d in DISASTERS} == set(RULES)


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_silent_at_every_length(seed):
    draft = Draft(seed=seed)
    for records in range(RECORDS):
        assert diagnose(draft.cut(records)) == []


@pytest.mark.parametrize("disaster", DISASTERS, ids=IDS)
def test_a_disaster_is_said_once_and_little_else_is(disaster):
    found = diagnose(disaster.broken(Draft()).history())
    consequences = {"STALE_V": {"SPIKE"}, "SPIKE_SCORE": {"SPIKE"}, "UPDATE_RATIO": {"IMBALANCE"}}
    assert {f.id for f in found} - {disaster.id} <= consequences.get(disaster.id, set())


def test_armed_records_one_step_apart_are_not_long():
    draft = Draft()
    draft.steps[60:] = np.arange(600, 600 + RECORDS - 60)  # every step is recorded from here on
    for name, n in (("nu_stale", 20), ("nu_stale", 21)):
        draft.put(name, 0.6, 60, n)
        found = diagnose(draft.history(), only=["V_FROZEN"])
        assert [f.step for f in found] == ([] if n == 20 else [600])


def test_a_statistic_that_was_not_recorded_once_begins_anew():
    draft = Draft().put("nu_stale", 0.9, 60, 5)
    draft.put("nu_stale", np.nan, 62, 1)
    assert diagnose(draft.history()) == []


def test_rules_are_silent_while_the_learning_rate_rises_and_when_it_has_nearly_ended():
    for change in (lambda d: d.put("nu_stale", 0.9, 100, 20), ratios(0.5, [0, 1, 2, 3], n=60)):
        for rates in (np.linspace(1e-6, 1e-3, RECORDS), np.where(np.arange(RECORDS) < 25, 1e-3, 0.9e-4)):
            draft = change(Draft())
            draft.whole["learning_rate"] = rates.astype(np.float32)
            assert diagnose(draft.history()) == []


def test_worst_comes_first_and_then_the_earliest():
    draft = Draft().put("nu_stale", 0.95, 80).put("direction_error", 0.3, 70).put("nu_zero", 0.1, 60)
    draft = known(decays=[True] * 6)(draft)
    found = diagnose(draft.history())
    assert [f.id for f in found] == ["V_FROZEN", "V_UNDERFLOW", "QERR", "DECAY_ON_NORMS"]
    assert exit_code(found) == exit_code(found[:1]) == exit_code(found[1:2]) == 1
    assert exit_code(found[3:]) == exit_code([]) == 0


def test_the_first_bad_leaf_is_that_of_the_first_bad_record():
    draft = Draft().put("bad_grad", 1, 60, 5, 2).put("bad_param", 1, 61, 5, 0)
    (found,) = diagnose(draft.history())
    assert (found.leaves, found.step, found.severity) == ((LEAVES[2].name,), 600, "error")
    assert found.evidence == {"bad_grad": 1.0}


def test_what_follows_a_ruined_update_is_not_diagnosed():
    draft = Draft().put("nu_stale", 0.95, 70).put("bad_update", 1, 60, 80, ALL).put("nu_zero", 0.1, 40)
    draft.pulse["loss_score"][650] = 9
    assert [f.id for f in diagnose(draft.history())] == ["NONFINITE", "V_UNDERFLOW"]
    draft = Draft().put("bad_grad", 1, 60, 1).put("nu_stale", 0.95, 70)  # a guard kept it out
    assert [f.id for f in diagnose(draft.history())] == ["V_FROZEN", "NONFINITE"]


def test_static_checks_are_those_of_the_first_step():
    about = narrow(rate=1e-4, b2=0.999, codecs={"nu": "bfloat16"}, eps=0.1, decays=[True] * 6)(Draft()).history().about
    found = check(about)
    assert [f.id for f in found] == ["V_FROZEN", "BF16_STALL", "EPS_LARGE", "DECAY_ON_NORMS"]
    assert found == diagnose(History(about, np.zeros(0, int), {}, {}, np.zeros(0, int), {}, np.zeros(0, int), {}))
    assert check(About((), 1, {})) == []


@pytest.mark.parametrize(("guard", "found"), [("loss_scaling", []), ("skip_nonfinite", ["warning"])])
def test_gradients_that_a_guard_keeps_out_harm_nothing(guard, found):
    """Of a real run: loss scaling lets some overflow by design."""
    tx = adamx.watch(getattr(adamx, guard)(adamx.adamw(1e-3)), every=1)
    params = {"w": jnp.ones((8, 8), jnp.float16)}
    state, update = tx.init(params), jax.jit(tx.update)
    for value in (0.01, 0.01, np.inf, 0.01):
        updates, state = update({"w": jnp.full((8, 8), value, jnp.float16)}, state, params, loss=1.0)
        params = optax.apply_updates(params, updates)
    history = adamx.drain(state).history()
    assert history.leaf["bad_grad"][:, 0].tolist() == [0, 0, 64, 0]
    assert np.isfinite(history.leaf["surprise_before"][3]).all()  # what stands behind the guard is seen
    assert [f.severity for f in diagnose(history, only=["NONFINITE"])] == found


def test_a_loss_that_turned_to_nan_is_said_beside_what_broke_later_and_not_beside_what_broke_it():
    draft = bad_pulse("loss", np.nan)(Draft().put("bad_update", 1, 90, 1))  # the record of step 900
    loss, update = diagnose(draft.history(), only=["NONFINITE"])
    assert (loss.step, update.step) == (700, 900)
    assert "the loss" in loss.says
    draft = bad_pulse("loss", np.nan)(Draft().put("bad_update", 1, 70, 1))
    (update,) = diagnose(draft.history(), only=["NONFINITE"])
    assert "update" in update.says
    draft = bad_pulse("grad_norm", np.inf)(bad_pulse("loss", np.inf)(known(guards=["loss_scaling"])(Draft())))
    assert [f.says for f in diagnose(draft.history())] == []


def test_a_loss_that_rose_says_when_how_far_and_what_it_is_now():
    (found,) = diagnose(leapt(20)(Draft()).history(), only=["LOSS_ROSE"])
    assert found.says == "the loss began at 5, rose from step 2 on to 500 at step 2, and is 4.97 now."
    assert found.evidence == pytest.approx({"first": 5, "highest": 500, "peak": 2, "now": 5}, rel=0.1)


@pytest.mark.parametrize(
    ("change", "found"), [(shrunk(), "V_COASTING"), (small_eps(0.9), "EPS_DOMINANT"), (sparse(0.995), "SPARSE_LEAF")]
)
def test_what_follows_a_divergence_is_not_blamed_on_something_else(change, found):
    both = lambda before: [f.id for f in diagnose(change(before(Draft())).history())]
    assert both(lambda d: d) == [found]
    assert both(leapt(20)) == ["LOSS_ROSE"]


def falls(to: float, step: int = 500, within: int = 400, back: float = 0.0, rises: float = 1.0) -> Callable:
    """The gradient falls to so much of the first, by decades, while the loss rests at its floor.

    Args:
      to: of the first gradient.
      step: at which it begins to.
      within: so many steps.
      back: what it is at from step 1100 on, if that is not 0.
      rises: by what the loss is multiplied from step 1100 on.
    """

    def change(d: Draft) -> Draft:
        fallen = to ** np.clip((d.steps - step) / within, 0, 1)
        fallen = np.where((d.steps >= 1100) & (back > 0), back, fallen)
        d.leaf["grad_rms"] = (1e-3 * fallen[:, None] * np.ones(len(LEAVES))).astype(np.float32)
        d.pulse["loss"][step:] = 2.0
        d.pulse["loss"][1099:] *= rises
        return d

    return change


def test_a_gradient_that_falls_by_decades_at_a_loss_above_zero_has_converged():
    ill = lambda n: shrunk(n=n, surprise=1e-3)
    still = lambda *changes: [f.id for f in diagnose(then(*changes)(Draft()).history())]
    assert still(ill(80)) == ["V_COASTING"]
    assert still(ill(80), falls(1e-6, within=800)) == []
    assert still(ill(80), falls(1e-6)) == []  # it rests at what rounding leaves
    assert still(ill(80), falls(1e-3)) == ["V_COASTING"]  # it rests above: something holds it
    assert still(ill(80), falls(1e-6, back=1e-2)) == []  # it came back, and the loss did not
    assert still(ill(80), falls(1e-6, back=1e-2, rises=1.2)) == ["V_COASTING"]
    assert still(ill(80), lambda d: d.put("grad_rms", 0, 58, 2, ALL)) == ["V_COASTING"]  # two batches without gradient


def test_a_watch_that_was_told_another_spike_is_judged_by_it():
    for spike, score, found in ((None, 5.0, []), (4.0, 5.0, ["SPIKE"]), (8.0, 7.0, []), (8.0, 8.5, ["SPIKE"])):
        draft = known(spike=spike)(Draft()).spike(score=score)
        assert [f.id for f in diagnose(draft.history())] == found


PIECEMEAL = ["DIRECTION_RMS", "BIMODAL", "MOMENTUM_FIGHT"]


@pytest.mark.parametrize(
    "change", [directed(1.05), directed(0.011, 50), bimodal(0.5, 0.0), fights(-0.9), timid(1e-6, 0.9, n=40)]
)
def test_rules_that_need_a_whole_gradient_are_silent_where_a_step_takes_several(change):
    whole, one, four = (
        diagnose(known(**method)(change(Draft())).history()) for method in ({}, {"pieces": 1}, {"pieces": 4})
    )
    assert whole == one
    assert len(whole) == 1
    assert four == []


def test_the_mean_of_pieces_takes_smaller_steps():
    assert check(narrow(rate=1.08e-3)(Draft()).history().about) == []
    (found,) = check(narrow(rate=1.08e-3, pieces=4)(Draft()).history().about)
    assert found.id == "BF16_STALL"


def test_rules_that_had_nothing_to_read_are_named():
    assert unread(Draft().history()) == ()
    assert set(unread(known(pieces=2)(Draft()).history())) == set(PIECEMEAL)
    assert unread(blind(lambda d: d)(Draft()).history()) == ("LOSS_ROSE",)
    assert unread(known(codecs={"nu": "uint8(block=256)"})(Draft()).history()) == ()
    nothing = Draft().cut(0)
    assert set(RULES) - set(unread(nothing)) == {"QERR", "EPS_LARGE", "DECAY_ON_NORMS"}
    draft = Draft()
    for name in ("direction_error", "decay_share"):
        draft.leaf[name][:] = np.nan
    assert unread(draft.history()) == ("DECAY_ONLY",)  # METHOD has weight decay, and no codecs
    assert unread(known(decays=None)(draft).history()) == ()
    draft.method = {}
    assert unread(draft.history()) == ("QERR", "DECAY_ONLY", "DECAY_ON_NORMS")


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_had_nothing_to_read_says_nothing(rule):
    for disaster in (d for d in DISASTERS if d.id == rule and d.step > 0):
        history = disaster.broken(Draft()).history()
        assert rule not in unread(history)
        for names in READS[rule]:
            table = lambda x, names=names: {name: y for name, y in x.items() if name not in names}
            about = About(history.about.leaves, history.about.every, table(history.about.method))
            without = History(
                about, history.steps, table(history.whole), table(history.leaf), history.pulse_steps,
                table(history.pulse), history.spread_steps, {},
            )  # fmt: skip
            assert rule in unread(without) or (rule == "QERR" and "codecs" not in about.method)
            assert [f for f in diagnose(without, only=[rule]) if f.step] == []


def test_findings_survive_json():
    found = diagnose(Draft().spike().put("nu_stale", 0.95).history())
    assert len(found) == 2
    assert [Finding.from_dict(read) for read in json.loads(to_json(found))] == found
    assert json.loads(to_json([])) == []


def test_roles_are_names_without_digits():
    assert role("blocks/0/norms/1/scale") == role("blocks/12/norms/0/scale") == "blocks/norms/scale"
    assert role("Dense_10/kernel") == "Dense/kernel"
    assert role("0") == ""


# Thresholds and words


@pytest.mark.parametrize("name", RULES)
def test_an_explanation_names_every_threshold_its_value_and_its_source(name):
    text, words = explain(name), RULES[name].words
    for t in words.thresholds:
        assert f"{t.name} = {t.value:.4g} {t.unit}\n    {t.source}" in text
    for part in (words.summary, words.cause, words.advice, words.does_not_mean, words.source):
        assert part
        assert part in text


def test_every_threshold_has_a_citation_and_a_rule_and_is_compared_with():
    used = {t.name for rule in RULES.values() for t in rule.words.thresholds}
    assert used == set(thresholds.THRESHOLDS)
    source = inspect.getsource(rules) + inspect.getsource(reading)
    for name, t in thresholds.THRESHOLDS.items():
        assert getattr(thresholds, name) is t
        assert t.name == name
        assert t.source
        assert t.unit
        assert (
            re.search(r"\bown\b", t.source)
            or any(year in t.source for year in ("2023", "2024", "2025"))
            or "exact" in t.source
            or ("defaults of OLMo-core" in t.source or "OLMo-core's" in t.source)
        )
        assert f"T.{name}.value" in source


def test_an_unknown_id_is_one_sentence():
    listed = "there is no finding 'SPIKES'; there are NONFINITE, SPIKE, .*DECAY_ON_NORMS\\."
    with pytest.raises(ValueError, match=listed):
        explain("SPIKES")
    with pytest.raises(ValueError, match=listed):
        diagnose(Draft(2).history(), only=["SPIKE", "SPIKES"])


# The arithmetic of frozen moments


def decayed(values: np.ndarray, gap: float, dtype: Any) -> np.ndarray:
    kept = values.astype(dtype).astype(np.float64)
    return (kept - gap * kept).astype(dtype).astype(np.float64) == kept


@pytest.mark.parametrize(("dtype", "name"), [(jnp.bfloat16, "bfloat16"), (np.float16, "float16")])
def test_moments_freeze_where_the_check_says(dtype, name):
    step = EXACT_FLOATS[name]
    mantissas = 1 + np.arange(0, round(1 / (2 * step))) * 2 * step  # all of a binade
    assert decayed(mantissas, step / 2 * 0.999, dtype).all()
    assert not decayed(mantissas, step / 2 * 1.01, dtype).all()
    assert decayed(mantissas, step * 0.98, dtype).any()
    assert not decayed(mantissas, step * 1.001, dtype).any()
    codec = {"bfloat16": codecs.bfloat16, "float16": codecs.float16}[name]()
    assert (codec.name, codec.smallest_step) == (name, step)


@pytest.mark.parametrize(
    "codec", [codecs.uint8(16), codecs.uint8(16, companded=False), codecs.uint4(16)], ids=lambda c: c.name
)
def test_codecs_by_blocks_fall_with_their_largest(codec):
    kept = codec.encode(jnp.asarray(np.geomspace(1e-3, 1, 16), jnp.float32), lambda: jnp.zeros(16, jnp.uint32))
    first = np.asarray(codec.decode(kept, (16,)))
    for _ in range(100):
        kept = codec.encode(0.999 * codec.decode(kept, (16,)), lambda: jnp.zeros(16, jnp.uint32))
    np.testing.assert_allclose(codec.decode(kept, (16,)), first * 0.999**100, rtol=1e-4)


# Whatever comes


@st.composite
def histories(draw):
    records, leaves, pulses = draw(st.integers(0, 14)), draw(st.integers(0, 3)), draw(st.integers(0, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    odd = np.asarray([np.nan, np.inf, -np.inf, 0, 1, 1e38, 1e-38, -1], np.float32)
    share = draw(st.sampled_from([0.0, 0.1, 1.0]))

    def numbers(*shape):
        plain = rng.exponential(size=shape).astype(np.float32) * np.float32(10.0 ** rng.integers(-8, 8))
        constant = np.full(shape, rng.choice(odd), np.float32)
        chosen = constant if rng.random() < 0.3 else plain
        return np.where(rng.random(shape) < share, rng.choice(odd, shape), chosen).astype(np.float32)

    some = lambda names: [name for name in names if rng.random() < 0.9]
    steps = lambda n: np.cumsum(rng.integers(1, 200, n)).astype(np.int64)
    shapes = [(), (0,), (3,), (4, 5), (0, 4), (2, 3, 4)]
    named = [
        Leaf(
            rng.choice(["a", "b/1/c", "{x}", "0"]) + str(i),
            shapes[rng.integers(6)],
            rng.choice(["float32", "bfloat16"]),
        )
        for i in range(leaves)
    ]
    values = [None, 0, 0.9, 1, 1.5, -1, math.nan, math.inf, "x", True]
    names = ["b1", "b2", "eps", "max_norm", "learning_rate", "smallest_step", "weight_decay", "pieces", "spike"]
    method = {name: values[rng.integers(len(values))] for name in some(names)}
    method |= {
        "decays": [True] * int(rng.integers(0, 4)),
        "codecs": {"nu": "bfloat16"},
        "parts": ["scale_by_moments(mu, nu)", "bias_correct", "scale_by_lr"],
    }
    return History(
        About(tuple(named), int(rng.integers(1, 50)), method), steps(records),
        {name: numbers(records) for name in some(metrics.WHOLE)},
        {name: numbers(records, leaves) for name in some(metrics.LEAF)},
        steps(pulses), {name: numbers(pulses) for name in some(metrics.PULSE)}, np.zeros(0, np.int64), {},
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(histories())
def test_no_history_is_too_odd(history):
    found = diagnose(history)
    assert [Finding.from_dict(read) for read in json.loads(to_json(found))] == found
    assert set(unread(history)) <= set(RULES) - {f.id for f in found if f.step}
    assert {f.severity for f in found} <= set(doctor.SEVERITIES)
    names = {leaf.name for leaf in history.about.leaves}
    assert all(set(f.leaves) <= names and "{" not in f.says.replace("{x}", "") for f in found)


def test_a_thousand_leaves_and_512_records_take_less_than_a_second():
    rng = np.random.default_rng(0)
    leaves = tuple(Leaf(f"blocks/{i // 10}/{i % 10}/kernel", (64, 64), "bfloat16") for i in range(1000))
    steps = np.arange(1, 513) * EVERY
    pulses = np.arange(1, 5121)
    history = History(
        About(leaves, EVERY, METHOD), steps, {"learning_rate": np.ones(512, np.float32)},
        {name: rng.random((512, 1000), np.float32) for name in metrics.LEAF},
        pulses, {name: rng.normal(size=5120).astype(np.float32) for name in metrics.PULSE}, np.zeros(0, np.int64), {},
    )  # fmt: skip
    begun = time.process_time()
    assert diagnose(history)
    assert time.process_time() - begun < 1
