"""AdamC: AdamW whose decay follows the square of the learning rate."""

from adamx.ground.hyper import Scalar, method, product
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def adamc(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.01,
    mask: Mask | None = None,
    *,
    max_lr: Scalar,
) -> Transformation:
    r"""Adam with the corrected decay, which keeps the norm of gradients steady while the learning rate falls.

    As :func:`adam`, except (changed lines marked):

      > u_t = -lr_t (m̂_t / (sqrt(v̂_t) + eps) + (lr_t / max_lr) weight_decay p)

    Use it on weights that a normalisation follows, with a schedule that goes to zero; it fails to decay others
    enough late in training, so give those to :func:`adamw` (`mask`).

    Args:
      learning_rate, b1, b2, eps: as :func:`adam`.
      weight_decay, mask: as :func:`adamw`.
      max_lr: the schedule's largest learning rate, above 0.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Defazio, Why Gradients Rapidly Increase Near the End of Training, 2025 (arXiv:2506.02285).
    """
    average = links.scale_by_moments(rules.ratio(rules.hat(eps, b2)), mu=moments.ema(b1), nu=moments.ema(b2, 2))
    corrected = links.add_decayed_weights(product(learning_rate, weight_decay), mask, base_lr=max_lr)
    return chain(average, links.bias_correct(b1, b2), corrected, links.scale_by_lr(learning_rate))
