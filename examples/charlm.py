"""Learns to write Python, one character at a time, in 16 bytes a parameter or in 7: a Flax NNX transformer and AdamW.

    python examples/charlm.py                                     # float32: 16 bytes; 40 s on two cores
    python examples/charlm.py --storage 8bit --params bf16+int8   # the same in 7
    python examples/charlm.py --layers 6 --width 384 --context 256 --batch 64 --steps 5000   # 10.8 M, where a GPU is

The text is the source of Python's own standard library, as it lies beside the interpreter that runs this; every tenth
file is held out. `--storage` says how the optimiser keeps its moments between steps, `--params` how the parameters
themselves are kept. The model always sees the visible parameters, bfloat16 where they are, and computes in float32;
gradients have the visible parameters' dtype.
"""

import argparse
import math
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike

import adamx

CHARACTERS = 128  # ASCII
HEAD = 32  # width of an attention head
HELD_OUT = 10  # every tenth file
WINDOWS = 512  # that the validation loss is taken on
LR, WARMUP, DECAY = 2e-3, 0.1, 0.1  # highest learning rate, share of the steps, weight decay

# How the optimiser keeps its moments.
STORAGE: dict[str, Callable[[Any], Any]] = {
    "float32": lambda tx: tx,
    "bf16": lambda tx: adamx.store_state(tx, "bf16"),
    "8bit": lambda tx: adamx.store_state(tx, "8bit"),
    "4bit": lambda tx: adamx.store_state(tx, "4bit"),
}

# How the parameters are kept: bfloat16 to the model, and what the optimiser's state holds besides.
PARAMS: dict[str, Callable[[], Any] | None] = {
    "float32": None,
    "bf16": lambda: adamx.codecs.nearest(),
    "bf16-stochastic": lambda: adamx.codecs.stochastic(),
    "bf16-kahan": lambda: adamx.codecs.kahan(),
    "bf16+int8": lambda: adamx.codecs.split8(stochastic=True),
    "bf16+int16": lambda: adamx.codecs.split16(),
    "master": lambda: adamx.codecs.master(),
}


class Block(nnx.Module):
    """Causal attention and two dense layers, each added to what it reads the norm of."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.qkv, self.join = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def __call__(self, x: jax.Array, batch: int) -> jax.Array:
        """[batch * context, width], as it came: on a CPU XLA takes twice as long for the gradients of rank 3."""
        q, k, v = jnp.split(self.qkv(self.norms[0](x)).reshape(batch, -1, 3 * x.shape[1] // HEAD, HEAD), 3, axis=2)
        x = x + self.join(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class CharLM(nnx.Module):
    """A decoder-only transformer with learned positions."""

    def __init__(self, layers: int, width: int, context: int, *, rngs: nnx.Rngs):
        self.characters = nnx.Embed(CHARACTERS, width, rngs=rngs)
        self.positions = nnx.Embed(context, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.logits = nnx.Linear(width, CHARACTERS, use_bias=False, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Logits of the next character, at every place of [batch, context] characters."""
        x = self.characters(text) + self.positions(jnp.arange(text.shape[1]))
        x = x.reshape(-1, x.shape[2])
        for block in self.blocks:
            x = block(x, len(text))
        return self.logits(self.norm(x)).reshape(*text.shape, CHARACTERS)


class Text(NamedTuple):
    """Characters as numbers below 128, of whole files."""

    train: np.ndarray
    val: np.ndarray


def load() -> Text:
    """The standard library's top-level modules; what is not ASCII becomes a question mark."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda path: path.name)
    paths = [path for path in paths if not path.name.startswith("_sysconfigdata")]  # says where Python was built
    files = [path.read_text("utf-8", errors="replace").encode("ascii", "replace") for path in paths]
    train = b"".join(file for i, file in enumerate(files) if i % HELD_OUT != HELD_OUT // 2)
    val = b"".join(files[HELD_OUT // 2 :: HELD_OUT])
    return Text(np.frombuffer(train, np.uint8), np.frombuffer(val, np.uint8))


def windows(text: np.ndarray, begins: np.ndarray, context: int) -> np.ndarray:
    """One row each: `context` characters, and the one after them."""
    return text[begins[:, None] + np.arange(context + 1)].astype(np.int32)


def batches(text: np.ndarray, seed: int, steps: int, batch: int, context: int) -> Iterator[np.ndarray]:
    """Random windows; the seed decides which."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield windows(text, rng.integers(0, len(text) - context, batch), context)


