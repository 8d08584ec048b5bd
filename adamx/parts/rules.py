"""Given what I remember, which way? Pure functions of one leaf, in the papers' letters."""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from adamx.ground import numerics
from adamx.ground.hyper import Derived, Scalar, at_least_zero, decay, finite
from adamx.ground.numerics import divide, is_number, one_minus_power
from adamx.ground.transform import Rule


def hat(eps: Scalar, b2: Scalar, power: int = 1) -> Scalar | Derived:
    """Eps * sqrt(1 - b2^t)^power: an eps that stands beside the raw second moment and survives `bias_correct`.

    With it `ratio` followed by `bias_correct(b1, b2)` is m̂ / (sqrt(v̂) + eps), the paper's own reordering of
    Algorithm 1 (Kingma & Ba 2015, the remark before section 2.1) with the epsilon of the original order.

    Args:
      eps: in gradient units (squared where power is 2).
      b2: the second moment's decay.
      power: 1 for an eps beside the root, 2 for one inside it.
    """
    if is_number(eps) and eps == 0:
        return 0.0
    scaled = lambda t, eps, b2: eps * jnp.sqrt(one_minus_power(b2, t)) ** power
    return Derived(scaled, at_least_zero("eps", eps), decay("b2", b2), positive=isinstance(eps, float) and eps > 1e-24)


def _checked(name: str, value: Scalar | Derived) -> Scalar | Derived:
    return value if isinstance(value, Derived) else at_least_zero(name, value)


def _root(h: Any, nu: Array) -> Array:
    """sqrt(nu + eps_root) + eps, without the additions of zeros that are known."""
    inside = nu if is_number(h["eps_root"]) and h["eps_root"] == 0 else nu + h["eps_root"]
    return numerics.sqrt(inside) + h["eps"]


def _over(eps: Scalar | Derived) -> Callable[[Array, Array], Array]:
    """Division by a root that eps was added to: 0 / 0 is 0, which costs nothing where eps is known to be positive."""
    positive = eps.positive if isinstance(eps, Derived) else isinstance(eps, float) and eps > 1e-30
    return operator.truediv if positive else divide


