"""What do small states cost? Final validation losses beside float32's, in units of what another seed changes.

    python -m benchmarks.convergence [--tasks digits charlm] [--only 8bit ...] [--seeds 3] [--steps 1000] [--short]

Two tasks. digits: the perceptron of examples/compare.py, 64-128-128-10, trained as examples/digits.py trains its
network (AdamW, warm-up, cosine, clipping, smoothed labels; 760 steps, five seeds), validated on the 538 images that it
does not see. charlm: the transformer of examples/charlm.py at its defaults, three seeds; --layers, --width, --context
and --batch make it larger where there is a GPU.

A seed decides the initial float32 parameters and the order of the batches: the n-th run is the same one in all
configurations but for how numbers are kept. A run's loss is that of its last step's visible parameters. The table says
how far a configuration's mean is from float32's, in float32's own standard deviation over seeds: what is within one
cannot be told from a lucky or unlucky seed. A configuration that fails stands there too.

Every finished run is written to --results, and the same command goes on where it was stopped, or only draws anew.
Table and picture show all configurations that are finished there, whatever --only says. Seeds run one after the other,
in one compiled program: on two cores `vmap` over three seeds takes 1.7 times as long (56 ms a seed and step of charlm,
against 33).

Needs the `examples` extra: pip install -e '.[examples]'.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

import adamx

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import charlm
import compare
import digits

SHORT = ("float32", "8bit+bf16+int8", "optax-bf16")  # configurations of a short run
FAR = 8  # standard deviations from float32's mean that the picture reaches


class Configuration(NamedTuple):
    """How numbers are kept.

    Attributes:
      label: in words.
      storage: of the moments: wraps the method.
      params: one of charlm.PARAMS.
    """

    label: str
    storage: Callable[[Any], Any] = charlm.STORAGE["float32"]
    params: str = "float32"

    def build(self, schedule: Any, decay: float) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
        """The transformation, and what makes (parameters, state) of float32 parameters."""
        return charlm.keep(self.storage(charlm.method(schedule, decay)), self.params)


class PlainOptax(NamedTuple):
    """bfloat16 parameters given to optax as they are."""

    label: str

    def build(self, schedule: Any, decay: float) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
        """As Configuration's."""
        kernels = partial(jax.tree_util.tree_map_with_path, lambda path, _: "kernel" in jax.tree_util.keystr(path))
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=decay, mask=kernels))

        def start(params32: Any) -> tuple[Any, Any]:
            params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params32)
            return params, tx.init(params)

        return tx, start


def four_bits_with_zero(tx: Any) -> Any:
    """A linear map for the second moment, whose smallest code is 0: small second moments become none."""
    return adamx.store_state(tx, mu=adamx.codecs.int4(), nu=adamx.codecs.uint4(zero=True))


CONFIGURATIONS: dict[str, Configuration | PlainOptax] = {
    "float32": Configuration("float32"),
    "8bit": Configuration("8-bit moments", charlm.STORAGE["8bit"]),
    "8bit+bf16+int8": Configuration("8-bit moments, bf16 + int8 parameters", charlm.STORAGE["8bit"], "bf16+int8"),
    "bf16+int8": Configuration("bf16 + int8 parameters", params="bf16+int8"),
    "bf16+int16": Configuration("bf16 + int16 parameters", params="bf16+int16"),
    "bf16-stochastic": Configuration("bf16 parameters, stochastic rounding", params="bf16-stochastic"),
    "bf16-kahan": Configuration("bf16 parameters, Kahan", params="bf16-kahan"),
    "4bit": Configuration("4-bit moments", charlm.STORAGE["4bit"]),
    "4bit-zero": Configuration("4-bit moments, linear map with a zero", four_bits_with_zero),
    "bf16": Configuration("bf16 parameters, rounded to nearest", params="bf16"),
    "optax-bf16": PlainOptax("bf16 parameters, optax.adamw"),
}


