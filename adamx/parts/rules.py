"""Given what I remember, which way? Pure functions of one leaf, in the papers' letters."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from adamx.ground import numerics
from adamx.ground.hyper import (
    CHECKS,
    Derived,
    Scalar,
    above_zero,
    at_least_zero,
    axes,
    correction,
    decay,
    finite,
    product,
)
from adamx.ground.numerics import divide, is_number, one_minus_power
from adamx.ground.part import Rule


def hat(eps: Scalar, b2: Scalar, power: int = 1) -> Scalar:
    """Eps * sqrt(1 - b2^t)^power: an eps that stands beside the raw second moment and survives `bias_correct`.

    With it `ratio` followed by `bias_correct(b1, b2)` is m̂ / (sqrt(v̂) + eps), the paper's own reordering of
    Algorithm 1 (Kingma & Ba 2015, the remark before section 2.1) with the epsilon of the original order.

    Args:
      eps: in gradient units (squared where power is 2).
      b2: the second moment's decay.
      power: 1 for an eps beside the root, 2 for one inside it.
    """
    if numerics.is_zero(eps):
        return 0.0
    scaled = lambda t, eps, b2: eps * jnp.sqrt(one_minus_power(b2, t)) ** power
    return Derived(scaled, at_least_zero("eps", eps), decay("b2", b2), positive=isinstance(eps, float) and eps > 1e-24)


def rule(
    *required: str, of_moments: bool = False, needs_params: bool = False, **optional: Any
) -> Callable[[Callable[..., Array]], Any]:
    """From a leaf function `f(h, g, t, **moments)` to the factory of a Rule; the numbers in h are named here.

    Args:
      required: names of hyper-parameters without a default value, in the order in which the factory takes them.
      of_moments: whether f does not read g.
      needs_params: whether f takes `p`, the parameters, by name.
      optional: further names, with their default values.
    """

    def made(f: Callable[..., Array]) -> Callable[..., Rule]:
        @functools.wraps(f)
        def factory(*args: Scalar, **kwargs: Scalar) -> Rule:
            values = optional | dict(zip(required, args, strict=False)) | kwargs
            if values.keys() != {*required, *optional} or len(args) > len(required):
                raise TypeError(f"the rule {f.__name__} takes {', '.join([*required, *optional])}.")
            hypers = {name: CHECKS.get(name, finite)(name, value) for name, value in values.items()}
            return Rule(f.__name__, f, hypers, of_moments, needs_params)

        return factory

    return made


def before(eps: Scalar, b2: Scalar) -> Derived:
    """Eps / sqrt(1 - b2^t): beside a corrected second moment, what eps is that was added before the correction.

    Args:
      eps: in gradient units.
      b2: the second moment's decay.
    """
    f = lambda t, eps, b2: eps / jnp.sqrt(one_minus_power(b2, t))
    return Derived(f, at_least_zero("eps", eps), decay("b2", b2), positive=isinstance(eps, float) and eps > 1e-30)


def each_step(eps: Scalar, decay_: Scalar) -> Scalar:
    """Eps / (1 - decay): added to what an average is fed, it adds eps to the average itself at each step.

    Args:
      eps: in units of what is averaged.
      decay_: the average's decay.
    """
    if numerics.is_zero(eps):
        return 0.0
    return Derived(lambda t, eps, b: eps / (1 - b), at_least_zero("eps", eps), decay("decay", decay_))


def _root(h: Any, nu: Array) -> Array:
    """sqrt(nu + eps_root) + eps, without the additions of zeros that are known."""
    inside = nu if numerics.is_zero(h["eps_root"]) else nu + h["eps_root"]
    return numerics.sqrt(inside) + h["eps"]


def _over(eps: Scalar) -> Callable[[Array, Array], Array]:
    """Division by a root that eps was added to: 0 / 0 is 0, which costs nothing where eps is known to be positive."""
    positive = eps.positive if isinstance(eps, Derived) else isinstance(eps, float) and eps > 1e-30
    return operator.truediv if positive else divide


def ratio(eps: Scalar, eps_root: Scalar = 0.0) -> Rule:
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
    hypers = {"eps": at_least_zero("eps", eps), "eps_root": at_least_zero("eps_root", eps_root)}
    return Rule("ratio", call, hypers, of_moments=True)


def ratio_rms_clipped(eps: Scalar, threshold: Scalar = 1.0) -> Rule:
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
    hypers = {"eps": at_least_zero("eps", eps), "eps_root": 0.0, "threshold": at_least_zero("threshold", threshold)}
    return Rule("ratio_rms_clipped", call, hypers)


def nesterov_ratio(ahead: Scalar, now: Scalar, eps: Scalar, eps_root: Scalar = 0.0) -> Rule:
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
    hypers = {name: finite(name, w) for name, w in weights.items()}
    hypers |= {"eps": at_least_zero("eps", eps), "eps_root": at_least_zero("eps_root", eps_root)}
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
    return Rule("normalise", call, {"eps": at_least_zero("eps", eps), "eps_root": at_least_zero("eps_root", eps_root)})


@rule("rectify", "eps", eps_root=0.0, of_moments=True)
def rectified(h: Any, g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
    """RAdam: rectify * mu / (sqrt(nu + eps_root) + eps), or mu itself where rectify is 0.

    Hyper-parameters: rectify, see :func:`rectification`; eps, eps_root as in :func:`ratio`.
    """
    return jnp.where(h["rectify"] > 0, h["rectify"] * divide(mu, _root(h, nu)), mu)


def rectification(b2: Scalar, threshold: Scalar = 5.0, *, below: float = 0.0) -> Derived:
    """RAdam's r_t, and `below` while rho_t, the length of the second moment's memory, is under the threshold.

    rho_t = 2 / (1 - b2) - 1 - 2 t b2^t / (1 - b2^t) loses four digits in float32 while it is small; written with
    x = -log b2 and y = x t it is x/6 + ... + (2 / x) (1 - y / (e^y - 1)), in which nothing cancels.

    Args:
      b2: the second moment's decay.
      threshold: 5 in most implementations; the paper has 4.
      below: the value under the threshold.

    References: Liu et al., ICLR 2020, Algorithm 2 (arXiv:1908.03265).
    """

    def r(t: Array, b2: Any, threshold: Any) -> Array:
        b2 = jnp.asarray(b2, t.dtype) if not is_number(b2) else b2
        gap = 1 - b2
        x = -math.log1p(-gap) if is_number(b2) and b2 > 0 else -jnp.log1p(-jnp.minimum(gap, 1 - 1e-6)).astype(t.dtype)
        start = jnp.where(x < 0.5, x / 6 - x**3 / 360 + x**5 / 15120 - x**7 / 604800, 2 / gap - 2 / x - 1)
        y = x * t
        near = y / 2 - y**2 / 12 + y**4 / 720 - y**6 / 30240 + y**8 / 1209600
        apart = jnp.where(y < 0.5, near, 1 - y / jnp.expm1(jnp.clip(y, 0.5, 80.0)))
        rho, last = start + 2 / x * apart, 2 / gap - 1
        square = (rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho)
        return jnp.where(rho >= threshold, numerics.sqrt(jnp.maximum(square, 0)), below)

    return Derived(r, decay("b2", b2), at_least_zero("threshold", threshold))


def difference_from_mean(g: Array, mu: Array) -> Array:
    """G - mu, for `mix`: how far the gradient is from what was expected."""
    return g - mu


def same(g: Array, x: Array) -> Array:
    """X, for `mix`: go on from another moment instead of the gradient."""
    return x


def fourth_root(step: Any) -> Any:
    """Step^(1/4), ADOPT's bound."""
    return step**0.25


