"""Trainings that learn are told so: nothing is found in them, at a quarter, at half of their way and at their end."""

import sys
from functools import cache, partial
from itertools import islice, pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.diagnostics.doctor import RULES, diagnose, unread
from adamx.diagnostics.history import History
from adamx.diagnostics.log import Log, read

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import charlm
import digits
import regression

BLOCK = 250  # steps between drains


@cache
def compiled(loss, tx):
    """Makes BLOCK steps."""

    @jax.jit
    def block(carry, batches):
        def step(carry, batch):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, batch)
            updates, state = tx.update(grads, state, params, loss=value)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, carry, batches)

    return block


def trained(path, loss, params, tx, batch, steps):
    """The log of a training, and its losses.

    Args:
      path: of the log.
      loss: of (params, batch).
      params: before the first step.
      tx: watches.
      batch: makes the batch of a step, of NumPy arrays.
      steps: a multiple of BLOCK.
    """
    log, losses, carry = Log(path), [], (params, tx.init(params))
    for _ in range(steps // BLOCK):
        batches = [batch() for _ in range(BLOCK)]
        stacked = tuple(np.stack(x).astype(np.float32) for x in zip(*batches, strict=True))
        carry, values = compiled(loss, tx)(carry, stacked)
        log.append(adamx.drain(carry[1]).history())
        losses.extend(np.asarray(values))
    return read(path), np.asarray(losses)


def cut(history, share):
    """The first share of it."""
    last = share * history.pulse_steps[-1]
    rows, beats = history.steps <= last, history.pulse_steps <= last
    of = lambda table, rows: {name: x[rows] for name, x in table.items()}
    return History(
        history.about, history.steps[rows], of(history.whole, rows), of(history.leaf, rows),
        history.pulse_steps[beats], of(history.pulse, beats), history.spread_steps[:0], {},
    )  # fmt: skip


def check_silent(history):
    for share in (0.25, 0.5, 1.0):
        assert [(f.id, f.severity, f.says) for f in diagnose(cut(history, share))] == []


def squared(params, batch):
    x, y = batch
    return jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2)


def linear(rng, inputs, outputs, rows, noise):
    """A batch of a linear function of noisy values."""
    kernel = rng.normal(size=(inputs, outputs))

    def batch():
        x = rng.normal(size=(rows, inputs))
        return x, x @ kernel + noise * rng.normal(size=(rows, outputs))

    return batch


def affine(inputs, outputs):
    return {"kernel": jnp.zeros((inputs, outputs)), "bias": jnp.zeros(outputs)}


def perceptron(rng, *sizes):
    return [
        {"kernel": jnp.asarray(rng.normal(size=(n, m)) / np.sqrt(n), jnp.float32), "bias": jnp.zeros(m)}
        for n, m in pairwise(sizes)
    ]


def of_sine(params, batch):
    x, y = batch
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["kernel"].astype(x.dtype) + layer["bias"].astype(x.dtype))
    last = params[-1]
    return jnp.mean((x @ last["kernel"].astype(x.dtype) + last["bias"].astype(x.dtype) - y) ** 2)


def sine(rng, rows=64):
    def batch():
        x = rng.uniform(-3, 3, size=(rows, 1))
        return x, np.sin(2 * x)

    return batch


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("lr", "every"),
    [(1e-2, 5), *(slow(lr, every) for lr in (1e-2, 1e-1) for every in (1, 5, 20) if (lr, every) != (1e-2, 5))],
)
def test_a_whole_batch_that_reached_the_noise_of_its_targets(tmp_path, lr, every):
    batch, tx = linear(np.random.default_rng(0), 8, 4, 64, 0.3)(), adamx.watch(adamx.adam(lr), every=every)
    history, losses = trained(tmp_path, squared, affine(8, 4), tx, lambda: batch, 1000 if every == 1 else 2000)
    assert losses[-1] < 0.02 * losses[0]
    np.testing.assert_allclose(losses[-100:], losses[-1], rtol=5e-3)  # it rests, above zero
    check_silent(history)
    assert unread(history) == ()


@pytest.mark.parametrize("seed", [0, slow(1)])
def test_a_logistic_regression_that_cannot_separate_its_classes(tmp_path, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 10))
    y = x @ rng.normal(size=(10, 1)) + 1.5 * rng.normal(size=(200, 1)) > 0

    def loss(params, batch):
        x, y = batch
        return optax.sigmoid_binary_cross_entropy(x @ params["kernel"] + params["bias"], y).mean()

    tx = adamx.watch(adamx.adam(1e-2), every=5)
    history, losses = trained(tmp_path, loss, affine(10, 1), tx, lambda: (x, y), 2000)
    assert 0.2 < losses[-1] < 0.4 < losses[0]
    check_silent(history)


def test_a_regression_on_one_example_a_step(tmp_path):
    tx = adamx.watch(adamx.adam(1e-3), every=5)
    for seed in range(6):
        batch = linear(np.random.default_rng(seed), 8, 1, 1, 0.1)
        history, losses = trained(tmp_path / str(seed), squared, affine(8, 1), tx, batch, 2000)
        assert losses[-500:].mean() < losses[:500].mean()
        check_silent(history)