class Task(NamedTuple):
    """A training.

    Attributes:
      unit: of the loss.
      seeds: how many.
      settings: what runs must have in common to be compared.
      trainer: a configuration -> (seed -> (final validation loss, bytes of training state a parameter)).
    """

    unit: str
    seeds: int
    settings: dict[str, Any]
    trainer: Callable[[Configuration | PlainOptax], Callable[[int], tuple[float, float]]]


def small_digits(args: argparse.Namespace) -> Task:
    data = compare.load(None, size=8, seed=compare.SPLIT_SEED)
    train, val, test = (compare.Split(split.images.reshape(len(split.images), -1), split.labels) for split in data[:3])
    (images, labels), unseen = map(jnp.asarray, train), jax.tree.map(lambda *x: jnp.concatenate(x), val, test)
    an_epoch = len(labels) // compare.BATCH
    steps, seeds = args.steps or (an_epoch if args.short else 40 * an_epoch), args.seeds or (2 if args.short else 5)
    starts = compare.starts(range(seeds), data._replace(train=train), -(-steps // an_epoch))

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        model = nnx.merge(starts.graph, jax.tree.map(lambda p: p.astype(jnp.float32), params))
        return digits.smoothed_cross_entropy(jax.nn.log_softmax(model(images)), labels)

    def trainer(configuration: Configuration | PlainOptax) -> Callable[[int], tuple[float, float]]:
        tx, start = configuration.build(charlm.rates(2e-3, steps), 0.02)

        def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, images[batch], labels[batch]), state, params)
            return (optax.apply_updates(params, updates), state), None

        @jax.jit
        def whole(params: Any, batches: jax.Array) -> Any:
            (params, state), _ = jax.lax.scan(step, start(params), batches)
            return loss(params, *unseen), params, state

        def run(seed: int) -> tuple[float, float]:
            params, batches = jax.tree.map(lambda x: x[seed], (starts.params, starts.batches))
            final, *trained = whole(params, batches.reshape(-1, compare.BATCH)[:steps])
            return float(final), sum(charlm.bytes_a_parameter(*trained))

        return run

    return Task("cross-entropy, labels smoothed", seeds, {"steps": steps}, trainer)


def language_model(args: argparse.Namespace) -> Task:
    text = charlm.load()
    given = {name: getattr(args, name) for name in ("steps", "layers", "width", "context", "batch")}
    options = charlm.parse(
        ["--short"] * args.short
        + [part for name, value in given.items() if value for part in (f"--{name}", str(value))]
    )
    shape = options.layers, options.width, options.context
    val = charlm.val_windows(text.val, options.batch, options.context)

    def trainer(configuration: Configuration | PlainOptax) -> Callable[[int], tuple[float, float]]:
        tx, start = configuration.build(charlm.rates(options.lr, options.steps), charlm.DECAY)
        start = jax.jit(start)

        def run(seed: int) -> tuple[float, float]:
            graph, params = charlm.initial(seed, *shape)
            params, state = start(params)
            for batch in charlm.batches(text.train, seed, options.steps, options.batch, options.context):
                params, state, _ = charlm.train_step(graph, tx, params, state, batch)
            return float(charlm.evaluate(graph, params, val)), sum(charlm.bytes_a_parameter(params, state))

        return run

    settings = {name: getattr(options, name) for name in given}
    settings["python"] = platform.python_version()  # whose library is the text
    return Task("nats a character", args.seeds or (2 if args.short else 3), settings, trainer)


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {"digits": small_digits, "charlm": language_model}


class Run(NamedTuple):
    """A training's outcome."""

    loss: float
    bytes: float  # a parameter
    seconds: float


