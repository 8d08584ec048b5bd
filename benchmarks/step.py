"""One Adam step beside its peers: time, tracing, compilation and memory, all in one process.

    python -m benchmarks.step [--shapes gpt2,1000x4096,2000x64] [--rounds 15] [--short]

Contestants run in turn, round by round, so that a machine's drift meets all of them; a ratio is taken within a round,
and its median and quartiles are printed. Each turn starts from fresh arrays, so that nobody keeps a lucky place in
memory. `adamx.step` updates and adds in one call; the others return updates that `optax.apply_updates` adds in the same
program. optax runs twice: the second row's distance from 1 is what the noise is worth. PyTorch's fused Adam runs where
torch is installed. The copy is an in-place scaling of as many bytes as Adam must move (28 a parameter): what the memory
allows at best.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import adamx

BYTES = 28  # a parameter and step: read p, m, v, g; write p, m, v; four bytes each


def gpt2_small(layers: int = 12) -> list[tuple[int, ...]]:
    """GPT-2-small's 148 leaves, 124 M parameters (Radford et al. 2019); or with another number of its blocks."""
    width, words, context = 768, 50257, 1024
    block = [
        (width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,),
        (width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,),
    ]  # fmt: skip
    return [(words, width), (context, width), *(block * layers), (width,), (width,)]


SHAPES: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "gpt2": gpt2_small,
    "1000x4096": lambda: [(4096,)] * 1000,
    "2000x64": lambda: [(64,)] * 2000,
}


def tree_of(shapes: list[tuple[int, ...]], seed: int, scale: float) -> dict[str, jax.Array]:
    """Normal float32 leaves named by position."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    make = jax.jit(lambda k, s: scale * jax.random.normal(k, s), static_argnums=1)
    return {f"leaf{i:04d}": make(k, s) for i, (k, s) in enumerate(zip(keys, shapes, strict=True))}


def program(tx: Any, fused: bool) -> Callable[..., Any]:
    """The step as a user writes it, (params, state, grads) -> (params, state)."""

    def step(params, state, grads):
        if fused:
            return tx.step(grads, state, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


class Compiled(NamedTuple):
    """A compiled step with what it took to make it, seconds and bytes."""

    run: Any
    trace: float
    lower: float
    compile: float
    temporaries: int


def prepare(step: Callable[..., Any], *args: Any) -> Compiled:
    """Trace, lower and compile, each timed, with parameters and state donated."""
    start = time.perf_counter()
    traced = jax.jit(step, donate_argnums=(0, 1)).trace(*args)
    t1 = time.perf_counter()
    lowered = traced.lower()
    t2 = time.perf_counter()
    compiled = lowered.compile()
    t3 = time.perf_counter()
    memory = compiled.memory_analysis()
    return Compiled(compiled, t1 - start, t2 - t1, t3 - t2, memory.temp_size_in_bytes if memory else -1)


class Runner(NamedTuple):
    """A contestant: `reset` puts it at a fresh start, `call` takes one step."""

    name: str
    reset: Callable[[], None]
    call: Callable[[], None]
    carry: list[Any]


def jax_runner(name: str, compiled: Any, tx: Any, params: Any, grads: Any) -> Runner:
    """A step of a compiled program on its own copy of the parameters."""
    carry: list[Any] = []

    def reset():
        carry[:] = [jax.tree.map(jnp.copy, params), tx.init(params)]

    def call():
        carry[:] = compiled(*carry, grads)
        jax.block_until_ready(carry)

    return Runner(name, reset, call, carry)


def copy_runner(n: int) -> Runner:
    """Scale, in place, as many bytes as Adam moves for n parameters."""
    scale = jax.jit(lambda x: x * 1.0000001, donate_argnums=0)
    box: list[Any] = []

    def reset():
        box[:] = [jnp.ones(n * BYTES // 8, jnp.float32)]

    def call():
        box[0] = scale(box[0]).block_until_ready()

    return Runner("copy", reset, call, box)


def torch_runner(shapes: list[tuple[int, ...]]) -> Runner | None:
    """PyTorch's fused Adam on the same shapes, on all cores; None where torch is not installed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    torch.set_num_threads(os.cpu_count() or 1)
    box: list[Any] = []

    def reset():
        params = [torch.randn(s, requires_grad=True) for s in shapes]
        for p in params:
            p.grad = torch.randn_like(p) * 1e-3
        box[:] = [torch.optim.Adam(params, lr=1e-3, fused=True)]

    return Runner(f"torch {torch.__version__} fused", reset, lambda: box[0].step(), box)


