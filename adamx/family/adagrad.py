"""AdaGrad: the gradient over the root of all squared gradients so far."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def adagrad(
    learning_rate: Scalar, initial_accumulator_value: Scalar = 0.1, eps: Scalar = 1e-7, *, eps_in_sqrt: bool = True
) -> Transformation:
    r"""AdaGrad.

        n_t = n_{t-1} + g_t^2,  n_0 = initial_accumulator_value
        u_t = -lr g_t / sqrt(n_t + eps)

    Use it for sparse features and convex problems; it fails in long training, since its steps only shrink.

    Args:
      learning_rate: step size, in parameter units; a number, a float32 scalar or a schedule of the 0-based step.
      initial_accumulator_value: n_0, in squared gradient units.
      eps: in squared gradient units inside the root, in gradient units beside it.
      eps_in_sqrt: False puts it beside the root, as PyTorch and the paper have it.

    State: nu: float32[params]; 4 bytes a parameter.

    Raises:
      ValueError: if eps or initial_accumulator_value is a negative number.
    Differs from PyTorch: that is `adagrad(lr, 0.0, 1e-10, eps_in_sqrt=False)`, its lr_decay the schedule
    `lambda n: lr / (1 + n * lr_decay)`.
    References: Duchi, Hazan & Singer, JMLR 2011.
    """
    rule = rules.normalise(eps_root=eps) if eps_in_sqrt else rules.normalise(eps)
    nu = moments.trace(1.0, power=2, start=initial_accumulator_value)
    return chain(links.scale_by_moments(rule, nu=nu), links.scale_by_lr(learning_rate))
