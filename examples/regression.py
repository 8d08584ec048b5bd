"""Fits a smooth function of ten numbers, with a Flax linen network in a `TrainState`, and Adam.

    python examples/regression.py

The loss ends far below the target's variance, which is what guessing its mean would leave.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.training.train_state import TrainState

import adamx

DATA_SEED, NETWORK_SEED = 0, 1


class Perceptron(nn.Module):
    """Two hidden layers of 64, one output."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """One number a row."""
        for _ in range(2):
            x = nn.tanh(nn.Dense(64)(x))
        return nn.Dense(1)(x)


def data() -> tuple[jax.Array, jax.Array]:
    """100 points of 10 inputs, and a fixed random smooth function of them: the sine of one projection plus another."""
    rng = np.random.default_rng(DATA_SEED)
    x, directions = rng.normal(size=(100, 10)), rng.normal(size=(10, 2)) / np.sqrt(10)
    first, second = np.split(x @ directions, 2, axis=1)
    return jnp.asarray(x, jnp.float32), jnp.asarray(np.sin(2 * first) + second, jnp.float32)


@jax.jit
def step(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
    """One step on all points; returns the loss before it."""

    def loss(params):
        return jnp.mean((state.apply_fn(params, x) - y) ** 2)

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value


def main(argv: list[str] | None = None) -> float:
    """Returns the final loss."""
    parser = argparse.ArgumentParser(prog="regression.py", description="Fits a smooth function of ten numbers.")
    parser.add_argument("--short", action="store_true", help="300 steps in place of 1000")
    steps = 300 if parser.parse_args(argv).short else 1000

    x, y = data()
    network = Perceptron()
    params = network.init(jax.random.key(NETWORK_SEED), x)
    state = TrainState.create(apply_fn=network.apply, params=params, tx=adamx.adam(3e-3))
    for i in range(steps):
        state, loss = step(state, x, y)
        if i % (steps // 10) == 0:
            print(f"step {i:4}: mean squared error {loss:.2e}")
    final = float(step(state, x, y)[1])
    print(f"step {steps:4}: mean squared error {final:.2e}; the target's variance is {y.var():.3f}")
    return final


if __name__ == "__main__":
    main()
