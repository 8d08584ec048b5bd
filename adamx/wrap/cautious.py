"""Steps only where the gradient agrees."""

from typing import Any, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from adamx.ground.hyper import Scalar, above_zero, constant, method
from adamx.ground.transform import Transformation, check_transformation, each_leaf


@method
def cautious(
    tx: optax.GradientTransformation,
    *,
    of: Literal["update", "direction"] = "update",
    rescale: Literal["mean", "count"] = "mean",
    floor: Scalar = 1e-3,
) -> Transformation:
    """Of every update, only those elements that go against the present gradient; the rest stays where it is.

    What is left is scaled up leaf by leaf, so that the step keeps its length. State is never touched. Weight decay
    that is part of `tx` is masked with the rest; to leave it alone, as the authors do, wrap the direction and decay
    behind it: `chain(cautious(scale_by_adam, of="direction"), add_decayed_weights(wd), scale_by_lr(lr))`. Decay that
    is itself cautious is `add_decayed_weights(wd, cautious=True)`.

    Args:
      tx: any optax transformation.
      of: whether tx puts out updates (against the gradient) or directions that `scale_by_lr` is still to turn round.
      rescale: "mean" divides by max(mean of the mask, floor); "count" multiplies by n / (number kept + 1), as the
        authors' Lion.
      floor: the least share of elements that is counted as kept.

    State: tx's.

    Raises:
      ValueError: if a word is neither of its two, or floor is not above 0.

    References: Liang, Chen, Liu & Liu, 2024, Algorithm 1 (arXiv:2411.16085).

    >>> import adamx
    >>> tx = cautious(adamx.sgd(1.0, momentum=0.9))
    >>> state = tx.init(jnp.ones(2))
    >>> _, state = tx.update(jnp.array([1.0, 1.0]), state)
    >>> print(tx.update(jnp.array([1.0, -0.1]), state)[0])  # momentum still goes down, the gradient no longer
    [-3.8 -0. ]
    """
    check_transformation(tx, "cautious", alters=True)
    if of not in ("update", "direction") or rescale not in ("mean", "count"):
        raise ValueError(f"of is 'update' or 'direction' and rescale 'mean' or 'count', but got {of!r}, {rescale!r}.")
    least: Any = above_zero("floor", constant("floor", floor))
    inner = optax.with_extra_args_support(tx)

    def masked(u: Array, g: Array) -> Array:
        along = jnp.real(jnp.conj(u) * g)
        kept = (along < 0 if of == "update" else along > 0).astype(along.dtype)
        if rescale == "count":
            return u * kept * (u.size / (jnp.sum(kept) + 1))
        return u * kept / jnp.maximum(jnp.mean(kept) if u.size else 1.0, least)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        out, state = inner.update(updates, state, params, **extra)
        return each_leaf(masked, out, updates), state

    return Transformation(inner.init, update, every=getattr(tx, "every", 1))
