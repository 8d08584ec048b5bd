"""AdaMax: Adam in the infinity norm."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def adamax(learning_rate: Scalar, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8) -> Transformation:
    r"""Adam whose denominator is a decaying maximum of |g|.

    As :func:`adam`, except (changed lines marked):

      > n_t = max(b2 n_{t-1}, |g_t| + eps)
      > u_t = -lr m̂_t / n_t

    Use it for sparse gradients (embeddings), where a maximum remembers longer than a mean; it fails after an outlier,
    whose scale it keeps for about 1 / (1 - b2) steps.

    Args:
      learning_rate: step size, in parameter units a step; a number, a float32 scalar or a schedule of the 0-based step.
      b1: share of m kept a step, in [0, 1).
      b2: share of the maximum kept a step, in [0, 1).
      eps: added to |g| inside the maximum, in gradient units (the paper has none).

    State: mu, nu: float32[params]; 8 bytes a parameter.

    Raises:
      ValueError: if b1 or b2 is a number outside [0, 1), or eps a negative one.
    Differs from PyTorch: its learning rate defaults to 2e-3.
    References: Kingma & Ba, ICLR 2015, Algorithm 2 (arXiv:1412.6980).
    """
    return chain(
        links.scale_by_moments(rules.quotient, mu=moments.ema(b1), nu=moments.decayed_max(b2, eps)),
        links.bias_correct(b1),
        links.scale_by_lr(learning_rate),
    )
