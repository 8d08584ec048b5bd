"""Prodigy: Adam that finds its own learning rate."""

from adamx.ground.hyper import Scalar, Told, method, product
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import distance, links, moments, rules


@method
def prodigy(
    learning_rate: Scalar = 1.0,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    beta3: Scalar | None = None,
    eps: Scalar = 1e-8,
    estim_lr0: Scalar = 1e-6,
    estim_lr_coef: Scalar = 1.0,
    weight_decay: Scalar = 0.0,
    safeguard_warmup: bool = False,
    *,
    mask: Mask | None = None,
    growth_rate: Scalar = float("inf"),
    bias_correction: bool = True,
) -> Transformation:
    r"""Adam times an estimate of the distance from the start to the solution.

    As :func:`adam`, except (changed lines marked; a_t = lr d_t sqrt(1 - b2^t) / (1 - b1^t), inner products and norms
    over the whole tree):

      > r_t = b3 r_{t-1} + (d_t / d_0) a_t <g_t, p_0 - p>,   s_t = b3 s_{t-1} + (d_t / d_0) a_t g_t
      > D_t = max(D_{t-1}, estim_lr_coef r_t / ||s_t||_1),   d_{t+1} = min(D_t, growth_rate d_t)
      > m_t = b1 m_{t-1} + (1 - b1) d_t g_t,   v_t = b2 v_{t-1} + (1 - b2) (d_t g_t)^2
      > u_t = -a_t (m_t / (sqrt(v_t) + d_{t+1} eps) + weight_decay p)

    Use it with learning rate 1 and a cosine schedule; it fails with a warm-up, unless safeguard_warmup, and with
    gradients clipped after the fact. Steps before the first gradient that is not 0 do not count.

    Args:
      learning_rate: a factor on the estimate.
      betas: (b1, b2) as :func:`adam`.
      beta3: share of r and s kept a step; sqrt(b2) when left out.
      eps: as :func:`adam`.
      estim_lr0: d_0, the first estimate, in parameter units.
      estim_lr_coef: a factor on every estimate.
      weight_decay, mask: as :func:`adamw`.
      safeguard_warmup: leave the learning rate out of s.
      growth_rate: the largest factor by which d may grow in a step, but for the first that it grows in.
      bias_correction: whether a_t has Adam's corrections; the authors' default is not.

    State: s, origin, mu, nu: float32[params], and four numbers; 16 bytes a parameter.
    References: Mishchenko & Defazio, ICML 2024, Algorithm 4 (arXiv:2306.06101).
    """
    (b1, b2), own = betas, (estim_lr0, estim_lr_coef, growth_rate, safeguard_warmup, bias_correction)
    found = distance.prodigy_distance(learning_rate, betas, beta3, *own)
    scaled = links.scale(Told("d_last"))
    average = links.scale_by_moments(
        rules.ratio(product(Told("d"), eps)), mu=chain(scaled, moments.ema(b1)), nu=chain(scaled, moments.ema(b2, 2))
    )
    return chain(found, average, links.descend(Told("rate"), weight_decay, mask))
