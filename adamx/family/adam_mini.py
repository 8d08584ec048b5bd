"""Adam-mini: one second moment for each output."""

from collections.abc import Mapping

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, moments, rules, select
from adamx.parts.projections import Axes, pooled


@method
def adam_mini(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
    *,
    axes: Axes = "inputs",
    blocks: Mapping[str, Axes] | None = None,
) -> Transformation:
    r"""Adam whose second moment is one number for a block of parameters that share their curvature.

    As :func:`adam`, except (changed lines marked):

      > v_t = b2 v_{t-1} + (1 - b2) mean over the block of g_t^2

    Use it for transformers at half of Adam's state; it fails where a block holds elements of different scale: give
    embeddings one number a row, `blocks={"*embed*": -1}`, and queries and keys one a head.

    Args:
      learning_rate, b1, b2, eps: as :func:`adam`.
      weight_decay, mask: as :func:`adamw`.
      axes: the axes that a block runs along: "inputs" for all but the last (a block is an output of a Flax kernel, and
        an element of a vector), None for whole leaves, or whole numbers; `()` is Adam.
      blocks: other axes for the leaves that a glob pattern over names matches; the first match wins.

    State: mu: float32[params], nu: one number a block; 4 bytes a parameter.
    References: Zhang et al., ICLR 2025, Algorithm 1 (arXiv:2406.16793).
    """

    def averaged(axes: Axes) -> Transformation:
        nu = moments.ema(b2, 2, of=pooled(axes), debias=True)
        return links.scale_by_moments(rules.ratio(eps), mu=moments.ema(b1, debias=True), nu=nu)

    own = {pattern: averaged(over) for pattern, over in (blocks or {}).items()}
    average = select.by_pattern(own, averaged(axes)) if own else averaged(axes)
    return chain(average, links.descend(learning_rate, weight_decay, mask))
