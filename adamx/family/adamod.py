"""AdaMod: Adam whose learning rates may not exceed their own average."""

from adamx.ground.hyper import Scalar, method, product
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def adamod(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    r"""Adam with each element's learning rate held under its running mean.

    As :func:`adam`, except (changed lines marked):

      > h_t = lr sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v_t) + eps)
      > s_t = b3 s_{t-1} + (1 - b3) h_t
      > u_t = -min(h_t, s_t) m_t - lr weight_decay p

    Use it in place of a warm-up; it fails where learning rates have to grow, which they do only as fast as s.

    Args:
      learning_rate, b1, b2: as :func:`adam`.
      b3: share of s kept a step, in [0, 1).
      eps: added to the raw root, in gradient units.
      weight_decay, mask: as :func:`adamw`.

    State: mu, nu, limit: float32[params]; 12 bytes a parameter.
    References: Ding et al. 2019, Algorithm 2 (arXiv:1910.12249).
    """
    average = links.scale_by_moments(
        rules.at_most,
        mu=moments.ema(b1),
        nu=moments.ema(b2, 2),
        size=moments.mix(rules.step_size(rules.adam_rate(learning_rate, b1, b2), eps), "nu"),
        limit=chain(moments.mix(rules.same, "size"), moments.ema(b3, real=True)),
    )
    return chain(average, links.descend(1.0, product(learning_rate, weight_decay), mask))
