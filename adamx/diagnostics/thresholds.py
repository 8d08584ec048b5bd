"""The doctor's numbers and words: every number that it compares with, where it is from, and what a finding means.

"own" is ours: chosen so that runs which learn stay silent and runs which were broken on purpose do not. The healthy
ones were a convolutional network on digits, character models in float32 and in bfloat16 with a residue, 8- and 4-bit
moments, regressions that end at float32's floor, perceptrons that fit every training image, an autoencoder, residual
blocks and low-rank adapters that start at zero, and sparse embeddings; each seen at every 1, 5, 10 and 20 steps and at
several times before its end. What such a run has read at most, or at least, is called "seen healthy" below.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from adamx.diagnostics import stats


class Threshold(NamedTuple):
    """A number that a rule compares with.

    Attributes:
      name: as it is spelled here.
      value: the number.
      unit: of what.
      source: a citation, or "own" and why it is this number.
    """

    name: str
    value: float
    unit: str
    source: str


class Words(NamedTuple):
    """What there is to say of a finding, whatever the run.

    Attributes:
      summary: what the rule looks for, in a line.
      thresholds: the numbers that it compares with.
      cause: why that happens.
      advice: one change to try.
      does_not_mean: what it must not be taken for.
      source: where it is from.
    """

    summary: str
    thresholds: tuple[Threshold, ...]
    cause: str
    advice: str
    does_not_mean: str
    source: str


_MADE: dict[str, Threshold] = {}


def _number(name: str, value: float, unit: str, source: str) -> Threshold:
    _MADE[name] = Threshold(name, value, unit, source)
    return _MADE[name]


STABLE_ADAMW = "Wortsman et al., Stable and low-precision training, NeurIPS 2023 (arXiv:2304.13013)"
PROXIES = (
    "Wortsman et al., Small-scale proxies for large-scale Transformer training instabilities, ICLR 2024"
    " (arXiv:2309.14322)"
)
EXPONENTS = "Everett et al., Scaling exponents across parameterizations and optimizers, ICML 2024 (arXiv:2407.05872)"
MOLYBOG = "Molybog et al., A theory on Adam instability, 2023 (arXiv:2304.09871)"
BAI = "Bai et al., Adaptive preconditioners trigger loss spikes in Adam, 2025 (arXiv:2506.04805)"
KARPATHY = "Karpathy, CS231n notes, Neural networks 3: ratio of weights to updates"
WINDOW = "the defaults of OLMo-core, MaxText and Levanter: 128 steps, 6 deviations"
ARITHMETIC = "exact: rounding to nearest keeps a number whose change is below half the distance to its neighbour"

# When a rule may speak at all

PERSIST = _number("PERSIST", 3, "records in a row", "own; one record is one batch")
PERSIST_LONG = _number(
    "PERSIST_LONG", 10, "records in a row", "own; for statistics whose noise keeps its sign for several records"
)
WARM_UP = _number("WARM_UP", 0.1, "share of the steps so far", "own; the usual length of a warm-up")
PEAK = _number(
    "PEAK", 0.99, "of the highest learning rate", "own; until it is first reached, the learning rate still rises"
)
LOW_RATE = _number(
    "LOW_RATE",
    0.1,
    "of the highest learning rate",
    "own; below it, steps are meant to be small, at the end of a cosine",
)
CONVERGED_LOSS = _number(
    "CONVERGED_LOSS",
    1e-3,
    "of the first loss",
    "own; below it little is left to learn, and gradients vanish because training is done. The loss of a language model"
    " stays above it for ever",
)
CONVERGED_GRAD = _number(
    "CONVERGED_GRAD", 1e-4, "of the first gradient norm", "own; of a quadratic loss, it is a loss of 1e-8 of the first"
)
PROGRESS = _number(
    "PROGRESS",
    0.5,
    "of the loss before, or of the gradient's square where the loss has not risen",
    "own; what halves within a rule's window needs no doctor, and a loss that nears its floor halves its gradient only",
)
RELAPSE = _number(
    "RELAPSE",
    0.1,
    "of the loss, above what it was",
    "own; a converged loss that has risen by more is no longer that. Seen healthy: 0.001, where the gradient came back"
    " from 1e-6 to 0.03 of the first since the second moment had decayed",
)
LONG_RUN = _number("LONG_RUN", 1 / 3, "share of the steps so far", "own; how long a stretch of a short run must be")
FEWEST_STEPS = _number("FEWEST_STEPS", 100, "steps", "own; what is shorter may pass by itself")

# Every step

SPIKE_SIGMA = _number(
    "SPIKE_SIGMA", 6.0, "deviations above the mean of 128 steps, where watch(spike=...) is not another", WINDOW
)
SPIKE_BEFORE = _number("SPIKE_BEFORE", 128, "steps that a new one is compared with", WINDOW)
SPIKE_LASTS = _number(
    "SPIKE_LASTS",
    8,
    "steps",
    "own: the loss's median over so many steps must stay above the mean, or it was one hard batch. Seen healthy: 22"
    " deviations for one step, by a perceptron that had fitted nearly all images",
)
SPIKE_STAYS = _number("SPIKE_STAYS", 3.0, "deviations above the mean of 128 steps", "own; half of SPIKE_SIGMA")
SPIKE_RISE = _number(
    "SPIKE_RISE",
    0.05,
    "of what had been learned, first loss less mean",
    "own; deviations are tiny where a loss is nearly constant",
)
SPIKE_GRAD = _number(
    "SPIKE_GRAD",
    10.0,
    "times the mean gradient norm",
    "own; only where no loss was passed. Gradient norms change their level in healthy runs: 7.3 deviations seen",
)
SPIKE_SHARE = _number("SPIKE_SHARE", 1e-3, "of the last 10000 steps", "own; the window is OLMo-core's spike score")
SPIKE_WINDOW = _number("SPIKE_WINDOW", 10000, "steps", "OLMo-core's spike score")
SPIKE_SCORED = _number("SPIKE_SCORED", 1000, "steps", "own; fewer say nothing of a share of a thousandth")
SPIKE_TIMES = _number("SPIKE_TIMES", 3, "spikes", "own; what happened twice is no habit")

RISEN_TIMES = _number("RISEN_TIMES", 3.0, "times the first loss", "own; runs that learn stay below their first loss")
RISEN_STEPS = _number("RISEN_STEPS", 8, "steps whose median stands for one", "own; as long as a spike must last")
RISEN_SCATTER = _number(
    "RISEN_SCATTER",
    4.0,
    "deviations of the loss's logarithm from step to step, besides",
    "own; the first batch may be a lucky one. Seen healthy, with batches of one: a median 28 times the first loss",
)

STALE_SURPRISE = _number(
    "STALE_SURPRISE",
    3.0,
    "times the second moment before it",
    f"effect: {STABLE_ADAMW}; number own",
)
STALE_QUANTILE = _number("STALE_QUANTILE", 0.99, "quantile of the leaf's earlier records", "own")
STALE_BEFORE = _number(
    "STALE_BEFORE",
    16,
    "steps before a spike",
    f"spikes come 1 to 8 steps after: {STABLE_ADAMW}; twice that, own, since records have gaps. Without a spike it says"
    " nothing: units that wake up read 200 in healthy runs, and Adam's step is bounded",
)

# Second moments

COASTING_SHARE = _number(
    "COASTING_SHARE",
    0.5,
    f"of a leaf's numbers, whose squared gradient is below {stats.COASTING:g} of the second moment",
    f"effect: {BAI}; numbers own",
)
COASTING_SURPRISE = _number(
    "COASTING_SURPRISE",
    0.1,
    "root mean square of gradient over second moment",
    "own: steps are ten times too small. Gradients with heavy tails coast for most numbers at any time, but their mean"
    " square is v. Seen healthy for so long: 0.17, by a full batch whose gradient shrinks with its loss",
)
COASTING_LEAVES = _number(
    "COASTING_LEAVES",
    0.05,
    "of all parameters",
    "own; seen healthy: 0.03, the last layer of a perceptron on a whole batch, which had found its mean",
)
EPS_SHARE = _number(
    "EPS_SHARE",
    0.5,
    "of the numbers that have a gradient",
    f"effect: {PROXIES}; {EXPONENTS}; number own",
)
EPS_VANISHED = _number(
    "EPS_VANISHED",
    0.01,
    "of the leaf's first gradients",
    "own; gradients that fall below any epsilon at the end of a run have converged",
)
EPS_FIRST_SHARE = _number("EPS_FIRST_SHARE", 0.9, "of the numbers that have a gradient", "own; nearly all")
MOST_LEAVES = _number("MOST_LEAVES", 0.5, "of all parameters", "own; a setting that is wrong for most")
EPS_LARGE = _number(
    "EPS_LARGE",
    1e-3,
    "gradient",
    "own; above Yogi's default of 1e-3, the largest default of a method for deep networks that we know",
)
FROZEN_NEVER = _number(
    "FROZEN_NEVER",
    0.5,
    "of the codec's smallest step",
    f"{ARITHMETIC}: 2^-9 of a number just below a power of two in bfloat16, 2^-12 in float16, 2^-25 in float32",
)
FROZEN_SOME = _number(
    "FROZEN_SOME",
    1.0,
    "of the codec's smallest step",
    f"{ARITHMETIC}: 2^-8 of a number just above a power of two in bfloat16, so that every decay ends there",
)
FROZEN_STALE = _number(
    "FROZEN_STALE",
    0.5,
    "of the second moments that should have changed",
    "own; bfloat16 to nearest reads 0.57 with b2 = 0.999, and 0.03 with 0.95",
)
FROZEN_STALE_ERROR = _number("FROZEN_STALE_ERROR", 0.9, "of the same", "own; nearly all")
UNDERFLOW_SHARE = _number("UNDERFLOW_SHARE", 1e-3, "of a leaf's numbers", "own")
CODEC_ERROR = _number(
    "CODEC_ERROR",
    0.25,
    "of the direction",
    "own; seen healthy: 0.03 with int8 and uint8, 0.17 with int4 and uint4, which learn as well as float32",
)
CODEC_ERROR_ERROR = _number("CODEC_ERROR_ERROR", 0.5, "of the direction", "own; half of each step is rounding")

# Directions and updates

RATIO_HIGH = _number(
    "RATIO_HIGH",
    0.025,
    "of the parameters' norm a step",
    f"1e-3 is usual: {KARPATHY}; the factor of 25 is own. Seen healthy: 0.019 in single leaves, 0.014 in most; a"
    " character model's learning rate 100 times too high reads 0.026 to 0.034, 1000 times 0.1",
)
RATIO_MOST = _number(
    "RATIO_MOST",
    2 / 3,
    "of the matrices",
    "own; a matrix that starts at zero is all update at first, and of a low-rank pair one half starts so",
)
RATIO_LOW = _number(
    "RATIO_LOW", 1e-4, "of the parameters' norm a step", f"10^-3 is usual: {KARPATHY}; the tenth is own"
)
RATIO_AGREES = _number(
    "RATIO_AGREES",
    0.5,
    "cosine of gradient and mean",
    "own; small steps are right where gradients disagree, and too small where they agree step after step. A learning"
    " rate 2000 times too low reads 0.95, most healthy runs 0",
)
ADAM_LEAST = _number(
    "ADAM_LEAST",
    0.5,
    "root mean square of the direction over the mean of first moment over root of the second",
    "own; 1 or more for any distribution, less what eps takes",
)
ADAM_MOST = _number("ADAM_MOST", 4.0, "the same", "own; 1.25 for normal numbers, more for heavy tails")
DIRECTION_HIGH = _number(
    "DIRECTION_HIGH",
    1.0,
    "root mean square",
    "exact for gradients that keep their size, in one direction even: the mean is then at most the root of the mean"
    " square. The doubling of Su's 0.2 to 0.3 is what full batches read at first",
)
DIRECTION_LOW = _number(
    "DIRECTION_LOW",
    0.05,
    "of sqrt((1 - b1) / (1 + b1)), what noise reads",
    "noise: Su, Why is Adam's update RMS 0.2, kexue.fm 2025; the twentieth is own. Gradients that change their sign"
    " every step read 0.23 of it, perceptrons that have fitted most images 0.25",
)
SATURATED_SHARE = _number(
    "SATURATED_SHARE",
    0.1,
    f"of a leaf's numbers, whose direction is beyond {stats.SATURATED:g}",
    f"effect: {MOLYBOG}; numbers own. Seen healthy: 0.05; noise reads 1e-4",
)
SATURATED_COSINE = _number("SATURATED_COSINE", 0.25, "of sqrt(1 - b1^2), what noise reads", f"{MOLYBOG}; number own")
FIGHT_COSINE = _number(
    "FIGHT_COSINE",
    -0.3,
    "median cosine over the matrices",
    f"effect: curvature above 2 / learning rate, {BAI}; number own, and of the median since single leaves read -0.6 in"
    " healthy runs",
)
FIGHT_RISE = _number(
    "FIGHT_RISE",
    2.0,
    "times the lowest loss before",
    "own; below it, it is a note: runs learn at the edge of stability, and read -0.4 for a thousand steps",
)
IMBALANCE_RATIO = _number("IMBALANCE_RATIO", 30.0, "times, largest over smallest of a role", "own")
IMBALANCE_LEAVES = _number("IMBALANCE_LEAVES", 3, "leaves of a role", "own; two leaves have no depth")

# Precision of parameters

STALL_SHARE = _number(
    "STALL_SHARE",
    0.5,
    "of the updates",
    "own; a bfloat16 parameter keeps its value where the update is below its 2^-9. Seen healthy: 0.27 with a byte"
    " beside",
)
STALL_SHARE_ERROR = _number("STALL_SHARE_ERROR", 0.9, "of the updates", "own; nearly all")
STALL_STEP = _number(
    "STALL_STEP",
    0.5,
    "of the parameter's smallest step",
    f"{ARITHMETIC}; parameters are taken as 1 / sqrt(their longer fan), updates as noise makes them",
)

# Clips, dead leaves, decay

CLIP_RECORDS = _number("CLIP_RECORDS", 128, "records", "own; the window of spikes")
CLIP_SHARE = _number(
    "CLIP_SHARE", 0.98, "of those records", "own; seen healthy: 0.92 in the first 128 steps of the digits"
)
CLIP_EXACT = _number("CLIP_EXACT", 1 - 1e-5, "of the norm", "own; a quotient of two sums of float32, rounded")
CLIP_FACTOR = _number("CLIP_FACTOR", 0.5, "median of what the clip leaves", "own; less is hardly a change")
CLIP_REACH = _number(
    "CLIP_REACH", 0.1, "of the clip's norm", "own; a clip ten times above the largest gradient ever seen is none"
)
DEAD_RECORDS = _number("DEAD_RECORDS", 10, "records in a row", "own")
DECAY_SHARE = _number("DECAY_SHARE", 0.9, "of the update", "own; what momentum leaves behind is gone by then")
DECAY_LEAST = _number("DECAY_LEAST", 1e-3, "weight decay", "own; above the defaults of adamw, 1e-4, and lion, 1e-3")
SPARSE_SHARE = _number("SPARSE_SHARE", 0.99, "of a leaf's gradient is zero", "own")

THRESHOLDS: Mapping[str, Threshold] = MappingProxyType(_MADE)


# Words

_PERSIST, _LIVE = (PERSIST,), (WARM_UP, PEAK, LOW_RATE)
_UNFINISHED = (CONVERGED_LOSS, CONVERGED_GRAD, RELAPSE)
_IDLE = (*_UNFINISHED, PROGRESS, LONG_RUN, FEWEST_STEPS)
_SPIKES = (SPIKE_SIGMA, SPIKE_BEFORE, SPIKE_LASTS, SPIKE_STAYS, SPIKE_RISE, SPIKE_GRAD, CONVERGED_LOSS)

_WORDS = {
    "NONFINITE": Words(
        summary="infinity or NaN in gradients, updates, parameters or the loss",
        thresholds=(),
        cause=(
            "a number overflowed, or something was divided by zero or had its logarithm or root taken; one"
            " such number spreads to all parameters in a step or two."
        ),
        advice="wrap the method in skip_nonfinite(...), and look at the named leaves in the record before this step.",
        does_not_mean=(
            "that these leaves caused it: backwards, every leaf below the cause is reached in the same step."
            " A warning is of gradients alone, which a guard kept out."
        ),
        source="own; exact",
    ),
    "SPIKE": Words(
        summary=(
            "a loss, or a gradient norm where no loss is known, that jumps far above its last 128 steps and stays there"
        ),
        thresholds=_SPIKES,
        cause=(
            "a step was too long for the curvature it met, often after a second moment had become too small,"
            " or a run of bad batches came."
        ),
        advice=(
            "see whether STALE_V names the leaves that moved first; if not, look at the batches of the steps before it."
        ),
        does_not_mean="that the run is lost: most spikes heal. A single hard batch is none.",
        source=WINDOW,
    ),
    "SPIKE_SCORE": Words(
        summary="spikes that keep coming",
        thresholds=(*_SPIKES, SPIKE_SHARE, SPIKE_WINDOW, SPIKE_SCORED, SPIKE_TIMES),
        cause="the learning rate is at the edge of what the curvature allows, or data of another kind are mixed in.",
        advice="lower the learning rate by a third, or b2 to 0.95.",
        does_not_mean="that each of them did harm: it counts all steps above the line.",
        source="OLMo-core's spike score; " + WINDOW,
    ),
    "LOSS_ROSE": Words(
        summary="a loss that stays far above the one it began with",
        thresholds=(RISEN_TIMES, RISEN_STEPS, RISEN_SCATTER),
        cause="the steps were too long for the curvature: parameters went where the network is worse than untrained.",
        advice="lower the learning rate tenfold, or let it rise slowly over the first hundreds of steps.",
        does_not_mean="that the run cannot recover; what it learns from there is mostly less.",
        source="own; the sign of divergence that learning rate range tests stop at (Smith, Cyclical learning rates"
        " for training neural networks, WACV 2017, arXiv:1506.01186)",
    ),
    "STALE_V": Words(
        summary="gradients far above what the second moment expected, shortly before a spike",
        thresholds=(STALE_SURPRISE, STALE_QUANTILE, STALE_BEFORE, *_SPIKES),
        cause=(
            "the second moment had adapted to smaller gradients and could not grow as fast as they did, so"
            " that the step was too long where they grew."
        ),
        advice="lower b2 to between 0.95 and 0.99, or clip updates (stable_adamw).",
        does_not_mean="that large surprise is bad in itself: numbers that wake up read it in every healthy run.",
        source=STABLE_ADAMW,
    ),
    "V_COASTING": Words(
        summary="gradients so much smaller than the second moment that it only decays, for as long as it remembers",
        thresholds=(COASTING_SHARE, COASTING_SURPRISE, COASTING_LEAVES, MOST_LEAVES, PERSIST_LONG, *_IDLE),
        cause=(
            "the gradients shrank, and the second moment still remembers the larger ones: steps are too small"
            " until it has decayed, and a spike may follow when it has."
        ),
        advice="lower b2, so that 1 / (1 - b2) steps are fewer than the gradients took to shrink.",
        does_not_mean=(
            "that training has converged: it is silent then, while the loss or the gradient still halves, and behind"
            " LOSS_ROSE, whose gradients any later ones are smaller than."
        ),
        source=BAI,
    ),
    "EPS_DOMINANT": Words(
        summary="eps is more than a tenth of the denominator for most of a leaf",
        thresholds=(EPS_SHARE, EPS_VANISHED, EPS_FIRST_SHARE, MOST_LEAVES, *_PERSIST, *_LIVE, *_UNFINISHED),
        cause=(
            "the gradients of these leaves are as small as eps, so that their steps shrink with them, as in"
            " plain gradient descent."
        ),
        advice="lower eps tenfold, or use adam_atan2, which has none.",
        does_not_mean=(
            "that eps is wrong for the run: of single leaves it may be their scale. A lower eps has provoked"
            " spikes too."
        ),
        source=f"{PROXIES}; {EXPONENTS}",
    ),
    "EPS_LARGE": Words(
        summary=(
            "an eps above the gradients of most parameters, from the first records on; or larger than any"
            " method's default"
        ),
        thresholds=(EPS_LARGE, EPS_FIRST_SHARE, MOST_LEAVES, *_PERSIST),
        cause=(
            "eps is meant to avoid a division by zero; above the gradients it replaces the second moment, and"
            " the method is momentum with a learning rate of learning_rate / eps."
        ),
        advice="set eps to 1e-8.",
        does_not_mean="that a large eps is never meant: some methods for image models were tuned with 0.1 and 1.",
        source=f"own; {PROXIES}",
    ),
    "UPDATE_RATIO": Words(
        summary="updates of matrices that are far too large or too small for the parameters they change",
        thresholds=(RATIO_HIGH, RATIO_MOST, RATIO_LOW, RATIO_AGREES, *_PERSIST, PERSIST_LONG, *_LIVE, *_IDLE),
        cause="the learning rate is too high for these leaves: in tens of steps they are made of updates alone.",
        advice="lower the learning rate tenfold.",
        does_not_mean=(
            "that 1e-3 is a law: small leaves, norms and what starts at zero are elsewhere, and are not judged."
        ),
        source=KARPATHY,
    ),
    "DIRECTION_RMS": Words(
        summary="a direction much longer or shorter than first and second moment can make of steady gradients",
        thresholds=(ADAM_LEAST, ADAM_MOST, DIRECTION_HIGH, DIRECTION_LOW, *_PERSIST, PERSIST_LONG, *_LIVE, *_IDLE),
        cause="gradients grow faster than the second moment follows.",
        advice="warm up for longer, or lower b2.",
        does_not_mean="that noise is expected exactly: gradients that agree read up to 1, and that is fine.",
        source="Su, Why is Adam's update RMS 0.2, kexue.fm 2025; bounds own",
    ),
    "BIMODAL": Words(
        summary="directions near +1 and -1 that do not point down the gradient",
        thresholds=(ADAM_LEAST, ADAM_MOST, SATURATED_SHARE, SATURATED_COSINE, *_PERSIST, *_LIVE),
        cause=(
            "many parameters move at full speed in ways that the present gradient has nothing to do with: the"
            " state from which large runs diverged."
        ),
        advice="go back to a checkpoint, lower the learning rate and skip the batches in between.",
        does_not_mean="that saturation is bad: the first steps are all +1 and -1, and do point down the gradient.",
        source=MOLYBOG,
    ),
    "MOMENTUM_FIGHT": Words(
        summary="gradients that point against the mean of those before them, in most matrices, while the loss stalls",
        thresholds=(FIGHT_COSINE, FIGHT_RISE, PERSIST_LONG, *_LIVE, *_IDLE),
        cause="steps jump over the valley and back: the curvature along them is above what the learning rate allows.",
        advice="lower the learning rate by half.",
        does_not_mean=(
            "that the loss will rise: training at the edge of stability may go on so, hence a note. It is a warning"
            " where the loss does rise."
        ),
        source=BAI,
    ),
    "BF16_STALL": Words(
        summary="updates that rounding takes back whole",
        thresholds=(STALL_SHARE, STALL_SHARE_ERROR, STALL_STEP, *_PERSIST, *_LIVE, *_UNFINISHED),
        cause=(
            "a parameter of 8 bits keeps its value where the update is below 2^-9 to 2^-8 of it (11 bits of"
            " float16: 2^-12 to 2^-11)."
        ),
        advice=(
            "keep what rounding takes: store_params(tx, codecs.split8()), or round stochastically with"
            " codecs.stochastic()."
        ),
        does_not_mean="that nothing is learned: what is near zero still moves.",
        source=(
            "Zamirai et al., Revisiting BFloat16 training, 2020 (arXiv:2010.06192), and pytorch/ao pull request 1124"
            " for the effect; shares own"
        ),
    ),
    "V_FROZEN": Words(
        summary="a second moment that its storage cannot change",
        thresholds=(FROZEN_NEVER, FROZEN_SOME, FROZEN_STALE, FROZEN_STALE_ERROR, *_PERSIST, *_LIVE, *_UNFINISHED),
        cause=(
            "a step changes it by less than rounding to nearest lets through, so that it never falls after"
            " gradients have shrunk, and steps stay too small."
        ),
        advice="keep it as codecs.bfloat16(stochastic=True), by blocks or in float32, or lower b2 to 0.99.",
        does_not_mean="that codecs by blocks are affected: their numbers fall with their block's largest.",
        source="exact; Topollai & Choromanska, 2026 (arXiv:2603.16731) on the staleness of stored moments",
    ),
    "V_UNDERFLOW": Words(
        summary="second moments stored as zero that are not",
        thresholds=(UNDERFLOW_SHARE, *_PERSIST),
        cause=(
            "squares of small gradients are below the least number of their storage; eps alone divides there,"
            " and steps are of any length."
        ),
        advice=(
            "keep the second moment as codecs.uint8(), which codes its root and has no zero, or in bfloat16 or float32."
        ),
        does_not_mean="that gradients vanish: it counts only numbers that are above zero before they are stored.",
        source="own; Li, Chen & Zhu, NeurIPS 2023, section 4.1 (arXiv:2309.01507) for the effect",
    ),
    "QERR": Words(
        summary="moments stored so coarsely that the direction changes",
        thresholds=(CODEC_ERROR, CODEC_ERROR_ERROR, *_PERSIST, *_LIVE, *_UNFINISHED),
        cause="numbers of very different size share a block, and the small ones are rounded by much of themselves.",
        advice="take a smaller block or more bits, or keep these leaves in float32: store_state(..., keep='*name*').",
        does_not_mean="that training suffers by as much: errors of independent signs average out over steps.",
        source="own",
    ),
    "CLIP_ALWAYS": Words(
        summary="a clip that halves nearly every gradient",
        thresholds=(CLIP_RECORDS, CLIP_SHARE, CLIP_EXACT, CLIP_FACTOR),
        cause=(
            "the clip's norm is below what gradients usually have: it does not guard, it makes all gradients"
            " equally long."
        ),
        advice="raise the clip to the 90th percentile of the gradient's norm.",
        does_not_mean="that steps are too small: Adam divides by the second moment of what the clip leaves.",
        source="own",
    ),
    "CLIP_NEVER": Words(
        summary="a clip far above every gradient",
        thresholds=(CLIP_RECORDS, CLIP_EXACT, CLIP_REACH),
        cause="the clip's norm is ten times the largest gradient's or more: a spike would pass it.",
        advice="lower the clip to a few times the usual norm.",
        does_not_mean="that something went wrong.",
        source="own",
    ),
    "DEAD_LEAF": Words(
        summary="leaves that have had no gradient for long",
        thresholds=(DEAD_RECORDS, FEWEST_STEPS),
        cause=(
            "nothing that the loss depends on uses them: they are not connected, behind a stop_gradient, or"
            " all their units are dead."
        ),
        advice="connect them, or leave them out of what is trained (optax.masked), which also saves their state.",
        does_not_mean="that a small gradient is meant: every number was exactly zero.",
        source="own",
    ),
    "DECAY_ONLY": Words(
        summary="leaves that have had no gradient for long and shrink by weight decay",
        thresholds=(DEAD_RECORDS, FEWEST_STEPS, DECAY_SHARE),
        cause="they are frozen for the loss but not for the optimiser, which takes them to zero.",
        advice="leave them out of the weight decay: mask=... of the method.",
        does_not_mean="that decay is too strong elsewhere.",
        source="own",
    ),
    "SPARSE_LEAF": Words(
        summary="matrices of whose gradient nearly all is zero in every record",
        thresholds=(SPARSE_SHARE, PERSIST_LONG, FEWEST_STEPS),
        cause=(
            "an embedding of which each batch uses few rows: momentum and decay move the others too, and"
            " their second moment forgets them."
        ),
        advice="train it with a lower b2, or as a group without momentum.",
        does_not_mean="that something is broken: it is what large vocabularies look like.",
        source="own",
    ),
    "IMBALANCE": Words(
        summary="leaves of one role whose updates differ much over depth",
        thresholds=(IMBALANCE_RATIO, IMBALANCE_LEAVES, PERSIST_LONG, *_LIVE, *_UNFINISHED),
        cause=(
            "one learning rate serves layers whose parameters are of very different size: initial values that"
            " grow or shrink with depth, or a layer that decay has emptied."
        ),
        advice="look at the parameters' size over depth, and give the layers that stand out their own learning rate.",
        does_not_mean="that layers must be equal: a factor of three is usual.",
        source="own",
    ),
    "DECAY_ON_NORMS": Words(
        summary="weight decay on biases and the scales of norms",
        thresholds=(DECAY_LEAST,),
        cause="the method decays every leaf where it is given no mask.",
        advice="decay matrices only: mask='*kernel', or whatever their names end in.",
        does_not_mean="that training fails: it is a weak pull on few parameters.",
        source="own; the practice of language models since GPT-3",
    ),
}
WORDS: Mapping[str, Words] = MappingProxyType(_WORDS)
