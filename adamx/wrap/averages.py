"""Other parameters than those that are stepped: averages, slow weights, and the point to evaluate at."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from adamx.ground import hyper, numerics, tree
from adamx.ground.hyper import Derived, Scalar, method
from adamx.ground.part import Part, Seen, Whole, copied
from adamx.ground.transform import State, Transformation, chain, check_transformation, each_leaf, lift, states


@method
def schedule_free(
    tx: optax.GradientTransformation,
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    weight_lr_power: Scalar = 2.0,
    *,
    polynomial: Scalar = 0.0,
) -> Transformation:
    """Any method without momentum, with iterate averaging in place of momentum and of a schedule.

        z_t = z_{t-1} + u_t,   u_t of the gradient at y
        x_t = (1 - k_t) x_{t-1} + k_t z_t,   k_t = w_t / (w_1 + ... + w_t),   w_t = t^r max(lr_1, ..., lr_t)^power
        y_t = (1 - b1) z_t + b1 x_t

    The parameters are y, where gradients are taken; evaluate at x, :func:`schedule_free_eval_params`.

    Args:
      tx: what makes u, without momentum: `adamw(lr, b1=0.0)`, `sgd(lr)`. Its learning rate is constant or warms up.
      learning_rate: tx's, for the weights.
      b1: how far y is from z to x, in (0, 1).
      weight_lr_power: the power of the learning rate in the weights.
      polynomial: r, the power of t in them.

    State: tx's, z: float32[params]; 4 bytes a parameter, and three numbers.
    Differs from optax: with a warm-up, weights use the same learning rates as the steps.

    Raises:
      ValueError: if b1 is a number outside (0, 1).

    References: Defazio et al., The Road Less Scheduled, NeurIPS 2024, Algorithm 1 (arXiv:2405.15682).
    """
    _check(tx, "schedule_free")
    hyper.decay("b1", b1)
    hypers = {
        "lr": hyper.finite("learning_rate", learning_rate),
        "b1": hyper.above_zero("b1", b1),
        "power": hyper.at_least_zero("weight_lr_power", weight_lr_power),
        "r": hyper.at_least_zero("polynomial", polynomial),
    }

    def ask(h: Any, whole: Whole) -> dict[str, Array]:
        t = whole.t.astype(whole.told["weights"].dtype)
        top = jnp.maximum(whole.told["max_lr"], h["lr"])
        # 0 to a positive power has no finite derivative in the power: no rate, no weight
        weight = jnp.where(top > 0, t ** h["r"] * jnp.where(top > 0, top, 1) ** h["power"], 0)
        weights = whole.told["weights"] + weight
        b1 = jnp.asarray(h["b1"], weights.dtype)
        return {"max_lr": top, "weights": weights, "to_x": b1, "share": numerics.divide(weight, weights)}

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        share, b1 = seen.asked["share"].astype(p.real.dtype), h["b1"]
        z = slots["z"]
        # y_t - y_{t-1} with x eliminated, so that nothing is divided by b1
        return (1 - b1) * g + share * (z - p + b1 * g), {"z": z + g}

    numbers = {"max_lr": 0.0, "weights": 0.0, "to_x": 0.0}
    end = Part("schedule_free", update, {"z": copied}, hypers, ask, numbers, needs_params=True, exact=frozenset({"z"}))
    return chain(tx, lift(end))


def schedule_free_eval_params(state: PyTree, params: PyTree) -> PyTree:
    """x, where a schedule-free run is to be evaluated; the parameters themselves before the first step.

    Args:
      state: the optimiser's state, or one that holds it.
      params: y, as trained.

    Raises:
      ValueError: if there is no schedule-free state in it.
    """
    kept = _only(state, "z", "schedule_free")
    to_x = jax.tree.leaves(kept.scalars["to_x"])[0]  # Flax keeps it in a variable

    def x(y: Array, z: Array) -> Array:
        b = jnp.where(to_x > 0, to_x, 1).astype(y.real.dtype)
        return jnp.where(to_x > 0, z + (y - z) / b, y)

    return each_leaf(x, params, _aligned(params, kept.moments["z"]))


@method
def lookahead(tx: optax.GradientTransformation, sync_period: int = 6, slow_step_size: Scalar = 0.5) -> Transformation:
    """Any method, taken back every few steps to a point between where it was and where it went.

    Every sync_period steps, slow <- slow + slow_step_size (p - slow) and p <- slow. The method's own state goes on.

    Args:
      tx: any optax transformation that puts out updates, at every gradient (`MultiSteps` goes around, not inside).
      sync_period: steps between two synchronisations, a whole number above 0.
      slow_step_size: how far slow weights go, in [0, 1].

    State: tx's, slow_params: float32[params]; 4 bytes a parameter.
    Differs from optax: parameters are plain parameters, not pairs; slow ones are in the state, :func:`slow_params`.

    Raises:
      ValueError: if sync_period is not a whole number above 0, or slow_step_size a number outside [0, 1].

    References: Zhang, Lucas, Hinton & Ba, NeurIPS 2019, Algorithm 1 (arXiv:1907.08610).
    """
    _check(tx, "lookahead")
    hyper.whole("sync_period", sync_period)

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        slow = slots["slow_params"]
        new = slow + h["step"] * (p + g - slow)
        sync = seen.t % sync_period == 0
        return jnp.where(sync, new - p, g), {"slow_params": jnp.where(sync, new, slow)}

    hypers = {"step": hyper.share("slow_step_size", slow_step_size)}
    slots = {"slow_params": copied}
    return chain(tx, lift(Part("lookahead", update, slots, hypers, needs_params=True, exact=frozenset(slots))))


def slow_params(state: PyTree, params: PyTree) -> PyTree:
    """Lookahead's slow weights, in the dtypes of the parameters.

    Raises:
      ValueError: if there is no lookahead state in `state`.
    """
    slow = _only(state, "slow_params", "lookahead").moments["slow_params"]
    return each_leaf(lambda p, slow: slow, params, _aligned(params, slow))


@method
def ema_of_params(tx: optax.GradientTransformation, decay: Scalar = 0.999, *, warm: bool = False) -> Transformation:
    """Any method, and beside it the exponential moving average of the parameters, for :func:`averaged_params`.

    The average starts at the parameters as they are at init, and takes in each step's result.

    Args:
      tx: any optax transformation that puts out updates.
      decay: share of the average kept a step, in [0, 1).
      warm: use min(decay, (1 + t) / (10 + t)), so that the start is forgotten sooner.

    State: tx's, averaged_params: float32[params]; 4 bytes a parameter.

    References: Polyak & Juditsky 1992; the warm decay as in TensorFlow's ExponentialMovingAverage.
    """
    _check(tx, "ema_of_params")
    b = hyper.decay("decay", decay)
    kept = Derived(lambda t, b: jnp.minimum(b, (1 + t) / (10 + t)), b) if warm else b

    def update(h: Any, g: Array, slots: dict[str, Array], p: Any, seen: Seen):
        return g, {"averaged_params": numerics.lerp(slots["averaged_params"], p + g, h["decay"])}

    slots = {"averaged_params": copied}
    return chain(
        tx, lift(Part("ema_of_params", update, slots, {"decay": kept}, needs_params=True, exact=frozenset(slots)))
    )


def averaged_params(state: PyTree, params: PyTree) -> PyTree:
    """The average that :func:`ema_of_params` keeps, in the dtypes of the parameters.

    Raises:
      ValueError: if there is no such average in `state`.
    """
    average = _only(state, "averaged_params", "ema_of_params").moments["averaged_params"]
    return each_leaf(lambda p, average: average, params, _aligned(params, average))


def _check(tx: Any, who: str) -> None:
    check_transformation(tx, who)
    if getattr(tx, "every", 1) > 1:
        raise ValueError(
            f"{who} counts a step at every update, but this method takes {tx.every} gradients to one; write"
            f" optax.MultiSteps({who}(...), {tx.every})."
        )


def _aligned(params: PyTree, moment: PyTree) -> PyTree:
    """The moment in the structure of the parameters; Flax's optimiser keeps it in another, with the same leaves."""
    leaves, treedef = tree.flatten(params)
    kept = [x for x in tree.flatten(moment)[0] if x is not None]
    live = [i for i, x in enumerate(leaves) if x is not None]
    if [np.shape(x) for x in kept] != [np.shape(leaves[i]) for i in live]:
        raise ValueError(f"the state was made for other parameters than these: {tree.some(tree.names(params))}.")
    for i, x in zip(live, kept, strict=True):
        leaves[i] = x
    return treedef.unflatten(leaves)


def _only(state: PyTree, moment: str, wrapper: str) -> State:
    found = [s for s in states(state) if moment in s.moments]
    if len(found) != 1:
        raise ValueError(f"this state holds {len(found)} moments {moment!r}, not one: wrap the method in {wrapper}.")
    return found[0]
