"""StableAdamW: AdamW that slows down when the second moment is late."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules, select


@method
def stable_adamw(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.01,
    mask: Mask | None = None,
) -> Transformation:
    r"""AdamW with the learning rate of each leaf divided by how surprising its gradient is.

    As :func:`adam`, except (changed lines marked):

      > R_t = rms(g_t / max(sqrt(v̂_t), eps))
      > u_t = -lr / max(1, R_t) (m̂_t / (sqrt(v̂_t) + eps) + weight_decay p)

    Use it for large models with spikes in the loss, in place of clipping gradients; it fails to help where b2 is so
    small that v is never late.

    Args:
      learning_rate, b1, b2, eps: as :func:`adam`.
      weight_decay, mask: as :func:`adamw`.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Wortsman et al., NeurIPS 2023, Algorithm 2 (arXiv:2304.13013).
    """

    def decayed(decay: Scalar) -> Transformation:
        rule = rules.stable(decay, eps)
        return links.scale_by_moments(rule, mu=moments.ema(b1, debias=True), nu=moments.ema(b2, 2, debias=True))

    return chain(select.with_decay(decayed, weight_decay, mask), links.scale_by_lr(learning_rate))
