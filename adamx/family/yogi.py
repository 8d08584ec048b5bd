"""Yogi: a second moment that changes by no more than the gradient does."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def yogi(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    *,
    initial_accumulator_value: Scalar = 1e-6,
) -> Transformation:
    r"""Adam whose second moment moves by (1 - b2) g^2 at a time, up or down, however large it is.

    As :func:`adam`, except (changed lines marked):

      > v_t = v_{t-1} - (1 - b2) sign(v_{t-1} - g_t^2) g_t^2,   m_0 = v_0 = initial_accumulator_value

    Use it where gradients are sparse or shrink fast, and Adam's steps would suddenly grow; it fails to recover
    quickly from a burst of large gradients.

    Args:
      learning_rate, b1, b2: as :func:`adam`; the paper's rate is 1e-2.
      eps: added to sqrt(v̂), in gradient units.
      initial_accumulator_value: m_0, in gradient units, and v_0, in squared ones.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Zaheer et al., NeurIPS 2018, Algorithm 2.
    """
    start = initial_accumulator_value
    average = links.scale_by_moments(
        rules.ratio(eps),
        mu=moments.ema(b1, start=start, debias=True),
        nu=moments.additive(b2, start=start, debias=True),
    )
    return chain(average, links.scale_by_lr(learning_rate))
