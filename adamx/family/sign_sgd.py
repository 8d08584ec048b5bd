"""signSGD: the sign of the gradient."""

from adamx.ground.hyper import Scalar, method
from adamx.ground.transform import Transformation, chain
from adamx.parts import links, rules


@method
def sign_sgd(learning_rate: Scalar) -> Transformation:
    r"""SGD of which only the sign is used; no state at all.

    As :func:`adam`, except (changed lines marked; there are no moments):

      > u_t = -lr sign(g_t)

    Use it as the least that a sign method can be, or on gradients that were averaged elsewhere; it fails wherever a
    single batch's signs are noise: :func:`signum` averages first.

    Args:
      learning_rate: step size of every element.

    State: none.
    References: Bernstein et al., ICML 2018, Algorithm 1 (arXiv:1802.04434).
    """
    return chain(links.scale_by_moments(rules.sign, mu=chain()), links.scale_by_lr(learning_rate))
