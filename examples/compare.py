"""Six optimisers on one network and the handwritten digits, five seeds each: a table, and a picture of the losses.

    python examples/compare.py          # writes runs/compare/compare.png
    python examples/compare.py --tune   # how the learning rates in METHODS were chosen

A method's five runs are one compiled program: `vmap` over the seed of a whole training. The seed decides the initial
weights and the order of the batches, so the n-th runs of all methods start alike and see the same batches.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from loaders import Dataset, Split, load
from matplotlib.figure import Figure

import adamx

# name: (method, learning rate). The rates are those of RATES with the lowest validation loss in `--tune`, which has
# seeds of its own and sees no test image. All else stands at its default, and rates do not change over a run.
METHODS: dict[str, tuple[Callable[[Any], optax.GradientTransformation], float]] = {
    "SGD": (adamx.sgd, 0.1),
    "momentum": (partial(adamx.sgd, momentum=0.9), 0.01),
    "AdaGrad": (adamx.adagrad, 0.03),
    "RMSProp": (adamx.rmsprop, 3e-4),
    "NAdam": (adamx.nadam, 1e-3),
    "Adam": (adamx.adam, 1e-3),
}
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)

SEEDS, TUNING_SEEDS, SPLIT_SEED = range(5), range(100, 105), 0
BATCH, EPOCHS = 64, 40


class Perceptron(nnx.Module):
    """Two hidden layers of 128."""

    def __init__(self, features: int, classes: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(features, 128, rngs=rngs)
        self.second = nnx.Linear(128, 128, rngs=rngs)
        self.logits = nnx.Linear(128, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of the classes."""
        return self.logits(nnx.relu(self.second(nnx.relu(self.first(x)))))


class Start(NamedTuple):
    """All that a seed decides."""

    graph: Any  # the network without its weights
    params: Any
    batches: jax.Array  # int32[epochs, steps, BATCH]: indices of training images


class Result(NamedTuple):
    """One training; with a leading axis, one a seed."""

    curve: Any  # float32[epochs]: training loss after each epoch
    val_loss: Any
    test: Any  # accuracy


def cross_entropy(model: Perceptron, images: Any, labels: Any) -> jax.Array:
    """Mean over the images."""
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


def starts(seeds: Sequence[int], data: Dataset, epochs: int) -> Start:
    """The same for every method, so compiled and computed once."""
    n, features = data.train.images.shape

    def start(seed: jax.Array) -> Start:
        weights_key, order_key = jax.random.split(jax.random.key(seed))
        graph, params = nnx.split(Perceptron(features, len(data.classes), rngs=nnx.Rngs(weights_key)))
        order = jax.vmap(lambda key: jax.random.permutation(key, n))(jax.random.split(order_key, epochs))
        return Start(graph, params, order[:, : n // BATCH * BATCH].reshape(epochs, -1, BATCH))

    return jax.jit(jax.vmap(start))(jnp.asarray(seeds))


def train(
    start: Start, rate: jax.Array, method: Callable[[Any], optax.GradientTransformation], data: Dataset
) -> Result:
    """A whole training, as a pure function."""
    tx = method(rate)

    def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
        params, state = carry

        def loss(params: Any) -> jax.Array:
            return cross_entropy(nnx.merge(start.graph, params), data.train.images[batch], data.train.labels[batch])

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry: Any, batches: jax.Array) -> tuple[Any, jax.Array]:
        carry, _ = jax.lax.scan(step, carry, batches)
        return carry, cross_entropy(nnx.merge(start.graph, carry[0]), *data.train)

    (params, _), curve = jax.lax.scan(epoch, (start.params, tx.init(start.params)), start.batches)
    model = nnx.merge(start.graph, params)
    right = model(jnp.asarray(data.test.images)).argmax(1) == data.test.labels
    return Result(curve, cross_entropy(model, *data.val), right.mean())


def compiled(name: str, start: Start, data: Dataset) -> Callable[[float], Result]:
    """All seeds of a method, as one compiled program of the learning rate."""
    one = partial(train, method=METHODS[name][0], data=data)
    program = jax.jit(jax.vmap(one, in_axes=(0, None)))
    return lambda rate: jax.device_get(program(start, jnp.float32(rate)))


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the seeds, and its standard error."""
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def tune(data: Dataset, epochs: int) -> None:
    """Prints the validation loss of every method at every rate."""
    start = starts(TUNING_SEEDS, data, epochs)
    print("validation loss".ljust(16) + "".join(f"{rate:9g}" for rate in RATES))
    for name in METHODS:
        program = compiled(name, start, data)
        losses = [program(rate).val_loss.mean() for rate in RATES]
        best = RATES[int(np.nanargmin(losses))]
        print(f"{name:16}" + "".join(f"{loss:9.4f}" for loss in losses) + f"   best {best:g}", flush=True)


def draw(results: dict[str, Result], path: Path) -> None:
    """Mean training loss by epoch, each in a band of a standard error."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, result in results.items():
        mean, error = mean_and_error(result.curve)
        epochs = np.arange(1, len(mean) + 1)
        (line,) = axes.plot(epochs, mean, label=f"{name}, learning rate {METHODS[name][1]:g}")
        axes.fill_between(epochs, mean - error, mean + error, color=line.get_color(), alpha=0.2)
    axes.set(xlabel="epoch", ylabel="training loss, mean of five seeds ± standard error", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict[str, Result]:
    """Returns the results by method."""
    parser = argparse.ArgumentParser(prog="compare.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="where the picture goes (%(default)s)")
    parser.add_argument("--tune", action="store_true", help="print the validation losses that METHODS was chosen by")
    parser.add_argument("--short", action="store_true", help="a few epochs only")
    args = parser.parse_args(argv)
    epochs, begun = 5 if args.short else EPOCHS, time.perf_counter()

    data = load(None, size=8, seed=SPLIT_SEED)
    flat = [Split(split.images.reshape(len(split.images), -1), split.labels) for split in data[:3]]
    data = Dataset(*jax.tree.map(jnp.asarray, flat), classes=data.classes)
    if args.tune:
        tune(data, epochs)
        return {}
    results, start = {}, starts(SEEDS, data, epochs)
    print(f"{epochs} epochs, mean of n={len(SEEDS)} seeds ± standard error")
    print(f"{'method':10}{'rate':>6}   {'test accuracy in %':>18}   {'final training loss':>21}")
    for name, (_, rate) in METHODS.items():
        results[name] = compiled(name, start, data)(rate)
        accuracy, accuracy_error = mean_and_error(100 * results[name].test)
        loss, loss_error = mean_and_error(results[name].curve[:, -1])
        print(
            f"{name:10}{rate:6g}   {accuracy:10.2f} ± {accuracy_error:.2f}   {loss:11.2e} ± {loss_error:.1e}",
            flush=True,
        )
    args.out.mkdir(parents=True, exist_ok=True)
    draw(results, args.out / "compare.png")
    print(f"{time.perf_counter() - begun:.0f} s, picture in {args.out}")
    return results


if __name__ == "__main__":
    main()
