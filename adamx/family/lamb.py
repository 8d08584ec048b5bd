"""LAMB: Adam with each layer's step in proportion to its weights."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def lamb(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    r"""AdamW whose direction is rescaled, leaf by leaf, to the norm of the parameters.

    As :func:`adam`, except (changed lines marked):

      > d_t = m̂_t / (sqrt(v̂_t + eps_root) + eps) + weight_decay p
      > u_t = -lr (||p|| / ||d_t||) d_t,   ratio 1 where a norm is 0

    Use it for batches of tens of thousands; it fails on leaves that start small, such as scales of residual
    branches, whose steps stay as small as they are. Conventions: NVIDIA's clips the global norm first
    (`clip_by_global_norm(1.0)`) and caps the ratio, `trust_ratio(1.0)`.

    Args:
      learning_rate: step size as a share of a leaf's norm.
      b1, b2, eps, eps_root: as :func:`adam`.
      weight_decay, mask: as :func:`adamw`.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: You et al., ICLR 2020, Algorithm 2 (arXiv:1904.00962).
    """
    rule = rules.ratio(eps, eps_root)
    average = links.scale_by_moments(rule, mu=moments.ema(b1, debias=True), nu=moments.ema(b2, 2, debias=True))
    return chain(
        average, links.descend(-1.0, weight_decay, mask), links.trust_ratio(), links.scale_by_lr(learning_rate)
    )
