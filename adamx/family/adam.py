"""Adam: a mean gradient, divided by the root of its mean square."""

from typing import Any

from adamx.ground.hyper import Scalar, method, spelled_otherwise
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def adam(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Transformation:
    r"""Adam, as Algorithm 1 prints it.

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t^2
        u_t = -lr m̂_t / (sqrt(v̂_t + eps_root) + eps),  m̂_t = m_t / (1 - b1^t),  v̂_t = v_t / (1 - b2^t)

    Use it when nothing is known about the problem; it fails to generalise as well as SGD on some vision tasks, and
    diverges where b2 is too small for rare, large gradients (see :func:`amsgrad`).

    Args:
      learning_rate: step size, in parameter units a step; a number, a float32 scalar or a schedule of the 0-based step.
      b1: share of m kept a step, in [0, 1).
      b2: share of v kept a step, in [0, 1).
      eps: added to sqrt(v̂), in gradient units.
      eps_root: added to v̂ inside the root, in squared gradient units.
      mu_dtype: not taken; write `store_state(adam(...), mu=dtype)`.
      nesterov: not taken; write `nadam(...)`.

    State: mu, nu: float32[params]; 8 bytes a parameter.

    Raises:
      ValueError: if b1 or b2 is a number outside [0, 1), or eps or eps_root a negative one.
      TypeError: if mu_dtype or nesterov is given.
    Differs from PyTorch: its learning rate defaults to 1e-3; the numbers are the same.
    References: Kingma & Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, Algorithm 1 (arXiv:1412.6980).

    >>> import jax.numpy as jnp
    >>> tx = adam(0.1)  # the first step has the size of the learning rate, whatever the gradient's scale
    >>> g = {"w": jnp.array([1e-3, -1e3])}
    >>> [f"{u:.3f}" for u in tx.update(g, tx.init(g))[0]["w"]]
    ['-0.100', '0.100']
    """
    spelled_otherwise("adam", "nesterov", nesterov, "nadam(...)")
    rule = rules.ratio(rules.hat(eps, b2), rules.hat(eps_root, b2, power=2))
    return chain(
        links.scale_by_moments(rule, mu=moments.ema(b1), nu=moments.ema(b2, power=2)),
        links.bias_correct(b1, b2),
        links.scale_by_lr(learning_rate),
    )