@rule("ahead", "now")
def weighted(h: Any, g: Array, t: Array, *, mu: Array) -> Array:
    """Ahead mu + now g; with :func:`nadam_weights`, an average one step ahead and corrected."""
    return h["ahead"] * mu + h["now"] * g


@rule("b1")
def interpolated(h: Any, g: Array, t: Array, *, mu: Array) -> Array:
    """b1 mu + (1 - b1) g: the average that is to come, without keeping it."""
    return h["b1"] * mu + (1 - h["b1"]) * g


@rule("b1")
def sign_ahead(h: Any, g: Array, t: Array, *, mu: Array) -> Array:
    """Lion: sign(b1 mu + (1 - b1) g); z / |z| where complex."""
    return numerics.unit(h["b1"] * mu + (1 - h["b1"]) * g)


def sign(g: Array, t: Array, *, mu: Array) -> Array:
    """The sign of mu; z / |z| where complex."""
    return numerics.unit(mu)


@rule("k")
def ahead(h: Any, g: Array, t: Array, *, diff: Array) -> Array:
    """G + k diff: where the gradient goes if it goes on like this (Adan, MARS)."""
    return g + h["k"] * diff


def mars_weight(gamma: Scalar, b1: Scalar) -> Derived:
    """Gamma b1 / (1 - b1), the weight of the gradient's change in MARS."""
    return Derived(lambda t, gamma, b1: gamma * b1 / (1 - b1), at_least_zero("gamma", gamma), decay("b1", b1))


