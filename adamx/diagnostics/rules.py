"""The doctor's rules: what each looks for, before the first step or in a run, and which statistics it reads."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from adamx.diagnostics import thresholds as T  # noqa: N812 (a table of names)
from adamx.diagnostics.history import About
from adamx.diagnostics.reading import FIRST, Held, Run, Seen, median, number

NARROW = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # least relative change that is sure to survive
EXACT_FLOATS = NARROW | {"float32": 2.0**-24}  # codecs that keep each number by itself, to nearest
SHOWN = 3  # names in a sentence


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _seen(
    run: Run,
    held: Held,
    x: np.ndarray,
    of: str,
    says: str,
    *,
    severity: str = "warning",
    least: bool = False,
    **more: float,
) -> Iterator[Seen]:
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
    yield Seen(severity, leaves, step, {of: worst, "leaves": len(leaves), **more}, text)


# Every step


def _nonfinite(run: Run) -> Iterator[Seen]:
    """What was not finite first; a loss besides, where that was before."""
    tensors, loss = list(_nonfinite_tensors(run)), list(_nonfinite_loss(run))
    yield from tensors
    yield from (seen for seen in loss if not tensors or seen.step < tensors[0].step)


def _nonfinite_tensors(run: Run) -> Iterator[Seen]:
    """The gradient alone is bad where a guard kept it out: no harm was done, and loss scaling does so by design."""
    guards = run.about.method.get("guards", ())
    # Behind a guard the update is what it would have been.
    kinds = {"bad_grad": "gradient"} | ({} if guards else {"bad_update": "update"}) | {"bad_param": "parameters"}
    tables = {kind: x for kind in kinds if (x := run.history.leaf.get(kind)) is not None and x.size}
    counts = {kind: np.where(np.isnan(x), 0, x) for kind, x in tables.items()}
    harmed = any((x > 0).any() for kind, x in counts.items() if kind != "bad_grad")
    if "loss_scaling" in guards and not harmed:
        return
    bad = [(x > 0).any(1) for x in counts.values()]
    if bad and np.logical_or.reduce(bad).any():
        row = int(np.logical_or.reduce(bad).argmax())
        where = np.logical_or.reduce([x[row] > 0 for x in counts.values()])
        leaves, step = run.names(where), int(run.steps[row])
        found = {kind: float(x[row].sum()) for kind, x in counts.items() if x[row].any()}
        listed = ", ".join(f"{n:.0f} of the {kinds[kind]}" for kind, n in found.items())
        says = f"at step {step} numbers were not finite: {listed}; in {_some(leaves)}."
        yield Seen("error" if harmed else "warning", leaves, step, found, says)
        return
    x = run.history.pulse.get("grad_norm")
    if x is not None and (at := ~np.isfinite(x) & np.isfinite(x).any() | np.isinf(x)).any():
        yield _at_step(run, at, "the gradient's norm was")


def _nonfinite_loss(run: Run) -> Iterator[Seen]:
    loss, norm = run.history.pulse.get("loss"), run.history.pulse.get("grad_norm")
    if loss is None:
        return
    at = np.isinf(loss) | _became_nan(loss)
    if "loss_scaling" in run.about.method.get("guards", ()) and norm is not None:
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


def _at_step(run: Run, at: np.ndarray, what: str) -> Seen:
    step = int(run.history.pulse_steps[at.argmax()])
    often = "" if at.sum() == 1 else f", and {int(at.sum())} times in all"
    return Seen("error", (), step, {"steps": float(at.sum())}, f"{what} not finite at step {step}{often}.")


def _spike(run: Run) -> Iterator[Seen]:
    rows, scores, times, by = run.spikes
    if len(rows):
        step = int(run.history.pulse_steps[rows[0]])
        what = "the loss" if by == "loss" else "the gradient's norm"
        times_over = "" if len(rows) == 1 else f"; it happened {len(rows)} times"
        says = (
            f"{what} rose to {times[0]:.3g} times its usual size at step {step}, {scores[0]:.1f} deviations, and stayed"
            f" high{times_over}."
        )
        yield Seen("warning", (), step, {"deviations": scores[0], "times": times[0], "spikes": len(rows)}, says)


def _spike_score(run: Run) -> Iterator[Seen]:
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
        yield Seen("warning", (), step, {"share": share, "spikes": len(rows), "steps": scored.sum()}, says)


def _loss_rose(run: Run) -> Iterator[Seen]:
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
    scatter = float(median(np.abs(np.diff(logs)), 0)) / 0.954
    medians = median(np.lib.stride_tricks.sliding_window_view(np.where(np.isfinite(loss), loss, np.nan), n), 1)
    for first, share in ((float(np.median(loss[:n])), 2 / math.sqrt(n)), (float(loss[0]), 1.0)):
        least = first * T.RISEN_TIMES.value * math.exp(share * T.RISEN_SCATTER.value * scatter)
        high = medians > least
        if high.any():
            begun = int(high.argmax())
            begun += int((loss[begun : begun + n] > least).argmax())
            known = np.where(np.isfinite(loss), loss, -np.inf)
            peak, now = int(known.argmax()), float(median(loss[-n:], 0))
            says = (
                f"the loss began at {first:.3g}, rose from step {int(steps[begun])} on to {loss[peak]:.3g} at step"
                f" {int(steps[peak])}, and is {now:.3g} now."
            )
            numbers = {"first": first, "highest": loss[peak], "peak": float(steps[peak]), "now": now}
            yield Seen("warning", (), int(steps[begun]), numbers, says)
            return


def _stale_v(run: Run) -> Iterator[Seen]:
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


def _v_coasting(run: Run) -> Iterator[Seen]:
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


def _of_those_with_gradient(run: Run, share: np.ndarray) -> np.ndarray:
    """The least that the share can be among numbers whose gradient is not zero.

    Rows of an embedding that no batch used have no second moment, and no step either.
    """
    zero = run.history.leaf.get("zero_grad")
    zero = np.zeros(1) if zero is None else np.where(np.isnan(zero), 0, zero)
    return np.where(zero < 1, (share - zero) / np.where(zero < 1, 1 - zero, 1), 0)


def _eps_at_first(run: Run) -> Held:
    half = run.of("eps_half")
    if half is None:
        return run.held(np.zeros((len(run.steps), len(run.about.leaves)), bool))
    above = _of_those_with_gradient(run, half) > T.EPS_FIRST_SHARE.value
    held = run.held(above)
    fired = held.fired & (held.first == 0)
    most = run.sizes[fired].sum() >= T.MOST_LEAVES.value * run.sizes.sum()
    return held._replace(fired=fired & most)


def _eps_large(run: Run) -> Iterator[Seen]:
    held = _eps_at_first(run)
    if held:
        says = "eps = {eps:.3g} is above the root of the second moment of {worst:.0%} of {leaves} from step {step} on."
        half = _of_those_with_gradient(run, run.history.leaf["eps_half"])
        yield from _seen(run, held, half, "eps_half", says, eps=_or_nan(run.number("eps")))


def _eps_large_static(about: About) -> Iterator[Seen]:
    eps = number(about, "eps")
    if eps is not None and eps > T.EPS_LARGE.value:
        says = (
            f"eps = {eps:.3g} is large for gradients of single numbers, which are mostly below {T.EPS_LARGE.value:g}."
        )
        yield Seen("note", (), 0, {"eps": eps}, says)


def _eps_dominant(run: Run) -> Iterator[Seen]:
    tenth, size = run.of("eps_tenth"), run.of("grad_rms")
    if tenth is None or size is None:
        return
    share = _of_those_with_gradient(run, tenth)
    begin = max(math.ceil(T.WARM_UP.value * len(size)), int(T.PERSIST.value))
    vanished = size < T.EPS_VANISHED.value * median(np.where(np.isfinite(size), size, np.nan)[:begin], 0)
    above = (share > T.EPS_SHARE.value) & ~vanished & (run.live & run.idle)[:, None]
    held = run.held(above)
    if _eps_at_first(run):  # EPS_LARGE says it
        return
    says = "eps = {eps:.3g} is a tenth of the denominator or more for {worst:.0%} of {leaves}, from step {step} on."
    yield from _seen(run, held, share, "eps_tenth", says, eps=_or_nan(run.number("eps")))


def _or_nan(x: float | None) -> float:
    return math.nan if x is None else x


def _v_frozen_static(about: About) -> Iterator[Seen]:
    """Only codecs that keep each number by itself, to nearest, can freeze.

    v' = v - (1 - b2) v without a gradient. A number of p bits has neighbours 2^-p (just below a power of two) to
    2^(1-p) (just above it) of itself away; nearest keeps it if it moves less than half of that. With s = 2^-p, the
    smallest step of bfloat16 being 2^-8: 1 - b2 < s / 2 moves no number, 1 - b2 < s none of those just above a power
    of two, where every decay then ends. Stochastic rounding moves each by the right mean. In codecs by blocks a code is
    a share of the block's largest, which is kept in float32 and decays exactly: codes stand still at any b2 above
    1 - 1/255, but every number falls with its block. What they lose is a number that falls against its neighbours,
    and `nu_stale` does not see that; QERR does.
    """
    b2, codec = number(about, "b2"), about.method.get("codecs", {}).get("nu")
    step = EXACT_FLOATS.get(codec or "", 0.0)
    if b2 is None or not 0 < 1 - b2 < T.FROZEN_SOME.value * step:
        return
    never = 1 - b2 < T.FROZEN_NEVER.value * step
    what = "can never decay" if never else "stops within a factor of two of where its decay began"
    says = (
        f"the second moment in {codec} {what}: b2 = {b2:g} changes it by {1 - b2:.3g} of itself a step, and rounding"
        f" needs {(T.FROZEN_NEVER.value if never else T.FROZEN_SOME.value) * step:.3g}."
    )
    yield Seen("error" if never else "warning", (), 0, {"b2": b2, "change": 1 - b2, "smallest_step": step}, says)


def _v_frozen(run: Run) -> Iterator[Seen]:
    stale = run.of("nu_stale")
    by_chance = "stochastic" in run.about.method.get("codecs", {}).get("nu", "")  # few change in one step, all in many
    if stale is not None and not by_chance:
        held = run.held((stale > T.FROZEN_STALE.value) & (run.live & ~run.converged)[:, None])
        says = "up to {worst:.0%} of the second moments of {leaves} should have changed in a step and did not."
        all_but = run.held((stale > T.FROZEN_STALE_ERROR.value) & (run.live & ~run.converged)[:, None])
        yield from _seen(run, held, stale, "nu_stale", says, severity="error" if all_but else "warning")


def _v_underflow(run: Run) -> Iterator[Seen]:
    zero = run.of("nu_zero")
    if zero is not None:
        says = "up to {worst:.2%} of the second moments of {leaves} are stored as zero although they are not."
        yield from _seen(run, run.held(zero > T.UNDERFLOW_SHARE.value), zero, "nu_zero", says)


def _qerr(run: Run) -> Iterator[Seen]:
    error = run.of("direction_error")
    if error is not None:
        live = (run.live & ~run.converged)[:, None]
        says = "storing the moments changes the direction of {leaves} by up to {worst:.0%}."
        severity = "error" if run.held((error > T.CODEC_ERROR_ERROR.value) & live) else "warning"
        held = run.held((error > T.CODEC_ERROR.value) & live)
        yield from _seen(run, held, error, "direction_error", says, severity=severity)


# Directions and updates


def _of_matrices(run: Run, x: np.ndarray | None) -> np.ndarray:
    """The median over the matrices, [R]; over all leaves where there is no matrix."""
    if x is None or not x.size:
        return np.full(len(run.steps), np.nan)
    return median(x[:, run.matrices] if run.matrices.any() else x, 1)


def _update_ratio(run: Run) -> Iterator[Seen]:
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


def _direction_rms(run: Run) -> Iterator[Seen]:
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


def _whole(run: Run, held: Held, x: np.ndarray, of: str, says: str, **more: float) -> Iterator[Seen]:
    """A finding of the whole run, from a condition over [R]."""
    if held:
        step, value = int(run.steps[held.first[0]]), float(x[held.sure[0]])
        yield Seen("warning", (), step, {of: value, **more}, says.format(worst=value, step=step, **more))


def _bimodal(run: Run) -> Iterator[Seen]:
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


def _momentum_fight(run: Run) -> Iterator[Seen]:
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


def _imbalance(run: Run) -> Iterator[Seen]:
    ratio = run.of("update_ratio")
    used = run.live & ~run.converged
    if ratio is None or used.sum() < T.PERSIST_LONG.value:
        return
    usual = median(np.where(np.isfinite(ratio[used]) & (ratio[used] > 0), ratio[used], np.nan), 0)
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
            yield Seen("warning", (most, least), step, {"times": times, "most": of.max(), "least": of.min()}, says)


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
    step = number(about, "smallest_step")
    return NARROW[dtype] if step is None else step


def _bf16_stall_static(about: About) -> Iterator[Seen]:
    rate, b1 = number(about, "learning_rate"), number(about, "b1")
    if rate is None or b1 is None or not 0 <= b1 < 1:
        return
    noise = math.sqrt((1 - b1) / (1 + b1) / max(number(about, "pieces") or 1, 1))  # a mean of several is smaller
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
        yield Seen("warning", names, 0, {"share": least, "learning_rate": rate}, says)


def _bf16_stall(run: Run) -> Iterator[Seen]:
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


def _clips(run: Run) -> tuple[np.ndarray, float] | None:
    """What the clip leaves in each record that knows it, and its norm; None where there is no clip or too little."""
    left, norm = run.history.whole.get("clip"), run.number("max_norm")
    if left is None or norm is None or np.isfinite(left).sum() < T.CLIP_RECORDS.value:
        return None
    return left, norm


def _clip_always(run: Run) -> Iterator[Seen]:
    if (found := _clips(run)) is None:
        return
    left, norm = found
    rows = np.flatnonzero(np.isfinite(left))[-int(T.CLIP_RECORDS.value) :]
    share = float((left[rows] < T.CLIP_EXACT.value).mean())
    usual = float(median(left[rows], 0))
    if share > T.CLIP_SHARE.value and usual < T.CLIP_FACTOR.value:
        says = (
            f"the clip at {norm:g} shortened the gradient in {share:.0%} of the last {len(rows)} records, usually to"
            f" {usual:.2g} of itself."
        )
        yield Seen("warning", (), int(run.steps[rows[0]]), {"share": share, "clip": usual, "max_norm": norm}, says)


def _clip_never(run: Run) -> Iterator[Seen]:
    if (found := _clips(run)) is None:
        return
    left, norm = found
    norms = np.concatenate([run.grad, run.history.pulse.get("grad_norm", np.zeros(0))])
    norms = norms[np.isfinite(norms)]
    if not (left < T.CLIP_EXACT.value).any() and len(norms) and norms.max() < T.CLIP_REACH.value * norm:
        says = f"the clip at {norm:g} never acted: the largest gradient's norm was {norms.max():.3g}."
        yield Seen("note", (), int(run.steps[0]), {"max_norm": norm, "largest": norms.max()}, says)


def _dead(run: Run) -> tuple[Held, np.ndarray]:
    """Leaves whose gradients were zero for long, and which of them weight decay moves all the same."""
    size, share = run.of("grad_max"), run.of("decay_share")
    none = np.zeros((len(run.steps), len(run.about.leaves)), bool)
    filled = np.asarray([leaf.size > 0 for leaf in run.about.leaves], bool)
    held = run.held(none if size is None else (size == 0) & filled, T.DEAD_RECORDS.value, T.FEWEST_STEPS.value)
    moved = none if share is None else share > T.DECAY_SHARE.value
    return held, moved[held.sure, np.arange(len(held.sure))] if held else held.fired


def _dead_leaf(run: Run) -> Iterator[Seen]:
    held, moved = _dead(run)
    if held:
        says = "{leaves} had no gradient from step {step} on."
        held = held._replace(fired=held.fired & ~moved)
        yield from _seen(run, held, run.history.leaf["grad_max"], "grad_max", says)


def _decay_only(run: Run) -> Iterator[Seen]:
    held, moved = _dead(run)
    if held:
        says = (
            "{leaves} had no gradient from step {step} on, and weight decay, {worst:.0%} of the update, shrinks them."
        )
        held = held._replace(fired=held.fired & moved)
        share = run.history.leaf.get("decay_share", run.history.leaf["grad_max"])
        yield from _seen(run, held, share, "decay_share", says)


def _sparse_leaf(run: Run) -> Iterator[Seen]:
    zero = run.of("zero_grad")
    if zero is not None:
        sparse = (zero > T.SPARSE_SHARE.value) & (zero < 1) & run.matrices & ~run.diverged[:, None]
        says = "{worst:.1%} of the gradient of {leaves} is zero in every record from step {step} on."
        held = run.held(sparse, T.PERSIST_LONG.value, T.FEWEST_STEPS.value)
        yield from _seen(run, held, zero, "zero_grad", says, severity="note")


def _decay_on_norms(about: About) -> Iterator[Seen]:
    decay, decays = number(about, "weight_decay"), about.method.get("decays", ())
    if decay is None or decay <= T.DECAY_LEAST.value or len(decays) != len(about.leaves):
        return
    flat = [leaf.name for leaf, reached in zip(about.leaves, decays, strict=True) if reached and len(leaf.shape) < 2]
    if flat and len(flat) < sum(map(bool, decays)):
        says = f"weight decay of {decay:g} reaches {len(flat)} leaves without rows: {_some(flat)}."
        yield Seen("note", flat, 0, {"weight_decay": decay, "leaves": len(flat)}, says)


CHECKS: dict[str, Callable[[About], Iterable[Seen]]] = {
    "EPS_LARGE": _eps_large_static,
    "BF16_STALL": _bf16_stall_static,
    "V_FROZEN": _v_frozen_static,
    "DECAY_ON_NORMS": _decay_on_norms,
}
FINDS: dict[str, Callable[[Run], Iterable[Seen]]] = {
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
READS: dict[str, tuple[tuple[str, ...], ...]] = {  # of each tuple one statistic, or something known of the method
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
