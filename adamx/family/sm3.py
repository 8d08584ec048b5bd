"""SM3: AdaGrad with one accumulator a row and a column."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def sm3(learning_rate: Scalar, momentum: Scalar = 0.9) -> Transformation:
    r"""AdaGrad whose accumulators are the least of what the rows and columns through an element have seen.

    In place of :func:`adam`'s lines (R and C are largest n of a row and a column, 0 at first):

      > n_t = min(R_{t-1}, C_{t-1}) + g_t^2
      > d_t = g_t / sqrt(n_t + 1e-8)
      > m_t = momentum m_{t-1} + (1 - momentum) d_t
      > u_t = -lr m_t

    Use it where embeddings are too large for AdaGrad's state; it fails in long runs, since its steps only shrink.

    Args:
      learning_rate: step size of the first step, in parameter units.
      momentum: share of m kept a step, in [0, 1).

    State: nu: m + n numbers for an m by n matrix; mu: float32[params]; 4 bytes a parameter.
    References: Anil, Gupta, Koren & Singer, NeurIPS 2019, algorithm SM3-II (arXiv:1901.11150).
    """
    return chain(
        links.scale_by_moments(rules.normalise(eps_root=1e-8), nu=moments.cover()),
        links.scale_by_moments(mu=moments.ema(momentum)),
        links.scale_by_lr(learning_rate),
    )
