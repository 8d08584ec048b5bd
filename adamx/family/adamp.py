"""AdamP: no step along the weights of a scale-invariant layer."""

from adamx.ground.hyper import Scalar, correction, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules, select


@method
def adamp(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
    *,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
    nesterov: bool = False,
    channel: int = -1,
) -> Transformation:
    r"""Adam that takes the radial part off its step wherever a normalisation makes it useless.

    As :func:`adam`, except (changed lines marked; each output's weights first, then the whole leaf):

      > d_t = m_t / (sqrt(v̂_t) + eps)
      > d_t = d_t - n (n . d_t), n = p / ||p||,   where max |cos(g_t, p)| < delta / sqrt(width)
      > u_t = -lr (d_t / (1 - b1^t) + weight_decay p),   weight_decay times wd_ratio where projected

    Use it for networks with batch or layer normalisation and momentum; it fails to do anything for others.

    Args:
      learning_rate, b1, b2, eps: as :func:`adam`.
      weight_decay, mask: as :func:`adamw`.
      delta: the cosine, times the root of the width, under which a leaf counts as scale-invariant.
      wd_ratio: what is left of the decay there.
      nesterov: b1 m_t + (1 - b1) g_t in place of m_t.
      channel: the axis of outputs: the last of Flax kernels, 0 in PyTorch, whose authors' runs have it so.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Heo et al., ICLR 2021, Algorithm 2 (arXiv:2006.08217).
    """

    def decayed(decay: Scalar) -> Transformation:
        rule = rules.tangential(decay, delta, wd_ratio, eps, b1 if nesterov else 1.0, correction(b1), channel)
        return links.scale_by_moments(rule, mu=moments.ema(b1), nu=moments.ema(b2, 2, debias=True))

    return chain(select.with_decay(decayed, weight_decay, mask), links.scale_by_lr(learning_rate))
