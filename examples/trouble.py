"""A training that goes wrong, in one of four ways, what the doctor says of it, and its report.

    python examples/trouble.py --fault lr     # a learning rate far too high
    python examples/trouble.py --fault b2     # a second moment that remembers gradients of long ago
    python examples/trouble.py --fault bf16   # bfloat16 weights whose steps are rounded away
    python examples/trouble.py --fault eps    # an epsilon larger than the gradients
    python examples/trouble.py                # none of them: nothing to find

A perceptron learns the handwritten digits. `adamx.watch` records inside the compiled step; every hundred steps the
records are drained to a log below `--out`, which outlives the program, and in the end `report.html` is written beside
it. The same doctor and report from a shell: `adamx doctor runs/trouble/lr`, `adamx report runs/trouble/lr`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from loaders import load

import adamx
from adamx.diagnostics import doctor, report
from adamx.diagnostics.log import Log, read

BATCH, DRAINED = 64, 100  # images a step, steps between drains


class Fault(NamedTuple):
    """A way to go wrong.

    Attributes:
      says: what it is.
      method: makes the optimiser.
      dtype: of the parameters.
      shrink: what gradients are multiplied by after the first quarter of the training.
    """

    says: str
    method: Callable[[], Any]
    dtype: Any = jnp.float32
    shrink: float = 1.0


def sound(lr: float = 1e-3, **how: Any) -> Any:
    """AdamW as it should be, but for what is said."""
    return adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(lr, weight_decay=0.01, mask="*kernel", **how))


FAULTS = {
    "none": Fault("nothing", sound),
    "lr": Fault("a learning rate of 0.3", lambda: sound(0.3)),
    "b2": Fault("b2 = 0.9999, and gradients that shrink to a thousandth", lambda: sound(b2=0.9999), shrink=1e-3),
    "bf16": Fault("bfloat16 weights and a learning rate of 3e-6", lambda: sound(3e-6), jnp.bfloat16),
    "eps": Fault("an epsilon of 0.1", lambda: sound(eps=0.1)),
}


class Perceptron(nnx.Module):
    """Two hidden layers of 128, computed in float32 whatever the weights are kept in."""

    def __init__(self, features: int, classes: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(features, 128, rngs=rngs)
        self.second = nnx.Linear(128, 128, rngs=rngs)
        self.logits = nnx.Linear(128, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of the classes."""
        return self.logits(nnx.gelu(self.second(nnx.gelu(self.first(x)))))


def train(fault: Fault, log: Log, steps: int) -> float:
    """Trains, logs, and returns the mean loss of the last drained steps."""
    data = load(None, 0, 0).train
    images = data.images.reshape(len(data.images), -1)
    graph, params = nnx.split(Perceptron(images.shape[1], 10, rngs=nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(lambda p: p.astype(fault.dtype), params)
    tx = adamx.watch(fault.method(), every=5, distributions=True)
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array, weight: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logits = nnx.merge(graph, jax.tree.map(lambda p: p.astype(jnp.float32), params))(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, grads = jax.value_and_grad(loss)(params)
        grads = jax.tree.map(lambda g: (g * weight).astype(g.dtype), grads)
        updates, state = tx.update(grads, state, params, loss=value)
        return optax.apply_updates(params, updates), state, value

    rng, losses = np.random.default_rng(0), []
    for i in range(1, steps + 1):
        batch = rng.integers(0, len(images), BATCH)
        weight = fault.shrink if 4 * i > steps else 1.0
        params, state, value = step(params, state, images[batch], data.labels[batch], jnp.float32(weight))
        losses = [*losses[1 - DRAINED :], value]
        if i % DRAINED == 0 or i == steps:
            log.append(adamx.drain(state).history())
    return float(np.mean(jax.device_get(losses)))


def main(argv: list[str] | None = None) -> list[str]:
    """Returns the ids of what the doctor found."""
    parser = argparse.ArgumentParser(prog="trouble.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fault", choices=FAULTS, default="none", help="what goes wrong (%(default)s)")
    parser.add_argument("--steps", type=int, default=800, help="of training (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/trouble"), help="where logs go (%(default)s)")
    parser.add_argument("--short", action="store_true", help="300 steps")
    args = parser.parse_args(argv)
    fault, path = FAULTS[args.fault], args.out / args.fault
    if path.exists():
        print(f"trouble.py: {path} holds a log already; remove it, or choose another --out", file=sys.stderr)
        sys.exit(2)
    print(f"A perceptron on the digits, with {fault.says}")
    loss = train(fault, Log(path), 300 if args.short else args.steps)
    history = read(path)
    findings = doctor.diagnose(history)
    print(f"mean loss at the end {loss:.4g}; {len(findings)} findings")
    for finding in findings:
        print(f"\n{finding.severity.upper()} {finding.id}, step {finding.step}: {finding.says}")
        print(f"  cause: {finding.cause}\n  try:   {finding.advice}")
    report.write(history, path / "report.html", findings, title=f"digits, {fault.says}", unread=doctor.unread(history))
    print(f"\n{path / 'report.html'}")
    return [finding.id for finding in findings]


if __name__ == "__main__":
    main()
