"""Adam-atan2: no eps, since nothing is divided."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def adam_atan2(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    a: Scalar = 1.27,
    b: Scalar = 1.0,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    r"""Adam with an arctangent in place of the division: scale-free down to the smallest gradients, and bounded.

    As :func:`adam`, except (changed lines marked):

      > u_t = -lr (a atan2(m̂_t, b sqrt(v̂_t)) + weight_decay p)

    Use it where gradients are so small that eps would matter, as in large models; it fails to damp elements whose
    gradients are nothing but rounding noise, which eps would.

    Args:
      learning_rate, b1, b2: as :func:`adam`.
      a: scales the angle; 1.27 = 4 / pi makes a full step 1.
      b: scales the root; larger is more linear.
      weight_decay, mask: as :func:`adamw`.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Everett et al., ICML 2024, section 4.3 (arXiv:2407.05872).
    """
    average = links.scale_by_moments(
        rules.arctangent(a, b), mu=moments.ema(b1, debias=True), nu=moments.ema(b2, 2, debias=True)
    )
    return chain(average, links.descend(learning_rate, weight_decay, mask))
