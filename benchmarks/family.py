"""Every method's step beside Adam's: the time that its bytes predict, the time it takes, and what tracing costs.

    python -m benchmarks.family [--size 4194304] [--rounds 9] [--methods adam lion ...] [--short]

All methods run in one process, in turn, round by round; a ratio to Adam is taken within a round and its median and
quartiles are printed. A step must read p, g and its moments and write p and its moments, four bytes each: 28 bytes a
parameter for Adam. `bytes` is that number beside Adam's, `time` the measured ratio, and `time/bytes` what the
arithmetic and the compiler add: 1.00 is a step that takes exactly the time that its bytes predict from Adam's. Adam
runs twice; the second row's distance from 1 is the noise. Methods with a reduction over the leaf or the tree (marked
"reduces") read at least the gradient once more, which `bytes` leaves out.

`trace+lower` is for the same method on 200 leaves of one shape, again beside Adam.
"""

import argparse
import os
import pkgutil
import statistics
from typing import Any

import jax
import jax.numpy as jnp

import adamx
import adamx.family
from benchmarks.step import Runner, jax_runner, prepare, program, quartiles, race, tree_of

# Arguments without a default value.
ARGUMENTS: dict[str, dict[str, Any]] = {"adamc": {"max_lr": 1e-3}}
# Over a leaf's elements (norms, maxima, means) or the whole tree's.
REDUCES = {
    "adafactor", "adam_mini", "adamp", "adashift", "came", "dadapt_adam", "lamb", "mars", "muon", "novograd", "prodigy",
    "sm3", "soap", "stable_adamw",
}  # fmt: skip
# Newton-Schulz, eigenvectors: their time is matrix products, not bytes.
MATRICES = {"muon", "soap"}


def names() -> list[str]:
    """All public methods, Adam first."""
    found = [m.name for m in pkgutil.iter_modules(adamx.family.__path__)]
    return ["adam", *(n for n in found if n not in MATRICES | {"adam"})]


def make(name: str) -> Any:
    """The method at its defaults."""
    return getattr(adamx, name)(learning_rate=1e-3, **ARGUMENTS.get(name, {}))


def traffic(tx: Any, params: Any) -> float:
    """Bytes that a step must move, a parameter: p, g and moments read, p and moments written."""
    moments = jax.eval_shape(tx.init, params).moments
    kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(moments))
    return 12 + 2 * kept / sum(x.size for x in jax.tree.leaves(params))


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2**22, help="parameters of the one square leaf")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the race (at least 2)")
    parser.add_argument("--methods", nargs="*", help="these only, and Adam")
    parser.add_argument("--short", action="store_true", help="three methods on a small leaf, two rounds")
    args = parser.parse_args(argv)
    chosen = ["adam", "lion", "adan"] if args.short else args.methods or names()
    unknown = set(chosen) - set(names())
    if unknown:
        parser.error(f"unknown methods {sorted(unknown)}; there are {', '.join(names())}")
    chosen = ["adam", *(n for n in chosen if n != "adam")]
    side = int((2**14 if args.short else args.size) ** 0.5)
    rounds = 2 if args.short else max(2, args.rounds)
    params, grads = ({"w": x["leaf0000"]} for x in (tree_of([(side, side)], 0, 1.0), tree_of([(side, side)], 1, 1e-3)))
    many, many_grads = ({f"{i:03d}": jnp.ones(64) for i in range(200)} for _ in range(2))

    prepare(program(make("adam"), fused=False), many, make("adam").init(many), many_grads)  # fills JAX's own caches
    runners: list[Runner] = []
    tracing: dict[str, list[float]] = {}
    for name in [*chosen, "adam again"]:
        tx = make(name.removesuffix(" again"))
        compiled = prepare(program(tx, fused=False), params, tx.init(params), grads)
        runners.append(jax_runner(name, compiled.run, tx, params, grads))
    for _ in range(1 if args.short else 3):
        for name in chosen:
            tx = make(name)
            build = prepare(program(tx, fused=False), many, tx.init(many), many_grads)
            tracing.setdefault(name, []).append(build.trace + build.lower)
    seconds = race(runners, rounds)

    print(f"jax {jax.__version__}, {os.cpu_count()} cores, {jax.default_backend()}; {side} x {side} parameters")
    print(f"{'':22}{'ms':>8} {'bytes':>6} {'time':>19} {'time/bytes':>11} {'trace+lower':>12}")
    base_bytes, base = traffic(make("adam"), params), seconds["adam"]
    base_trace = statistics.median(tracing["adam"])
    for name, took in seconds.items():
        method = name.removesuffix(" again")
        predicted = traffic(make(method), params) / base_bytes
        ratios = [a / b for a, b in zip(took, base, strict=True)]
        traced = statistics.median(tracing[method]) / base_trace
        print(
            f"{name:22}{statistics.median(took) * 1e3:8.2f} {predicted:6.2f} {quartiles(ratios):>19}"
            f" {statistics.median(ratios) / predicted:11.2f} {traced:12.2f}{'  reduces' if name in REDUCES else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
