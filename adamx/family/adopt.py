"""ADOPT: Adam that converges with any b2."""

from collections.abc import Callable
from typing import Any

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def adopt(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Any], Any] = rules.fourth_root,
) -> Transformation:
    r"""Adam that divides each gradient by the second moment as it was before, then averages.

    As :func:`adam`, except (changed lines marked; nothing moves at t = 1, and v_1 = g_1^2):

      > n_t = clip(g_t / max(sqrt(v_{t-1}), eps), (t - 1)^(1/4))
      > m_t = b1 m_{t-1} + (1 - b1) n_t
      > u_t = -lr m_t

    Use it where b2 has to be tuned for Adam to converge at all; it fails where gradients grow suddenly, which v sees
    one step late (the clip is for that).

    Args:
      learning_rate, b1, b2: as :func:`adam`.
      eps: the least root that gradients are divided by, in gradient units.
      mu_dtype: not taken; write `store_state(adopt(...), mu=dtype)`.
      nesterov: move along b1 m_t + (1 - b1) n_t.
      use_clipping: whether n_t is clipped.
      clip_value_fn: the bound, of the 0-based step.

    State: nu, mu: float32[params]; 8 bytes a parameter.
    References: Taniguchi et al., NeurIPS 2024, Algorithm 2 (arXiv:2411.02853).
    """
    nu = moments.ema(moments.from_first(b2), 2, lag=True)
    return chain(
        links.scale_by_moments(rules.normalise_floored(eps), nu=nu),
        *([links.clip(clip_value_fn)] if use_clipping else []),
        links.scale_by_moments(rules.interpolated(b1) if nesterov else None, mu=moments.ema(b1)),
        links.scale_by_lr(learning_rate),
    )
