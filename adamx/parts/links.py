"""What stands in a chain: joining moments, correcting their bias, the learning rate, decay and clipping."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from adamx.ground import numerics, tree
from adamx.ground.codec import Storage
from adamx.ground.hyper import Derived, Scalar, at_least_zero, correction, finite, limit, method, whole
from adamx.ground.hyper import axes as check_axes
from adamx.ground.hyper import decay as check_decay
from adamx.ground.part import Part, Rule, Seen, Whole, check_rule, zeros
from adamx.ground.transform import Transformation, chain, lift


def scale_by_moments(rule: Rule | Callable[..., Array] | None = None, /, **moments: Transformation) -> Transformation:
    """Feed the same gradient to every moment side by side and join them with a rule.

    Sequence is `chain`; parallel is this. Each keyword names a moment: its first slot in the state has that name,
    later slots are the keyword with the slot's own name behind it ("nu_peak").

    Args:
      rule: from :mod:`adamx.rules`, or any function `rule(g, t, **moments)` of one leaf, with t = 1, 2, ...; left
        out, it must name one moment, whose output it puts out.
      moments: `ema`, `trace`, ..., or a chain of such. They run in the order given, and a `mix` sees those before it.

    State: the moments' slots.

    Raises:
      TypeError: if a moment is not made of parts, or the rule takes other moments.
      ValueError: if there is no moment, no rule for several, or two slots get one name.

    >>> import adamx
    >>> tx = adamx.scale_by_moments(lambda g, t, *, mu, nu: mu / jnp.sqrt(nu), mu=adamx.ema(0), nu=adamx.ema(0, 2))
    >>> g = {"w": jnp.array([3.0, -4.0])}
    >>> print(tx.update(g, tx.init(g))[0]["w"])
    [ 1. -1.]
    """
    if not moments:
        raise ValueError("scale_by_moments needs at least one moment, as in scale_by_moments(mu=ema(0.9)).")
    inner: dict[str, tuple[Part, ...]] = {}
    renamed: dict[tuple[str, int, str], str] = {}
    slots: dict[str, Any] = {}
    positive: set[str] = set()
    exact: set[str] = set()
    for keyword, tx in moments.items():
        parts = getattr(tx, "parts", None)
        if parts is not None and any(p.storage != Storage() for p in parts):
            raise TypeError(
                f"the moment {keyword} is stored already; put store_state around the method, as in"
                f" store_state(tx, {keyword}=...)."
            )
        if parts is None or any(p.ask or p.labels for p in parts):
            raise TypeError(
                f"the moment {keyword} must be ema, trace, another moment, or a chain of moments and bias_correct; it"
                f" is {tx!r:.80}."
            )
        inner[keyword] = parts
        for i, part in enumerate(parts):
            for own, make in part.slots.items():
                name = keyword if keyword not in slots else f"{keyword}_{own}"
                if name in slots:
                    raise ValueError(f"two slots of the moment {keyword} would be named {name!r}.")
                slots[name] = make
                renamed[keyword, i, own] = name
                positive |= {name} if own in part.positive else set()
                exact |= {name} if own in part.exact else set()
    if rule is None:
        if len(moments) > 1:
            raise ValueError(f"scale_by_moments needs a rule to join {tree.some(list(moments))}.")
    else:
        check_rule(rule, moments)

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        outs: dict[str, Array] = {}
        kept: dict[str, Array] = {}
        for keyword, parts in inner.items():
            out = g
            for i, part in enumerate(parts):
                mine = {own: slots[renamed[keyword, i, own]] for own in part.slots}
                inside = seen._replace(label=None, asked=None, moments=outs)
                out, new = part.update(h["moments"][keyword][i], out, mine, p, inside)
                kept |= {renamed[keyword, i, own]: value for own, value in new.items()}
            outs = outs | {keyword: out}
        if rule is None:
            return next(iter(outs.values())), kept
        if isinstance(rule, Rule):
            extra = {"p": p} if rule.needs_params else {}
            return rule.call(h["rule"], g, seen.t, **outs, **extra), kept
        return rule(g, seen.t, **outs), kept

    hypers = {
        "rule": dict(rule.hyper) if isinstance(rule, Rule) else {},
        "moments": {keyword: tuple(part.hyper for part in parts) for keyword, parts in inner.items()},
    }
    every = [part for parts in inner.values() for part in parts]
    blind = rule is None or (isinstance(rule, Rule) and rule.of_moments)
    first = {id(parts[0]) for parts in inner.values() if parts}
    return lift(
        Part(
            f"scale_by_moments({', '.join(moments)})",
            update,
            slots,
            hypers,
            needs_params=any(part.needs_params for part in every) or (isinstance(rule, Rule) and rule.needs_params),
            accumulates=blind and all(not part.slots or (part.accumulates and id(part) in first) for part in every),
            positive=frozenset(positive),
            exact=frozenset(exact),
            tap="moments",
        )
    )


def descend(learning_rate: Scalar, weight_decay: Scalar = 0.0, mask: tree.Mask | None = None) -> Transformation:
    """`add_decayed_weights(weight_decay, mask)` and `scale_by_lr(learning_rate)`, how most methods end.

    With the number 0 for weight_decay the first is left out, and no parameters are needed.
    """
    if numerics.is_zero(weight_decay):
        return scale_by_lr(learning_rate)
    return chain(add_decayed_weights(weight_decay, mask), scale_by_lr(learning_rate))


def scale(factor: Scalar) -> Transformation:
    """U * factor.

    Args:
      factor: a finite number, a scalar array, a schedule of the 0-based step, or something derived from such.
    """
    return _scaled("scale", finite("factor", factor))


def _scaled(name: str, factor: Scalar, tap: str = "") -> Transformation:
    update = lambda h, g, slots, p, seen: (g * h["factor"], slots)
    return lift(Part(name, update, hyper={"factor": factor}, accumulates=True, tap=tap))


@method
def bias_correct(b1: Scalar, b2: Scalar | None = None) -> Transformation:
    """U * sqrt(1 - b2^t) / (1 - b1^t); without b2, u / (1 - b1^t).

    Behind one average, `bias_correct(b)` makes it the mean of what it has seen. Behind `ratio`, `bias_correct(b1, b2)`
    corrects both moments at once. A scheduled or traced decay counts as if it had always had its present value, as
    in optax and PyTorch.

    Args:
      b1: the decay of the average in the numerator, in [0, 1).
      b2: the decay of the average under the root in the denominator, in [0, 1).

    Raises:
      ValueError: if one is a number outside [0, 1).
    """
    return _scaled("bias_correct", correction(b1, b2))


@method
def scale_by_lr(learning_rate: Scalar) -> Transformation:
    """U * -learning_rate: from a direction of ascent to an update; the only minus sign in the library.

    Args:
      learning_rate: step size; a number, a scalar array or a schedule of the 0-based step.

    Raises:
      TypeError: if it is something else.
      ValueError: if it is a number that is not finite.
    """
    if isinstance(learning_rate, float):
        return _scaled("scale_by_lr", -learning_rate, "rate")
    return _scaled("scale_by_lr", Derived(lambda t, lr: -lr, learning_rate), "rate")


@method
def add_decayed_weights(
    weight_decay: Scalar = 0.0,
    mask: tree.Mask | None = None,
    *,
    base_lr: Scalar | None = None,
    cautious: bool = False,
) -> Transformation:
    """U + weight_decay * p. What that means depends on where it stands.

    Before the moments it is L2 regularisation of the loss. Between them and `scale_by_lr` it is AdamW's decay as
    optax and PyTorch have it: p loses lr_t * weight_decay of itself a step. With `base_lr` there, it is the decay of
    the AdamW paper, independent of the base rate: p loses (lr_t / base_lr) * weight_decay.

    Args:
      weight_decay: share of p, per unit of learning rate (per step with `base_lr`); at least 0.
      mask: which leaves decay: glob patterns over leaf names ("*kernel"), a tree of bools, or a function of the
        parameters that returns one; all when left out.
      base_lr: the learning rate at which weight_decay is the share lost a step (a schedule's peak).
      cautious: decay only those elements that the direction u moves towards zero too (Chen et al. 2025).

    Raises:
      ValueError: if weight_decay is a negative number or base_lr not above 0; at init, if the mask matches nothing.

    References: Loshchilov & Hutter, ICLR 2019, Algorithm 2 (arXiv:1711.05101); cautious: Chen et al., Cautious Weight
    Decay, 2025, Algorithm 1 (arXiv:2510.12402).
    """
    factor: Scalar = weight_decay
    if base_lr is not None:
        factor = Derived(lambda t, wd, base: wd / base, weight_decay, base_lr)

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        if seen.label is False:
            return g, slots
        decayed = h["factor"] * p
        return g + (jnp.where(jnp.real(jnp.conj(g) * p) >= 0, decayed, 0) if cautious else decayed), slots

    labels = None if mask is None else lambda params: tree.selected(mask, params, "mask")
    linear = not cautious
    return lift(
        Part(
            "add_decayed_weights",
            update,
            hyper={"factor": factor},
            labels=labels,
            needs_params=True,
            accumulates=linear,
            tap="decay",
        )
    )


def after_first(value: Scalar) -> Scalar:
    """0 at t = 1 and `value` from then on, for methods whose first step only looks."""
    if numerics.is_zero(value):
        return 0.0
    return Derived(lambda t, x: jnp.where(t == 1, 0, x), at_least_zero("value", value))


@method
def decay_after(
    learning_rate: Scalar, weight_decay: Scalar, mask: tree.Mask | None = None, *, proximal: bool = False
) -> Transformation:
    """Decay where the step has arrived: p + u becomes (1 - lr wd) (p + u), or (p + u) / (1 + lr wd). Stands last.

    Args:
      learning_rate: lr, as given to the method.
      weight_decay: wd, share of p + u lost per unit of learning rate, at least 0.
      mask: which leaves decay, as in :func:`add_decayed_weights`.
      proximal: the second form (Adan), which never changes a sign however large lr wd is.

    With the number 0 for weight_decay it is no link at all, and no parameters are needed.

    References: Xie et al. 2022, Algorithm 1, last line (arXiv:2208.06677).
    """
    if numerics.is_zero(weight_decay):
        return lift()
    factor = lambda t, lr, wd: -lr * wd / (1 + lr * wd) if proximal else -lr * wd

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        return (g if seen.label is False else g + h["lost"] * (p + g)), slots

    labels = None if mask is None else lambda params: tree.selected(mask, params, "mask")
    hypers = {"lost": Derived(factor, learning_rate, weight_decay)}
    return lift(Part("decay_after", update, hyper=hypers, labels=labels, needs_params=True))


@method
def clip(max_delta: Scalar) -> Transformation:
    """Every element into [-max_delta, max_delta]; where complex, its magnitude to at most max_delta.

    Args:
      max_delta: in gradient units, at least 0; infinity for no limit.
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        if jnp.iscomplexobj(g):
            return numerics.unit(g) * jnp.minimum(numerics.magnitude(g), h["max"]), slots
        return jnp.clip(g, -h["max"], h["max"]), slots

    return lift(Part("clip", update, hyper={"max": max_delta}))


def _shrunk(g: Array, norm: Array, most: Any) -> Array:
    """G scaled down to the norm `most` where its norm is larger, untouched to the last bit where not; NaN spreads."""
    return jnp.where(norm <= most, g, g * numerics.divide(jnp.asarray(most, norm.dtype), norm))


@method
def clip_by_global_norm(max_norm: Scalar) -> Transformation:
    """All leaves together scaled down to the Euclidean norm max_norm, where they exceed it.

    The norm is summed in at least float32. Inside `shard_map` it is the norm of the local shard only.

    Args:
      max_norm: in gradient units, at least 0; infinity for no limit.

    References: Pascanu, Mikolov & Bengio, ICML 2013 (arXiv:1211.5063).
    """

    def ask(h: Any, whole: Whole):
        return numerics.norm(*whole.grads)

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        return _shrunk(g, seen.asked.astype(numerics.real_dtype(g.dtype)), h["max"]), slots

    return lift(Part("clip_by_global_norm", update, hyper={"max": max_norm}, ask=ask, tap="clip"))


@method
def clip_by_leaf_norm(max_norm: Scalar) -> Transformation:
    """Every leaf scaled down to the Euclidean norm max_norm, where it exceeds it.

    Args:
      max_norm: in gradient units, at least 0; infinity for no limit.
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        return _shrunk(g, numerics.norm(g), h["max"]), slots

    return lift(Part("clip_by_leaf_norm", update, hyper={"max": max_norm}))


@method
def clip_by_leaf_rms(threshold: Scalar) -> Transformation:
    """Every leaf divided by max(1, rms / threshold): scaled down to the root mean square `threshold` if above it.

    Args:
      threshold: in units of what is clipped, at least 0; infinity for no limit.

    References: Shazeer & Stern 2018, section 6 (arXiv:1804.04235).
    """
    update = lambda h, g, slots, p, seen: (_shrunk(g, numerics.rms(g), h["max"]), slots)
    return lift(Part("clip_by_leaf_rms", update, hyper={"max": threshold}))


@method
def scale_by_param_rms(least: Scalar = 1e-3) -> Transformation:
    """U times the root mean square of the leaf's parameters, at least `least`: a learning rate becomes relative.

    Args:
      least: in parameter units.

    References: Shazeer & Stern 2018, section 8 (arXiv:1804.04235).
    """
    update = lambda h, g, slots, p, seen: (g * jnp.maximum(numerics.rms(p), h["least"]), slots)
    return lift(Part("scale_by_param_rms", update, hyper={"least": at_least_zero("least", least)}, needs_params=True))


@method
def trust_ratio(most: Scalar = math.inf) -> Transformation:
    """U times ||p|| / ||u||, each leaf alone; unchanged where either norm is 0 (LAMB).

    Args:
      most: the largest ratio, no unit; 1 is NVIDIA's `trust_clip`.

    References: You et al., ICLR 2020, Algorithm 2 (arXiv:1904.00962).
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        weight, length = numerics.norm(p), numerics.norm(g)
        ratio = jnp.where((weight > 0) & (length > 0), numerics.divide(weight, length), 1)
        return g * jnp.minimum(ratio, h["most"]), slots

    return lift(Part("trust_ratio", update, hyper={"most": limit("most", most)}, needs_params=True))


def rate_averaged(learning_rate: Scalar, decay: Scalar) -> Transformation:
    """U * lr_t / e_t with e_t = b e_{t-1} + (1 - b) lr_t, and 0 while e_t is 0 (LaProp).

    Behind an average of lr_i n_i with the same b it is that average's bias correction, times lr_t where all rates
    are the same.

    Args:
      learning_rate: lr_t.
      decay: b, in [0, 1).

    State: one number for the whole tree.
    """

    def ask(h: Any, whole: Whole):
        return {"rate_mean": numerics.lerp(whole.told["rate_mean"], jnp.asarray(h["lr"]), h["decay"])}

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        return g * numerics.divide(
            jnp.asarray(h["lr"], g.real.dtype), seen.asked["rate_mean"].astype(g.real.dtype)
        ), slots

    hypers = {"lr": finite("learning_rate", learning_rate), "decay": check_decay("decay", decay)}
    return lift(Part("rate_averaged", update, hyper=hypers, ask=ask, scalars={"rate_mean": 0.0}))


def centralize(axes: int | Sequence[int] | None = None) -> Transformation:
    """Every gradient of a matrix or larger less its mean over all axes but that of the outputs.

    Args:
      axes: the axes averaged over; by default all but the last, as Flax kernels are (in, ..., out). PyTorch's
        layout is `axes=range(1, ndim)`; negative axes count from the end, and those that a leaf lacks are ignored.

    References: Yong, Huang, Hua & Zhang, ECCV 2020, equation 1 (arXiv:2004.01461).
    """
    fixed = None if axes is None else check_axes("axes", axes)

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        if g.ndim < 2 or not g.size:
            return g, slots
        over = set(range(g.ndim - 1)) if fixed is None else {a % g.ndim for a in fixed if -g.ndim <= a < g.ndim}
        return (g - jnp.mean(g, tuple(over), keepdims=True) if over else g), slots

    return lift(Part("centralize", update, accumulates=True))


@method
def clip_spikes(
    deviations: Scalar = 2.5, decay: Scalar = 0.97, warmup: int = 25, *, per_leaf: bool = False
) -> Transformation:
    """Gradients whose norm stands out from its own running mean are scaled down; the rest pass untouched.

    With n the norm, m and s the running mean and standard deviation of norms so far and z = (n - m) / s, a gradient
    with z > deviations is scaled to the norm m + s deviations^2 / z: the larger the spike, the less is left of it.
    A spike enters the running mean and deviation as it was clipped, so that it does not open the door for the next. The
    deviation counts as at least a hundredth of the mean. A gradient that is not finite passes untouched and teaches
    nothing: put `skip_nonfinite` around.

    Args:
      deviations: z up to which nothing happens.
      decay: share of the running mean and deviation kept a step, in [0, 1).
      warmup: steps that are only watched.
      per_leaf: judge every leaf by its own norms instead of all together.

    State: the mean and the variance of norms: two numbers, or with per_leaf two for each leaf, of its rank.

    Raises:
      ValueError: if deviations is a negative number, decay one outside [0, 1), or warmup is not a whole number.

    References: Kumar et al., ZClip: Adaptive Spike Mitigation for LLM Pre-Training, 2025, Algorithm 1
    (arXiv:2504.02507).
    """
    whole("warmup", warmup)

    def judged(h: Any, norm: Array, mean: Array, var: Array, t: Array) -> tuple[Array, Array, Array]:
        """The factor for this gradient, and the new mean and variance."""
        early, finite = t <= warmup, jnp.isfinite(norm)
        norm = jnp.where(finite, norm, mean)  # what is not a number teaches nothing
        deviation = jnp.maximum(numerics.sqrt(var), 0.01 * mean)
        z = numerics.divide(norm - mean, deviation)
        spike = ~early & (z > h["deviations"])
        most = mean + deviation * h["deviations"] ** 2 / jnp.where(spike, z, 1)
        left = jnp.where(spike, most, norm)
        # While watching, plain means (Welford's update): the running ones would start from nothing.
        share = jnp.where(early, 1 / t.astype(norm.dtype), 1 - jnp.asarray(h["decay"], norm.dtype))
        new_mean = mean + share * (left - mean)
        new_var = (1 - share) * var + share * (left - mean) * (left - new_mean)
        return jnp.where(spike, numerics.divide(left, norm), 1), new_mean, jnp.maximum(new_var, 0)

    def ask(h: Any, whole: Whole):
        told = whole.told
        norm = numerics.norm(*whole.grads).astype(told["norm_mean"].dtype)
        factor, mean, var = judged(h, norm, told["norm_mean"], told["norm_var"], whole.t)
        return {"norm_factor": factor, "norm_mean": mean, "norm_var": var}

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        if not per_leaf:
            factor = seen.asked["norm_factor"].astype(g.real.dtype)
            return jnp.where(factor == 1, g, g * factor), slots
        one = lambda x: x.reshape(())
        factor, mean, var = judged(h, numerics.norm(g), one(slots["norm_mean"]), one(slots["norm_var"]), seen.t)
        ranked = lambda x: x.reshape((1,) * g.ndim)
        return jnp.where(factor == 1, g, g * factor), {"norm_mean": ranked(mean), "norm_var": ranked(var)}

    hypers = {"deviations": at_least_zero("deviations", deviations), "decay": decay}
    if per_leaf:
        slot = lambda p: jnp.sum(zeros(p, real=True), keepdims=True).reshape((1,) * len(p.shape))
        return lift(Part("clip_spikes", update, {"norm_mean": slot, "norm_var": slot}, hypers))
    return lift(Part("clip_spikes", update, hyper=hypers, ask=ask, scalars={"norm_mean": 0.0, "norm_var": 0.0}))


@method
def add_noise(eta: Scalar, gamma: Scalar = 0.55, seed: int = 0) -> Transformation:
    """G plus Gaussian noise of variance eta / t^gamma; complex noise has that variance in all.

    Random bits depend on the seed, the step and the leaf's position only, so that a resumed run draws the same.

    Args:
      eta: the variance at the first step, in squared gradient units, at least 0.
      gamma: how fast it falls, at least 0.
      seed: a whole number.

    References: Neelakantan et al. 2015, section 3 (arXiv:1511.06807).
    """
    if whole("seed", seed, 0) >= 2**32:
        raise ValueError(f"seed must be below 2^32, but is {seed}.")

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), seen.t), seen.leaf)
        return g + h["deviation"] * jax.random.normal(key, g.shape, g.dtype), slots

    deviation = Derived(lambda t, eta, gamma: jnp.sqrt(eta * t ** (-gamma)), at_least_zero("eta", eta), gamma)
    return lift(Part("add_noise", update, hyper={"deviation": deviation}, random=True))


