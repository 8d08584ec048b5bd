"""Simplified AdEMAMix: one sum of gradients, and the gradient itself."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def simplified_ademamix(
    learning_rate: Scalar,
    b1: Scalar = 0.99,
    b2: Scalar = 0.95,
    alpha: Scalar = 0.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    r"""AdEMAMix with one momentum, weighed against the present gradient.

    As :func:`adam`, except (changed lines marked):

      > m_t = b1 m_{t-1} + g_t
      > u_t = -lr ((m_t + alpha g_t) / (sqrt(v̂_t + eps_root) + eps) + weight_decay p)

    Use it in place of :func:`ademamix` with two thirds of its state; it fails at Adam's learning rates, since m is a
    sum: divide them by 1 / (1 - b1) + alpha.

    Args:
      learning_rate, b2, eps, eps_root: as :func:`adam`.
      b1: share of the sum kept a step, in [0, 1).
      alpha: the weight of the present gradient, or a schedule.
      weight_decay, mask: as :func:`adamw`.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Morwani et al. 2025, Algorithm 2 (arXiv:2502.02431).
    """
    rule = rules.with_gradient(alpha, eps, eps_root=eps_root)
    average = links.scale_by_moments(rule, mu=moments.trace(b1), nu=moments.ema(b2, 2, debias=True))
    return chain(average, links.descend(learning_rate, weight_decay, mask))
