"""What do I remember of the gradients? Each moment is a transformation of one slot, valid alone in any chain."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from adamx.ground import hyper, numerics
from adamx.ground.hyper import Derived, Scalar
from adamx.ground.transform import Part, Seen, Transformation, lift, zeros


def _raised(power: int) -> Callable[[Array], Array]:
    if isinstance(power, bool) or power not in (1, 2):
        raise ValueError(
            f"power must be 1 (the gradient) or 2 (its squared magnitude), but is {power!r}; debiasing is bias_correct,"
            " and Nesterov's momentum rules.nesterov."
        )
    return numerics.abs_square if power == 2 else lambda g: g


def ema(decay: Scalar, power: int = 1, *, lag: bool = False, start: Scalar = 0.0) -> Transformation:
    """The exponential moving average m_t = b m_{t-1} + (1 - b) g_t^power; it replaces the gradient.

    Args:
      decay: b, the share kept a step, in [0, 1).
      power: 1, or 2 for |g|^2, which is real for complex gradients.
      lag: put out m_{t-1}, the average as it stood before this gradient.
      start: m_0.

    State: one slot, float32[params] (complex for complex parameters and power 1); 4 bytes a parameter.
    Differs from optax: `optax.ema` divides by 1 - b^t; here that is `chain(ema(b), bias_correct(b))`.

    Raises:
      ValueError: if decay is a number outside [0, 1), or power is neither 1 nor 2.

    >>> tx = ema(0.9)
    >>> g = {"w": jnp.ones(2)}
    >>> print(tx.update(g, tx.init(g))[0]["w"])
    [0.1 0.1]
    """
    raised, real = _raised(power), power == 2

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        old = slots["ema"]
        new = numerics.lerp(old, raised(g), h["decay"])
        return (old if lag else new), {"ema": new}

    slot = partial(zeros, real=real, start=hyper.constant("start", start))
    return lift(Part("ema", update, {"ema": slot}, {"decay": hyper.decay("decay", decay)}))


def trace(decay: Scalar, power: int = 1, *, dampening: Scalar = 0.0, start: Scalar = 0.0) -> Transformation:
    """The decaying sum s_t = d s_{t-1} + (1 - dampening) g_t^power; it replaces the gradient.

    Momentum is `trace(0.9)`, AdaGrad's accumulator `trace(1.0, power=2)`.

    Args:
      decay: d, the share kept a step, at least 0; 1 sums for ever.
      power: 1, or 2 for |g|^2, which is real for complex gradients.
      dampening: what is taken off each gradient but the first, as in PyTorch's SGD.
      start: s_0.

    State: one slot, float32[params]; 4 bytes a parameter.
    Differs from optax: `optax.trace(decay, nesterov=True)` is `scale_by_moments(rules.nesterov(decay),
    trace=trace(decay))`.

    Raises:
      ValueError: if decay is a negative number, or power is neither 1 nor 2.
    """
    raised, real = _raised(power), power == 2

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        x = raised(g)
        new = h["decay"] * slots["trace"] + (x if undamped else h["weight"] * x)
        return new, {"trace": new}

    undamped = numerics.is_number(dampening) and dampening == 0
    weight = Derived(lambda t, d: jnp.where(t == 1, 1, 1 - d), hyper.finite("dampening", dampening))
    slot = partial(zeros, real=real, start=hyper.constant("start", start))
    hypers = {"decay": hyper.at_least_zero("decay", decay)} | ({} if undamped else {"weight": weight})
    return lift(Part("trace", update, {"trace": slot}, hypers))


def decayed_max(decay: Scalar, eps: Scalar = 0.0) -> Transformation:
    """AdaMax's u_t = max(b u_{t-1}, |g_t| + eps); it replaces the gradient.

    Args:
      decay: b, the share kept a step, in [0, 1).
      eps: added to |g| inside the maximum, in gradient units.

    State: one slot, float32[params], real; 4 bytes a parameter.

    Raises:
      ValueError: if decay is a number outside [0, 1), or eps a negative one.
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        new = jnp.maximum(h["decay"] * slots["max"], jnp.abs(g) + h["eps"])
        return new, {"max": new}

    hypers = {"decay": hyper.decay("decay", decay), "eps": hyper.at_least_zero("eps", eps)}
    return lift(Part("decayed_max", update, {"max": partial(zeros, real=True)}, hypers))


def peak() -> Transformation:
    """The largest value so far of what it is fed, or 0, elementwise (AMSGrad); it replaces its input, which is real.

    State: one slot, float32[params]; 4 bytes a parameter.
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        new = jnp.maximum(slots["peak"], g)
        return new, {"peak": new}

    return lift(Part("peak", update, {"peak": partial(zeros, real=True)}))


def difference() -> Transformation:
    """g_t - g_{t-1}, and 0 at the first step (Adan); it replaces the gradient.

    State: one slot, the last gradient, float32[params]; 4 bytes a parameter.
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        return jnp.where(seen.t == 1, 0, g - slots["last"]), {"last": g}

    return lift(Part("difference", update, {"last": zeros}))


def mix(f: Callable[..., Array], *names: str) -> Transformation:
    """f(g, *moments), with moments named before this one in `scale_by_moments`; it replaces the gradient.

    Args:
      f: an elementwise function of the gradient and of the named moments' outputs.
      names: keywords of `scale_by_moments` that stand before the one that this is part of.

    Raises:
      ValueError: while tracing, if a named moment does not stand before it.

    >>> surprise = mix(lambda g, m: g - m, "mu")  # AdaBelief averages its square
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        for name in names:
            if name not in seen.moments:
                raise ValueError(
                    f"mix reads the moment {name!r}, but before it stand only {sorted(seen.moments)}; give"
                    f" {name} to scale_by_moments first."
                )
        return f(g, *(seen.moments[name] for name in names)), {}

    return lift(Part("mix", update))
