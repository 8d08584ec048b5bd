"""SGD: the gradient, or its decaying sum."""

from typing import Any

from adamx.ground.hyper import Scalar, method, spelled_otherwise
from adamx.ground.transform import Transformation, chain
from adamx.parts import moments, rules
from adamx.parts.links import scale_by_lr, scale_by_moments


@method
def sgd(
    learning_rate: Scalar,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    dampening: Scalar = 0.0,
) -> Transformation:
    r"""Stochastic gradient descent, plain, with momentum, or with Nesterov's.

        s_t = momentum s_{t-1} + (1 - dampening) g_t     (the first gradient undamped)
        u_t = -lr g_t,   -lr s_t   or   -lr (g_t + momentum s_t)

    Use it for convolutional networks with tuned schedules; it fails where leaves differ in gradient scale, as
    transformers' do.

    Args:
      learning_rate: step size, in parameter per gradient units; a number, a float32 scalar or a schedule of the
        0-based step.
      momentum: share of s kept a step, at least 0; plain SGD without state when left out.
      nesterov: look one step ahead of the momentum.
      accumulator_dtype: not taken; write `store_state(sgd(...), trace=dtype)`.
      dampening: PyTorch's; taken off every gradient but the first.

    State: with momentum, trace: float32[params]; 4 bytes a parameter.

    Raises:
      ValueError: if momentum is a negative number, nesterov or dampening come without momentum, or with each other.
    Differs from optax: which ignores nesterov without momentum.
    References: Polyak 1964; Sutskever, Martens, Dahl & Hinton, ICML 2013.
    """
    spelled_otherwise("sgd", "accumulator_dtype", accumulator_dtype, "store_state(sgd(...), trace=dtype)")
    damped = isinstance(dampening, float) and dampening != 0
    if momentum is None:
        if nesterov or damped:
            raise ValueError(f"nesterov={nesterov} and dampening={dampening} need a momentum, as in sgd(lr, 0.9).")
        return scale_by_lr(learning_rate)
    if nesterov and damped:
        raise ValueError(f"nesterov takes no dampening, but dampening is {dampening}.")
    trace = moments.trace(momentum, dampening=dampening)
    rule = rules.nesterov(momentum) if nesterov else None
    return chain(scale_by_moments(rule, trace=trace), scale_by_lr(learning_rate))
