"""Signum: the sign of momentum."""

from typing import Any

from adamx.ground.hyper import Scalar, method, spelled_otherwise
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def signum(learning_rate: Scalar, beta: Scalar = 0.9, accumulator_dtype: Any = None) -> Transformation:
    r"""SGD with momentum, of which only the sign is used.

    As :func:`adam`, except (changed lines marked; there is no second moment):

      > u_t = -lr sign(m_t)

    Use it where gradients are sent over a network one bit an element; it fails at small batches, as :func:`lion`.

    Args:
      learning_rate: step size of every element.
      beta: share of m kept a step, in [0, 1).
      accumulator_dtype: not taken; write `store_state(signum(...), mu=dtype)`.

    State: mu: float32[params]; 4 bytes a parameter.
    References: Bernstein et al., ICML 2018, Algorithm 2 (arXiv:1802.04434).
    """
    spelled_otherwise("signum", "accumulator_dtype", accumulator_dtype, "store_state(signum(...), mu=dtype)")
    return chain(links.scale_by_moments(rules.sign, mu=moments.ema(beta)), links.scale_by_lr(learning_rate))
