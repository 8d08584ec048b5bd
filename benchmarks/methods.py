"""Every method on one small network over a grid of learning rates: who learns best, and who forgives a wrong rate.

    python -m benchmarks.methods [--methods adam adamw ...] [--out runs/methods.png] [--short]

Data: scikit-learn's handwritten digits, 1797 images of 8 x 8, split once into 1257 to learn from and 540 to test on.
Network: 64-64-10 with ReLU, He initialisation. Training: ten epochs of batches of 32 (390 steps), every hyper-parameter
but the learning rate at its default. A seed is an initialisation and an order of the batches; five seeds, the same for
all methods and rates. All rates x seeds of a method are one compiled program.

The rate is constant: a decaying one would rescue rates that are too high, and that rescue is what the width measures;
some methods take no schedule besides. The rates are three a decade, 1e-6 to 1e2, the same for all methods, so that the
rows of the picture compare.

What is printed: "accuracy" is the mean over the seeds ± its standard error, at the rate where that mean is highest. The
rate is chosen by the test images themselves, alike for every method: the figures compare methods and estimate nothing
else, and differences of a standard error or two are noise. A run that diverged counts with what its parameters give:
for NaN the share of zeros, 10 %. "Good rates" are the decades of rates, interpolated between those measured, within 1
percentage point of the best. "Bytes" is the state a parameter of a 1000 x 1000 matrix.

Needs the `examples` extra: pip install -e '.[examples]'.
"""

import argparse
import os
import pkgutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

# XLA's CPU back end runs independent operations at once; two batched QR decompositions (SOAP under vmap) then wait for
# each other's threads for ever on a machine with two cores (jax 0.10.2, found here).
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_enable_concurrency_optimized_scheduler=false"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import adamx
import adamx.family

RATES = (*(float(f"{digit}e{k}") for k in range(-6, 2) for digit in (1, 2, 5)), 100.0)
SEEDS, BATCH, EPOCHS, HIDDEN = 5, 32, 10, 64
GOOD = 0.01  # below the best accuracy, and still good

# What methods need besides a rate.
ARGUMENTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "adamc": lambda rate: {"max_lr": rate},
}

SHORT = ("sgd", "adam", "adamw")  # methods of a short run


class Data(NamedTuple):
    """Images as rows of numbers in [0, 1], and their digits."""

    train: Any
    train_labels: Any
    test: Any
    test_labels: Any


class Start(NamedTuple):
    """What a seed decides; with a leading axis, one a seed."""

    params: Any
    batches: Any  # int32[steps, BATCH], indices of training images


class Sweep(NamedTuple):
    """One method's results.

    Attributes:
      rates: increasing.
      accuracy: float[rates, seeds], of the test images.
      state_bytes: a parameter.
      compile_seconds: of tracing and compiling the program.
      run_seconds: of running it.
    """

    rates: np.ndarray
    accuracy: np.ndarray
    state_bytes: float
    compile_seconds: float
    run_seconds: float

    @property
    def mean(self) -> np.ndarray:
        """Over the seeds, at each rate."""
        return self.accuracy.mean(1)

    @property
    def best(self) -> int:
        """The place of the best rate."""
        return int(self.mean.argmax())

    @property
    def error(self) -> float:
        """The standard error of the mean at the best rate."""
        return float(self.accuracy[self.best].std(ddof=1) / np.sqrt(self.accuracy.shape[1]))

    @property
    def good(self) -> np.ndarray:
        """Whether each rate is nearly as good as the best."""
        return self.mean >= self.mean.max() - GOOD

    @property
    def width(self) -> float:
        """Decades of good rates, with the accuracy interpolated between rates."""
        logs = np.log10(self.rates)
        fine = np.linspace(logs[0], logs[-1], 10_001)
        good = np.interp(fine, logs, self.mean) >= self.mean.max() - GOOD
        return float(good.mean() * (logs[-1] - logs[0]))


def names() -> list[str]:
    """All public methods, one a module of `adamx.family`."""
    return sorted(module.name for module in pkgutil.iter_modules(adamx.family.__path__))


def make(name: str, rate: Any) -> adamx.Transformation:
    """A method by its name, with the arguments that it needs."""
    return getattr(adamx, name)(rate, **ARGUMENTS.get(name, lambda _: {})(rate))


def load() -> Data:
    digits: Any = load_digits()
    images, labels = (digits.data / 16).astype(np.float32), digits.target.astype(np.int32)
    train, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=540, stratify=labels, random_state=0
    )
    return Data(train, train_labels, test, test_labels)


