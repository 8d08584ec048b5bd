"""AdaBelief: steps are large where the gradient is what was expected."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules
from adamx.parts.rules import difference_from_mean


@method
def adabelief(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    *,
    nesterov: bool = False,
) -> Transformation:
    r"""Adam whose second moment measures surprise: the gradient's distance from its own mean.

    As :func:`adam`, except (changed lines marked):

      > s_t = b2 s_{t-1} + (1 - b2) (g_t - m_t)^2 + eps_root
      > u_t = -lr m̂_t / (sqrt(ŝ_t) + eps)

    Use it where gradients are consistent and curvature varies, as in GANs; it fails where noise is all there is to
    measure, and is sensitive to eps. Conventions: the authors' `rectify=True` is `rules.rectified`, their
    `amsgrad=True` a `peak()`, on the same moments.

    Args:
      learning_rate, b1, b2: as :func:`adam`.
      eps: added to sqrt(ŝ), in gradient units.
      eps_root: added to s at every step, in squared gradient units; it accumulates, to eps_root / (1 - b2).
      nesterov: step from where the momentum is about to carry it, as :func:`nadam`.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Zhuang et al., NeurIPS 2020, Algorithm 2 (arXiv:2010.07468).
    """
    mu = moments.ema(b1)
    surprise = chain(moments.mix(difference_from_mean, "mu"), moments.ema(b2, 2, plus=rules.each_step(eps_root, b2)))
    if nesterov:
        rule = rules.nesterov_ratio(*rules.nadam_weights(b1), eps)
        average = links.scale_by_moments(rule, mu=mu, nu=chain(surprise, links.bias_correct(b2)))
        return chain(average, links.scale_by_lr(learning_rate))
    average = links.scale_by_moments(rules.ratio(rules.hat(eps, b2)), mu=mu, nu=surprise)
    return chain(average, links.bias_correct(b1, b2), links.scale_by_lr(learning_rate))
