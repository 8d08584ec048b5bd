"""NAdamW: NAdam with decoupled weight decay."""

from typing import Any

from adamx.ground.hyper import Scalar, method, spelled_otherwise
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def nadamw(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: Scalar = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = True,
    momentum_decay: Scalar | None = None,
    base_lr: Scalar | None = None,
) -> Transformation:
    r"""NAdam with decoupled weight decay.

    As :func:`nadam`, except (changed lines marked; n_t is NAdam's direction):

      > u_t = -lr (n_t + weight_decay p_{t-1})

    Use it as :func:`adamw`; it fails where :func:`nadam` does.

    Args:
      learning_rate, b1, b2, eps, eps_root, mu_dtype, momentum_decay: as :func:`nadam`.
      nesterov: True, as in optax; without it, write `adamw(...)`.
      weight_decay, mask, base_lr: as :func:`adamw`.

    State: mu, nu: float32[params]; 8 bytes a parameter.

    Raises: as :func:`nadam` and :func:`adamw`.
    Differs from PyTorch (`NAdam(decoupled_weight_decay=True)`): as :func:`nadam`, and its weight_decay defaults to 0.
    References: Dozat, ICLR workshop 2016; Loshchilov & Hutter, ICLR 2019 (arXiv:1711.05101).
    """
    spelled_otherwise("nadamw", "nesterov=False", not nesterov, "adamw(...)")
    rule = rules.nesterov_ratio(*rules.nadam_weights(b1, momentum_decay), eps, eps_root)
    return chain(
        links.scale_by_moments(rule, mu=moments.ema(b1), nu=moments.ema(b2, power=2, debias=True)),
        links.add_decayed_weights(weight_decay, mask, base_lr=base_lr),
        links.scale_by_lr(learning_rate),
    )
