"""Muon: orthogonal steps for matrices, Adam for the rest."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.ground.tree import Mask
from adamx.parts import links, matrix, moments, rules, select


@method
def muon(
    learning_rate: Scalar,
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    mask: Mask | None = None,
    *,
    matrices: Mask | None = None,
    adam_learning_rate: Scalar | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.999,
    adam_eps: Scalar = 1e-8,
    adam_weight_decay: Scalar = 0.0,
) -> Transformation:
    r"""Momentum with all its singular values set to about one, and AdamW where there are none.

    As :func:`adam`, except for matrices (changed lines marked; B_t as :func:`nadam`'s numerator):

      > B_t = beta m_t / (1 - beta^(t+1)) + (1 - beta) g_t / (1 - beta^t)
      > O_t = NewtonSchulz(B_t), about U V^T of B_t = U S V^T
      > u_t = -lr (sqrt(max(1, outputs / inputs)) O_t + weight_decay p)

    Use it on the hidden matrices of a network; it fails on embeddings and output layers, whose rows are used one by
    one: name the others with `matrices`. Conventions: PyTorch's and the author's momentum is not corrected, their
    matrices are (outputs, inputs), and they iterate in bfloat16.

    Args:
      learning_rate: the length of every singular direction's step; 0.02 is usual.
      ns_steps: Newton-Schulz iterations.
      beta: share of the momentum kept a step, in [0, 1).
      eps: added to the norm before the iteration.
      weight_decay, mask: as :func:`adamw`, for matrices.
      matrices: which leaves are treated so, of those with two axes: patterns, a tree or a function; all when left out.
      adam_learning_rate, ...: of :func:`adamw` for the rest; the first is learning_rate when left out.

    State: mu: float32[params]; nu for the rest: 4 bytes a parameter of a matrix, 8 of others.
    References: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
    """
    look = rules.weighted(*rules.nadam_weights(beta))
    orthogonal = chain(
        links.scale_by_moments(look, mu=moments.ema(beta)),
        matrix.orthogonalise(ns_steps, eps=eps),
        matrix.scale_by_shape(),
    )
    average = links.scale_by_moments(
        rules.ratio(adam_eps), mu=moments.ema(adam_b1, debias=True), nu=moments.ema(adam_b2, 2, debias=True)
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    return select.by_leaf(
        matrix.matrices(matrices),
        chain(orthogonal, links.descend(learning_rate, weight_decay, mask)),
        chain(average, links.descend(rate, adam_weight_decay)),
    )
