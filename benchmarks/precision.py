"""AdamW in every storage and parameter precision: bytes, temporaries, step time and final loss in one table.

    python -m benchmarks.precision [--storage 8bit,4bit] [--params none,split8] [--rounds 5] [--no-loss] [--no-peers]

Every row is one configuration, on GPT-2-small's shapes. "state" is what the optimiser keeps, "training" adds weights
and gradients in the parameters' dtype; both are counted on the arrays of an abstract state. "temporaries" is what the
compiled step holds beside its donated arguments: of `tx.step`, and of `update` with `apply_updates` on top of gradients
that are made in the same program. "time" is a step over the float32 step, run in turn, round by round; its median and
quartiles are printed. "loss" is the digits network's of `benchmarks.convergence`, over five seeds, with its deviation
from float32 in standard deviations of the float32 seeds. optax, flashoptim-jax and PyTorch's torchao stand beside them
where they are installed and run.
"""

import argparse
import gc
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import adamx
from adamx import codecs
from benchmarks import convergence
from benchmarks.step import SHAPES, quartiles, tree_of

STORAGE: dict[str, Callable[[Any], Any]] = {
    "float32": lambda tx: tx,
    "bf16": lambda tx: adamx.store_state(tx, "bf16"),
    "8bit": lambda tx: adamx.store_state(tx, "8bit"),
    "8bit-linear": lambda tx: adamx.store_state(tx, mu=codecs.int8(companded=False), nu=codecs.uint8(companded=False)),
    "dynamic8": lambda tx: adamx.store_state(tx, mu=codecs.dynamic8(), nu=codecs.dynamic8(signed=False)),
    "float8": lambda tx: adamx.store_state(tx, mu=codecs.float8_e4m3fn(), nu=codecs.float8_e4m3fn()),
    "4bit": lambda tx: adamx.store_state(tx, "4bit"),
    "factored": lambda tx: adamx.store_state(tx, mu=codecs.int8(), nu=adamx.projections.factored()),
}
PARAMS: dict[str, Any] = {
    "none": None,
    "nearest": codecs.nearest(),
    "stochastic": codecs.stochastic(),
    "kahan": codecs.kahan(),
    "split8": codecs.split8(stochastic=True),
    "split16": codecs.split16(),
    "master": codecs.master(),
}


BEGAN = time.perf_counter()


class Contestant(NamedTuple):
    """A configuration.

    Attributes:
      name: of its row.
      init: `params -> state`.
      step: `(params, state, grads) -> (params, state)`.
      update: the same by way of an updates tree; None where there is no such way.
      dtype: of parameters and gradients.
      build: as `benchmarks.convergence.Configuration`'s, for the loss; None where it cannot be trained there.
    """

    name: str
    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Any], Any]
    update: Callable[[Any, Any, Any], Any] | None
    dtype: Any
    build: Any


def applied(tx: Any) -> Callable[[Any, Any, Any], Any]:
    """`update` and `apply_updates`."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


class Ours(NamedTuple):
    """A storage and a precision, as `benchmarks.convergence` builds them."""

    storage: str
    params: str

    def build(self, schedule: Any, decay: float) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
        """The transformation, and what makes (parameters, state) of float32 parameters."""
        links = adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(schedule, weight_decay=decay, mask="*kernel*"))
        tx = STORAGE[self.storage](links)
        if PARAMS[self.params] is None:
            return tx, lambda params: (params, tx.init(params))
        tx = adamx.store_params(tx, PARAMS[self.params])
        return tx, lambda params: adamx.split_params(tx, params)


def ours(storage: str, params: str) -> Contestant:
    """One of adamx's rows."""
    tx, precision = STORAGE[storage](adamx.adamw(1e-3)), PARAMS[params]
    tx = tx if precision is None else adamx.store_params(tx, precision)
    dtype = jnp.float32 if precision is None else jnp.bfloat16
    name = f"{storage} + {params}" if precision is not None else storage
    return Contestant(name, tx.init, lambda p, s, g: tx.step(g, s, p), applied(tx), dtype, Ours(storage, params))


