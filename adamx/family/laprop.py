"""LaProp: normalise first, then average."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def laprop(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-15,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    r"""Adam with its two halves exchanged: momentum of normalised gradients.

    As :func:`adam`, except (changed lines marked):

      > n_t = g_t / (sqrt(v̂_t) + eps)
      > m_t = b1 m_{t-1} + (1 - b1) lr_t n_t
      > e_t = b1 e_{t-1} + (1 - b1) lr_t
      > u_t = -(lr_t / e_t) m_t,   then p <- (1 - lr_t weight_decay) p

    Use it where b2 must be small or gradients change scale, since old gradients keep the scale that they had; it
    fails where Adam's division of the whole momentum is what dampens a noisy direction. Conventions: decay is timm's;
    the authors take weight_decay itself off a step.

    Args:
      learning_rate, b1, b2, eps: as :func:`adam`; the authors' rate is 4e-4.
      weight_decay, mask: as :func:`adamw`, but of the parameters after the step.

    State: nu, mu: float32[params], and one number; 8 bytes a parameter.
    References: Ziyin, Wang & Ueda 2020, Algorithm 1 (arXiv:2002.04839).
    """
    return chain(
        links.scale_by_moments(rules.normalise(eps), nu=moments.ema(b2, 2, debias=True)),
        links.scale(learning_rate),
        links.scale_by_moments(mu=moments.ema(b1)),
        links.rate_averaged(learning_rate, b1),
        links.scale_by_lr(1.0),
        links.decay_after(learning_rate, weight_decay, mask),
    )