def ratio(eps: Scalar | Derived, eps_root: Scalar | Derived = 0.0) -> Rule:
    """Mu / (sqrt(nu + eps_root) + eps), Adam's direction.

    Args:
      eps: added to the root, in gradient units; :func:`hat` for an eps in the corrected moment's units.
      eps_root: added inside the root, in squared gradient units.

    Raises:
      ValueError: if one is a negative number.
    """

    def call(h: Any, g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
        return over(mu, _root(h, nu))

    over = _over(eps)
    return Rule("ratio", call, {"eps": _checked("eps", eps), "eps_root": _checked("eps_root", eps_root)})


def ratio_rms_clipped(eps: Scalar | Derived, threshold: Scalar = 1.0) -> Rule:
    """Mu / (D max(1, rms(g / D) / threshold)), D = sqrt(nu) + eps: the step shrinks where nu lags behind g.

    Feed it corrected moments. The root mean square is over the leaf.

    Args:
      eps: added to the root, in gradient units.
      threshold: the root mean square of g / D up to which nothing happens; no unit.

    References: Shazeer & Stern 2018 (arXiv:1804.04235) section 6, as AdamW ports with a `clipping_threshold` use it.
    """

    def call(h: Any, g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
        root = _root(h, nu)
        rms = numerics.sqrt(jnp.mean(numerics.abs_square(over(g, root))) if g.size else jnp.zeros((), root.dtype))
        return over(mu, root * jnp.maximum(1, rms / h["threshold"]))

    over = _over(eps)
    hypers = {"eps": _checked("eps", eps), "eps_root": 0.0, "threshold": at_least_zero("threshold", threshold)}
    return Rule("ratio_rms_clipped", call, hypers)


def nesterov_ratio(
    ahead: Scalar | Derived, now: Scalar | Derived, eps: Scalar | Derived, eps_root: Scalar | Derived = 0.0
) -> Rule:
    """(ahead mu + now g) / (sqrt(nu + eps_root) + eps), NAdam's direction.

    Args:
      ahead: the weight of the first moment; it differs between the conventions (see `nadam`).
      now: the weight of this gradient.
      eps: added to the root, in gradient units.
      eps_root: added inside the root, in squared gradient units.
    """

    def call(h: Any, g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
        return over(h["ahead"] * mu + h["now"] * g, _root(h, nu))

    over = _over(eps)
    weights = {"ahead": ahead, "now": now}
    hypers = {name: w if isinstance(w, Derived) else finite(name, w) for name, w in weights.items()}
    hypers |= {"eps": _checked("eps", eps), "eps_root": _checked("eps_root", eps_root)}
    return Rule("nesterov_ratio", call, hypers)


def normalise(eps: Scalar = 0.0, eps_root: Scalar = 0.0) -> Rule:
    """G / (sqrt(nu - |mu|^2 + eps_root) + eps), the direction of AdaGrad and RMSProp; mu may be left out.

    Args:
      eps: added to the root, in gradient units.
      eps_root: added inside the root, in squared gradient units.

    A centred second moment that rounding makes negative counts as 0.
    """

    def call(h: Any, g: Array, t: Array, *, nu: Array, mu: Array | None = None) -> Array:
        spread = nu if mu is None else jnp.maximum(nu - numerics.abs_square(mu), 0)
        return over(g, _root(h, spread))

    over = _over(eps)
    return Rule("normalise", call, {"eps": _checked("eps", eps), "eps_root": _checked("eps_root", eps_root)})


def quotient(g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
    """Mu / nu, and 0 where nu is 0 (AdaMax)."""
    return divide(mu, nu)


def nesterov(momentum: Scalar) -> Rule:
    """G + momentum * trace: one step ahead of the momentum (SGD).

    Args:
      momentum: the decay of the trace.
    """
    hypers = {"momentum": at_least_zero("momentum", momentum)}
    return Rule("nesterov", lambda h, g, t, *, trace: g + h["momentum"] * trace, hypers)


def nadam_weights(b1: Scalar, momentum_decay: Scalar | None = None) -> tuple[Derived, Derived]:
    """The weights (ahead, now) of :func:`nesterov_ratio` that make it NAdam, bias corrections included.

    With mu_t the momentum at step t and P_t the product of all up to it: mu_{t+1} / (1 - P_{t+1}) for the average,
    (1 - mu_t) / (1 - P_t) for the gradient.

    Args:
      b1: the decay of the average.
      momentum_decay: psi in mu_t = b1 (1 - 0.96^(t psi) / 2), Dozat's schedule; mu_t = b1 when left out.

    References: Dozat, ICLR workshop 2016, Algorithm 2 and its momentum schedule.
    """
    if momentum_decay is None:
        ahead = Derived(lambda t, b1: b1 / one_minus_power(b1, t + 1), b1)
        return ahead, Derived(lambda t, b1: (1 - b1) / one_minus_power(b1, t), b1)
    psi = at_least_zero("momentum_decay", momentum_decay)

    def mu(t: Array, b1: Any, psi: Any) -> Array:
        return b1 * (1 - 0.5 * jnp.exp(t * psi * _LOG_096))

    def one_minus_product(t: Array, b1: Any, psi: Any) -> Array:
        # log prod (1 - q^i / 2) = -sum_k 2^-k / k sum_i q^(i k), geometric in i: no running product in the state.
        k = jnp.arange(1, 64, dtype=t.dtype)
        log_q = jnp.asarray(psi * _LOG_096, t.dtype)
        sums = jnp.where(log_q == 0, t, jnp.exp(k * log_q) * divide(jnp.expm1(k * t * log_q), jnp.expm1(k * log_q)))
        return -jnp.expm1(t * jnp.log1p(-jnp.asarray(1 - b1, t.dtype)) - jnp.sum(sums / (k * 2**k)))

    return (
        Derived(lambda t, b1, psi: mu(t + 1, b1, psi) / one_minus_product(t + 1, b1, psi), b1, psi),
        Derived(lambda t, b1, psi: (1 - mu(t, b1, psi)) / one_minus_product(t, b1, psi), b1, psi),
    )


_LOG_096 = math.log(0.96)
