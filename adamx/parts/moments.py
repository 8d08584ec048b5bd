"""What do I remember of the gradients? Each moment is a transformation of one slot, valid alone in any chain."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax.numpy as jnp
from jaxtyping import Array

from adamx.ground import hyper, numerics
from adamx.ground.hyper import Derived, Scalar
from adamx.ground.part import Part, Rule, Seen, copied, zeros
from adamx.ground.transform import Transformation, lift


def _raised(power: int) -> Callable[[Array], Array]:
    if isinstance(power, bool) or power not in (1, 2):
        raise ValueError(
            f"power must be 1 (the gradient) or 2 (its squared magnitude), but is {power!r}; debiasing is bias_correct,"
            " and Nesterov's momentum rules.nesterov."
        )
    return numerics.abs_square if power == 2 else lambda g: g


def ema(
    decay: Scalar,
    power: int = 1,
    *,
    debias: bool = False,
    lag: bool = False,
    start: Scalar = 0.0,
    plus: Scalar = 0.0,
    of: "Projection | None" = None,
    real: bool = False,
) -> Transformation:
    """The exponential moving average m_t = b m_{t-1} + (1 - b) g_t^power; it replaces the gradient.

    Args:
      decay: b, the share kept a step, in [0, 1).
      power: 1, or 2 for |g|^2, which is real for complex gradients.
      debias: put out m_t / (1 - b^t), the mean of what it has seen, as `chain(ema(b), bias_correct(b))` does.
      lag: put out m_{t-1}, the average as it stood before this gradient (debiased as it was then; 0 at t = 1).
      start: m_0.
      plus: added to every g_t^power, in its units.
      real: what is fed is real even where the parameters are complex.
      of: keep the average of something smaller, such as `factored()` or `pooled()`; what is put out is expanded again.

    State: one slot, float32[params] (complex for complex parameters and power 1); 4 bytes a parameter. With `of`, its
    slots.
    Differs from optax: `debias` defaults to True in `optax.ema`.

    Raises:
      ValueError: if decay is a number outside [0, 1), or power is neither 1 nor 2.

    >>> tx = ema(0.9)
    >>> g = {"w": jnp.ones(2)}
    >>> print(tx.update(g, tx.init(g))[0]["w"])
    [0.1 0.1]
    """
    if of is not None and not (hasattr(of, "reduce") and hasattr(of, "expand")):
        raise TypeError(f"of must be a projection, such as adamx.projections.factored(), not {of!r:.60}.")
    raised, real = _raised(power), real or power == 2
    added = not (numerics.is_number(plus) and plus == 0)

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        x = raised(g)
        x = x + h["plus"] if added else x
        fed = {"ema": x} if of is None else of.reduce(x)
        if seen.micro is None:
            new = {name: numerics.lerp(slots[name], fed[name], h["decay"], h["gap"]) for name in slots}
        else:
            kept = jnp.where(seen.micro[0] == 0, h["decay"], 1)
            new = {name: kept * slots[name] + h["gap"] / seen.micro[1] * fed[name] for name in slots}
        out = slots if lag else new
        out = out["ema"] if of is None else of.expand(out, x.shape)
        return (out * h["debias"] if debias else out), new

    def lagging(t: Array, b: Any) -> Array:
        return jnp.where(t == 1, 0, 1 / numerics.one_minus_power(b, jnp.maximum(t - 1, 1)))

    slot = partial(zeros, real=real, start=hyper.constant("start", start))
    slots = {"ema": slot} if of is None else {name: partial(of.start, name, slot) for name in of.slots}
    hypers = {"decay": hyper.decay("decay", decay)}
    hypers["gap"] = hyper.one_minus(hypers["decay"])
    hypers |= {"plus": hyper.at_least_zero("plus", plus)} if added else {}
    corrected = Derived(lagging, hypers["decay"]) if lag else hyper.correction(hypers["decay"])
    hypers |= {"debias": corrected} if debias else {}
    positive = frozenset(slots if power == 2 else ())
    exact = frozenset(slots if real and power == 1 else ())  # of rates, which grow by tiny steps
    return lift(Part("ema", update, slots, hypers, accumulates=not lag, positive=positive, exact=exact))


class Projection(Protocol):
    """Something smaller than a leaf whose average stands for the leaf's average: rows and columns, or one mean.

    Attributes:
      slots: the names of what is kept.
    """

    slots: tuple[str, ...]

    def start(self, name: str, make: Callable[[Any], Array], p: Any) -> Array:
        """The first value of slot `name`, reduced from `make(p)`; of the rank of p."""
        ...

    def reduce(self, x: Array) -> dict[str, Array]:
        """What is kept of x, real; linear in x."""
        ...

    def expand(self, kept: dict[str, Array], shape: tuple[int, ...]) -> Array:
        """An array of `shape`, or one that broadcasts to it."""
        ...


def from_first(decay: Scalar) -> Derived:
    """A decay that is 0 at t = 1, so that an average starts at the first thing that it sees."""
    first = lambda t, b: jnp.where(t == 1, 0, b)
    return Derived(first, hyper.decay("decay", decay), gap=lambda t, b: jnp.where(t == 1, 1, 1 - b))


def power_decay(rate: Scalar, offset: Scalar = 0.0, most: Scalar = 1.0) -> Derived:
    """Adafactor's decay min(1 - (t - offset)^-rate, most), which starts at 0 and forgets ever more slowly.

    Args:
      rate: above 0; the paper has 0.8.
      offset: steps after which it starts; until then it is 0. Negative for steps taken before.
      most: the largest decay.
    """
    age = lambda t, offset: jnp.log(jnp.maximum(t - offset, 1))
    gap = lambda t, rate, offset, most: jnp.maximum(jnp.exp(-rate * age(t, offset)), 1 - most)
    f = lambda t, rate, offset, most: jnp.minimum(-jnp.expm1(-rate * age(t, offset)), most)
    return Derived(f, hyper.above_zero("decay_rate", rate), hyper.finite("offset", offset), most, gap=gap)


def growing_weight(learning_rate: Scalar, eps: Scalar) -> Derived:
    """(lr_t + eps) sqrt(t), the weight of each gradient in MADGRAD's sums."""
    f = lambda t, lr, eps: (lr + eps) * jnp.sqrt(t)
    return Derived(f, hyper.finite("learning_rate", learning_rate), hyper.at_least_zero("eps", eps))


