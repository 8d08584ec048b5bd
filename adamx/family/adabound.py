"""AdaBound: from Adam to SGD."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def adabound(
    learning_rate: Scalar,
    final_lr: Scalar = 0.1,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    gamma: Scalar = 1e-3,
    eps: Scalar = 1e-8,
    *,
    base_lr: Scalar | None = None,
) -> Transformation:
    r"""Adam whose learning rates are squeezed between two bounds that meet at SGD's.

    As :func:`adam`, except (changed lines marked; f_t = final_lr lr_t / base_lr):

      > h_t = clip(lr sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v_t) + eps), low_t, high_t)
      > low_t = f_t (1 - 1 / (gamma t + 1)),   high_t = f_t (1 + 1 / (gamma t))
      > u_t = -h_t m_t

    Use it where Adam starts fast and SGD ends well, as on convolutional networks; it fails where final_lr is not a
    learning rate that SGD could use. Conventions: the authors' decay is L2, `add_decayed_weights` in front.

    Args:
      learning_rate, b1, b2: as :func:`adam`.
      final_lr: the learning rate of the SGD that it becomes, in parameter per gradient units.
      gamma: how fast the bounds close, above 0.
      eps: added to the raw root, in gradient units.
      base_lr: the learning rate at which final_lr is meant; learning_rate itself when left out, which then
        must not be a schedule, nor one that is injected.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Luo, Xiong, Liu & Sun, ICLR 2019, Algorithm 2 (arXiv:1902.09843).
    """
    rule = rules.bounded(learning_rate, final_lr, b1, b2, gamma, eps, base_lr)
    return chain(links.scale_by_moments(rule, mu=moments.ema(b1), nu=moments.ema(b2, 2)), links.scale_by_lr(1.0))
