"""Adan: Nesterov's momentum from differences of gradients."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def adan(
    learning_rate: Scalar,
    b1: Scalar = 0.98,
    b2: Scalar = 0.92,
    b3: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
    *,
    proximal: bool = False,
) -> Transformation:
    r"""Adam that also averages how gradients change, and looks ahead along it.

    As :func:`adam`, except (changed lines marked):

      > d_t = g_t - g_{t-1}, d_1 = 0
      > w_t = b2 w_{t-1} + (1 - b2) d_t
      > n_t = b3 n_{t-1} + (1 - b3) (g_t + b2 d_t)^2
      > u_t = -lr ((m̂_t + b2 ŵ_t) / (sqrt(n̂_t + eps_root) + eps) + weight_decay p)

    Use it for vision transformers and large learning rates; it fails where state is scarce, keeping four arrays.

    Args:
      learning_rate, b1, eps, eps_root: as :func:`adam`.
      b2, b3: shares of w and n kept a step, in [0, 1). The paper's beta_i is 1 - b_i.
      weight_decay, mask: as :func:`adamw`.
      proximal: p <- (p + u) / (1 + lr weight_decay) instead, the authors' default.

    State: diff, mu, vel, nu: float32[params]; 16 bytes a parameter.
    Differs from optax: which has 1 - b2 where the paper and its authors have b2.
    References: Xie et al., TPAMI 2024, Algorithm 1 (arXiv:2208.06677).
    """
    average = links.scale_by_moments(
        rules.adan(b2, eps, eps_root=eps_root),
        diff=moments.difference(),
        mu=moments.ema(b1, debias=True),
        vel=chain(moments.mix(rules.same, "diff"), moments.ema(b2, debias=True)),
        nu=chain(moments.mix(rules.ahead(b2), "diff"), moments.ema(b3, 2, debias=True)),
    )
    if not proximal:
        return chain(average, links.descend(learning_rate, weight_decay, mask))
    after = links.decay_after(learning_rate, weight_decay, mask, proximal=True)
    return chain(average, links.scale_by_lr(learning_rate), after)
