"""Gradients too small for float16."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Inexact, Int32, PyTree

from adamx.ground import numerics
from adamx.ground.hyper import above_zero, whole
from adamx.ground.transform import Transformation, check_transformation
from adamx.wrap.guard import SkipState, is_trained, skip_nonfinite


class ScaleState(NamedTuple):
    """The guard's state, scale: float32[], and good: int32[], finite gradients in a row since the scale last moved."""

    inner: SkipState
    scale: Float32[Array, ""]
    good: Int32[Array, ""]
    scales_loss = True  # what skip_nonfinite refuses to stand around


class _Scaling(Transformation):
    scales_loss = True


def loss_scaling(
    tx: optax.GradientTransformation,
    init_scale: float = 2.0**15,
    growth_interval: int = 2000,
    factor: float = 2.0,
    min_scale: float = 1.0,
    max_scale: float = 2.0**24,
    *,
    give_up_after: int | None = None,
) -> Transformation:
    """Any method on float16 gradients, of a loss scaled up so far that they are not lost: `loss * loss_scale(state)`.

    Gradients are divided by the scale in float32 before tx sees them. Where one is infinity or NaN, the step is skipped
    as by :func:`skip_nonfinite` (`skip_report` tells of it) and the scale is divided by `factor`; after
    `growth_interval` finite gradients in a row it is multiplied by it. Compute the last of the loss in float32: a scale
    above 2^15 is no float16 number.

    Put it outermost: a clip in front would see scaled gradients, an average around it would count skipped steps.
    Updates are what tx makes of float32 gradients, so float32 for float16 parameters too (`optax.apply_updates` rounds
    the sum, once).

    Args:
      tx: any optax transformation whose state does not take its dtype from float16 parameters (adamx's never does).
      init_scale: the first scale. Scales are powers of two, so that scaling rounds nothing.
      growth_interval: finite gradients in a row after which the scale grows, a whole number above 0.
      factor: by which the scale grows and shrinks, a power of two above 1.
      min_scale: the smallest scale, below 1 for gradients that overflow as they are; `max_scale` is the largest.
      give_up_after: as in :func:`skip_nonfinite`.

    State: tx's, and six numbers.
    Differs from PyTorch: `GradScaler` starts at 2^16 and has no bounds.

    Raises:
      ValueError: if a number is not as above, or tx is another `loss_scaling`, or (at init) holds one.
      TypeError: at the first update, if it would change the dtypes of tx's state.

    References: Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2 (arXiv:1710.03740).

    >>> import adamx
    >>> tx, p = loss_scaling(adamx.sgd(1.0)), jnp.ones(1, jnp.float16)
    >>> state = tx.init(p)
    >>> loss = lambda p, scale: jnp.sum(2.0**-13 * (2.0**-13 * p)).astype(jnp.float32) * scale
    >>> print(jax.grad(loss)(p, 1.0), tx.update(jax.grad(loss)(p, loss_scale(state)), state)[0])
    [0.] [-1.4901161e-08]
    """
    check_transformation(tx, "loss_scaling")
    first, factor = _power_of_two("init_scale", init_scale), _power_of_two("factor", factor)
    least, most = _power_of_two("min_scale", min_scale), _power_of_two("max_scale", max_scale)
    if factor <= 1 or not least <= first <= most:
        raise ValueError(
            f"factor must be above 1 and init_scale from min_scale to max_scale, but factor is {factor!r}, init_scale"
            f" {first!r}, min_scale {least!r}, max_scale {most!r}."
        )
    interval = min(whole("growth_interval", growth_interval), 2**31 - 1)
    guarded: Any = skip_nonfinite(tx, give_up_after)

    def init(params: PyTree) -> ScaleState:
        return ScaleState(guarded.init(params), jnp.full((), first, jnp.float32), jnp.zeros((), jnp.int32))

    def unscaled(grads: PyTree, scale: Array) -> PyTree:
        return jax.tree.map(lambda g: _divided(numerics.as_array(g), scale) if is_trained(g) else g, grads)

    def update(updates: PyTree, state: ScaleState, params: PyTree = None, **extra: Any) -> tuple[PyTree, ScaleState]:
        scale = state.scale
        out, inner = guarded.update(unscaled(updates, scale), state.inner, params, **extra)
        for old, new in zip(*map(jax.tree.leaves, (state.inner, inner)), strict=True):
            if getattr(old, "dtype", new.dtype) != new.dtype:
                raise TypeError(
                    f"loss_scaling hands on float32 gradients, which turn this method's {old.dtype} state into"
                    f" {new.dtype}: use a method of adamx, or call init with float32 parameters."
                )
        skipped = inner.streak > 0
        good = jnp.where(skipped, 0, numerics.increment(state.good))
        grows = good >= interval
        scale = jnp.where(grows, jnp.minimum(scale * factor, most), scale)
        scale = jnp.where(skipped, jnp.maximum(scale / factor, least), scale)
        return out, ScaleState(inner, scale, jnp.where(grows, 0, good))

    made = _Scaling(init, update, every=guarded.every)
    made.lands, made.inside = guarded.lands, guarded.inside
    if guarded.seen is not None:
        made.seen = lambda see, grads, state, params=None: guarded.seen(
            see, unscaled(grads, state.scale), state.inner, params
        )
    return made


def loss_scale(state: PyTree) -> Float32[Array, ""]:
    """What to multiply the next loss by, from a state that holds :func:`loss_scaling`'s.

    Raises:
      ValueError: if it holds none, or several.
    """
    is_scale = lambda x: isinstance(x, ScaleState)
    found = [x for x in jax.tree.leaves(state, is_leaf=is_scale) if is_scale(x)]
    if len(found) != 1:
        raise ValueError(f"this state holds {len(found)} loss scales, not one: wrap the whole method in loss_scaling.")
    return jax.tree.leaves(found[0].scale)[0]  # Flax keeps it in a variable


def _power_of_two(name: str, value: Any) -> float:
    value = above_zero(name, value)
    if not numerics.is_number(value) or not 2.0**-126 <= value <= 2.0**126 or math.frexp(value)[0] != 0.5:
        raise ValueError(f"{name} must be a power of two from 2^-126 to 2^126, which rounds nothing, but is {value!r}.")
    return value


def _divided(g: Inexact[Array, "*s"], scale: Float32[Array, ""]) -> Inexact[Array, "*s"]:
    real = numerics.real_dtype(g.dtype)
    g, scale = g.astype(numerics.like(g.dtype, real)), scale.astype(real)
    # part by part: a complex quotient loses the sign of a zero
    return jax.lax.complex(g.real / scale, g.imag / scale) if jnp.iscomplexobj(g) else g / scale