@rule("k", "eps", eps_root=0.0, of_moments=True)
def adan(h: Any, g: Array, t: Array, *, diff: Array, mu: Array, vel: Array, nu: Array) -> Array:
    """(mu + k vel) / (sqrt(nu + eps_root) + eps)."""
    return divide(mu + h["k"] * vel, _root(h, nu))


@rule("alpha", "eps", eps_root=0.0, of_moments=True)
def two_speeds(h: Any, g: Array, t: Array, *, mu: Array, slow: Array, nu: Array) -> Array:
    """AdEMAMix: (mu + alpha slow) / (sqrt(nu + eps_root) + eps)."""
    return divide(mu + h["alpha"] * slow, _root(h, nu))


@rule("alpha", "eps", eps_root=0.0)
def with_gradient(h: Any, g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
    """Simplified AdEMAMix: (mu + alpha g) / (sqrt(nu + eps_root) + eps)."""
    return divide(mu + h["alpha"] * g, _root(h, nu))


@rule("eps")
def asynchronous(h: Any, g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
    """ACProp: g / (sqrt(nu) + eps) with the last step's nu, and g / (1 + eps) at t = 1, when there is none."""
    return g / (jnp.where(t == 1, 1, numerics.sqrt(nu)) + h["eps"])


def later(b: Scalar, steps: int) -> Derived:
    """1 / (1 - b^(t - steps)), the bias correction of an average that starts `steps` later; 0 until it has."""

    def f(t: Array, b: Any) -> Array:
        seen = t - steps
        return divide(jnp.ones_like(t), one_minus_power(b, jnp.maximum(seen, 1)) * (seen > 0))

    return Derived(f, decay("decay", b))


@rule("eps")
def normalise_floored(h: Any, g: Array, t: Array, *, nu: Array) -> Array:
    """ADOPT: g / max(sqrt(nu), eps), and 0 at t = 1, when nu has seen nothing."""
    return jnp.where(t == 1, 0, divide(g, jnp.maximum(numerics.sqrt(nu), h["eps"])))


@rule("rate", "eps", of_moments=True)
def step_size(h: Any, g: Array, t: Array, *, nu: Array) -> Array:
    """Rate / (sqrt(nu) + eps), an element's own learning rate."""
    return divide(h["rate"], numerics.sqrt(nu) + h["eps"])


def at_most(g: Array, t: Array, *, mu: Array, nu: Array, size: Array, limit: Array) -> Array:
    """AdaMod: min(size, limit) mu."""
    return jnp.minimum(size, limit) * mu


def bounded(
    learning_rate: Scalar, final_lr: Scalar, b1: Scalar, b2: Scalar, gamma: Scalar, eps: Scalar, base_lr: Scalar | None
) -> Rule:
    """AdaBound: mu times Adam's rate / (sqrt(nu) + eps), kept between bounds that meet at final_lr lr_t / base_lr.

    The bounds are that rate times 1 - 1 / (gamma t + 1) and 1 + 1 / (gamma t).

    Args:
      learning_rate, final_lr, b1, b2, gamma, eps, base_lr: as :func:`adamx.adabound`.

    Raises:
      ValueError: if learning_rate is a schedule and base_lr is left out, or a number is not above 0.
    """
    if base_lr is None and callable(learning_rate):
        raise ValueError("with a scheduled learning_rate, base_lr must say at which rate final_lr is meant.")

    def call(h: Any, g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
        return jnp.clip(divide(h["rate"], numerics.sqrt(nu) + h["eps"]), h["low"], h["high"]) * mu

    share = lambda lr, base: 1.0 if base_lr is None else divide(jnp.asarray(lr), jnp.asarray(base))
    low = lambda t, f, gamma, lr, base: f * share(lr, base) * (gamma * t / (gamma * t + 1))
    high = lambda t, f, gamma, lr, base: f * share(lr, base) * (1 + 1 / (gamma * t))
    args = (above_zero("final_lr", final_lr), above_zero("gamma", gamma), finite("learning_rate", learning_rate))
    base = 1.0 if base_lr is None else above_zero("base_lr", base_lr)
    hypers = {"low": Derived(low, *args, base), "high": Derived(high, *args, base)}
    hypers |= {"rate": adam_rate(learning_rate, b1, b2), "eps": at_least_zero("eps", eps)}
    return Rule("bounded", call, hypers, of_moments=True)


def adam_rate(learning_rate: Scalar, b1: Scalar, b2: Scalar) -> Scalar:
    """lr_t sqrt(1 - b2^t) / (1 - b1^t): learning rate and both bias corrections in one number."""
    return product(finite("learning_rate", learning_rate), correction(b1, b2))


@rule("partial", "eps", of_moments=True)
def partially(h: Any, g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
    """Padam: mu / (sqrt(nu) + eps)^(2 partial)."""
    root, power = numerics.sqrt(nu) + h["eps"], 2 * h["partial"]
    if is_number(power) and power in (0.25, 0.5, 1.0):  # square roots, which compilers vectorise; powers they do not
        for _ in range(round(-math.log2(power))):
            root = numerics.sqrt(root)
        return divide(mu, root)
    return jnp.where(root == 0, 0, mu / jnp.where(root == 0, 1, root) ** power)


@rule("nu1", "nu2", "eps")
def quasi_hyperbolic(h: Any, g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
    """QHAdam: ((1 - nu1) g + nu1 mu) / (sqrt((1 - nu2) g^2 + nu2 nu) + eps)."""
    square = (1 - h["nu2"]) * numerics.abs_square(g) + h["nu2"] * nu
    return divide((1 - h["nu1"]) * g + h["nu1"] * mu, numerics.sqrt(square) + h["eps"])


@rule("a", "b", of_moments=True)
def arctangent(h: Any, g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
    """A atan2(mu, b sqrt(nu)): no eps, since it is bounded; of the length of mu where that is complex."""
    angle = numerics.angle(numerics.magnitude(mu), h["b"] * numerics.sqrt(nu))
    return h["a"] * numerics.unit(mu) * angle


@rule("b1")
def windowed_mean(h: Any, g: Array, t: Array, *, past: tuple[Array, ...]) -> Array:
    """The mean of all gradients in a window but the oldest, weighted b1^age."""
    n = len(past) - 1
    dtype = numerics.real_dtype(g.dtype)
    weights = [jnp.asarray(h["b1"], dtype) ** ((t - 1 - i) % n).astype(dtype) for i in range(n)]
    weighted = (w * x for w, x in zip(weights, past[1:], strict=True))
    return sum(weighted, jnp.zeros_like(g)) / sum(weights, jnp.zeros((), dtype))


def oldest(g: Array, past: tuple[Array, ...]) -> Array:
    """|.| of the oldest gradient in a window."""
    return numerics.magnitude(past[0])


def oldest_peak(g: Array, past: tuple[Array, ...]) -> Array:
    """The largest |.| of the oldest gradient in a window, one number for the leaf."""
    return jnp.broadcast_to(jnp.max(numerics.magnitude(past[0]), initial=0), g.shape)


@rule("correct", "eps", of_moments=True)
def shifted(h: Any, g: Array, t: Array, *, past: Any, mu: Array, nu: Array) -> Array:
    """AdaShift: mu / (sqrt(nu correct) + eps), and 0 while `correct` is 0."""
    return jnp.where(h["correct"] > 0, divide(mu, numerics.sqrt(nu * h["correct"]) + h["eps"]), 0)


@rule("eps", of_moments=False)
def gradient_signed(h: Any, g: Array, t: Array, *, mu: Array, nu: Array) -> Array:
    """Grams: sign(g) |mu| / (sqrt(nu) + eps)."""
    return numerics.unit(g) * divide(numerics.magnitude(mu), numerics.sqrt(nu) + h["eps"])


@rule("momentum", "eps", needs_params=True)
def dual_averaged(h: Any, g: Array, t: Array, *, p: Array, origin: Array, mu: Array, nu: Array) -> Array:
    """MADGRAD: (1 - momentum) (p - origin + mu / (nu^(1/3) + eps)), from p towards where the averages point."""
    return (1 - h["momentum"]) * (p - origin + divide(mu, numerics.cbrt(nu) + h["eps"]))


@rule("weight_decay", "eps", needs_params=True)
def stable(h: Any, g: Array, t: Array, *, p: Array, mu: Array, nu: Array) -> Array:
    """StableAdamW: (mu / (sqrt(nu) + eps) + weight_decay p) / max(1, rms(g / max(sqrt(nu), eps)))."""
    root = numerics.sqrt(nu)
    spread = numerics.rms(divide(g, jnp.maximum(root, h["eps"])))
    return (divide(mu, root + h["eps"]) + h["weight_decay"] * p) / jnp.maximum(1, spread)


def tangential(
    weight_decay: Scalar,
    delta: Scalar,
    wd_ratio: Scalar,
    eps: Scalar,
    lookahead: Scalar,
    lead: Scalar,
    channel: int,
) -> Rule:
    """AdamP: lead u, without its part along p where g is nearly orthogonal to p, plus weight_decay p.

    u = (b mu + (1 - b) g) / (sqrt(nu) + eps), b = lookahead, 1 for plain momentum. Each output's weights are tried
    first, then the whole leaf: where max |cos(g, p)| < delta / sqrt(width), u loses its part along p and the decay is
    multiplied by wd_ratio. Vectors are left alone.

    Args:
      weight_decay, delta, wd_ratio, eps: as :func:`adamx.adamp`.
      lookahead: b.
      lead: the first moment's bias correction.
      channel: the axis of outputs.
    """
    (channel,) = axes("channel", channel)

    def call(h: Any, g: Array, t: Array, *, p: Array, mu: Array, nu: Array) -> Array:
        u = divide(h["lookahead"] * mu + (1 - h["lookahead"]) * g, numerics.sqrt(nu) + h["eps"])
        ratio: Any = 1
        if g.ndim > 1 and g.size and -g.ndim <= channel < g.ndim:
            inputs = tuple(i for i in range(g.ndim) if i != channel % g.ndim)
            each = lambda a, b: jnp.sum(jnp.real(jnp.conj(a) * b), inputs, keepdims=True)
            products = [each(g, p), each(g, g), each(p, p), each(p, u)]
            whole = [jnp.sum(x, keepdims=True) for x in products]
            along = lambda pp, pu: pu / (numerics.sqrt(pp) + h["eps"]) ** 2

            def close(gp: Array, gg: Array, pp: Array, pu: Array, width: int) -> Array:
                lengths = (numerics.sqrt(gg) + h["eps"]) * (numerics.sqrt(pp) + h["eps"])
                return jnp.max(divide(jnp.abs(gp), lengths)) < h["delta"] / math.sqrt(width)

            by_output = close(*products, width=g.size // g.shape[channel])
            at_once = ~by_output & close(*whole, width=g.size)
            taken = jnp.where(by_output, along(*products[2:]), jnp.where(at_once, along(*whole[2:]), 0))
            u = u - taken * p
            ratio = jnp.where(by_output | at_once, h["wd_ratio"], 1)
        return h["lead"] * u + h["weight_decay"] * ratio * p

    numbers = {"weight_decay": weight_decay, "delta": delta, "wd_ratio": wd_ratio, "eps": eps}
    hypers = {name: at_least_zero(name, x) for name, x in numbers.items()}
    hypers |= {"lookahead": finite("lookahead", lookahead), "lead": finite("lead", lead)}
    return Rule("tangential", call, hypers, needs_params=True)


def confident(g: Array, t: Array, *, mu: Array, res: Array) -> Array:
    """CAME: mu / sqrt(res) where a leaf has rows and columns, mu elsewhere."""
    return divide(mu, numerics.sqrt(res)) if g.ndim >= 2 else mu


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
