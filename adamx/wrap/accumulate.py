"""Several gradients to one step, without a place to add them up."""

from adamx.ground import tree
from adamx.ground.hyper import method, whole
from adamx.ground.part import Part
from adamx.ground.transform import Transformation, check_transformation, lift


@method
def accumulate(tx: Transformation, every: int) -> Transformation:
    """One step for every so many gradients, each added straight into the moments: no buffer of gradients.

    A moment decays once a step, at its first gradient, and takes in `1 / every` of each; parameters move at the last.
    A first moment is that of the mean gradient, exactly; a second one averages the squares of the single gradients,
    which is the square of their mean plus their variance. Schedules and bias corrections count steps.

    Args:
      tx: a method made of adamx's links whose moments, fed side by side, are plain averages or sums (`ema`, `trace`)
        and whose direction does not read the gradient: sgd with momentum, adam, adamw, adagrad, rmsprop, lamb, ...
      every: gradients a step, a whole number above 0.

    State: tx's.
    Differs from optax: `optax.MultiSteps(tx, every)` keeps a sum of gradients, 4 bytes a parameter, and takes any tx.

    Raises:
      TypeError: if tx is not made of adamx's links.
      ValueError: if every is not a whole number above 0, or tx cannot take a gradient in pieces.

    References: Zhang et al., Adam Accumulation, 2023 (arXiv:2305.19982), whose second moment this is up to scale.

    >>> import adamx, jax.numpy as jnp, optax
    >>> tx = adamx.accumulate(adamx.sgd(1.0, momentum=0.5), every=2)
    >>> p, state = jnp.zeros(1), tx.init(jnp.zeros(1))
    >>> for g in (1.0, 3.0):
    ...     u, state = tx.update(jnp.full(1, g), state)
    ...     print(u)
    [-0.]
    [-2.]
    """
    check_transformation(tx, "accumulate")
    whole("every", every)
    parts = getattr(tx, "parts", None)
    if parts is None:
        raise TypeError(f"accumulate needs a method or a chain made of adamx's links, not {tx!r:.80}; use MultiSteps.")
    stateful = [i for i, part in enumerate(parts) if part.slots or part.scalars]
    if not stateful:
        raise ValueError("this method keeps no moment to add gradients to: use optax.MultiSteps.")
    last = stateful[-1]
    for part in parts[: last + 1]:
        if not part.accumulates:
            _refuse(part)
    if len(stateful) > 1:
        _refuse(parts[last])
    return lift(*parts, every=every)


def _refuse(part: Part) -> None:
    keeps = f" (it keeps {tree.some([*part.slots, *part.scalars])})" if part.slots or part.scalars else ""
    raise ValueError(
        f"{part.name}{keeps} needs a step's whole gradient, which accumulate never has; use"
        " optax.MultiSteps(tx, every)."
    )