class Results:
    """Finished runs by task, configuration and seed, in a file."""

    def __init__(self, path: Path, fresh: bool):
        self.path = path
        self.tasks: dict[str, Any] = {} if fresh or not path.exists() else json.loads(path.read_text())

    def open(self, task: str, settings: dict[str, Any]) -> None:
        """Makes room for a task's runs; what is there must have been trained alike."""
        settings = {**settings, "jax": jax.__version__, "device": jax.devices()[0].device_kind}
        there = self.tasks.setdefault(task, {"settings": settings, "runs": {}})["settings"]
        if there != settings:
            other = ", ".join(f"{k} {there.get(k)} (now {v})" for k, v in settings.items() if there.get(k) != v)
            sys.exit(
                f"{self.path}: holds runs of {task} with {other}; expected the same, or --fresh, or other --results"
            )

    def runs(self, task: str, name: str) -> dict[int, Run]:
        """By seed."""
        return {int(seed): Run(**run) for seed, run in self.tasks[task]["runs"].get(name, {}).items()}

    def add(self, task: str, name: str, seed: int, run: Run) -> None:
        """Written at once, so that a stopped benchmark goes on."""
        self.tasks[task]["runs"].setdefault(name, {})[str(seed)] = run._asdict()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.tasks, indent=1))
        part.replace(self.path)


class Row(NamedTuple):
    """A configuration beside float32.

    Attributes:
      losses: float[seeds].
      bytes: of training state, a parameter.
      sds: of the mean from float32's, in float32's standard deviation over seeds; NaN where that is unknown.
    """

    losses: np.ndarray
    bytes: float
    sds: float

    @property
    def verdict(self) -> str:
        """Whether another seed would change as much."""
        if np.isnan(self.losses).any():
            return "diverged"
        if np.isnan(self.sds):
            return "unknown"
        return "yes" if abs(self.sds) <= 1 else "no" if self.sds > 0 else "no, lower"


