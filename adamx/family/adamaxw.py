"""AdaMaxW: AdaMax with decoupled weight decay."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def adamaxw(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 1e-4,
    mask: Mask | None = None,
) -> Transformation:
    r"""Adam in the infinity norm, with decay that does not pass through it.

    As :func:`adam`, except (changed lines marked):

      > n_t = max(b2 n_{t-1}, |g_t| + eps)
      > u_t = -lr (m̂_t / n_t + weight_decay p)

    Use it as :func:`adamax`, where weights should stay small; it fails where :func:`adamax` does.

    Args:
      learning_rate, b1, b2, eps: as :func:`adamax`.
      weight_decay, mask: as :func:`adamw`.

    State: mu, nu: float32[params]; 8 bytes a parameter.
    References: Kingma & Ba, ICLR 2015, Algorithm 2 (arXiv:1412.6980); Loshchilov & Hutter, ICLR 2019
    (arXiv:1711.05101).
    """
    average = links.scale_by_moments(rules.quotient, mu=moments.ema(b1), nu=moments.decayed_max(b2, eps))
    return chain(average, links.bias_correct(b1), links.descend(learning_rate, weight_decay, mask))
