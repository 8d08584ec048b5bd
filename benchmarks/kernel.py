"""The kernel beside the plain path and optax, as shares of what the memory allows; all in one process.

    python -m benchmarks.kernel [--rows 8192 --columns 8192 --leaves 4] [--rounds 15] [--short]

Bytes are counted by formula: what a step must read and write of parameters, gradients and state, each once; 28 a
parameter for float32 AdamW, 12.06 for seven bytes. A contestant's share is bytes / time over the same of an in-place
scaling of as many bytes as float32 AdamW moves, the copy. Contestants run in turn, round by round, and medians over
rounds are printed. On a machine without TPU or CUDA the kernel runs in Pallas's interpreter, which says that it runs
and nothing about its speed; take --short there.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adamx
from adamx.kernels.fused import PLATFORMS, fused
from benchmarks.step import copy_runner, jax_runner, prepare, program, quartiles, race, tree_of


def methods(platform: str) -> dict[str, tuple[Callable[[], Any], bool, Any]]:
    """By name: a factory, whether its `step` is taken, and the dtype of parameters and gradients."""
    has = platform in PLATFORMS
    kernel = lambda tx: fused(tx, interpret=None if has else "tpu")
    seven = lambda: adamx.seven_bytes(adamx.adamw(1e-3))
    stochastic = lambda: adamx.store_params(adamx.store_state(adamx.adamw(1e-3), "8bit"), adamx.codecs.stochastic())
    said = "kernel" if has else "kernel, interpreted"
    return {
        "optax.adamw float32": (lambda: optax.adamw(1e-3), False, jnp.float32),
        "seven bytes": (seven, True, jnp.bfloat16),
        f"seven bytes, {said}": (lambda: kernel(seven()), True, jnp.bfloat16),
        "stochastic": (stochastic, True, jnp.bfloat16),
        f"stochastic, {said}": (lambda: kernel(stochastic()), True, jnp.bfloat16),
    }


def narrow(shapes: list[tuple[int, ...]], seed: int, scale: float, dtype: Any) -> dict[str, jax.Array]:
    """As `tree_of`, in dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), tree_of(shapes, seed, scale))


def moved(tx: Any, params: Any) -> int:
    """Bytes that a step must read and write: parameters and state both ways, gradients once."""
    size = lambda of: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(of))
    return 3 * size(params) + 2 * size(jax.eval_shape(tx.init, params))


def measure(shapes: list[tuple[int, ...]], rounds: int) -> dict[str, float]:
    """Print the table, and return each contestant's share of the copy's bandwidth."""
    platform = jax.default_backend()
    platform = "cuda" if platform == "gpu" and "cuda" in jax.devices()[0].client.platform_version.lower() else platform
    device = jax.devices()[0].device_kind
    n = sum(a * b for a, b in shapes)
    print(f"jax {jax.__version__}, {device}: {len(shapes)} leaves of {shapes[0]}, {n / 1e6:.1f} M parameters")
    if platform not in PLATFORMS:
        print("no TPU or CUDA device is here: the kernel is interpreted, and its time means nothing")
    bytes_of: dict[str, int] = {}
    runners, temporaries = [], {}
    for name, (factory, by_step, dtype) in methods(platform).items():
        tx = factory()
        params, grads = (narrow(shapes, seed, scale, dtype) for seed, scale in enumerate((1.0, 1e-3)))
        compiled = prepare(program(tx, by_step), params, tx.init(params), grads)
        bytes_of[name], temporaries[name] = moved(tx, params), compiled.temporaries / n
        runners.append(jax_runner(name, compiled.run, tx, params, grads))
    runners.append(copy_runner(n))
    bytes_of["copy"] = 28 * n
    seconds = race(runners, rounds)
    speed = {name: [bytes_of[name] / s for s in took] for name, took in seconds.items()}
    print(f"{'':34}{'ms':>9} {'B/param':>8} {'GB/s':>8} {'of copy':>8} {'time to optax':>19} {'temporaries':>12}")
    shares = {}
    for name, took in seconds.items():
        shares[name] = statistics.median(a / b for a, b in zip(speed[name], speed["copy"], strict=True))
        ratio = quartiles([a / b for a, b in zip(took, seconds["optax.adamw float32"], strict=True)])
        line = f"{name:34}{statistics.median(took) * 1e3:9.3f} {bytes_of[name] / n:8.2f}"
        line += f" {statistics.median(speed[name]) / 1e9:8.1f} {shares[name]:8.0%} {ratio:>19}"
        print(line + (f" {temporaries[name]:8.3f} B/p" if name in temporaries else ""), flush=True)
    return shares


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="of a leaf")
    parser.add_argument("--columns", type=int, default=8192, help="of a leaf; multiples of 256 go through the kernel")
    parser.add_argument("--leaves", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the race (at least 2)")
    parser.add_argument("--short", action="store_true", help="two rounds of one leaf of 64 x 512")
    args = parser.parse_args(argv)
    if args.short:
        return measure([(64, 512)], 2)
    return measure([(args.rows, args.columns)] * args.leaves, max(2, args.rounds))


if __name__ == "__main__":
    main()
