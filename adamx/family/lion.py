"""Lion: the sign of a momentum that looks one step ahead."""

from typing import Any

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def lion(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mu_dtype: Any = None,
    weight_decay: Scalar = 1e-3,
    mask: Mask | None = None,
) -> Transformation:
    r"""One momentum with two decays, of which only the sign is used.

    As :func:`adam`, except (changed lines marked; there is no second moment):

      > u_t = -lr (sign(b1 m_{t-1} + (1 - b1) g_t) + weight_decay p)
      > m_t = b2 m_{t-1} + (1 - b2) g_t

    Use it where memory is short, with a learning rate 3 to 10 times smaller than Adam's and a decay as much larger; it
    fails at small batches, where signs are mostly noise.

    Args:
      learning_rate: step size of every element.
      b1: the average's share in the direction, in [0, 1).
      b2: share of m kept a step, in [0, 1).
      mu_dtype: not taken; write `store_state(lion(...), mu=dtype)`.
      weight_decay, mask: as :func:`adamw`.

    State: mu: float32[params]; 4 bytes a parameter.
    References: Chen et al., NeurIPS 2023, Algorithm 2 (arXiv:2302.06675).
    """
    direction = links.scale_by_moments(rules.sign_ahead(b1), mu=moments.ema(b2, lag=True))
    return chain(direction, links.descend(learning_rate, weight_decay, mask))
