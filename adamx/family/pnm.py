"""PNM: SGD with positive-negative momentum."""

from adamx.ground.hyper import Scalar, method, product
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments


@method
def pnm(learning_rate: Scalar, b1: Scalar = 0.9, b0: Scalar = 1.0) -> Transformation:
    r"""Two momenta fed in turn, one pushing and one pulling; :func:`adapnm` without a second moment.

    As :func:`adam`, except (changed lines marked; b_t is m_t fed at this step, a_t the other):

      > b_t = b1^2 b_{t-2} + (1 - b1^2) g_t
      > u_t = -lr ((1 + b0) b_t - b0 a_t) / sqrt((1 + b0)^2 + b0^2)

    Use it in place of SGD with momentum, with its learning rate, where flat minima matter; it fails where leaves
    differ in gradient scale, as SGD does.

    Args:
      learning_rate: step size, in parameter per gradient units.
      b1: share of the momentum kept a step, in [0, 1).
      b0: how much the other momentum is subtracted.

    State: mu, mu_even: float32[params]; 8 bytes a parameter.
    References: Xie et al., ICML 2021, Algorithm 2 (arXiv:2103.17182).
    """
    momentum = links.scale_by_moments(mu=moments.alternating(product(b1, b1), b0))
    return chain(momentum, links.scale_by_lr(learning_rate))
