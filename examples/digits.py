"""Learns to read handwritten digits, with a Flax NNX convolutional network and AdamW.

    python examples/digits.py                                # a minute or two on a laptop: 99 % of unseen digits right
    python examples/digits.py                                # again: goes on where it was stopped
    python examples/digits.py --data cifar-10-python.tar.gz  # CIFAR-10: the archive, or the folder that it unpacks to
    python examples/digits.py --data photos                  # a folder with one sub-folder of images a class
    python examples/digits.py --report                       # watched, with a report to open in a browser

Every epoch prints a line and leaves a checkpoint below `--out`, and a stopped run goes on as if it had never stopped,
bit for bit. What is kept in the end are the weights with the lowest validation loss (the last line with a star); the
test accuracy is printed beside it and chooses nothing. `curves.png` and `predictions.png` are drawn at the end, and
with --report (which needs the `report` extra) `report.html`: what went on inside the optimiser, from the log beside it.
"""

import argparse
import math
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from loaders import DataError, Dataset, Split, load
from matplotlib.figure import Figure
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

import adamx
from adamx.diagnostics import doctor, report
from adamx.diagnostics.log import Log, read

SPLIT_SEED = 0  # one split for every --seed, so that their test accuracies compare
PATIENCE = 15  # epochs in a row without a lower validation loss, after which training stops
WARMUP = 2  # epochs
SMOOTHING = 0.1  # of the labels: without it 98 % of unseen digits are right, with it 99 %
EVALUATED = 10_000  # training images that the training accuracy is taken on


