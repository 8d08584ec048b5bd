"""SOAP: Adam in Shampoo's eigenbasis."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, matrix


@method
def soap(
    learning_rate: Scalar,
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.01,
    mask: Mask | None = None,
    *,
    precondition_frequency: int = 10,
    shampoo_beta: Scalar | None = None,
    max_size: int = 10_000,
) -> Transformation:
    r"""Adam on gradients turned into the eigenbasis of their averaged Gram matrices.

    As :func:`adam`, except (changed lines marked; Q_L and Q_R renewed every precondition_frequency steps):

      > L_t = b L_{t-1} + (1 - b) g_t g_t^T,   R_t the same of g_t^T g_t
      > G_t = Q_L^T g_t Q_R,   v_t = b2 v_{t-1} + (1 - b2) G_t^2
      > d_t = Q_L (Q_L^T m̂_t Q_R / (sqrt(v̂_t) + eps)) Q_R^T
      > u_t = -lr d_t,   then p <- (1 - lr weight_decay) p

    Use it where steps are dear and matrices moderate, as in language models; it fails where an axis is too long for
    its n by n matrices, and is Adam on vectors. The first step only builds the basis.

    Args:
      learning_rate, b1, b2: as :func:`adam`.
      eps: added to the raw root, in units of turned gradients.
      weight_decay, mask: as :func:`adamw`, but of the parameters after the step.
      precondition_frequency: steps between two renewals of the basis.
      shampoo_beta: b, share of L and R kept a step; b2 when left out.
      max_size: longer axes are not turned.

    State: mu, nu: float32[params]; gram, basis: m^2 + n^2 numbers each for an m by n matrix.
    References: Vyas et al., ICLR 2025, Algorithm 3 (arXiv:2409.11321).
    """
    turned = matrix.scale_by_soap(
        b1, b2, eps, shampoo_beta=shampoo_beta, every=precondition_frequency, max_size=max_size
    )
    after = links.decay_after(learning_rate, links.after_first(weight_decay), mask)
    return chain(turned, links.scale_by_lr(learning_rate), after)
