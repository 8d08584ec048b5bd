"""How far do two compiled runs of one method part, by their roundings alone?

    python -m benchmarks.drift [--steps 3000] [--size 262144]

AdamW on float32 parameters, on bfloat16 ones with the rest in 16 bits beside (`split16`, which is float32 bit for bit
where operations are run one by one), and optax's, from the same start and on the same gradients, N(0, 1) and bfloat16
numbers. What differs between compiled programs is which products and sums a compiler contracts and in which order. Each
row is a run against the first one: the root mean square of the distance between the two, in units of how far the first
went, and the share of parameters that are equal bit for bit.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adamx
from adamx import codecs

LR, DECAY = 1e-3, 0.1


def gradients(t: Any, size: int) -> jax.Array:
    """Of step t: the same for every run, and the same in bfloat16."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), t), (size // 256, 256)).astype(jnp.bfloat16)


def by_step(tx: Any) -> Callable[[Any, Any, Any], Any]:
    return lambda g, s, p: tx.step(g, s, p)


def by_update(tx: Any) -> Callable[[Any, Any, Any], Any]:
    def step(g: Any, s: Any, p: Any) -> Any:
        updates, s = tx.update(g.astype(p.dtype), s, p)
        return optax.apply_updates(p, updates), s

    return step


def in_one_program(step: Any, params: Any, state: Any, steps: int) -> tuple[Any, Any]:
    def one(carry: Any, t: jax.Array) -> tuple[Any, None]:
        p, s = carry
        return step(gradients(t, p.size), s, p), None

    return jax.jit(lambda p, s: jax.lax.scan(one, (p, s), jnp.arange(steps))[0])(params, state)


def in_many(step: Any, params: Any, state: Any, steps: int) -> tuple[Any, Any]:
    drawn, step = jax.jit(gradients, static_argnums=1), jax.jit(step)
    for t in range(steps):
        params, state = step(drawn(t, params.size), state, params)
    return params, state


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--size", type=int, default=2**18, help="parameters, a multiple of 256")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.size < 256 or args.size % 256:
        parser.error(f"steps must be above 0 and size a multiple of 256, but are {args.steps} and {args.size}")
    start = jax.random.normal(jax.random.key(1), (args.size // 256, 256))
    plain, theirs = adamx.adamw(LR, weight_decay=DECAY), optax.adamw(LR, weight_decay=DECAY)
    split = adamx.store_params(plain, codecs.split16())
    entered = adamx.split_params(split, start)
    runs = {
        "float32, one program of all steps": (in_one_program, by_update(plain), start, plain.init(start)),
        "float32, a program a step": (in_many, by_update(plain), start, plain.init(start)),
        "float32, optax": (in_one_program, by_update(theirs), start, theirs.init(start)),
        "bf16 + int16, one program of all steps": (in_one_program, by_step(split), *entered),
        "bf16 + int16, a program a step": (in_many, by_step(split), *entered),
    }
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, {jax.default_backend()}; {args.steps} steps")
    print("\n| | distance | equal bits |\n|---|---|---|")
    first = None
    rms = lambda x: float(jnp.sqrt(jnp.mean(jnp.square(x))))
    for name, (way, step, params, state) in runs.items():
        params, state = way(step, params, state, args.steps)
        end = adamx.full_params(state, params) if params.dtype == jnp.bfloat16 else params
        if first is None:
            first = end
            print(f"| {name} | (moves {rms(end - start):.3g}) | |", flush=True)
        else:
            print(f"| {name} | {rms(end - first) / rms(first - start):.1e} | {float(jnp.mean(end == first)):.1%} |")


if __name__ == "__main__":
    main()
