"""Padam: the second moment under a smaller root."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def padam(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    partial: Scalar = 0.25,
    *,
    amsgrad: bool = True,
) -> Transformation:
    r"""Adam between SGD and itself: the denominator is raised to a power below one half.

    As :func:`adam`, except (changed lines marked):

      > x_t = max(x_{t-1}, v_t)
      > u_t = -lr sqrt(1 - b2^t) / (1 - b1^t) m_t / (sqrt(x_t) + eps)^(2 partial)

    Use it where Adam generalises worse than SGD; it fails at Adam's learning rates: start at 0.1.

    Args:
      learning_rate, b1, b2: as :func:`adam`.
      eps: added to the raw root, in gradient units.
      partial: the power of the second moment, in (0, 1/2]; 1/2 is AMSGrad.
      amsgrad: whether x_t is the peak of v; otherwise x_t = v_t.

    State: mu, nu, with amsgrad nu_peak: float32[params]; 8 or 12 bytes a parameter.
    References: Chen et al., IJCAI 2020, Algorithm 1 (arXiv:1806.06763).
    """
    nu = chain(moments.ema(b2, 2), moments.peak()) if amsgrad else moments.ema(b2, 2)
    average = links.scale_by_moments(rules.partially(partial, eps), mu=moments.ema(b1), nu=nu)
    return chain(average, links.bias_correct(b1, b2), links.scale_by_lr(learning_rate))
