"""MARS: Adam on gradients whose noise is partly cancelled."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules


@method
def mars(
    learning_rate: Scalar,
    b1: Scalar = 0.95,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    gamma: Scalar = 0.025,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    r"""AdamW fed with the gradient plus a share of its change, clipped to norm 1 a leaf.

    As :func:`adam`, except (changed lines marked; g_0 = 0, m and v are c's):

      > c_t = g_t + gamma b1 / (1 - b1) (g_t - g_{t-1})
      > c_t = c_t / max(1, ||c_t||)
      > u_t = -lr (m̂_t / (sqrt(v̂_t) + eps) + weight_decay p)

    Use it for language models, on matrices; it fails where successive batches differ so much that the change of the
    gradient is all noise. Conventions: the authors use it on matrices and AdamW elsewhere,
    `by_leaf(matrices(), mars(...), adamw(...))`; timm has c_1 = g_1, `difference()`.

    Args:
      learning_rate, b1, b2, eps: as :func:`adam`.
      gamma: how much of the variance reduction is used; 0 is AdamW on clipped gradients.
      weight_decay, mask: as :func:`adamw`.

    State: diff, mu, nu: float32[params]; 12 bytes a parameter.
    References: Yuan et al., ICML 2025, Algorithm 2 (arXiv:2411.10438).
    """
    return chain(
        links.scale_by_moments(rules.ahead(rules.mars_weight(gamma, b1)), diff=moments.difference(from_zero=True)),
        links.clip_by_leaf_norm(1.0),
        links.scale_by_moments(rules.ratio(rules.hat(eps, b2)), mu=moments.ema(b1), nu=moments.ema(b2, 2)),
        links.bias_correct(b1, b2),
        links.descend(learning_rate, weight_decay, mask),
    )