def peers() -> list[Contestant]:
    """Optax in both dtypes, and flashoptim-jax where it is installed."""
    tx = optax.adamw(1e-3)
    low = convergence.CONFIGURATIONS["optax-bf16"]
    found = [
        Contestant("optax.adamw", tx.init, applied(tx), applied(tx), jnp.float32, None),
        Contestant("optax.adamw, bf16", tx.init, applied(tx), applied(tx), jnp.bfloat16, low),
    ]
    try:
        import flashoptim_jax  # pyright: ignore[reportMissingImports]
    except ImportError:
        return found
    flash = flashoptim_jax.flash_adamw(1e-3, fused=jax.default_backend() != "cpu")
    return [*found, Contestant("flashoptim-jax", flash.init, flash.step, None, jnp.bfloat16, None)]


def tell(what: str) -> None:
    """How far the command is, beside the table."""
    print(f"{time.perf_counter() - BEGAN:6.0f} s  {what}", file=sys.stderr, flush=True)


def bytes_of(tree: Any) -> int:
    """Of all arrays of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Measured(NamedTuple):
    """A row before the race: compiled step, a description of the state, and bytes a parameter."""

    run: Any
    like: Any
    state: float
    training: float
    step_temporaries: float
    update_temporaries: float | None


def measure(c: Contestant, params: Any) -> Measured:
    """Compile on descriptions of the parameters; nothing is allocated."""
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, c.dtype), params)
    n = sum(x.size for x in jax.tree.leaves(like))
    state = jax.eval_shape(c.init, like)
    compiled = jax.jit(c.step, donate_argnums=(0, 1)).lower(like, state, like).compile()
    temporaries = lambda compiled: compiled.memory_analysis().temp_size_in_bytes / n
    update = None
    if c.update is not None:
        whole = c.update

        def made(params: Any, state: Any, seeds: Any) -> Any:
            """Gradients that the program makes itself."""
            return whole(params, state, jax.tree.map(lambda x: (x * 0.5).astype(x.dtype), seeds))

        both = jax.jit(made, donate_argnums=(0, 1)).lower(like, state, like).compile()
        update = max(0.0, temporaries(both) - jnp.dtype(c.dtype).itemsize)
    kept, weights = bytes_of(state) / n, bytes_of(like) / n
    return Measured(compiled, state, kept, kept + 2 * weights, temporaries(compiled), update)


def turn(c: Contestant, m: Measured, params: Any, grads: Any) -> float:
    """Seconds of a step, the median of a few after one that is not counted, whose state is zeros."""
    cast = lambda tree: jax.tree.map(lambda x: jnp.array(x, c.dtype), tree)
    mine, own = cast(params), cast(grads)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), m.like)  # some starts take ten times a step
    mine, state = jax.block_until_ready(m.run(mine, zeros, own))
    took: list[float] = []
    while len(took) < 3:
        start = time.perf_counter()
        mine, state = jax.block_until_ready(m.run(mine, state, own))
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def torch_rows(shapes: list[tuple[int, ...]]) -> dict[str, Callable[[], float]]:
    """Seconds of a step of PyTorch's fused AdamW and of torchao's 8-bit one, where they are installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    torch.set_num_threads(os.cpu_count() or 1)

    def timed(make: Callable[[Any], Any]) -> float:
        params = [torch.randn(s, requires_grad=True) for s in shapes]
        for p in params:
            p.grad = torch.randn_like(p) * 1e-3
        optimiser = make(params)
        optimiser.step()
        took = []
        for _ in range(3):
            start = time.perf_counter()
            optimiser.step()
            took.append(time.perf_counter() - start)
        return statistics.median(took)

    rows = {f"torch {torch.__version__} fused": lambda: timed(lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True))}
    try:
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError:
        return rows
    return rows | {"torchao AdamW8bit": lambda: timed(lambda p: AdamW8bit(p, lr=1e-3))}


