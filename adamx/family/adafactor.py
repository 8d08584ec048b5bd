"""Adafactor: row and column means in place of a second moment."""

from typing import Any

from adamx.ground import numerics
from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, projections, rules


@method
def adafactor(
    learning_rate: Scalar | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Scalar = 0.8,
    decay_offset: Scalar = 0.0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Scalar | None = 1.0,
    momentum: Scalar | None = None,
    dtype_momentum: Any = numerics.FLOAT32,
    weight_decay_rate: Scalar | None = None,
    eps: Scalar = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask | None = None,
) -> Transformation:
    r"""Adam without a first moment, and with the second one reduced to its rows and columns.

    As :func:`adam`, except (changed lines marked; b_t = 1 - (t - decay_offset)^-decay_rate):

      > R_t = b_t R_{t-1} + (1 - b_t) mean over columns of (g_t^2 + eps),   C_t the same over rows
      > V_t = R_t C_t / mean(R_t)
      > d_t = g_t / sqrt(V_t),   divided by max(1, rms(d_t) / clipping_threshold)
      > u_t = -lr max(1e-3, rms(p)) d_t

    Use it where Adam's state does not fit; it fails where a matrix has single large entries, which rank one cannot
    show. Conventions are these parts in other order: the tests spell PyTorch's, fairseq's and BigVision's.

    Args:
      learning_rate: relative to the parameters' root mean square; 1 when left out.
      min_dim_size_to_factor: the least of the two largest axes that is worth factoring.
      decay_rate, decay_offset: of b_t.
      multiply_by_parameter_scale: whether steps are relative to the parameters' root mean square.
      clipping_threshold: the largest root mean square of a leaf's d_t; no limit when left out.
      momentum: decay of an average of the steps, in [0, 1); none when left out.
      dtype_momentum: not taken; write `store_state(adafactor(..., momentum=0.9), mu=dtype)`.
      weight_decay_rate, weight_decay_mask: decay, which the learning rate does not multiply.
      eps: added to squared gradients.
      factored: False keeps the whole second moment.

    State: nu, nu_col: m + n numbers for an m by n matrix, float32; with momentum mu: 4 bytes a parameter more.
    References: Shazeer & Stern, ICML 2018, Algorithm 4 (arXiv:1804.04235).
    """
    kept = projections.factored("largest", min_size=min_dim_size_to_factor) if factored else None
    nu = moments.ema(moments.power_decay(decay_rate, decay_offset), 2, plus=eps, of=kept)
    return chain(
        links.scale_by_moments(rules.normalise(), nu=nu),
        *([] if clipping_threshold is None else [links.clip_by_leaf_rms(clipping_threshold)]),
        *([] if learning_rate is None else [links.scale(learning_rate)]),
        *([links.scale_by_param_rms()] if multiply_by_parameter_scale else []),
        *([] if momentum is None else [links.scale_by_moments(mu=moments.ema(momentum))]),
        *([] if weight_decay_rate is None else [links.add_decayed_weights(weight_decay_rate, weight_decay_mask)]),
        links.scale_by_lr(1.0),
    )
