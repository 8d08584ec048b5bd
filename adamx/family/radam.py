"""RAdam: Adam that waits until its second moment knows something."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def radam(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
) -> Transformation:
    r"""Adam whose early steps are shortened by the variance of the second moment; momentum alone at first.

    As :func:`adam`, except (changed lines marked; rho_t = 2 / (1 - b2) - 1 - 2 t b2^t / (1 - b2^t)):

      > u_t = -lr r_t m̂_t / (sqrt(v̂_t + eps_root) + eps)    where rho_t >= threshold
      > u_t = -lr m̂_t                                        before
      > r_t^2 = (rho_t - 4) (rho_t - 2) rho_oo / ((rho_oo - 4) (rho_oo - 2) rho_t)

    Use it to leave out the warm-up; it fails when the first gradients are large, since its first steps are SGD's.
    Conventions: PyTorch adds eps before the correction, `rules.before(eps, b2)` on the same parts.

    Args:
      learning_rate, b1, b2, eps, eps_root: as :func:`adam`.
      threshold: the rho from which the second moment is used; the paper has 4.
      nesterov: step from where the momentum is about to carry it, as :func:`nadam`.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Liu et al., ICLR 2020, Algorithm 2 (arXiv:1908.03265).
    """
    ahead = rules.weighted(*rules.nadam_weights(b1))
    average = links.scale_by_moments(
        rules.rectified(rules.rectification(b2, threshold), eps, eps_root=eps_root),
        mu=links.scale_by_moments(ahead, mu=moments.ema(b1)) if nesterov else moments.ema(b1, debias=True),
        nu=moments.ema(b2, 2, debias=True),
    )
    return chain(average, links.scale_by_lr(learning_rate))
