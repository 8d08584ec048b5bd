"""Tiger: the sign of momentum, with decay."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def tiger(
    learning_rate: Scalar, beta: Scalar = 0.965, weight_decay: Scalar = 0.01, mask: Mask | None = None
) -> Transformation:
    r"""Lion with one decay instead of two.

    As :func:`adam`, except (changed lines marked; there is no second moment):

      > m_t = beta m_{t-1} + (1 - beta) g_t
      > u_t = -lr (sign(m_t) + weight_decay p)

    Use it where memory is short: pieces of a gradient can go straight into m (`accumulate`), so that nothing but m is
    kept; it fails at small batches, as :func:`lion`.

    Args:
      learning_rate: step size of every element.
      beta: share of m kept a step, in [0, 1).
      weight_decay, mask: as :func:`adamw`.

    State: mu: float32[params]; 4 bytes a parameter.
    References: Su, Tiger: A Tight-fisted Optimizer, 2023.
    """
    direction = links.scale_by_moments(rules.sign, mu=moments.ema(beta))
    return chain(direction, links.descend(learning_rate, weight_decay, mask))
