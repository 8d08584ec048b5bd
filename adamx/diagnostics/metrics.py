"""What is recorded: every statistic's name, formula and what it reads for pure noise. No arrays, no JAX.

Of one leaf with n numbers, in float32: g0 is the gradient as it came, g what enters the moments (behind clips); m, v
the first and second moment after this step, exact, m', v' before it, and mS, vS after it as they are stored; mh, vh
corrected for bias; a the direction that reaches the learning rate and weight decay; w the parameter, u the update that
it would take in exact arithmetic, w+ what is stored instead of w + u. Norms are Euclidean; rms(x) = |x| / sqrt(n).
"""

from collections.abc import Mapping
from typing import NamedTuple


class Metric(NamedTuple):
    """A statistic.

    Attributes:
      name: its key in records.
      says: what it is, in a few words.
      formula: in the letters of the module's docstring.
      reference: what it reads where nothing is wrong, or for pure noise; None where there is no such number.
      scale: "log" for magnitudes, "share" for what lies in [0, 1], "cosine" for [-1, 1], "count".
      needs: what the wrapped transformation must have: "" nothing, "mu", "nu", "codec" or "rounding".
    """

    name: str
    says: str
    formula: str
    reference: float | None
    scale: str
    needs: str = ""


_LEAF = [
    Metric("grad_rms", "gradient, root mean square", "rms(g0)", None, "log"),
    Metric("grad_max", "gradient, largest magnitude", "max|g0|", None, "log"),
    Metric("zero_grad", "share of the gradient that is zero", "#{g0 = 0} / n", 0.0, "share"),
    Metric("bad_grad", "numbers of the gradient that are not finite", "#{g0 not finite}", 0.0, "count"),
    Metric("bad_update", "numbers of the update that are not finite", "#{u not finite}", 0.0, "count"),
    Metric("bad_param", "parameters that are not finite", "#{w not finite}", 0.0, "count"),
    Metric("clipped", "what clips leave of the gradient's norm", "|g| / |g0|", 1.0, "share"),
    Metric("param_rms", "parameters, root mean square", "rms(w)", None, "log"),
    Metric("update_ratio", "update's norm over parameters' norm", "|u| / |w|", 1e-3, "log"),
    Metric("update_cosine", "how far the update points down the gradient", "<u, -g0> / (|u| |g0|)", None, "cosine"),
    Metric("decay_share", "weight decay's share of the update", "|lr wd w| / |u|", None, "log"),
    Metric("direction_rms", "direction before the learning rate, root mean square", "rms(a)", None, "log"),
    Metric("saturated", "share of the direction above 0.9", "#{|a| > 0.9} / n", 0.0, "share"),
    Metric(
        "momentum_cosine",
        "whether gradients agree with the mean before them",
        "<m', g> / (|m'| |g|)",
        0.0,
        "cosine",
        "mu",
    ),
    Metric(
        "sign_agreement",
        "share of signs on which gradient and mean before it agree",
        "#{sign m' = sign g} / #{g m' != 0}",
        0.5,
        "share",
        "mu",
    ),
    Metric("signal_to_noise", "mean over root of the second moment", "mean(|mh| / sqrt(vh))", None, "log", "nu"),
    Metric("surprise", "gradient over the second moment with it", "sqrt(mean(g^2 / max(vh, eps^2)))", 1.0, "log", "nu"),
    Metric(
        "surprise_before",
        "gradient over the second moment before it",
        "sqrt(mean(g^2 / max(vh', eps^2)))",
        1.0,
        "log",
        "nu",
    ),
    Metric("coasting", "share where the second moment only decays", "#{g^2 < vh / 10} / n", None, "share", "nu"),
    Metric(
        "eps_half", "share where eps is more than half of the denominator", "#{sqrt(vh) < eps} / n", 0.0, "share", "nu"
    ),
    Metric(
        "eps_tenth",
        "share where eps is more than a tenth of the denominator",
        "#{sqrt(vh) < 10 eps} / n",
        0.0,
        "share",
        "nu",
    ),
    Metric(
        "nu_zero",
        "share of second moments stored as zero although gradients were not",
        "#{vS = 0, v != 0} / n",
        0.0,
        "share",
        "nu",
    ),
    Metric(
        "nu_stale",
        "share of second moments that should have changed and did not",
        "#{vS = v'S, v != v'} / #{v != v'}",
        0.0,
        "share",
        "nu",
    ),
    Metric(
        "mu_stale",
        "share of first moments that should have changed and did not",
        "#{mS = m'S, m != m'} / #{m != m'}",
        0.0,
        "share",
        "mu",
    ),
    Metric("mu_error", "first moment, error of storing it", "|mS - m| / |m|", 0.0, "log", "codec"),
    Metric(
        "nu_error",
        "root of the second moment, error of storing it",
        "|sqrt(vS) - sqrt(v)| / |sqrt(v)|",
        0.0,
        "log",
        "codec",
    ),
    Metric(
        "direction_error",
        "direction, error of storing the moments",
        "|q(mS, vS) - q(m, v)| / |q(m, v)|, q = m / (sqrt(v) + eps)",
        0.0,
        "log",
        "codec",
    ),
    Metric(
        "stalled",
        "share of updates after which the parameter is what it was",
        "#{w+ = w, u != 0} / #{u != 0}",
        0.0,
        "share",
        "rounding",
    ),
    Metric("lost", "what rounding takes from the update", "|(w+ - w) - u| / |u|", 0.0, "log", "rounding"),
]

_WHOLE = [
    Metric("loss", "as it was passed to update(..., loss=...)", "loss", None, "log"),
    Metric("grad_norm", "norm of all gradients before clips", "|g0|", None, "log"),
    Metric("clip", "what clips leave of it", "|g| / |g0|", 1.0, "share"),
    Metric("update_norm", "norm of all updates", "|u|", None, "log"),
    Metric("param_norm", "norm of all parameters", "|w|", None, "log"),
    Metric("learning_rate", "as the transformation used it", "lr", None, "log"),
    Metric("loss_score", "loss, deviations from the mean of the last 128 steps", "(loss - mean) / std", 0.0, "score"),
    Metric("grad_score", "logarithm of the gradient's norm, the same", "(ln|g0| - mean) / std", 0.0, "score"),
]

LEAF: Mapping[str, Metric] = {m.name: m for m in _LEAF}
WHOLE: Mapping[str, Metric] = {m.name: m for m in _WHOLE}
PULSE = ("loss", "grad_norm", "loss_score", "grad_score")  # recorded every step

# Distributions are counts below fixed edges, so that no pass looks for a minimum: numbers up to each edge, cumulative.
EDGES: Mapping[str, tuple[float, ...]] = {
    "log2_grad": tuple(float(x) for x in range(-48, 16, 4)),
    "log2_root_nu": tuple(float(x) for x in range(-48, 16, 4)),
    "direction": tuple(round(-1.2 + 0.16 * i, 2) for i in range(16)),
    "log2_ratio": tuple(float(x) for x in range(-26, 6, 2)),
}
