"""D-Adaptation: Adam that finds its own learning rate."""

from adamx.ground.hyper import Scalar, Told, method, product
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import distance, links, moments, rules


@method
def dadapt_adam(
    learning_rate: Scalar = 1.0,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    estim_lr0: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    *,
    mask: Mask | None = None,
    growth_rate: Scalar = float("inf"),
    bias_correction: bool = True,
) -> Transformation:
    r"""Adam times a lower bound of the distance from the start to the solution, which only grows.

    As :func:`adam`, except (changed lines marked; a_t = lr d_t sqrt(1 - b2^t) / (1 - b1^t), B = sqrt(b2), inner
    products and norms over the whole tree):

      > r_t = B r_{t-1} + (1 - B) a_t <g_t, s_{t-1} / (sqrt(v_{t-1}) + eps)>
      > s_t = B s_{t-1} + (1 - B) a_t g_t
      > d_{t+1} = max(d_t, min(r_t / ((1 - B) ||s_t||_1), growth_rate d_t))
      > m_t = b1 m_{t-1} + (1 - b1) a_t g_t
      > u_t = -(m_t / (sqrt(v_t) + eps) + a_t weight_decay p)

    Use it with learning rate 1 and the schedule that Adam would have; it fails by staying slow where the bound is
    loose, where :func:`prodigy` is faster. Steps before the first gradient that is not 0 do not count.

    Args:
      learning_rate: a factor on the estimate.
      betas: (b1, b2) as :func:`adam`.
      eps: added to the raw root, in gradient units.
      estim_lr0: d_0, the first estimate, in parameter units.
      weight_decay, mask: as :func:`adamw`.
      growth_rate: the largest factor by which d may grow in a step.
      bias_correction: whether a_t has Adam's corrections; the authors' default is not.

    State: s, mu, nu: float32[params], and three numbers; 12 bytes a parameter.
    References: Defazio & Mishchenko, ICML 2023, Algorithm 5 (arXiv:2301.07733).
    """
    b1, b2 = betas
    found = distance.dadapt_distance(learning_rate, betas, eps, estim_lr0, growth_rate, bias_correction)
    mu = chain(links.scale(Told("rate")), moments.ema(b1))
    average = links.scale_by_moments(rules.ratio(eps), mu=mu, nu=moments.ema(b2, 2))
    return chain(found, average, links.descend(Told("moves"), product(Told("rate"), weight_decay), mask))
