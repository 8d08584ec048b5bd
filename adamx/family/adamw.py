"""AdamW: Adam whose weight decay does not pass through the moments."""

from typing import Any

from adamx.ground.hyper import Scalar, method, spelled_otherwise
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def adamw(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    weight_decay: Scalar = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
    base_lr: Scalar | None = None,
) -> Transformation:
    r"""Adam with decoupled weight decay.

    As :func:`adam`, except (changed lines marked):

      > u_t = -lr (m̂_t / (sqrt(v̂_t + eps_root) + eps) + weight_decay p_{t-1})

    Use it in place of Adam wherever weights are decayed; L2 in the loss is divided by sqrt(v̂) and hardly decays
    weights with large gradients. It fails to keep norm scales and biases useful: mask them out.

    Args:
      learning_rate, b1, b2, eps, eps_root, mu_dtype: as :func:`adam`.
      weight_decay: share of p lost a step, per unit of learning rate (see base_lr).
      mask: which leaves decay: glob patterns over leaf names ("*kernel"), a tree of bools, or a function of the
        parameters that returns one; all when left out.
      nesterov: not taken; write `nadamw(...)`.
      base_lr: the paper's decay: p loses (lr_t / base_lr) * weight_decay a step; left out, lr_t * weight_decay as in
        optax and PyTorch.

    State: mu, nu: float32[params]; 8 bytes a parameter.

    Raises:
      ValueError: as :func:`adam`; if weight_decay is a negative number; at init, if the mask matches nothing; at
        update, without parameters.
    Differs from PyTorch: its weight_decay defaults to 0.01.
    References: Loshchilov & Hutter, Decoupled Weight Decay Regularization, ICLR 2019, Algorithm 2 (arXiv:1711.05101).
    """
    spelled_otherwise("adamw", "nesterov", nesterov, "nadamw(...)")
    rule = rules.ratio(rules.hat(eps, b2), rules.hat(eps_root, b2, power=2))
    return chain(
        links.scale_by_moments(rule, mu=moments.ema(b1), nu=moments.ema(b2, power=2)),
        links.bias_correct(b1, b2),
        links.add_decayed_weights(weight_decay, mask, base_lr=base_lr),
        links.scale_by_lr(learning_rate),
    )
