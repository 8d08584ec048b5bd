"""A skipped step was never there."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx

BAD = [jnp.nan, jnp.inf, -jnp.inf]


def bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)


def params_with_both_zeros(dtype):
    return {
        "a": {"w": jnp.array([0.0, -0.0, 1.0, -2.5, 3e-5], dtype)},
        "b": jnp.array([[1.0, -0.0]], dtype),
    }


def poisoned(params, bad):
    grads = jax.tree.map(jnp.ones_like, params)
    return grads | {"b": grads["b"].at[0, 1].set(bad)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_skipped_step_was_never_there(bad, dtype):
    params = params_with_both_zeros(dtype)
    good = jax.tree.map(jnp.ones_like, params)
    tx = adamx.skip_nonfinite(adamx.adamw(1e-3, weight_decay=0.1))

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    p1, s1 = step(params, state, good)
    p2, s2 = step(p1, s1, poisoned(params, bad))
    assert bits(p2) == bits(p1)
    assert bits(s2.inner) == bits(s1.inner)
    assert adamx.skip_report(s2, params) == (1, 1, "b")
    p3, s3 = step(p2, s2, good)
    q2, t2 = step(p1, s1, good)
    assert bits(p3) == bits(q2)
    assert bits(s3.inner) == bits(t2.inner)
    assert adamx.skip_report(s3, params) == (1, 0, "b")
    assert step._cache_size() == 1


def test_parameters_keep_the_sign_of_their_zeros_from_the_first_step_on():
    params = params_with_both_zeros("float32")
    tx = adamx.skip_nonfinite(adamx.sgd(0.1))
    updates, _ = tx.update(poisoned(params, jnp.nan), tx.init(params))
    assert bits(optax.apply_updates(params, updates)) == bits(params)


def test_the_first_offending_leaf_is_named():
    params = {"b": jnp.ones(2), "a": {"x": jnp.ones(2), "n": jnp.arange(2)}, "none": None}
    tx = adamx.skip_nonfinite(adamx.adam(1e-3))
    state = tx.init(params)
    assert adamx.skip_report(state, params) == (0, 0, None)
    zero = np.zeros(2, jax.dtypes.float0)
    grads = {"b": jnp.array([1.0, jnp.inf]), "a": {"x": jnp.ones(2), "n": zero}, "none": None}
    updates, state = tx.update(grads, state, params)
    assert adamx.skip_report(state, params).leaf == "b"
    assert updates["none"] is None
    grads["a"]["x"] = jnp.array([jnp.nan, 1.0])
    _, state = tx.update(grads, state, params)
    assert adamx.skip_report(state, params) == (2, 2, "a/x")


def test_it_gives_up_on_the_host_after_n_in_a_row():
    params = {"dense": {"kernel": jnp.ones(2)}}
    nan = jax.tree.map(lambda p: p * jnp.nan, params)
    tx = adamx.chain(adamx.clip_by_global_norm(1.0), adamx.skip_nonfinite(adamx.adam(1e-3), give_up_after=3))
    step, state = jax.jit(tx.update), tx.init(params)
    for _ in range(2):
        _, state = step(nan, state, params)
    adamx.skip_report(state, params)
    _, state = step(nan, state, params)
    with pytest.raises(adamx.NonFiniteGradients) as caught:
        adamx.skip_report(state, params)
    assert str(caught.value).startswith("3 steps in a row had non-finite gradients (limit 3, 3 skipped in all)")
    assert "'dense/kernel'" in str(caught.value)
    _, state = step(params, state, params)
    assert adamx.skip_report(state, params).streak == 0


def test_derivatives_through_a_skipped_step_are_finite():
    tx = adamx.skip_nonfinite(adamx.adam(0.1))

    def trained(p):
        state = tx.init(p)
        for g in (p, p + jnp.nan, p):
            updates, state = tx.update(g, state, p)
            p = p + updates
        return jnp.sum(p)

    chex.assert_tree_all_finite(jax.grad(trained)(jnp.ones(3)))


def test_names_are_right_under_a_mask_and_in_a_partition():
    params = {"b": jnp.ones(1), "w": jnp.ones(1), "x": jnp.ones(1)}
    guarded = adamx.skip_nonfinite(adamx.adam(1e-3), give_up_after=1)
    for tx in (
        optax.masked(guarded, {"b": False, "w": True, "x": True}),
        optax.partition({"a": guarded, "z": guarded}, {"b": "a", "w": "z", "x": "a"}),
    ):
        _, state = tx.update(params | {"w": jnp.array([jnp.nan])}, tx.init(params), params)
        with pytest.raises(adamx.NonFiniteGradients, match="first in leaf 'w'"):
            adamx.skip_report(state, params)


def test_a_swept_state_or_a_smaller_tree_is_one_sentence():
    tx = adamx.skip_nonfinite(adamx.adam(1e-3))
    with pytest.raises(ValueError, match="this state is swept by vmap"):
        adamx.skip_report(jax.vmap(tx.init)({"w": jnp.ones((2, 3))}), {"w": 0})
    two = {"a": jnp.ones(1), "b": jnp.array([jnp.nan])}
    _, state = tx.update(two, tx.init(two))
    with pytest.raises(ValueError, match="leaf 1 was not finite, but params has 1 leaves"):
        adamx.skip_report(state, {"a": 0})


def test_a_state_without_a_guard_is_refused():
    with pytest.raises(ValueError, match="this state holds no SkipState: wrap the transformation in skip_nonfinite"):
        adamx.skip_report(adamx.adam(1e-3).init({"w": jnp.ones(1)}), {})


def test_it_guards_foreign_transformations_too():
    params = {"w": jnp.ones(3)}
    tx = adamx.skip_nonfinite(optax.adam(1e-3))
    state = tx.init(params)
    _, after = tx.update({"w": jnp.array([1.0, jnp.nan, 1.0])}, state, params)
    chex.assert_trees_all_equal(after.inner, state.inner)
