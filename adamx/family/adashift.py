"""AdaShift: numerator and denominator from different gradients."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def adashift(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-10,
    keep_num: int = 10,
    *,
    spatial_max: bool = True,
) -> Transformation:
    r"""Adam whose second moment is fed the gradient of n steps ago, so that it knows nothing of the present one.

    As :func:`adam`, except (changed lines marked; n = keep_num, and nothing moves for n steps):

      > m_t = sum_{i<n} b1^i g_{t-i} / sum_{i<n} b1^i
      > v_t = b2 v_{t-1} + (1 - b2) max_j |g_{t-n,j}|^2          (without spatial_max, each element its own)
      > u_t = -lr m_t / (sqrt(v_t / (1 - b2^(t-n))) + eps)

    Use it where Adam's correlated moments keep it from converging; it fails where memory is short: it keeps n
    gradients.

    Args:
      learning_rate, b1, b2, eps: as :func:`adam`.
      keep_num: n, gradients kept, at least 1.
      spatial_max: one second moment for a leaf, of the largest element.

    State: past (n arrays), nu: float32[params]; 4 (n + 1) bytes a parameter.
    References: Zhou et al., ICLR 2019, Algorithm 1 (arXiv:1810.00143).
    """
    average = links.scale_by_moments(
        rules.shifted(rules.later(b2, keep_num), eps),
        past=moments.window(keep_num),
        mu=moments.mix(rules.windowed_mean(b1), "past"),
        nu=chain(moments.mix(rules.oldest_peak if spatial_max else rules.oldest, "past"), moments.ema(b2, 2)),
    )
    return chain(average, links.scale_by_lr(learning_rate))
