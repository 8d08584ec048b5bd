"""AdaPNM: Adam with positive-negative momentum."""

from adamx.ground.hyper import Scalar, method, product
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def adapnm(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar = 1.0,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
    *,
    amsgrad: bool = True,
) -> Transformation:
    r"""Adam with two momenta fed in turn, one pushing and one pulling, for more noise without a larger step.

    As :func:`adam`, except (changed lines marked; b_t is m_t fed at this step, a_t the other):

      > b_t = b1^2 b_{t-2} + (1 - b1^2) g_t
      > x_t = max(x_{t-1}, v_t)
      > u_t = -lr (((1 + b3) b_t - b3 a_t) / c / (1 - b1^t) / (sqrt(x_t / (1 - b2^t)) + eps) + weight_decay p)
      > c^2 = (1 + b3)^2 + b3^2

    Use it where flat minima matter more than speed; it fails where gradients are noisy enough already.

    Args:
      learning_rate, b1, b2, eps: as :func:`adam`.
      b3: how much the other momentum is subtracted.
      weight_decay, mask: as :func:`adamw`.
      amsgrad: whether x_t is the peak of v; otherwise x_t = v_t.

    State: mu, mu_even, nu, with amsgrad nu_peak: float32[params]; 12 or 16 bytes a parameter.
    References: Xie et al., ICML 2021, Algorithm 3 (arXiv:2103.17182).
    """
    average = links.scale_by_moments(
        rules.ratio(rules.hat(eps, b2)),
        mu=moments.alternating(product(b1, b1), b3),
        nu=chain(moments.ema(b2, 2), moments.peak()) if amsgrad else moments.ema(b2, 2),
    )
    return chain(average, links.bias_correct(b1, b2), links.descend(learning_rate, weight_decay, mask))
