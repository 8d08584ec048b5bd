"""Scalar facts, held at their edges."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.ground import numerics

DECAYS = [0.0, 0.5, 0.9, 0.999, 0.9999999, 1 - 1e-8]
STEPS = [1, 2, 10, 1000, 10**6]


@pytest.mark.parametrize("t", STEPS)
@pytest.mark.parametrize("b", DECAYS)
def test_one_minus_power_is_right_to_rounding(b, t):
    want = -np.expm1(t * np.log1p(-(1 - b))) if b else 1.0
    got = numerics.one_minus_power(b, jnp.float32(t))
    chex.assert_type(got, jnp.float32)
    np.testing.assert_allclose(got, want, rtol=4e-7)
    as_array = np.float32(b)
    if as_array < 1:
        want = 1 - np.float64(as_array) ** t
        np.testing.assert_allclose(numerics.one_minus_power(jnp.asarray(as_array), jnp.float32(t)), want, rtol=4e-7)


@pytest.mark.parametrize("t", STEPS)
@pytest.mark.parametrize("b", DECAYS)
def test_the_bias_corrected_average_of_ones_is_one(b, t):
    average = -np.expm1(t * np.log1p(-(1 - b))) if b else 1.0  # what an exact average of ones is after t steps
    tx = adamx.bias_correct(b)
    state = adamx.State(jnp.int32(t - 1), {}, {})
    corrected, state = tx.update({"w": jnp.float32(average)}, state)
    assert state.count == t
    np.testing.assert_allclose(corrected["w"], 1.0, rtol=5e-7)


def test_an_average_that_starts_small_forgets_at_the_right_rate():
    """optax's bfloat16 second moment never decays; neither does one whose 1 - b2 is taken from a rounded b2."""
    tx = adamx.scale_by_moments(nu=adamx.ema(0.999, 2, start=1.0))
    zero = {"w": jnp.zeros(3, jnp.bfloat16)}
    state = jax.lax.fori_loop(0, 2000, lambda i, s: tx.update(zero, s)[1], tx.init(zero))
    np.testing.assert_allclose(state.moments["nu"]["w"], 0.999**2000, rtol=2e-6)


def test_lerp_keeps_a_fixed_point_and_forgets_wholly():
    x = jnp.asarray(np.random.default_rng(0).standard_normal(1000), jnp.float32)
    big = jnp.full_like(x, 1e9)
    for b in (0.5, 0.9, 0.999, jnp.float32(0.999)):
        chex.assert_trees_all_equal(numerics.lerp(x, x, b), x)
    for b in (0.0, jnp.float32(0.0)):
        chex.assert_trees_all_equal(numerics.lerp(big, x, b), x)


def test_zero_over_zero_is_zero_with_a_finite_derivative():
    f = lambda x: numerics.divide(x, numerics.sqrt(x * x))
    assert f(jnp.float32(0)) == 0
    assert jnp.isfinite(jax.grad(f)(jnp.float32(0)))
    assert jnp.isfinite(jax.grad(lambda x: numerics.norm(x))(jnp.zeros(3))).all()


def test_adding_no_change_changes_no_bit():
    bits = np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        for dtype in (jnp.bfloat16, jnp.float16):
            x = jax.lax.bitcast_convert_type(jnp.asarray(bits), dtype)
            bare = np.asarray(x, np.float32)
            x = x[~np.isnan(bare) & ((bare == 0) | (np.abs(bare) >= jnp.finfo(dtype).tiny))]  # CPU flushes subnormals
            assert x.size > 60000
            same = jax.lax.bitcast_convert_type(x + jnp.asarray(numerics.NO_CHANGE, dtype), jnp.uint16)
            chex.assert_trees_all_equal(same, jax.lax.bitcast_convert_type(x, jnp.uint16))


def test_the_count_saturates():
    tx = adamx.adam(1e-3)
    g = {"w": jnp.ones(2)}
    state = tx.init(g)._replace(count=jnp.int32(2**31 - 1))
    updates, state = tx.update(g, state)
    assert state.count == 2**31 - 1
    chex.assert_tree_all_finite(updates)
