"""AMSGrad: Adam whose denominator never shrinks."""

from typing import Any, Literal

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, moments, rules


@method
def amsgrad(
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    peak_of: Literal["corrected", "raw"] = "corrected",
) -> Transformation:
    r"""Adam whose second moment is replaced by its running maximum.

    As :func:`adam`, except (changed lines marked):

      > x_t = max(x_{t-1}, v̂_t)
      > u_t = -lr m̂_t / (sqrt(x_t + eps_root) + eps)

    Use it where rare, large gradients carry the signal; it fails where gradients shrink over training, since its
    steps shrink with them. Conventions:

    - the default is optax's: the maximum of corrected moments.
    - `peak_of="raw"` is PyTorch's `amsgrad=True`: x_t = max(x_{t-1}, v_t), corrected by the present 1 - b2^t.
    - `bias_correction_mu=False, bias_correction_nu=False` is the paper's Algorithm 2: no corrections.

    Args:
      learning_rate, b1, b2, eps, eps_root, mu_dtype: as :func:`adam`.
      bias_correction_mu: whether m is corrected.
      bias_correction_nu: whether v is corrected.
      peak_of: which second moment the maximum is taken of; nothing to choose without its correction.

    State: mu, nu, nu_peak: float32[params]; 12 bytes a parameter.

    Raises:
      ValueError: as :func:`adam`; if peak_of is neither word.
    References: Reddi, Kale & Kumar, On the Convergence of Adam and Beyond, ICLR 2018, Algorithm 2 (arXiv:1904.09237).
    """
    if peak_of not in ("corrected", "raw"):
        raise ValueError(f"peak_of must be 'corrected' (optax) or 'raw' (PyTorch), but is {peak_of!r}.")
    corrected = bias_correction_nu and peak_of == "corrected"
    after = [links.bias_correct(b2)] if bias_correction_nu and peak_of == "raw" else []
    mu = moments.ema(b1, debias=bias_correction_mu)
    nu = chain(moments.ema(b2, power=2, debias=corrected), moments.peak(), *after)
    return chain(links.scale_by_moments(rules.ratio(eps, eps_root), mu=mu, nu=nu), links.scale_by_lr(learning_rate))
