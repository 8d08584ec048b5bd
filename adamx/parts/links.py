"""What stands in a chain: joining moments, correcting their bias, the learning rate, decay and clipping."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from adamx.ground import numerics, tree
from adamx.ground.hyper import Derived, Scalar, method
from adamx.ground.numerics import one_minus_power
from adamx.ground.transform import Part, Rule, Seen, Transformation, Whole, check_rule, lift


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
    for keyword, tx in moments.items():
        parts = getattr(tx, "parts", None)
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
                out, new = part.update(h["moments"][keyword][i], out, mine, p, Seen(seen.t, None, None, outs))
                kept |= {renamed[keyword, i, own]: value for own, value in new.items()}
            outs = outs | {keyword: out}
        if rule is None:
            return next(iter(outs.values())), kept
        if isinstance(rule, Rule):
            return rule.call(h["rule"], g, seen.t, **outs), kept
        return rule(g, seen.t, **outs), kept

    hypers = {
        "rule": dict(rule.hyper) if isinstance(rule, Rule) else {},
        "moments": {keyword: tuple(part.hyper for part in parts) for keyword, parts in inner.items()},
    }
    reads = any(part.needs_params for parts in inner.values() for part in parts)
    return lift(Part(f"scale_by_moments({', '.join(moments)})", update, slots, hypers, needs_params=reads))


def _scaled(name: str, factor: Scalar | Derived) -> Transformation:
    return lift(Part(name, lambda h, g, slots, p, seen: (g * h["factor"], slots), hyper={"factor": factor}))


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
    if b2 is None:
        return _scaled("bias_correct", Derived(lambda t, b1: 1 / one_minus_power(b1, t), b1))
    roots = lambda t, b1, b2: jnp.sqrt(one_minus_power(b2, t)) / one_minus_power(b1, t)
    return _scaled("bias_correct", Derived(roots, b1, b2))


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
        return _scaled("scale_by_lr", -learning_rate)
    return _scaled("scale_by_lr", Derived(lambda t, lr: -lr, learning_rate))


@method
def add_decayed_weights(
    weight_decay: Scalar = 0.0, mask: tree.Mask | None = None, *, base_lr: Scalar | None = None
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

    Raises:
      ValueError: if weight_decay is a negative number or base_lr not above 0; at init, if the mask matches nothing.

    References: Loshchilov & Hutter, ICLR 2019, Algorithm 2 (arXiv:1711.05101).
    """
    factor: Scalar | Derived = weight_decay
    if base_lr is not None:
        factor = Derived(lambda t, wd, base: wd / base, weight_decay, base_lr)

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        return (g if seen.label is False else g + h["factor"] * p), slots

    labels = None if mask is None else lambda params: tree.selected(mask, params, "mask")
    return lift(Part("add_decayed_weights", update, hyper={"factor": factor}, labels=labels, needs_params=True))


@method
def clip(max_delta: Scalar) -> Transformation:
    """Every element into [-max_delta, max_delta]; real and imaginary part each, where complex.

    Args:
      max_delta: in gradient units, at least 0; infinity for no limit.
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        bound = lambda x: jnp.clip(x, -h["max"], h["max"])
        if not jnp.iscomplexobj(g):
            return bound(g), slots
        return bound(jnp.real(g)) + 1j * bound(jnp.imag(g)), slots

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

    return lift(Part("clip_by_global_norm", update, hyper={"max": max_norm}, ask=ask))


@method
def clip_by_leaf_norm(max_norm: Scalar) -> Transformation:
    """Every leaf scaled down to the Euclidean norm max_norm, where it exceeds it.

    Args:
      max_norm: in gradient units, at least 0; infinity for no limit.
    """

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        return _shrunk(g, numerics.norm(g), h["max"]), slots

    return lift(Part("clip_by_leaf_norm", update, hyper={"max": max_norm}))


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

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        most = h["clipping"] * jnp.maximum(_unit_norm(p, axis), h["eps"])
        return _shrunk(g, _unit_norm(g, axis), most), slots

    hypers = {"clipping": clipping, "eps": eps}
    return lift(Part("adaptive_grad_clip", update, hyper=hypers, needs_params=True))
