"""AMSBound: AdaBound with the peak of the second moment."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def amsbound(
    learning_rate: Scalar,
    final_lr: Scalar = 0.1,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    gamma: Scalar = 1e-3,
    eps: Scalar = 1e-8,
    *,
    base_lr: Scalar | None = None,
) -> Transformation:
    r"""AdaBound on the running maximum of the second moment.

    As :func:`adam`, except (changed lines marked; f_t = final_lr lr_t / base_lr):

      > x_t = max(x_{t-1}, v_t)
      > h_t = clip(lr sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(x_t) + eps), low_t, high_t)
      > low_t = f_t (1 - 1 / (gamma t + 1)),   high_t = f_t (1 + 1 / (gamma t))
      > u_t = -h_t m_t

    Use it as :func:`adabound`, where rare, large gradients carry the signal; it fails where final_lr is not a
    learning rate that SGD could use. Conventions: the authors' decay is L2, `add_decayed_weights` in front.

    Args:
      learning_rate, b1, b2: as :func:`adam`.
      final_lr: the learning rate of the SGD that it becomes, in parameter per gradient units.
      gamma: how fast the bounds close, above 0.
      eps: added to the raw root, in gradient units.
      base_lr: the learning rate at which final_lr is meant; learning_rate itself when left out, which then
        must not be a schedule, nor one that is injected.

    State: mu, nu, nu_peak: float32[params]; 12 bytes a parameter.
    References: Luo, Xiong, Liu & Sun, ICLR 2019, Algorithm 3 (arXiv:1902.09843).
    """
    rule = rules.bounded(learning_rate, final_lr, b1, b2, gamma, eps, base_lr)
    return chain(
        links.scale_by_moments(rule, mu=moments.ema(b1), nu=chain(moments.ema(b2, 2), moments.peak())),
        links.scale_by_lr(1.0),
    )
