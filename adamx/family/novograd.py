"""NovoGrad: one second moment a layer."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, projections, rules


@method
def novograd(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.25,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    *,
    mask: Mask | None = None,
) -> Transformation:
    r"""Momentum of gradients that are normalised leaf by leaf.

    As :func:`adam`, except (changed lines marked; v_1 = ||g_1||^2):

      > v_t = b2 v_{t-1} + (1 - b2) ||g_t||^2
      > m_t = b1 m_{t-1} + g_t / (sqrt(v_t + eps_root) + eps) + weight_decay p
      > u_t = -lr m_t

    Use it for speech and image networks with large batches, at half of Adam's state; it fails where a leaf's rows
    differ in scale, as embeddings' do.

    Args:
      learning_rate, b1: as :func:`adam`, of a sum instead of an average.
      b2: share of v kept a step, in [0, 1).
      eps, eps_root: beside and inside the root of the squared norm.
      weight_decay: share of p added to the normalised gradient, at least 0.
      mask: which leaves decay, as in :func:`adamw`.

    State: nu: one number a leaf; mu: float32[params]; 4 bytes a parameter.
    References: Ginsburg et al. 2019, Algorithm 1 (arXiv:1905.11286).
    """
    nu = moments.ema(moments.from_first(b2), 2, of=projections.total())
    return chain(
        links.scale_by_moments(rules.normalise(eps, eps_root), nu=nu),
        links.descend(-1.0, weight_decay, mask),
        links.scale_by_moments(mu=moments.trace(b1)),
        links.scale_by_lr(learning_rate),
    )