def _unit_norm(x: Array, axis: int | Sequence[int] | None) -> Array:
    """The norm of each unit, in a shape that broadcasts against x."""
    if axis is None:
        vector = jnp.squeeze(x).ndim <= 1
        axis = tuple(range(x.ndim)) if vector else (0,) if x.ndim <= 3 else tuple(range(x.ndim - 1))
    elif not isinstance(axis, int):
        axis = tuple(axis)
    return numerics.sqrt(jnp.sum(numerics.abs_square(x), axis=axis, keepdims=True))


@method
def adaptive_grad_clip(clipping: Scalar, eps: Scalar = 1e-3, axis: int | Sequence[int] | None = None) -> Transformation:
    """Every unit of a gradient scaled down to `clipping` times the norm of the parameters it moves.

    Args:
      clipping: the largest ratio of the norms, at least 0; no unit.
      eps: the least norm that a unit's parameters count with, in parameter units.
      axis: the axes that a unit's norm sums over. By default, as in optax: the first of matrices and of leaves with
        three axes (Flax kernels are (in, ..., out)), all but the last from four axes on (convolutions), and all of a
        leaf with at most one axis longer than 1.

    References: Brock, De, Smith & Simonyan, ICML 2021, equation 3 (arXiv:2102.06171).
    """
    axis = None if axis is None else check_axes("axis", axis)

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        most = h["clipping"] * jnp.maximum(_unit_norm(p, axis), h["eps"])
        return _shrunk(g, _unit_norm(g, axis), most), slots

    hypers = {"clipping": clipping, "eps": eps}
    return lift(Part("adaptive_grad_clip", update, hyper=hypers, needs_params=True))
