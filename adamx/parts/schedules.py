"""Learning rates as functions of the 0-based step: the shapes that the field uses most, from optax's own pieces.

Any optax schedule can be given as a learning rate as it is; these only save the joining.
"""

import math
from typing import Any

import jax.numpy as jnp
import optax

from adamx.ground.hyper import Derived, Schedule


def _steps(least: int, **steps: int) -> None:
    for name, n in steps.items():
        if isinstance(n, bool) or not isinstance(n, int) or n < least:
            raise ValueError(f"{name} must be a whole number of steps, at least {least}, but is {n!r}.")


def _fits(total_steps: int, **steps: int) -> None:
    _steps(1, total_steps=total_steps)
    _steps(0, **steps)
    if sum(steps.values()) > total_steps:
        listed = " + ".join(f"{name}={n}" for name, n in steps.items())
        raise ValueError(f"{listed} is more than total_steps={total_steps}; the phases must fit into it.")


def warmup_cosine(
    peak: float, warmup_steps: int, total_steps: int, end: float = 0.0, *, start: float = 0.0
) -> Schedule:
    """Linear from start to peak in warmup_steps, then half a cosine down to end at total_steps, and end from there.

    Args:
      peak: the largest rate, reached at step warmup_steps.
      warmup_steps: may be 0.
      total_steps: warm-up included; where warm-up is all, the rate stays at peak.
      end: the last rate.
      start: the rate of step 0.

    References: Loshchilov & Hutter, ICLR 2017 (arXiv:1608.03983), without restarts.

    >>> lr = warmup_cosine(1.0, 10, 110)
    >>> [round(float(lr(n)), 6) for n in (0, 5, 10, 60, 110, 1000)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    _fits(total_steps, warmup_steps=warmup_steps)
    if warmup_steps == total_steps:
        return optax.linear_schedule(start, peak, warmup_steps)
    return optax.warmup_cosine_decay_schedule(start, peak, warmup_steps, total_steps, end)


def warmup_linear(
    peak: float, warmup_steps: int, total_steps: int, end: float = 0.0, *, start: float = 0.0
) -> Schedule:
    """Linear from start to peak in warmup_steps, then linear down to end at total_steps, and end from there.

    Args: as :func:`warmup_cosine`.

    >>> lr = warmup_linear(1.0, 10, 110)
    >>> [round(float(lr(n)), 6) for n in (0, 5, 10, 60, 110, 1000)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    return warmup_stable_decay(peak, warmup_steps, total_steps, total_steps - warmup_steps, end, start=start)


def warmup_stable_decay(
    peak: float, warmup_steps: int, total_steps: int, decay_steps: int, end: float = 0.0, *, start: float = 0.0
) -> Schedule:
    """Linear up to peak, flat, then linear down to end over the last decay_steps of total_steps.

    Args:
      peak: the rate of the flat part.
      warmup_steps: may be 0.
      total_steps: all phases together.
      decay_steps: the length of the last phase; may be 0.
      end: the last rate.
      start: the rate of step 0.

    References: Hu et al. 2024, MiniCPM, section 4 (arXiv:2404.06395); Hägele et al. 2024 (arXiv:2405.18392).

    >>> lr = warmup_stable_decay(1.0, 10, 110, 20)
    >>> [round(float(lr(n)), 6) for n in (0, 5, 10, 50, 90, 100, 110, 1000)]
    [0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    _fits(total_steps, warmup_steps=warmup_steps, decay_steps=decay_steps)
    pieces = [optax.constant_schedule(peak)]
    boundaries = []
    if warmup_steps:
        pieces.insert(0, optax.linear_schedule(start, peak, warmup_steps))
        boundaries.append(warmup_steps)
    if decay_steps:
        pieces.append(optax.linear_schedule(peak, end, decay_steps))
        boundaries.append(total_steps - decay_steps)
    return optax.join_schedules(pieces, boundaries)


def inverse_sqrt(peak: float, warmup_steps: int) -> Schedule:
    """Peak * min(t / w, sqrt(w / t)) with t = step + 1: linear up to peak at t = w, then as 1 / sqrt(t).

    Args:
      peak: the largest rate, reached at step warmup_steps - 1.
      warmup_steps: w, at least 1.

    References: Vaswani et al., NeurIPS 2017, equation 3 (arXiv:1706.03762).

    >>> lr = inverse_sqrt(1.0, 4)
    >>> [round(float(lr(n)), 6) for n in (0, 1, 3, 15)]
    [0.25, 0.5, 1.0, 0.5]
    """
    _steps(1, warmup_steps=warmup_steps)

    def schedule(step):
        t = jnp.asarray(step, float) + 1
        return peak * jnp.minimum(t / warmup_steps, jnp.sqrt(warmup_steps / t))

    return schedule


def step_decay(peak: float, every: int, factor: float = 0.1) -> Schedule:
    """Peak * factor^(step // every).

    Args:
      peak: the first rate.
      every: steps between two drops, at least 1.
      factor: what each drop multiplies the rate by.

    References: He et al., CVPR 2016, section 4 (arXiv:1512.03385).

    >>> lr = step_decay(1.0, 10, 0.5)
    >>> [float(lr(n)) for n in (0, 9, 10, 25)]
    [1.0, 1.0, 0.5, 0.25]
    """
    _steps(1, every=every)
    return optax.exponential_decay(peak, every, factor, staircase=True)


def linear_warmup(peak: float, warmup_steps: int) -> Schedule:
    """Linear from peak / warmup_steps at step 0 to peak at step warmup_steps - 1, and peak from there.

    Args:
      peak: the value reached.
      warmup_steps: at least 1.

    >>> alpha = linear_warmup(5.0, 10)
    >>> [float(alpha(n)) for n in (0, 4, 9, 100)]
    [0.5, 2.5, 5.0, 5.0]
    """
    _steps(1, warmup_steps=warmup_steps)
    return lambda step: peak * jnp.minimum((jnp.asarray(step, float) + 1) / warmup_steps, 1)


def half_life_warmup(start: float, peak: float, warmup_steps: int) -> Derived:
    """A decay that grows from `start` to `peak`, its half-life linearly in the step: AdEMAMix's b3.

    ln b_t = ln start ln peak / ((1 - t/T) ln peak + (t/T) ln start) for t <= T = warmup_steps.

    Args:
      start: the first moment's b1, in (0, 1).
      peak: the decay reached at step T, in (0, 1).
      warmup_steps: T, at least 1.

    Raises:
      ValueError: if a decay is outside (0, 1).

    References: Pagliardini, Ablin & Grangier, ICLR 2025, appendix A.1 (arXiv:2409.03137).
    """
    _steps(1, warmup_steps=warmup_steps)
    for name, b in (("start", start), ("peak", peak)):
        if not 0 < b < 1:
            raise ValueError(f"{name} must be in (0, 1), but is {b!r}.")
    low, high = math.log1p(-(1 - start)), math.log1p(-(1 - peak))

    def log(t: Any) -> Any:
        way = jnp.minimum(t / warmup_steps, 1)
        return low * high / ((1 - way) * high + way * low)

    return Derived(lambda t: jnp.exp(log(t)), gap=lambda t: -jnp.expm1(log(t)))