def quartiles(values: list[float]) -> str:
    """Median and quartiles of ratios."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:5.2f} [{low:4.2f}, {high:4.2f}]"


def race(runners: list[Runner], rounds: int) -> dict[str, list[float]]:
    """Seconds a step: each round every contestant starts anew, warms up, and takes steps for at least 50 ms."""
    seconds: dict[str, list[float]] = {r.name: [] for r in runners}
    order = random.Random(0)
    for _ in range(rounds):
        for r in order.sample(runners, len(runners)):
            r.reset()
            r.call()
            took: list[float] = []
            while sum(took) < 0.05 or len(took) < 3:
                start = time.perf_counter()
                r.call()
                took.append(time.perf_counter() - start)
            seconds[r.name].append(statistics.median(took))
            r.carry.clear()
    return seconds


def measure(label: str, shapes: list[tuple[int, ...]], rounds: int, builds: int) -> None:
    """Print the table of one set of leaf shapes."""
    params, grads = tree_of(shapes, 0, 1.0), tree_of(shapes, 1, 1e-3)
    n = sum(x.size for x in params.values())
    contestants = {
        "optax.adam": (lambda: optax.adam(1e-3), False),
        "adamx.adam": (lambda: adamx.adam(1e-3), False),
        "adamx.adam .step": (lambda: adamx.adam(1e-3), True),
        "optax.adam again": (lambda: optax.adam(1e-3), False),
    }
    made: dict[str, list[Compiled]] = {name: [] for name in contestants}
    for factory, fused in contestants.values():  # fills JAX's own caches, which the first build would pay for
        tx, few = factory(), {"x": jnp.ones(2)}
        prepare(program(tx, fused), few, tx.init(few), few)
    for _ in range(builds):
        for name, (factory, fused) in contestants.items():
            tx = factory()
            made[name].append(prepare(program(tx, fused), params, tx.init(params), grads))
    runners = [
        jax_runner(name, made[name][-1].run, factory(), params, grads) for name, (factory, _) in contestants.items()
    ]
    torch = torch_runner(shapes)
    runners += [r for r in (torch, copy_runner(n)) if r is not None]
    seconds = race(runners, rounds)
    print(f"\n{label}: {len(shapes)} leaves, {n / 1e6:.1f} M parameters; ratios to optax are median [quartiles]")
    print(
        f"{'':22}{'ms':>9} {'ratio to optax':>19} {'of copy':>8}"
        f" {'trace+lower':>12} {'ratio':>6} {'compile':>9} {'temporaries':>12}"
    )
    base = seconds["optax.adam"]
    built = lambda name, f: statistics.median(f(c) for c in made[name])
    for name, took in seconds.items():
        ratio = quartiles([a / b for a, b in zip(took, base, strict=True)])
        share = statistics.median(c / a for a, c in zip(took, seconds["copy"], strict=True))
        line = f"{name:22}{statistics.median(took) * 1e3:9.2f} {ratio:>19} {share:8.0%}"
        if name in made:
            build = built(name, lambda c: c.trace + c.lower)
            against = build / built("optax.adam", lambda c: c.trace + c.lower)
            line += (
                f" {build:10.2f} s {against:6.2f} {built(name, lambda c: c.compile):7.1f} s"
                f" {made[name][-1].temporaries / n:9.3f} B/p"
            )
        print(line, flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"comma-separated, of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the race (at least 2)")
    parser.add_argument("--builds", type=int, default=3, help="times each program is built")
    parser.add_argument("--short", action="store_true", help="two rounds, one build, the smallest shapes")
    args = parser.parse_args(argv)
    names = ["2000x64"] if args.short else args.shapes.split(",")
    for name in names:
        if name not in SHAPES:
            parser.error(f"unknown shapes {name!r}; there are {', '.join(SHAPES)}")
    print(f"jax {jax.__version__}, optax {optax.__version__}, {os.cpu_count()} cores, {jax.default_backend()}")
    for name in names:
        measure(name, SHAPES[name](), 2 if args.short else max(2, args.rounds), 1 if args.short else args.builds)


if __name__ == "__main__":
    main()
