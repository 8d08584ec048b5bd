"""QHAdam: Adam's averages, each mixed with the present."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def qhadam(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    nu1: Scalar = 0.7,
    nu2: Scalar = 1.0,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    r"""Adam with quasi-hyperbolic moments: part average, part present gradient.

    As :func:`adam`, except (changed lines marked):

      > u_t = -lr (((1 - nu1) g_t + nu1 m̂_t) / (sqrt((1 - nu2) g_t^2 + nu2 v̂_t) + eps) + weight_decay p)

    Use it with a larger b1 (0.995) than Adam's; it fails where nu2 < 1 makes single elements' steps jump.

    Args:
      learning_rate, b1, b2, eps: as :func:`adam`.
      nu1: the average's share in the numerator; 1 is Adam.
      nu2: the average's share in the denominator; 1 is Adam.
      weight_decay, mask: as :func:`adamw`.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Ma & Yarats, ICLR 2019, section 4 (arXiv:1810.06801).
    """
    rule = rules.quasi_hyperbolic(nu1, nu2, eps)
    average = links.scale_by_moments(rule, mu=moments.ema(b1, debias=True), nu=moments.ema(b2, 2, debias=True))
    return chain(average, links.descend(learning_rate, weight_decay, mask))
