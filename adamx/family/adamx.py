"""AdamX: AMSGrad with the step that its proof was missing."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def adamx(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    b1_decay: Scalar = 0.99999999,
) -> Transformation:
    r"""AMSGrad whose peak grows as b1 shrinks, which makes its regret bound hold.

    As :func:`adam`, except (changed lines marked; b1_t = b1 b1_decay^(t-1), no bias corrections):

      > m_t = b1_t m_{t-1} + (1 - b1_t) g_t
      > x_t = max(x_{t-1} (1 - b1_t)^2 / (1 - b1_{t-1})^2, v_t),   x_1 = v_1
      > u_t = -lr m_t / (sqrt(x_t) + eps)

    Use it where a guarantee of convergence is asked for; it fails where AMSGrad does, when gradients shrink.

    Args:
      learning_rate, b2, eps: as :func:`adam`.
      b1: share of m kept at the first step, in [0, 1).
      b1_decay: the factor on b1 a step, above 0, at most 1.

    State: mu, nu, nu_peak: float32[params]; 12 bytes a parameter.
    References: Phuong & Phong, IEEE Access 2019, Algorithm 3 (arXiv:1904.03590).
    """
    average = links.scale_by_moments(
        rules.ratio(eps),
        mu=moments.ema(moments.shrinking_decay(b1, b1_decay)),
        nu=chain(moments.ema(b2, 2), moments.peak(moments.shrinking_growth(b1, b1_decay))),
    )
    return chain(average, links.scale_by_lr(learning_rate))