def drawn_flat(key: jax.Array, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> jax.Array:
    """Flax's default kernel, bit for bit, drawn as a matrix: XLA compiles a draw of rank 4 for several seconds."""
    matrix = nnx.initializers.lecun_normal()(key, (math.prod(shape[:-1]), shape[-1]), *args, **kwargs)
    return matrix.reshape(shape)


class Net(nnx.Module):
    """Three convolutions and two dense layers; pooling fits them to the size of the images."""

    def __init__(self, side: int, channels: int, classes: int, *, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, kernel_size=(3, 3), kernel_init=drawn_flat, rngs=rngs)
        self.convs = nnx.List([conv(channels, 32), conv(32, 64), conv(64, 128)])
        features = jax.eval_shape(self.features, jnp.zeros((1, side, side, channels))).shape[1]
        self.hidden = nnx.Linear(features, 128, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.logits = nnx.Linear(128, classes, rngs=rngs)

    def features(self, x: jax.Array) -> jax.Array:
        """What the dense layers see: 128 maps of at most 4 x 4, in a row."""
        for conv, largest in zip(self.convs, (8, 4, 4), strict=True):
            x = nnx.relu(conv(x))
            if x.shape[1] > largest:
                x = nnx.max_pool(x, (2, 2), (2, 2))
        while x.shape[1] > 4:
            x = nnx.max_pool(x, (2, 2), (2, 2))
        return x.reshape(x.shape[0], -1)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of the classes; with dropout while training."""
        x = nnx.relu(self.hidden(self.features(x)))
        return self.logits(self.dropout(x, deterministic=not train))


def smoothed_cross_entropy(log_p: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy against a target that leaves the share SMOOTHING to all classes alike."""
    target = optax.smooth_labels(jax.nn.one_hot(labels, log_p.shape[1]), SMOOTHING)
    return -(target * log_p).sum(1).mean()


@nnx.jit(donate_argnums=(0, 1))
def train_step(model: Net, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    """One step of the optimiser, in place; returns the loss before it."""

    def loss(model: Net) -> jax.Array:
        return smoothed_cross_entropy(jax.nn.log_softmax(model(images, train=True)), labels)

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads, loss=value)
    return value


@nnx.jit
def log_probabilities(model: Net, images: jax.Array) -> jax.Array:
    """What the network makes of one chunk of images."""
    return jax.nn.log_softmax(model(images))


def predict(model: Net, images: np.ndarray, chunk: int = 256) -> np.ndarray:
    """Log-probabilities of every class, in chunks of one size, so that one compilation serves all splits."""
    chunks = []
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        padded = np.pad(part, ((0, chunk - len(part)), (0, 0), (0, 0), (0, 0)))
        chunks.append(np.asarray(log_probabilities(model, jnp.asarray(padded)))[: len(part)])
    return np.concatenate(chunks)


def evaluate(model: Net, split: Split) -> tuple[float, float]:
    """Loss and accuracy."""
    found = predict(model, split.images)
    loss = smoothed_cross_entropy(jnp.asarray(found), jnp.asarray(split.labels))
    return float(loss), float((found.argmax(1) == split.labels).mean())


def shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every image moved by a few pixels (1 of 8, 4 of 32), its border repeated."""
    n, side = images.shape[:2]
    most = side // 8
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    top, left = rng.integers(0, 2 * most + 1, (2, n, 1))
    rows, columns = top + np.arange(side), left + np.arange(side)
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


class Run:
    """All that training changes, and how a checkpoint holds it."""

    def __init__(self, args: argparse.Namespace, data: Dataset):
        self.args, self.data = args, data
        self.steps = len(data.train.labels) // args.batch  # what does not fill a batch waits for another epoch's order
        side, channels = data.train.images.shape[2:]
        self.model = Net(side, channels, len(data.classes), rngs=nnx.Rngs(args.seed))
        total = args.epochs * self.steps
        schedule = adamx.schedules.warmup_cosine(args.lr, min(WARMUP * self.steps, total // 2), total)
        tx = adamx.chain(
            adamx.clip_by_global_norm(1.0),
            adamx.adamw(schedule, weight_decay=0.02, mask="*kernel"),  # biases do not decay
        )
        tx = adamx.watch(adamx.skip_nonfinite(tx), every=10 if args.report else 0)  # every=0: not watched
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)
        self.best = self.weights()
        self.history: list[dict[str, float]] = []  # a row an epoch

    def weights(self) -> nnx.State:
        """A copy, since the step donates its arguments."""
        return jax.tree.map(jnp.copy, nnx.state(self.model, nnx.Param))

    def state(self) -> dict[str, nnx.State]:
        """Weights, the state of dropout's random stream and of the optimiser, and the best weights yet."""
        return {"now": nnx.state((self.model, self.optimizer)), "best": self.best}

    def settings(self) -> dict[str, Any]:
        """What a run must have in common with the run that it resumes."""
        data = self.args.data and str(self.args.data.resolve())
        images = [*self.data.train.images.shape, len(self.data.classes)]
        given = {name: getattr(self.args, name) for name in ("seed", "epochs", "batch", "lr", "report")}
        return {"data": data, "images": images, **given}

    def save(self, checkpoints: ocp.training.Checkpointer) -> None:
        """Keeps everything, under the number of epochs done."""
        metadata = {"settings": self.settings(), "history": self.history}
        checkpoints.save(len(self.history), self.state(), custom_metadata=metadata)

    def resume(self, checkpoints: ocp.training.Checkpointer) -> None:
        """Goes back to the latest checkpoint, if there is one."""
        latest = checkpoints.latest
        if latest is None:
            return
        metadata: Any = checkpoints.metadata(latest.step).custom_metadata or {}
        there, here = metadata.get("settings", {}), self.settings()
        if there != here:
            other = ", ".join(f"{k} {there.get(k)} (now {v})" for k, v in here.items() if there.get(k) != v)
            raise DataError(
                f"{self.args.out}: holds a run with {other}; expected the same, or --fresh, or another --out"
            )
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.state())
        loaded: Any = checkpoints.load(latest.step, target)
        nnx.update((self.model, self.optimizer), loaded["now"])
        self.best = loaded["best"]
        self.history = metadata["history"]

    def best_row(self) -> dict[str, float]:
        """The epoch with the lowest validation loss."""
        return min(self.history, key=lambda row: row["val_loss"])

    def finished(self) -> bool:
        """Whether all epochs are done, or too many went by without a better one."""
        done = len(self.history)
        return done > 0 and (done >= self.args.epochs or done - self.best_row()["epoch"] >= PATIENCE)

    def epoch(self, bar: tqdm) -> None:
        """One pass over the training images, in an order and with shifts that only the seed and the epoch decide."""
        train, epoch, losses = self.data.train, len(self.history) + 1, []
        rng = np.random.default_rng([self.args.seed, epoch])
        order = rng.permutation(len(train.labels))[: self.steps * self.args.batch]
        for batch in np.split(order, self.steps):
            images, labels = jnp.asarray(shifted(train.images[batch], rng)), jnp.asarray(train.labels[batch])
            losses.append(train_step(self.model, self.optimizer, images, labels))
            bar.update()
        row: dict[str, float] = {"epoch": epoch, "loss": float(np.mean(losses, dtype=np.float64))}
        row["train"] = evaluate(self.model, Split(train.images[:EVALUATED], train.labels[:EVALUATED]))[1]
        row["val_loss"], row["val"] = evaluate(self.model, self.data.val)
        row["test_loss"], row["test"] = evaluate(self.model, self.data.test)
        self.history.append(row)
        if self.best_row() is row:
            self.best = self.weights()
        if self.args.report:
            Log(self.args.out / "log", resume=True).append(adamx.drain(self.optimizer.opt_state).history())


def train(run: Run) -> None:
    """Trains to the end, a checkpoint an epoch, from the latest one if there is one."""
    policy: Any = ocp.training.preservation_policies.LatestN(1)
    out = run.args.out
    with ocp.training.Checkpointer(
        out.resolve() / "checkpoints", preservation_policy=policy, cleanup_tmp_directories=True
    ) as checkpoints:
        if run.args.fresh:
            for checkpoint in list(checkpoints.checkpoints):
                checkpoints.delete(checkpoint.step)
            shutil.rmtree(out / "log", ignore_errors=True)
        run.resume(checkpoints)
        done = len(run.history)
        if run.finished():
            print(f"{out}: training finished after epoch {done}; evaluating and drawing again (--fresh trains anew).")
            return
        if done:
            print(f"{out}: resuming after epoch {done} of {run.args.epochs}.")
        print("epoch    loss   train     val    test   val loss")
        steps = run.args.epochs * run.steps
        with tqdm(total=steps, initial=done * run.steps, unit="step", leave=False, disable=None) as bar:
            while not run.finished():
                run.epoch(bar)
                row = run.history[-1]
                tqdm.write(
                    f"{row['epoch']:5}  {row['loss']:6.4f}  {row['train']:7.2%} {row['val']:7.2%} {row['test']:7.2%}"
                    f"   {row['val_loss']:8.5f}{' *' if run.best_row() is row else ''}"
                )
                run.save(checkpoints)


def draw_curves(history: list[dict[str, float]], best: float, path: Path) -> None:
    """Loss and accuracy on the three splits by epoch."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for key, label in (("loss", "training, with dropout"), ("val_loss", "validation"), ("test_loss", "test")):
        left.plot(epochs, [row[key] for row in history], label=label, marker=".")
    for key, label in (("train", "training"), ("val", "validation"), ("test", "test")):
        right.plot(epochs, [100 * row[key] for row in history], label=label, marker=".")
    left.set(xlabel="epoch", ylabel="cross-entropy, labels smoothed")
    late = history[len(history) // 10 :]  # the first epochs would squeeze the rest into one line
    lowest = 100 * min(row[key] for row in late for key in ("train", "val", "test"))
    right.set(xlabel="epoch", ylabel="accuracy in %", ylim=(lowest - 1, 100.5))
    for axes in (left, right):
        axes.axvline(best, color="grey", linestyle=":", label="kept weights")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def draw_predictions(split: Split, found: np.ndarray, classes: tuple[str, ...], path: Path) -> None:
    """Test images below what was read and what is true: first those that were misread, in red."""
    wrong = found != split.labels
    shown = np.argsort(~wrong, kind="stable")[:40]
    between = " / " if max(map(len, classes)) < 8 else " /\n"
    figure = Figure(figsize=(11, 7 if between == " / " else 8), layout="constrained")
    figure.suptitle(f"Predicted / true: {wrong.sum()} of {len(found)} test images are misread (red)")
    grid = figure.subplots(5, 8)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, i in zip(grid.flat, shown, strict=False):
        image = split.images[i]
        axes.imshow(image.squeeze(2) if image.shape[2] == 1 else image, cmap="gray_r", vmin=0, vmax=1)
        text = between.join(f"{classes[label]:.14}" for label in (found[i], split.labels[i]))
        axes.set_title(text, fontsize=10, color="tab:red" if wrong[i] else "black", parse_math=False)
    figure.savefig(path, dpi=120)


def write_report(out: Path) -> None:
    """What the log says, as a page, and the doctor's findings as lines."""
    history = read(out / "log")
    findings = doctor.diagnose(history)
    for finding in findings:
        print(f"{finding.severity} {finding.id}, step {finding.step}: {finding.says}")
    report.write(history, out / "report.html", findings, title="digits", unread=doctor.unread(history))
    print(f"{len(findings)} findings; {out / 'report.html'}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse itself answers what is wrong with it, with exit code 2."""

    def number(kind: type, least: float) -> Any:
        def read(text: str) -> Any:
            if not least <= kind(text) < float("inf"):
                raise argparse.ArgumentTypeError(f"{text} is not a number from {least} up")
            return kind(text)

        return read

    parser = argparse.ArgumentParser(prog="digits.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10's python archive or a folder of images; digits if left out")
    parser.add_argument(
        "--size", type=number(int, 4), default=32, help="side of a folder's images in pixels (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="where results go (%(default)s)")
    parser.add_argument("--epochs", type=number(int, 1), help="at most (40, or 4 with --short)")
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, help="of weights, order, shifts, dropout (%(default)s)"
    )
    parser.add_argument("--batch", type=number(int, 1), default=64, help="images a step (%(default)s)")
    parser.add_argument("--lr", type=number(float, 1e-12), default=2e-3, help="highest learning rate (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget the checkpoints in --out and start over")
    parser.add_argument("--report", action="store_true", help="watch the optimiser, and write a page about it")
    parser.add_argument("--short", action="store_true", help="a few epochs only")
    args = parser.parse_args(argv)
    args.epochs = args.epochs or (4 if args.short else 40)
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for data or settings that do not fit, 130 when stopped from the keyboard."""
    start, args = time.perf_counter(), parse(argv)
    try:
        data = load(args.data, args.size, SPLIT_SEED)
        if args.batch > len(data.train.labels):
            raise DataError(f"--batch {args.batch}: more than the {len(data.train.labels)} training images")
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{args.out}: cannot be a folder for results ({error.strerror})") from error
        sizes = ", ".join(f"{len(split.labels)} {name}" for name, split in zip(data._fields, data[:3], strict=False))
        print(f"{sizes} images of {'x'.join(map(str, data.train.images.shape[1:]))}, {len(data.classes)} classes")
        run = Run(args, data)
        train(run)
    except DataError as error:
        print(f"digits.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the same command goes on after the last epoch of the table.", file=sys.stderr)
        return 130
    nnx.update(run.model, run.best)
    found = predict(run.model, data.test.images).argmax(1)
    right, best = int((found == data.test.labels).sum()), run.best_row()["epoch"]
    draw_curves(run.history, best, args.out / "curves.png")
    draw_predictions(data.test, found, data.classes, args.out / "predictions.png")
    if args.report:
        write_report(args.out)
    print(
        f"Test accuracy {right / len(found):.2%} ({right} of {len(found)}) with the weights of epoch {best}; "
        f"{time.perf_counter() - start:.0f} s, pictures in {args.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