def spread(values: np.ndarray) -> float:
    """Standard deviation; NaN for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def rows(results: Results, task: str, seeds: int) -> dict[str, Row]:
    """Configurations of which the first so many seeds are there; float32 is the measure."""
    found = {name: results.runs(task, name) for name in CONFIGURATIONS}
    found = {name: runs for name, runs in found.items() if set(range(seeds)) <= set(runs)}
    losses = {name: np.array([runs[seed].loss for seed in range(seeds)]) for name, runs in found.items()}
    base = losses.get("float32", np.array([np.nan]))
    sds = {name: float((x.mean() - base.mean()) / spread(base)) for name, x in losses.items()}
    return {name: Row(losses[name], found[name][0].bytes, sds[name]) for name in found}


def table(rows: dict[str, Row], unit: str) -> str:
    """Markdown."""
    lines = [
        f"| configuration | bytes a parameter | validation loss, {unit} | sd | from float32, in its sd | within 1 sd |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        known = [f"{row.losses.mean():.4f}", f"{spread(row.losses):.4f}", f"{row.sds:+.2f}"]
        figures = " | ".join("—" if "nan" in figure else figure for figure in known)
        lines.append(f"| {CONFIGURATIONS[name].label} | {row.bytes:.2f} | {figures} | {row.verdict} |")
    return "\n".join(lines)


def draw(tables: dict[str, dict[str, Row]], units: dict[str, str], path: Path) -> None:
    """Every seed's loss as a ring, their mean as a dot, and float32's standard deviation as a band; a panel a task."""
    names = [name for name in CONFIGURATIONS if any(name in found for found in tables.values())]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "convergence"}):
        figure = Figure(figsize=(3.2 + 3.6 * len(tables), 1.6 + 0.3 * len(names)), layout="constrained")
        figure.suptitle(
            "Final losses: seeds (rings), their mean (dots), float32's mean ± 1 sd (band)", fontsize="medium"
        )
        panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
        for axes, (task, found) in zip(panels, tables.items(), strict=True):
            everything = np.concatenate([row.losses for row in found.values()])
            base = found["float32"].losses if "float32" in found else everything
            centre = float(base.mean()) if np.isfinite(base).all() else 0.0
            unit = spread(base) if spread(base) > 0 else 0.01
            shown = [x for x in everything if abs(x - centre) <= FAR * unit]
            low, high = min([*shown, centre - 2 * unit]) - unit / 2, max([*shown, centre + 2 * unit]) + unit / 2
            axes.axvspan(centre - unit, centre + unit, color="tab:blue", alpha=0.15, linewidth=0)
            axes.axvline(centre, color="tab:blue", linewidth=0.8)
            for name, row in found.items():
                place, mean = names.index(name), float(row.losses.mean())
                color = {"yes": "tab:blue", "no, lower": "tab:green"}.get(row.verdict, "tab:red")
                axes.plot(row.losses, [place] * len(row.losses), "o", ms=4, mfc="none", mec=color, alpha=0.7)
                if low <= mean <= high:
                    axes.plot(mean, place, "o", ms=6, color=color)
                    continue
                words, x, side = (f"← {mean:.4g}", 0.01, "left") if mean < low else (f"{mean:.4g} →", 0.99, "right")
                words = "diverged" if np.isnan(mean) else words
                to = axes.get_yaxis_transform()  # x in shares of the panel
                axes.text(x, place, words, transform=to, ha=side, va="center", color=color)
            axes.set(xlim=(low, high), title=task, xlabel=f"validation loss, {units[task]}")
            axes.set_yticks(range(len(names)), [CONFIGURATIONS[name].label for name in names])
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.locator_params(axis="x", nbins=5)
            axes.grid(axis="x", alpha=0.3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""

    def positive(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text} is not a number from 1 up")
        return int(text)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="both when left out")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(CONFIGURATIONS)}; all when left out")
    parser.add_argument("--seeds", type=positive, help="5 of digits and 3 of charlm, or 2 with --short")
    parser.add_argument("--steps", type=positive, help="760 of digits and 1000 of charlm, fewer with --short")
    for name in ("layers", "width", "context", "batch"):
        parser.add_argument(f"--{name}", type=positive, help="of charlm; its default when left out")
    parser.add_argument("--results", type=Path, help="a file of finished runs (runs/convergence.json)")
    parser.add_argument("--picture", type=Path, help="(docs/convergence.svg; with --short beside the results)")
    parser.add_argument("--fresh", action="store_true", help="forget the runs in --results")
    parser.add_argument("--short", action="store_true", help=f"a few steps of {', '.join(SHORT)}")
    args = parser.parse_args(argv)
    args.only = args.only or list(SHORT if args.short else CONFIGURATIONS)
    for name in args.only:
        if name not in CONFIGURATIONS:
            parser.error(f"unknown configuration {name!r}; there are {', '.join(CONFIGURATIONS)}")
    args.results = args.results or Path("runs") / f"convergence{'-short' * args.short}.json"
    args.picture = args.picture or (args.results.with_suffix(".svg") if args.short else Path("docs/convergence.svg"))
    return args


def main(argv: list[str] | None = None) -> dict[str, dict[str, Row]]:
    """Run the command; returns the rows by task and configuration."""
    args = parse(argv)
    results = Results(args.results, args.fresh)
    tables, units = {}, {}
    print(f"jax {jax.__version__}, optax {optax.__version__}, {os.cpu_count()} cores, {jax.default_backend()}")
    for task in args.tasks:
        made = TASKS[task](args)
        results.open(task, made.settings)
        for name in args.only:
            run, there = made.trainer(CONFIGURATIONS[name]), results.runs(task, name)
            for seed in range(made.seeds):
                if seed not in there:
                    begun = time.perf_counter()
                    loss, size = run(seed)
                    done = Run(loss, size, round(time.perf_counter() - begun, 1))
                    results.add(task, name, seed, done)
                    print(
                        f"{task} {name:16} seed {seed}: {loss:.4f}, {done.seconds:.1f} s", file=sys.stderr, flush=True
                    )
        tables[task], units[task] = rows(results, task, made.seeds), made.unit
        settings = ", ".join(f"{name} {value}" for name, value in made.settings.items())
        print(f"\n{task}: {made.seeds} seeds; {settings}\n\n{table(tables[task], made.unit)}", flush=True)
    draw(tables, units, args.picture)
    print(f"\nPicture in {args.picture}, runs in {args.results}")
    return tables


if __name__ == "__main__":
    main()
