"""ACProp: divide by what was known before this gradient."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules
from adamx.parts.rules import difference_from_mean


@method
def acprop(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    r"""AdaBelief's second moment, one step late, under the bare gradient.

    As :func:`adam`, except (changed lines marked):

      > u_t = -lr (g_t / (sqrt(s_{t-1} / (1 - b2^(t-1))) + eps) + weight_decay p),   root 1 at t = 1
      > s_t = b2 s_{t-1} + (1 - b2) (g_t - m_{t-1})^2 + eps_root

    Use it where Adam fails to converge because its two moments share a gradient; it fails where gradients are noisy,
    since it has no momentum.

    Args:
      learning_rate, b1, b2: as :func:`adam`.
      eps: added to the root, in gradient units.
      eps_root: added to s at every step, in squared gradient units.
      weight_decay, mask: as :func:`adamw`.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Zhuang et al., NeurIPS 2021, Algorithm 3 (arXiv:2110.05454).
    """
    lagging = moments.ema(b2, 2, lag=True, debias=True, plus=rules.each_step(eps_root, b2))
    error = chain(moments.mix(difference_from_mean, "mu"), lagging)
    average = links.scale_by_moments(rules.asynchronous(eps), mu=moments.ema(b1, lag=True), nu=error)
    return chain(average, links.descend(learning_rate, weight_decay, mask))
