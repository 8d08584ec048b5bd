"""AdEMAMix: a fast average and a very slow one."""

from typing import Any

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def ademamix(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar = 0.9999,
    alpha: Scalar = 5.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    r"""Adam with a second momentum that remembers ten thousand gradients.

    As :func:`adam`, except (changed lines marked):

      > l_t = b3 l_{t-1} + (1 - b3) g_t
      > u_t = -lr ((m̂_t + alpha l_t) / (sqrt(v̂_t + eps_root) + eps) + weight_decay p)

    Use it for long runs, with alpha and b3 warmed up over the whole of them (`schedules.linear_warmup`,
    `schedules.half_life_warmup`); it fails in short ones, where the slow average never gets anywhere.

    Args:
      learning_rate, b1, b2, eps, eps_root: as :func:`adam`.
      b3: share of the slow average kept a step, in [0, 1), or a schedule.
      alpha: the weight of the slow average, or a schedule.
      mu_dtype: not taken; write `store_state(ademamix(...), mu=dtype, slow=dtype)`.
      weight_decay, mask: as :func:`adamw`.

    State: mu, slow, nu: float32[params]; 12 bytes a parameter.
    References: Pagliardini, Ablin & Grangier, ICLR 2025, Algorithm 1 (arXiv:2409.03137).
    """
    average = links.scale_by_moments(
        rules.two_speeds(alpha, eps, eps_root=eps_root),
        mu=moments.ema(b1, debias=True),
        slow=moments.ema(b3),
        nu=moments.ema(b2, 2, debias=True),
    )
    return chain(average, links.descend(learning_rate, weight_decay, mask))