def losses(found: list[Contestant], short: bool) -> dict[str, tuple[float, float]]:
    """The digits network's final loss by name: mean, and how far from float32's in its seeds' deviation."""
    task = convergence.TASKS["digits"](convergence.parse(["--short"] if short else []))
    final = {}
    for c in found:
        if c.build is not None:
            tell(f"trains {c.name}")
            run = task.trainer(c.build)
            final[c.name] = [run(seed)[0] for seed in range(task.seeds)]
    base = final.get("float32")
    sd = statistics.stdev(base) if base else float("nan")
    mean = lambda name: statistics.fmean(final[name])
    return {name: (mean(name), (mean(name) - mean("float32")) / sd if base else float("nan")) for name in final}


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default=",".join(STORAGE), help=f"comma-separated, of {', '.join(STORAGE)}")
    parser.add_argument("--params", default=",".join(PARAMS), help=f"comma-separated, of {', '.join(PARAMS)}")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the race; 0 for none")
    parser.add_argument("--shapes", default="gpt2", choices=SHAPES)
    parser.add_argument("--no-loss", action="store_true", help="leave the training of the digits network out")
    parser.add_argument("--no-peers", action="store_true", help="leave optax, flashoptim-jax and PyTorch out")
    parser.add_argument("--short", action="store_true", help="few configurations, small shapes, one round")
    args = parser.parse_args(argv)
    storages, precisions = args.storage.split(","), args.params.split(",")
    for given, known in ((storages, STORAGE), (precisions, PARAMS)):
        for name in given:
            if name not in known:
                parser.error(f"unknown name {name!r}; there are {', '.join(known)}")
    shapes = [(256, 256), (64,)] if args.short else SHAPES[args.shapes]()
    if args.short:
        storages, precisions, args.rounds = ["float32", "8bit"], ["none", "split8"], min(args.rounds, 2)
    print(f"jax {jax.__version__}, optax {optax.__version__}, {os.cpu_count()} cores, {jax.default_backend()}")
    params, grads = tree_of(shapes, 0, 1.0), tree_of(shapes, 1, 1e-3)
    wanted = [ours(s, p) for p in precisions for s in storages]
    if wanted[0].name != "float32":
        wanted = [ours("float32", "none"), *wanted]
    rows: list[tuple[Contestant, Measured]] = []
    for c in [*wanted, *([] if args.no_peers else peers())]:
        tell(f"compiles {c.name}")
        try:
            rows.append((c, measure(c, params)))
        except Exception as error:
            if c in wanted:
                raise
            print(f"{c.name} does not run here: {type(error).__name__}: {str(error).splitlines()[0]:.100}")
    seconds: dict[str, list[float]] = {}
    others, order = torch_rows(shapes) if args.rounds and not args.no_peers else {}, random.Random(0)
    for name, go in list(others.items()):
        try:
            go()
        except Exception as error:
            print(f"{name} does not run here: {type(error).__name__}")
            del others[name]
    for i in range(args.rounds):
        tell(f"round {i + 1} of {args.rounds}")
        turns = [(c.name, lambda c=c, m=m: turn(c, m, params, grads)) for c, m in rows] + list(others.items())
        for name, go in order.sample(turns, len(turns)):
            seconds.setdefault(name, []).append(go())
            gc.collect()
    trained = {} if args.no_loss else losses([c for c, _ in rows], args.short)
    head = ("", "state", "training", "temporaries", "update's", "time / float32's", "digits loss", "in sd")
    print(f"\nbytes a parameter of {sum(x.size for x in params.values()) / 1e6:.1f} M; time: median [quartiles]\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")

    def ratio(name: str) -> str:
        base, mine = seconds.get("float32", []), seconds.get(name, [])
        return quartiles([a / b for a, b in zip(mine, base, strict=True)]) if len(base) > 1 else ""

    for c, m in rows:
        update = "" if m.update_temporaries is None else f"{m.update_temporaries:.3f}"
        loss = trained.get(c.name)
        end = f"{loss[0]:.4f} | {loss[1]:+.1f}" if loss else " | "
        cells = f"{m.state:.3f} | {m.training:.3f} | {m.step_temporaries:.3f} | {update} | {ratio(c.name)} | {end}"
        print(f"| {c.name} | {cells} |", flush=True)
    for name in others:
        print(f"| {name} | | | | | {ratio(name)} | | |")


if __name__ == "__main__":
    main()
