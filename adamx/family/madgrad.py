"""MADGRAD: dual averaging with a cube root."""

from adamx.ground.hyper import Scalar, decay, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def madgrad(
    learning_rate: Scalar, momentum: Scalar = 0.9, weight_decay: Scalar = 0.0, eps: Scalar = 1e-6
) -> Transformation:
    r"""Sums of gradients from the start, of which the cube root of the squares is taken off.

    In place of :func:`adam`'s lines (l_t = (lr + eps) sqrt(t), p_0 the parameters at init):

      > n_t = n_{t-1} + l_t g_t^2
      > s_t = s_{t-1} + l_t g_t
      > u_t = (1 - momentum) (p_0 - s_t / (n_t^(1/3) + eps) - p)

    Use it where SGD generalises best but is slow to tune, as on images; it fails after a change of task, since it
    weighs gradients from the start of training.

    Args:
      learning_rate: step size, a number or a schedule of the 0-based step.
      momentum: share of the way to the new point that is not taken in a step, in [0, 1).
      weight_decay: L2, added to the gradient as weight_decay p.
      eps: added to the cube root, and to the learning rate.

    State: origin, mu, nu: float32[params]; 12 bytes a parameter.
    References: Defazio & Jelassi, JMLR 2022, Algorithm 1 (arXiv:2101.11075).
    """
    weight = moments.growing_weight(learning_rate, eps)
    average = links.scale_by_moments(
        rules.dual_averaged(decay("momentum", momentum), eps),
        origin=moments.origin(),
        mu=moments.trace(1.0, weight=weight),
        nu=moments.trace(1.0, 2, weight=weight),
    )
    return chain(links.descend(-1.0, weight_decay), average, links.scale_by_lr(1.0))