def shrinking_decay(decay: Scalar, factor: Scalar) -> Derived:
    """Decay * factor^(t-1), the b1 that AdamX's and AMSGrad's proofs let go to zero."""
    f = lambda t, b, x: b * jnp.exp((t - 1) * jnp.log1p(-(1 - x)))
    return Derived(f, hyper.decay("b1", decay), hyper.above_zero("factor", factor))


def shrinking_growth(decay: Scalar, factor: Scalar) -> Derived:
    """((1 - b_t) / (1 - b_{t-1}))^2 for b_t = decay * factor^(t-1): by how much AdamX lets its peak grow."""

    def f(t: Any, b: Any, x: Any) -> Any:
        now, last = (1 - b * jnp.exp(k * jnp.log1p(-(1 - x))) for k in (t - 1, jnp.maximum(t - 2, 0)))
        return (now / last) ** 2

    return Derived(f, hyper.decay("b1", decay), hyper.above_zero("factor", factor))


def additive(decay: Scalar, start: Scalar = 0.0, *, debias: bool = False) -> Transformation:
    """Yogi's v_t = v_{t-1} - (1 - b) sign(v_{t-1} - |g|^2) |g|^2, whose change never depends on v's size.

    Args:
      decay: b, in [0, 1).
      start: v_0.
      debias: put out v_t / (1 - b^t).

    State: one slot, float32[params], real; 4 bytes a parameter.
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        old, x = slots["nu"], numerics.abs_square(g)
        new = old - (1 - h["decay"]) * jnp.sign(old - x) * x
        return (new * h["debias"] if debias else new), {"nu": new}

    slot = partial(zeros, real=True, start=hyper.constant("start", start))
    hypers = {"decay": hyper.decay("decay", decay)} | ({"debias": hyper.correction(decay)} if debias else {})
    return lift(Part("additive", update, {"nu": slot}, hypers, positive=frozenset({"nu"})))


def trace(
    decay: Scalar, power: int = 1, *, dampening: Scalar = 0.0, weight: Scalar = 1.0, start: Scalar = 0.0
) -> Transformation:
    """The decaying sum s_t = d s_{t-1} + weight (1 - dampening) g_t^power; it replaces the gradient.

    Momentum is `trace(0.9)`, AdaGrad's accumulator `trace(1.0, power=2)`.

    Args:
      decay: d, the share kept a step, at least 0; 1 sums for ever.
      power: 1, or 2 for |g|^2, which is real for complex gradients.
      dampening: what is taken off each gradient but the first, as in PyTorch's SGD.
      weight: of each step's gradient.
      start: s_0.

    State: one slot, float32[params]; 4 bytes a parameter.
    Differs from optax: `optax.trace(decay, nesterov=True)` is `scale_by_moments(rules.nesterov(decay),
    trace=trace(decay))`.

    Raises:
      ValueError: if decay is a negative number, or power is neither 1 nor 2.
    """
    raised, real = _raised(power), power == 2
    plain = all(numerics.is_number(x) and x == y for x, y in ((dampening, 0), (weight, 1)))

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        x = raised(g) if seen.micro is None else raised(g) / seen.micro[1]
        kept = h["decay"] if seen.micro is None else jnp.where(seen.micro[0] == 0, h["decay"], 1)
        new = kept * slots["trace"] + (x if plain else h["weight"] * x)
        return new, {"trace": new}

    damped = lambda t, d, weight: weight * jnp.where(t == 1, 1, 1 - d)
    total = Derived(damped, hyper.finite("dampening", dampening), hyper.finite("weight", weight))
    slot = partial(zeros, real=real, start=hyper.constant("start", start))
    hypers = {"decay": hyper.at_least_zero("decay", decay)} | ({} if plain else {"weight": total})
    positive = frozenset({"trace"} if real else ())
    return lift(Part("trace", update, {"trace": slot}, hypers, accumulates=True, positive=positive))


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
    return lift(Part("decayed_max", update, {"max": partial(zeros, real=True)}, hypers, positive=frozenset({"max"})))


def peak(growth: Scalar = 1.0) -> Transformation:
    """The largest value so far of what it is fed, or 0, elementwise (AMSGrad); it replaces its input, which is real.

    Args:
      growth: what the remembered peak is multiplied by before each comparison.

    State: one slot, float32[params]; 4 bytes a parameter.
    """
    still = numerics.is_number(growth) and growth == 1

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        new = jnp.maximum(slots["peak"] if still else h["growth"] * slots["peak"], g)
        return new, {"peak": new}

    hypers = {} if still else {"growth": hyper.at_least_zero("growth", growth)}
    return lift(Part("peak", update, {"peak": partial(zeros, real=True)}, hypers, positive=frozenset({"peak"})))


def difference(*, from_zero: bool = False) -> Transformation:
    """g_t - g_{t-1}, and 0 at the first step (Adan); it replaces the gradient.

    Args:
      from_zero: count the gradient before the first as 0 (MARS), so that the first difference is g_1.

    State: one slot, the last gradient, float32[params]; 4 bytes a parameter.
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        change = g - slots["last"]
        return (change if from_zero else jnp.where(seen.t == 1, 0, change)), {"last": g}

    return lift(Part("difference", update, {"last": zeros}))