@pytest.mark.slow
@pytest.mark.parametrize("lr", [1e-2, 3e-3, 1e-3])
def test_a_perceptron_on_small_batches(tmp_path, lr):
    rng, tx = np.random.default_rng(0), adamx.watch(adamx.adamw(lr), every=5)
    history, losses = trained(tmp_path, of_sine, perceptron(rng, 1, 32, 32, 1), tx, sine(rng), 2000)
    assert losses[-1] < 0.1 * losses[0]
    check_silent(history)


@pytest.mark.slow
@pytest.mark.parametrize("lr", [1e-2, 3e-3, 1e-3])
def test_a_perceptron_on_a_whole_batch(tmp_path, lr):
    rng, tx = np.random.default_rng(0), adamx.watch(adamx.adamw(lr), every=5)
    params, batch = perceptron(rng, 1, 32, 32, 1), sine(rng)()
    history, losses = trained(tmp_path, of_sine, params, tx, lambda: batch, 2000)
    assert losses[-1] < 1e-2 * losses[0]
    check_silent(history)


@pytest.mark.slow
def test_a_learning_rate_that_ends_at_zero(tmp_path):
    rng = np.random.default_rng(0)
    tx = adamx.watch(adamx.adamw(adamx.schedules.warmup_cosine(1e-2, 100, 2000)), every=5)
    history, losses = trained(tmp_path, of_sine, perceptron(rng, 1, 32, 32, 1), tx, sine(rng), 2000)
    assert losses[-1] < 1e-2 * losses[0]
    assert history.whole["learning_rate"][-1] < 1e-5
    check_silent(history)


@pytest.mark.slow
def test_bfloat16_parameters_with_a_residue(tmp_path):
    rng = np.random.default_rng(0)
    tx = adamx.watch(adamx.seven_bytes(adamx.adamw(3e-3, weight_decay=0.01, mask="*kernel")), every=5)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), perceptron(rng, 1, 64, 64, 1))
    history, losses = trained(tmp_path, of_sine, params, tx, sine(rng), 2000)
    assert losses[-1] < 0.05 * losses[0]
    check_silent(history)
    assert unread(history) == ()


@pytest.mark.slow
def test_the_regression_of_the_examples(tmp_path):
    x, y = regression.data()
    network = regression.Perceptron()
    params = network.init(jax.random.key(regression.NETWORK_SEED), x)
    loss = lambda params, batch: jnp.mean((network.apply(params, batch[0]) - batch[1]) ** 2)
    tx = adamx.watch(adamx.adam(3e-3), every=5)
    history, losses = trained(tmp_path, loss, params, tx, lambda: (x, y), 1000)
    assert losses[-1] < 1e-4 * losses[0]
    check_silent(history)


@pytest.mark.slow
def test_the_digits(tmp_path):
    assert digits.main(["--report", "--epochs", "6", "--out", str(tmp_path)]) == 0
    check_silent(read(tmp_path / "log"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("storage", "kept"),
    [("float32", "float32"), pytest.param("8bit", "bf16+int8", marks=pytest.mark.thorough)],
)
def test_the_character_model(tmp_path, storage, kept):
    steps, text = 500, charlm.load().train
    graph, params = charlm.initial(0, 1, 64, 32)
    tx = charlm.STORAGE[storage](charlm.method(charlm.rates(charlm.LR, steps), charlm.DECAY))
    tx, start = charlm.keep(tx, kept)
    params, _ = jax.jit(start)(params)
    tx = adamx.watch(tx, every=5)
    state, log = tx.init(params), Log(tmp_path)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, text):
        value, grads = jax.value_and_grad(partial(charlm.loss, graph))(params, text)
        updates, state = tx.update(grads, state, params, loss=value)
        return optax.apply_updates(params, updates), state, value

    for i, batch in enumerate(islice(charlm.batches(text, 0, steps, 8, 32), steps), 1):
        params, state, _ = step(params, state, batch)
        if i % BLOCK == 0:
            log.append(adamx.drain(state).history())
    history = read(tmp_path)
    assert np.median(history.pulse["loss"][-50:]) < 0.7 * history.pulse["loss"][0]
    check_silent(history)


def test_of_another_library_it_is_said_what_the_doctor_could_not_read(tmp_path):
    tx = adamx.watch(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)), every=5)
    history, _ = trained(tmp_path, squared, affine(2, 1), tx, linear(np.random.default_rng(0), 2, 1, 4, 0.1), BLOCK)
    check_silent(history)
    read_all_the_same = {"NONFINITE", "SPIKE", "SPIKE_SCORE", "LOSS_ROSE", "UPDATE_RATIO", "BF16_STALL", "DEAD_LEAF"}
    assert set(RULES) - set(unread(history)) == read_all_the_same | {"SPARSE_LEAF", "IMBALANCE"}
