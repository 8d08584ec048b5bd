"""What does watching cost? A training step of the language model with and without, in turn.

    python -m benchmarks.watch [--every 1 10 100 1000] [--rounds 9] [--width 128] [--layers 4] [--batch 8] [--short]

The model and its optimiser are those of examples/charlm.py. "step" is the whole training step (forward, backward,
optimiser) over the same step that is not watched, its median over rounds and its quartiles; in each round every
contestant takes at least as many steps as lie between two records, and the first contestant stands in the race twice,
so that its own row is the noise of the measurement. "record" is what one record takes, in plain steps. "temporaries"
and "compile" are what the compiled program holds and what it took, less the plain one's.

A second table is of the optimiser's update alone, on given gradients, where differences of a hundredth of a training
step show: what it takes more than the update that is not watched, per step, in percent of the plain training step.

Needs the `examples` extra: pip install -e '.[examples]'.
"""

import argparse
import random
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx
from benchmarks.step import quartiles

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import charlm


class Contestant(NamedTuple):
    """A compiled step, what it is given, and what it took to make."""

    every: int
    run: Any
    carry: list[Any]
    seconds: float
    temporaries: int


def contestant(every: int, distributions: bool, graph: Any, params: Any, batch: Any) -> Contestant:
    """Compiled, with parameters and state donated; not watched where every is 0."""
    tx = adamx.watch(charlm.method(1e-3, charlm.DECAY), every=every, distributions=distributions)
    state = jax.jit(tx.init)(params)

    def step(params: Any, state: Any, text: Any) -> Any:
        value, grads = jax.value_and_grad(partial(charlm.loss, graph))(params, text)
        updates, state = tx.update(grads, state, params, loss=value)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    carry = [jax.tree.map(jnp.copy, params), state]
    return Contestant(every, compiled, carry, seconds, memory.temp_size_in_bytes if memory else 0)


def alone(every: int, params: Any) -> Contestant:
    """The optimiser's update alone; its batch is gradients."""
    tx = adamx.watch(charlm.method(1e-3, charlm.DECAY), every=every)
    state = jax.jit(tx.init)(params)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params, loss=1.0)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    return Contestant(every, compiled, [jax.tree.map(jnp.copy, params), state], 0.0, 0)


def take(c: Contestant, batch: Any, steps: int) -> float:
    """Seconds a step."""
    start = time.perf_counter()
    for _ in range(steps):
        c.carry[:] = c.run(*c.carry, batch)
    jax.block_until_ready(c.carry)
    return (time.perf_counter() - start) / steps


def race(racers: dict[str, Contestant], batch: Any, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each, round by round."""
    order, seconds = random.Random(0), {name: [] for name in racers}
    for r in racers.values():
        take(r, batch, 2)
    for _ in range(rounds):
        for name in order.sample(list(racers), len(racers)):
            seconds[name].append(take(racers[name], batch, steps))
    return seconds


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Prints the table; returns each row's ratios."""
    parser = argparse.ArgumentParser(prog="benchmarks.watch", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--every", type=int, nargs="+", default=[1, 10, 100], help="steps between records")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8, help="windows of 64 characters")
    parser.add_argument("--short", action="store_true", help="a tiny model, few steps")
    args = parser.parse_args(argv)
    if args.short:
        args.every, args.rounds, args.layers, args.width = [5], 2, 1, 32
    graph, params = charlm.initial(0, args.layers, args.width, 64)
    batch = jnp.asarray(next(charlm.batches(charlm.load().train, 0, 1, args.batch, 64)))
    leaves, n = len(jax.tree.leaves(params)), sum(x.size for x in jax.tree.leaves(params))
    print(f"{n:,} parameters in {leaves} leaves; jax {jax.__version__}, {jax.default_backend()}")
    make = lambda every, deep=False: contestant(every, deep, graph, params, batch)
    racers = {"not watched": make(0), "not watched, again": make(0)}
    racers |= {f"every {every}": make(every) for every in args.every}
    racers[f"every {args.every[0]}, distributions"] = make(args.every[0], True)
    steps = max(20, *args.every) if not args.short else 10
    seconds = race(racers, batch, steps, args.rounds)
    plain = seconds["not watched"]
    first = racers["not watched"]
    print(f"a plain step takes {1e3 * statistics.median(plain):.1f} ms, and compiled in {first.seconds:.1f} s\n")
    print("| | step | record, in steps | temporaries, MB | compile, s |\n|---|---|---|---|---|")
    ratios = {name: [a / b for a, b in zip(times, plain, strict=True)] for name, times in seconds.items()}
    for name, r in racers.items():
        if name == "not watched":
            continue
        more = (r.temporaries - first.temporaries) / 1e6
        said = f"{statistics.median(ratios[name]) - 1:.2f}" if r.every == 1 else ""
        print(f"| {name} | {quartiles(ratios[name])} | {said} | {more:.2f} | {r.seconds - first.seconds:.1f} |")
    updates = {"not watched": alone(0, params), "not watched, again": alone(0, params)}
    updates |= {f"every {every}": alone(every, params) for every in args.every}
    updates["none due (every 1000000)"] = alone(10**6, params)
    grads = jax.tree.map(lambda p: 1e-3 * jnp.cos(1e3 * p), params)
    apart = race(updates, grads, 10 * steps if not args.short else steps, args.rounds)
    base, whole = apart.pop("not watched"), statistics.median(plain)
    print(f"\nthe update alone, {1e3 * statistics.median(base):.2f} ms: what it takes more, in % of a training step\n")
    print("| | % of a training step |\n|---|---|")
    for name, times in apart.items():
        print(f"| {name} | {quartiles([100 * (a - b) / whole for a, b in zip(times, base, strict=True)])} |")
    added = adamx.watch_bytes(leaves)
    print(f"\nstate: {added / 1e6:.2f} MB more (256 records), {np.round(100 * added / (12 * n), 1)} % of training's")
    return ratios


if __name__ == "__main__":
    main()