def alternating(decay: Scalar, against: Scalar = 1.0) -> Transformation:
    """Positive-negative momentum: of two averages, fed in turn, ((1 + c) fed_t - c other) / sqrt((1 + c)^2 + c^2).

    Args:
      decay: the share that an average keeps each time it is fed, in [0, 1).
      against: c, the weight of the average that was not fed.

    State: two slots, float32[params]; 8 bytes a parameter.

    References: Xie, Yuan, Zhu & Sugiyama, ICML 2021, equation 6 (arXiv:2103.17182).
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        odd = seen.t % 2 == 1
        fed = numerics.lerp(jnp.where(odd, slots["odd"], slots["even"]), g, h["decay"])
        other = jnp.where(odd, slots["even"], slots["odd"])
        new = {"odd": jnp.where(odd, fed, other), "even": jnp.where(odd, other, fed)}
        return h["fed"] * fed - h["other"] * other, new

    c = hyper.finite("against", against)
    length = lambda c: ((1 + c) ** 2 + c**2) ** 0.5
    hypers = {
        "decay": hyper.decay("decay", decay),
        "fed": Derived(lambda t, c: (1 + c) / length(c), c),
        "other": Derived(lambda t, c: c / length(c), c),
    }
    return lift(Part("alternating", update, {"odd": zeros, "even": zeros}, hypers))


def window(length: int) -> Transformation:
    """The last gradients: the one of `length` steps ago (0 where there is none), then a ring of the last `length`.

    The gradient of step t has place (t - 1) % length in the ring, so that each slot is written in place. It stands in
    `scale_by_moments` only, where a `mix` reads it: what it puts out is a tuple.

    Args:
      length: how many gradients are kept, at least 1.

    State: `length` slots, float32[params]; 4 bytes a parameter each.

    Raises:
      ValueError: if length is not a whole number above 0.
    """
    hyper.whole("length", length)

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        place = (seen.t - 1) % length
        old = [slots[f"at{i}"] for i in range(length)]
        oldest = sum((jnp.where(place == i, x, 0) for i, x in enumerate(old)), jnp.zeros_like(g))
        ring = [jnp.where(place == i, g, x) for i, x in enumerate(old)]
        return (oldest, *ring), {f"at{i}": x for i, x in enumerate(ring)}

    return lift(Part("window", update, {f"at{i}": zeros for i in range(length)}))


def cover() -> Transformation:
    """SM3's accumulator: g_t^2 plus the least of the largest accumulators along each axis; it replaces the gradient.

    State: one slot, float32, with one number for each row of each axis, side by side on the last axis: m + n numbers
    for an m by n matrix; vectors are kept whole.

    References: Anil, Gupta, Koren & Singer, NeurIPS 2019, algorithm SM3-II (arXiv:1901.11150).
    """

    def others(x: Array, axis: int) -> tuple[int, ...]:
        return tuple(i for i in range(x.ndim) if i != axis)

    def start(p: Any) -> Array:
        return zeros(p, real=True) if len(p.shape) < 2 else packed(jnp.zeros_like(zeros(p, real=True)))

    def packed(x: Array) -> Array:
        row = lambda axis: jnp.max(x, others(x, axis), initial=0).reshape((1,) * (x.ndim - 1) + (-1,))
        return jnp.concatenate([row(axis) for axis in range(x.ndim)], -1)

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        old, x = slots["cover"], numerics.abs_square(g)
        if g.ndim < 2:
            return old + x, {"cover": old + x}
        least, at = jnp.full_like(x, jnp.inf), 0
        for axis, n in enumerate(g.shape):
            row = old[..., at : at + n].reshape([n if i == axis else 1 for i in range(g.ndim)])
            least, at = jnp.minimum(least, row), at + n
        return least + x, {"cover": packed(least + x)}

    return lift(Part("cover", update, {"cover": start}, positive=frozenset({"cover"})))


def origin() -> Transformation:
    """The parameters as they were at init, whatever the gradient (MADGRAD, Prodigy).

    State: one slot, float32[params]; 4 bytes a parameter.
    """
    keep = lambda h, g, slots, p, seen: (slots["origin"], slots)
    return lift(Part("origin", keep, {"origin": copied}, exact=frozenset({"origin"})))


def mix(f: Rule | Callable[..., Array], *names: str) -> Transformation:
    """f(g, *moments), with moments named before this one in `scale_by_moments`; it replaces the gradient.

    Args:
      f: an elementwise function of the gradient and of the named moments' outputs, in the order of the names; or a
        Rule, which takes them by name.
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
        read = {name: seen.moments[name] for name in names}
        return (f.call(h, g, seen.t, **read) if isinstance(f, Rule) else f(g, *read.values())), {}

    return lift(Part("mix", update, hyper=dict(f.hyper) if isinstance(f, Rule) else ()))
