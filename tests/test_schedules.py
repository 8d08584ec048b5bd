"""Schedules as functions of the 0-based step, under jit and beyond their last step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import schedules

PEAK, WARM, TOTAL = 3e-3, 10, 100
SCHEDULES = {
    "warmup_cosine": (
        schedules.warmup_cosine(PEAK, WARM, TOTAL, end=3e-4),
        lambda n: PEAK * n / WARM if n < WARM
        else 3e-4 + (PEAK - 3e-4) * (1 + np.cos(np.pi * min(n - WARM, TOTAL - WARM) / (TOTAL - WARM))) / 2,
    ),
    "warmup_linear": (
        schedules.warmup_linear(PEAK, WARM, TOTAL),
        lambda n: PEAK * n / WARM if n < WARM else PEAK * max(0, (TOTAL - n) / (TOTAL - WARM)),
    ),
    "warmup_stable_decay": (
        schedules.warmup_stable_decay(PEAK, WARM, TOTAL, 20),
        lambda n: PEAK * min(1, n / WARM, max(0, (TOTAL - n) / 20)),
    ),
    "inverse_sqrt": (schedules.inverse_sqrt(PEAK, WARM), lambda n: PEAK * min((n + 1) / WARM, np.sqrt(WARM / (n + 1)))),
    "step_decay": (schedules.step_decay(PEAK, 30, 0.1), lambda n: PEAK * 0.1 ** (n // 30)),
    "no-warm-up": (schedules.warmup_linear(PEAK, 0, TOTAL), lambda n: PEAK * max(0, 1 - n / TOTAL)),
    "only-warm-up": (schedules.warmup_cosine(PEAK, 10, 10), lambda n: PEAK * min(1, n / 10)),
    "warm-and-stable": (schedules.warmup_stable_decay(PEAK, 5, 50, 0), lambda n: PEAK * min(1, n / 5)),
}  # fmt: skip


class Schedules(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_a_schedule_has_its_shape(self):
        steps = jnp.arange(150, dtype=jnp.int32)
        for name, (schedule, shape) in SCHEDULES.items():
            got = self.variant(jax.vmap(schedule))(steps)
            want = [shape(n) for n in range(150)]
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=PEAK * 1e-6, err_msg=name)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_method_sees_the_step_before_it_is_taken(name):
    schedule, shape = SCHEDULES[name]
    tx = adamx.sgd(schedule)
    g = {"w": jnp.ones(())}
    update, state = jax.jit(tx.update), tx.init(g)
    for n in range(15):
        updates, state = update(g, state)
        np.testing.assert_allclose(updates["w"], -shape(n), rtol=2e-5, atol=PEAK * 1e-6)


def test_optax_schedules_pass_straight_in():
    schedule = optax.piecewise_constant_schedule(0.5, {3: 0.1})
    ours, optaxs = adamx.adamw(schedule), optax.adamw(schedule)
    p = {"w": jnp.linspace(-1, 1, 7)}
    s, o = ours.init(p), optaxs.init(p)
    for _ in range(6):
        u, s = ours.update(p, s, p)
        v, o = optaxs.update(p, o, p)
        chex.assert_trees_all_close(u, v, rtol=2e-5)


def test_other_hyper_parameters_can_be_scheduled():
    tx = adamx.chain(adamx.add_decayed_weights(lambda n: 0.1 * (n + 1)), adamx.clip_by_global_norm(lambda n: 1.0 + n))
    zero, p = {"w": jnp.zeros(1)}, {"w": jnp.full(1, 100.0)}
    state = tx.init(p)
    for n in range(3):
        updates, state = jax.jit(tx.update)(zero, state, p)
        np.testing.assert_allclose(updates["w"], [1.0 + n], rtol=1e-6)
