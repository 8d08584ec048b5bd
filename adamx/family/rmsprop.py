"""RMSProp: the gradient over the root of its recent mean square."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import moments, rules
from adamx.parts.links import scale_by_lr, scale_by_moments


@method
def rmsprop(
    learning_rate: Scalar,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Transformation:
    r"""RMSProp, plain, centred, with momentum.

        n_t = decay n_{t-1} + (1 - decay) g_t^2,  n_0 = initial_scale
        m_t = decay m_{t-1} + (1 - decay) g_t              (centred; otherwise m_t = 0)
        u_t = -lr g_t / sqrt(n_t - m_t^2 + eps)
        s_t = momentum s_{t-1} + u_t                       (with momentum, the update is s_t)

    Use it for recurrent networks and reinforcement learning; it fails in the first steps, which are up to
    1 / sqrt(1 - decay) times too long, unless bias_correction or initial_scale says otherwise.

    Args:
      learning_rate: step size, in parameter units a step; a number, a float32 scalar or a schedule of the 0-based step.
      decay: share of n and m kept a step, in [0, 1).
      eps: in squared gradient units inside the root, in gradient units beside it.
      initial_scale: n_0, in squared gradient units; 1 is TensorFlow's.
      eps_in_sqrt: False puts eps beside the root, as PyTorch has it.
      centered: subtract the squared mean, so that the root is a standard deviation.
      momentum: share of s kept a step, at least 0; none when left out. It follows the learning rate, as in optax; in
        PyTorch it comes before, which is the same for a constant rate.
      nesterov: look one step ahead of the momentum.
      bias_correction: divide n_t and m_t by 1 - decay^t.

    State: nu, centred mu, with momentum trace: float32[params]; 4 to 12 bytes a parameter.

    Raises:
      ValueError: if a number is outside its range, or nesterov comes without momentum.
    Differs from PyTorch: that is `rmsprop(lr, 0.99, eps_in_sqrt=False)`. Where rounding makes n_t - m_t^2 negative it
    counts as 0 here, and is NaN in optax and PyTorch.
    References: Tieleman & Hinton, lecture 6.5 of Neural Networks for Machine Learning, 2012; centred: Graves 2013,
    equations 38 to 41 (arXiv:1308.0850).
    """
    if nesterov and momentum is None:
        raise ValueError("nesterov=True needs a momentum, as in rmsprop(lr, momentum=0.9, nesterov=True).")
    average = {"mu": moments.ema(decay, debias=bias_correction)} if centered else {}
    average["nu"] = moments.ema(decay, power=2, start=initial_scale, debias=bias_correction)
    rule = rules.normalise(eps_root=eps) if eps_in_sqrt else rules.normalise(eps)
    links = [scale_by_moments(rule, **average), scale_by_lr(learning_rate)]
    if momentum is not None:
        ahead = rules.nesterov(momentum) if nesterov else None
        links.append(scale_by_moments(ahead, trace=moments.trace(momentum)))
    return chain(*links)
