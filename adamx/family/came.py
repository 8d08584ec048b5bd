"""CAME: Adafactor with confidence."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, projections, rules
from adamx.parts.rules import difference_from_mean


@method
def came(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar = 0.9999,
    eps1: Scalar = 1e-30,
    eps2: Scalar = 1e-16,
    clip_threshold: Scalar = 1.0,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
) -> Transformation:
    r"""Adafactor whose momentum is divided by how far single steps stray from it.

    As :func:`adafactor`, except (changed lines marked; b2 is constant, V and S are factored):

        d_t = g_t / sqrt(V_t),   divided by max(1, rms(d_t) / clip_threshold)
      > m_t = b1 m_{t-1} + (1 - b1) d_t
      > S_t = b3 S_{t-1} + (1 - b3) ((d_t - m_t)^2 + eps2)
      > u_t = -lr (m_t / sqrt(S_t) + weight_decay p)          (m_t alone for vectors)

    Use it for language models at half of Adam's state; it fails on vectors, which it treats as Adafactor does.

    Args:
      learning_rate: as :func:`adam`; the authors' is 2e-4.
      b1, b2, b3: shares of m, V and S kept a step, in [0, 1).
      eps1, eps2: added to the squared gradient and the squared distance.
      clip_threshold: the largest root mean square of a leaf's d_t.
      weight_decay, mask: as :func:`adamw`.

    State: nu, nu_col, res, res_col: m + n numbers each for an m by n matrix; mu: float32[params]; 4 bytes a parameter.
    References: Luo et al., ACL 2023, Algorithm 2 (arXiv:2307.02047).
    """
    kept, distance = projections.factored(), projections.factored(rest="nothing")
    return chain(
        links.scale_by_moments(rules.normalise(), nu=moments.ema(b2, 2, plus=eps1, of=kept)),
        links.clip_by_leaf_rms(clip_threshold),
        links.scale_by_moments(
            rules.confident,
            mu=moments.ema(b1),
            res=chain(moments.mix(difference_from_mean, "mu"), moments.ema(b3, 2, plus=eps2, of=distance)),
        ),
        links.descend(learning_rate, weight_decay, mask),
    )