def val_windows(text: np.ndarray, batch: int, context: int) -> np.ndarray:
    """The same windows for every seed, spread evenly, in batches."""
    begins = np.linspace(0, len(text) - context - 1, -(-WINDOWS // batch) * batch).astype(np.int64)
    return windows(text, begins, context).reshape(-1, batch, context + 1)


@partial(jax.jit, static_argnums=(1, 2, 3))
def initial(seed: int, layers: int, width: int, context: int) -> tuple[Any, Any]:
    """The network without its weights, and float32 weights."""
    return nnx.split(CharLM(layers, width, context, rngs=nnx.Rngs(jax.random.key(seed))), nnx.Param)


def loss(graph: Any, params: Any, text: jax.Array) -> jax.Array:
    """Nats a character, computed in float32 from the visible parameters."""
    model = nnx.merge(graph, jax.tree.map(lambda p: p.astype(jnp.float32), params))
    return optax.softmax_cross_entropy_with_integer_labels(model(text[:, :-1]), text[:, 1:]).mean()


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def train_step(graph: Any, tx: Any, params: Any, state: Any, text: ArrayLike) -> tuple[Any, Any, jax.Array]:
    """One step; returns the loss before it."""
    value, grads = jax.value_and_grad(partial(loss, graph))(params, text)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


@partial(jax.jit, static_argnums=0)
def evaluate(graph: Any, params: Any, text: ArrayLike) -> jax.Array:
    """Mean loss over batches of windows."""
    return jax.lax.map(lambda batch: loss(graph, params, batch), jnp.asarray(text)).mean()


def rates(lr: float, steps: int) -> Callable[..., Any]:
    """Up to lr in a tenth of the steps, and down along a cosine."""
    return adamx.schedules.warmup_cosine(lr, int(WARMUP * steps), steps)


def method(schedule: Any, decay: float) -> Any:
    """AdamW as most language models are trained with: clipped gradients, and only matrices decay."""
    return adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(schedule, weight_decay=decay, mask="*kernel"))


def keep(tx: Any, params: str) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """The transformation for parameters kept as PARAMS says, and what makes (parameters, state) of float32 ones."""
    codec = PARAMS[params]
    if codec is None:
        return tx, lambda params32: (params32, tx.init(params32))
    stored = adamx.store_params(tx, codec())
    return stored, partial(adamx.split_params, stored)


def bytes_a_parameter(params: Any, state: Any) -> tuple[float, float, float]:
    """Of parameters, optimiser state and gradients."""
    n = sum(x.size for x in jax.tree.leaves(params))
    ours, its = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / n for tree in (params, state))
    return ours, its, ours


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse itself answers what is wrong with it, with exit code 2."""

    def number(kind: type, least: float, multiple: int = 1) -> Any:
        def read(text: str) -> Any:
            if not least <= kind(text) < float("inf"):
                raise argparse.ArgumentTypeError(f"{text} is not a number from {least} up")
            if multiple > 1 and kind(text) % multiple:
                raise argparse.ArgumentTypeError(f"{text} is not a multiple of {multiple}")
            return kind(text)

        return read

    whole = number(int, 1)
    parser = argparse.ArgumentParser(prog="charlm.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--storage", choices=STORAGE, default="float32", help="of the moments (%(default)s)")
    parser.add_argument("--params", choices=PARAMS, default="float32", help="how parameters are kept (%(default)s)")
    parser.add_argument("--steps", type=whole, help="1000, or 30 with --short")
    parser.add_argument("--layers", type=whole, help="4, or 1 with --short")
    parser.add_argument("--width", type=number(int, HEAD, HEAD), help="128, or 32 with --short")
    parser.add_argument("--context", type=whole, default=64, help="characters that it sees (%(default)s)")
    parser.add_argument("--batch", type=whole, default=8, help="windows a step (%(default)s)")
    parser.add_argument("--lr", type=number(float, 1e-12), default=LR, help="highest learning rate (%(default)s)")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of weights and batches (%(default)s)")
    parser.add_argument("--short", action="store_true", help="a few steps of a tiny network")
    args = parser.parse_args(argv)
    args.steps = args.steps or (30 if args.short else 1000)
    args.layers = args.layers or (1 if args.short else 4)
    args.width = args.width or (32 if args.short else 128)
    return args


def main(argv: list[str] | None = None) -> float:
    """Returns the validation loss in nats a character."""
    args, text = parse(argv), load()
    if len(text.val) <= args.context:
        found = f"{sysconfig.get_path('stdlib')}: {len(text.val)} held-out characters of source"
        print(f"charlm.py: {found}; expected more than --context {args.context}", file=sys.stderr)
        sys.exit(2)
    graph, params = initial(args.seed, args.layers, args.width, args.context)
    tx, start = keep(STORAGE[args.storage](method(rates(args.lr, args.steps), DECAY)), args.params)
    params, state = jax.jit(start)(params)
    n, val = sum(x.size for x in jax.tree.leaves(params)), val_windows(text.val, args.batch, args.context)
    sizes = bytes_a_parameter(params, state)
    print(f"{len(text.train):,} characters to learn from, {len(text.val):,} held out; {n:,} parameters")

    begun = compiled = time.perf_counter()
    losses = []
    for i, batch in enumerate(batches(text.train, args.seed, args.steps, args.batch, args.context), 1):
        params, state, value = train_step(graph, tx, params, state, batch)
        losses.append(value)
        if i == 1:
            value.block_until_ready()
            compiled = time.perf_counter()
        if i % -(-args.steps // 10) == 0:
            print(f"step {i:5}: training loss {np.mean(jax.device_get(losses)):.4f}", flush=True)
            losses.clear()
    jax.block_until_ready(params)
    done = time.perf_counter()
    final = float(evaluate(graph, params, val))
    speed = (args.steps - 1) * args.batch * args.context / (done - compiled)
    print(f"validation loss {final:.4f} nats, {final / math.log(2):.4f} bits a character")
    print(f"{speed:,.0f} characters a second, {done - compiled:.0f} s; compiled in {compiled - begun:.1f} s")
    kinds = ", ".join(
        f"{size:.2f} {of}" for size, of in zip(sizes, ("parameters", "optimiser", "gradients"), strict=True)
    )
    print(f"{sum(sizes):.2f} bytes a parameter: {kinds}")
    return final


if __name__ == "__main__":
    main()
