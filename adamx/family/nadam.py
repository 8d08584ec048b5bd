"""NAdam: Adam with Nesterov's look ahead."""

from typing import Any

from adamx.ground.hyper import Scalar, method, spelled_otherwise
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def nadam(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    momentum_decay: Scalar | None = None,
) -> Transformation:
    r"""Adam that steps from where the momentum is about to carry it.

    As :func:`adam`, except (changed lines marked; mu_t = b1, or Dozat's schedule b1 (1 - 0.96^(t psi) / 2)):

      > u_t = -lr (mu_{t+1} m_t / (1 - prod_{i<=t+1} mu_i) + (1 - mu_t) g_t / (1 - prod_{i<=t} mu_i))
              / (sqrt(v̂_t + eps_root) + eps)

    Use it as Adam, mostly a little faster early; it fails where Adam does, and is noisier at small batches, since
    this gradient weighs more. Conventions:

    - the default is optax's: mu_t = b1.
    - `momentum_decay=0.004` is PyTorch's NAdam, and timm's.
    - MLCommons' and timm's simplified form has the weights b1 and 1 - b1 in `rules.nesterov_ratio`.

    Args:
      learning_rate, b1, b2, eps, eps_root, mu_dtype: as :func:`adam`.
      nesterov: True, as in optax; without it, write `adam(...)`.
      momentum_decay: psi of Dozat's schedule, at least 0; a constant momentum when left out. With a scheduled
        b1, products are powers of its present value.

    State: mu, nu: float32[params]; 8 bytes a parameter.

    Raises:
      ValueError: as :func:`adam`; if momentum_decay is a negative number.
    Differs from PyTorch: its learning rate defaults to 2e-3.
    References: Dozat, Incorporating Nesterov Momentum into Adam, ICLR workshop 2016, Algorithm 2.
    """
    spelled_otherwise("nadam", "nesterov=False", not nesterov, "adam(...)")
    rule = rules.nesterov_ratio(*rules.nadam_weights(b1, momentum_decay), eps, eps_root)
    average = links.scale_by_moments(rule, mu=moments.ema(b1), nu=moments.ema(b2, power=2, debias=True))
    return chain(average, links.scale_by_lr(learning_rate))