def starts(data: Data, seeds: int, steps: int) -> Start:
    def start(seed: int) -> Start:
        rng = np.random.default_rng(seed)
        sizes = (data.train.shape[1], HIDDEN, 10)
        params = {
            f"layer{i}": {
                "kernel": rng.normal(0, np.sqrt(2 / n), (n, m)).astype(np.float32),
                "bias": np.zeros(m, np.float32),
            }
            for i, (n, m) in enumerate(pairwise(sizes))
        }
        whole = len(data.train) // BATCH * BATCH
        orders = [rng.permutation(len(data.train))[:whole] for _ in range(-(-steps * BATCH // whole))]
        return Start(params, np.concatenate(orders).astype(np.int32).reshape(-1, BATCH)[:steps])

    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(start, range(seeds)))


def logits(params: Any, images: Any) -> jax.Array:
    hidden = jax.nn.relu(images @ params["layer0"]["kernel"] + params["layer0"]["bias"])
    return hidden @ params["layer1"]["kernel"] + params["layer1"]["bias"]


def train(name: str, data: Data, rate: Any, start: Start) -> jax.Array:
    """Accuracy after a whole training, as a pure function."""
    tx = make(name, rate)

    def loss(params: Any, batch: Any) -> jax.Array:
        found = logits(params, data.train[batch])
        return optax.softmax_cross_entropy_with_integer_labels(found, data.train_labels[batch]).mean()

    def step(carry: Any, batch: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (start.params, tx.init(start.params)), start.batches)
    return (logits(params, data.test).argmax(1) == data.test_labels).mean()


def sweep(name: str, data: Data, start: Start, rates: Sequence[float]) -> Sweep:
    """All rates x seeds of one method, in one compiled program."""
    over_seeds = jax.vmap(partial(train, name), (None, None, 0))
    over_rates = jax.vmap(over_seeds, (None, 0, None))
    arguments = data, np.asarray(rates, np.float32), start
    begun = time.perf_counter()
    program = jax.jit(over_rates).lower(*arguments).compile()
    compiled = time.perf_counter()
    accuracy = np.asarray(program(*arguments), np.float64)
    done = time.perf_counter()
    return Sweep(np.asarray(rates), accuracy, state_bytes(make(name, 1e-3)), compiled - begun, done - compiled)


def state_bytes(tx: adamx.Transformation) -> float:
    """Bytes of state a parameter of a 1000 x 1000 matrix; what is kept once for all of it rounds to nothing."""
    state = jax.eval_shape(tx.init, {"kernel": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)})
    return round(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / 1e6, 3)


def table(sweeps: dict[str, Sweep]) -> str:
    """Markdown, the best method first."""
    lines = [
        "| method | accuracy in % | best rate | good rates, decades | bytes |",
        "|---|---|---|---|---|",
    ]
    for name, sweep in ranked(sweeps).items():
        accuracy = f"{100 * sweep.mean.max():.2f} ± {100 * sweep.error:.2f}"
        more = "≥ " if sweep.good[0] or sweep.good[-1] else ""
        width = f"{more}{sweep.width:.2f}"
        lines.append(f"| `{name}` | {accuracy} | {sweep.rates[sweep.best]:g} | {width} | {sweep.state_bytes:g} |")
    return "\n".join(lines)


def ranked(sweeps: dict[str, Sweep]) -> dict[str, Sweep]:
    """By accuracy, the best first."""
    return dict(sorted(sweeps.items(), key=lambda item: -item[1].mean.max()))


def at_the_edge(sweeps: dict[str, Sweep]) -> list[str]:
    """Methods whose best rate may lie outside the grid."""
    return [name for name, sweep in sweeps.items() if sweep.best in (0, len(sweep.rates) - 1)]


def draw(sweeps: dict[str, Sweep], path: Path) -> None:
    """Accuracy by method and rate, in colour; in figures where the rate is good, framed where it is best."""
    sweeps = ranked(sweeps)
    rates = next(iter(sweeps.values())).rates
    figure = Figure(figsize=(3.5 + 0.4 * len(rates), 1.8 + 0.27 * len(sweeps)), layout="constrained")
    axes = figure.subplots()
    percent = 100 * np.stack([sweep.mean for sweep in sweeps.values()])
    image = axes.imshow(percent, aspect="auto", cmap="viridis", vmin=80, vmax=98)
    for row, sweep in enumerate(sweeps.values()):
        for column in np.flatnonzero(sweep.good):
            value = percent[row, column]
            axes.text(
                int(column), row, f"{value:.1f}", ha="center", va="center", size=7, color="w" if value < 92 else "k"
            )
        axes.add_patch(Rectangle((sweep.best - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="tab:red", linewidth=1.5))
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], rotation=90)
    axes.set_yticks(range(len(sweeps)), list(sweeps))
    axes.set_xlabel("learning rate")
    axes.set_title(
        "Mean test accuracy, in figures where it is within a percentage point of the method's best, which is framed"
    )
    figure.colorbar(image, extend="min", extendfrac=0.02, pad=0.01, label="accuracy in %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Sweep]:
    """Run the command; returns the results by method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="all when left out")
    parser.add_argument("--out", type=Path, default=Path("runs/methods.png"), help="the picture (%(default)s)")
    parser.add_argument("--short", action="store_true", help="20 steps, 2 seeds, a rate a decade; few methods")
    args = parser.parse_args(argv)
    chosen = args.methods or (list(SHORT) if args.short else names())
    for name in chosen:
        if name not in names():
            parser.error(f"unknown method {name!r}; there are {', '.join(names())}")
    data = load()
    seeds, steps, rates = SEEDS, len(data.train) // BATCH * EPOCHS, RATES
    if args.short:
        seeds, steps, rates = 2, 20, RATES[::3]
    start, sweeps = starts(data, seeds, steps), {}
    for name in chosen:
        sweeps[name] = done = sweep(name, data, start, rates)
        times = f"compile {done.compile_seconds:5.1f} s, run {done.run_seconds:5.1f} s"
        print(f"{name:20} {times}", file=sys.stderr, flush=True)
    print(f"{len(rates)} rates x {seeds} seeds, {steps} steps\n\n{table(sweeps)}\n")
    for name in at_the_edge(sweeps):
        print(f"Warning: the best rate of {name} is at the edge of the grid; a better one may lie outside.")
    draw(sweeps, args.out)
    print(f"Picture in {args.out}")
    return sweeps


if __name__ == "__main__":
    main()
