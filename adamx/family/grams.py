"""Grams: Adam's lengths, the gradient's signs."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def grams(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    r"""Adam that never moves against the present gradient: its momentum says how far, the gradient which way.

    As :func:`adam`, except (changed lines marked):

      > u_t = -lr (sign(g_t) |m̂_t| / (sqrt(v̂_t) + eps) + weight_decay p)

    Use it as :func:`cautious` Adam, where momentum overshoots; it fails where gradients are so noisy that their sign
    means little. Conventions: the authors add eps before the correction, `rules.before(eps, b2)`.

    Args:
      learning_rate, b1, b2, eps: as :func:`adam`.
      weight_decay, mask: as :func:`adamw`.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Cao, Li & Song 2024, Algorithm 1 (arXiv:2412.17107).
    """
    rule = rules.gradient_signed(eps)
    average = links.scale_by_moments(rule, mu=moments.ema(b1, debias=True), nu=moments.ema(b2, 2, debias=True))
    return chain(average, links.descend(learning_rate, weight_decay, mask))
