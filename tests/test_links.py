"""Each link alone: what it computes, with and without jit, alone and in both kinds of chain."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx

G = {"w": jnp.array([[3.0, -4.0], [0.0, 12.0]]), "b": jnp.array([0.5, -0.5])}
P = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([1.0, -1.0])}


class Links(chex.TestCase):
    def run_twice(self, tx, params=None):
        """The outputs of two steps on G, then 2 G."""
        update = self.variant(tx.update)
        state = tx.init(G)
        first, state = update(G, state, params)
        second, state = update(jax.tree.map(lambda g: 2 * g, G), state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(G))
        return first, second

    def check(self, tx, first, second, params=None, rtol=1e-6):
        got = self.run_twice(tx, params)
        want = tuple({k: f(np.asarray(g)) for k, g in G.items()} for f in (first, second))
        chex.assert_trees_all_close(got, want, rtol=rtol)

    @chex.variants(with_jit=True, without_jit=True)
    def test_ema_is_the_running_mean(self):
        self.check(adamx.ema(0.75), lambda g: 0.25 * g, lambda g: 0.75 * 0.25 * g + 0.25 * 2 * g)

    @chex.variants(with_jit=True, without_jit=True)
    def test_ema_of_squares(self):
        self.check(adamx.ema(0.75, 2), lambda g: 0.25 * g**2, lambda g: 0.75 * 0.25 * g**2 + g**2)

    @chex.variants(with_jit=True, without_jit=True)
    def test_a_lagging_ema_shows_what_it_was(self):
        self.check(adamx.ema(0.75, lag=True), lambda g: 0 * g, lambda g: 0.25 * g)

    @chex.variants(with_jit=True, without_jit=True)
    def test_an_ema_can_start_anywhere(self):
        self.check(adamx.ema(0.75, start=1.0), lambda g: 0.75 + 0.25 * g, lambda g: 0.5625 + 0.6875 * g)

    @chex.variants(with_jit=True, without_jit=True)
    def test_trace_is_the_decaying_sum(self):
        self.check(adamx.trace(0.5), lambda g: g, lambda g: 2.5 * g)
        self.check(adamx.trace(0.5, dampening=0.25), lambda g: g, lambda g: 2 * g)
        self.check(adamx.trace(1.0, 2, start=1.0), lambda g: 1 + g**2, lambda g: 1 + 5 * g**2)

    @chex.variants(with_jit=True, without_jit=True)
    def test_decayed_max(self):
        tx = adamx.decayed_max(0.5, 0.25)
        self.check(tx, lambda g: np.maximum(0, abs(g) + 0.25), lambda g: np.maximum(0.5 * abs(g), 2 * abs(g) + 0.25))

    @chex.variants(with_jit=True, without_jit=True)
    def test_peak_remembers_the_largest(self):
        self.check(adamx.peak(), lambda g: np.maximum(0, g), lambda g: np.maximum(0, 2 * g))

    @chex.variants(with_jit=True, without_jit=True)
    def test_difference_starts_at_zero(self):
        self.check(adamx.difference(), lambda g: 0 * g, lambda g: g)

    @chex.variants(with_jit=True, without_jit=True)
    def test_bias_correct_turns_an_average_into_a_mean(self):
        self.check(
            adamx.chain(adamx.ema(0.9), adamx.bias_correct(0.9)),
            lambda g: g,
            lambda g: 0.09 / 0.19 * g + 0.2 / 0.19 * g,
        )
        both = adamx.bias_correct(0.9, 0.99)
        scale = lambda t: np.sqrt(1 - 0.99**t) / (1 - 0.9**t)
        self.check(both, lambda g: scale(1) * g, lambda g: scale(2) * 2 * g)

    @chex.variants(with_jit=True, without_jit=True)
    def test_scale_by_lr_is_the_only_minus_sign(self):
        self.check(adamx.scale_by_lr(0.5), lambda g: -0.5 * g, lambda g: -g)
        self.check(adamx.scale_by_lr(lambda n: 0.5 + n), lambda g: -0.5 * g, lambda g: -3 * g)
        self.check(adamx.scale_by_lr(jnp.float32(0.5)), lambda g: -0.5 * g, lambda g: -g)

    @chex.variants(with_jit=True, without_jit=True)
    def test_clip(self):
        self.check(adamx.clip(1.0), lambda g: np.clip(g, -1, 1), lambda g: np.clip(2 * g, -1, 1))

    @chex.variants(with_jit=True, without_jit=True)
    def test_clip_by_global_norm(self):
        norm = np.sqrt(169.5)
        self.check(adamx.clip_by_global_norm(13.02), lambda g: g, lambda g: 2 * g * 13.02 / (2 * norm))
        self.check(adamx.clip_by_global_norm(0.0), lambda g: 0 * g, lambda g: 0 * g)

    @chex.variants(with_jit=True, without_jit=True)
    def test_clip_by_leaf_norm(self):
        def clipped(g):
            return g * min(1, 6.5 / np.linalg.norm(g))

        self.check(adamx.clip_by_leaf_norm(6.5), clipped, lambda g: clipped(2 * g))

    @chex.variants(with_jit=True, without_jit=True)
    def test_adaptive_clipping_matches_optax(self):
        ours, optaxs = adamx.adaptive_grad_clip(0.1), optax.adaptive_grad_clip(0.1)
        for shape in ((), (3,), (1, 3), (3, 4), (2, 3, 4), (2, 2, 3, 4)):
            rng = np.random.default_rng(0)
            g, p = ({"x": jnp.asarray(rng.standard_normal(shape), jnp.float32)} for _ in range(2))
            got, _ = self.variant(ours.update)(g, ours.init(p), p)
            want, _ = optaxs.update(g, optaxs.init(p), p)
            chex.assert_trees_all_close(got, want, rtol=1e-6)
        axis = adamx.adaptive_grad_clip(0.1, axis=(0, 1))
        chex.assert_trees_all_close(
            self.variant(axis.update)(G | {"b": G["w"]}, axis.init(P), P | {"b": P["w"]})[0]["w"],
            np.asarray(G["w"]) * 0.1 * np.sqrt(30) / 13,
            rtol=1e-6,
        )

    @chex.variants(with_jit=True, without_jit=True)
    def test_decay_means_what_its_place_says(self):
        l2 = adamx.chain(adamx.add_decayed_weights(0.5), adamx.scale_by_lr(0.1))
        got, _ = self.variant(l2.update)(G, l2.init(P), P)
        chex.assert_trees_all_close(got, jax.tree.map(lambda g, p: -0.1 * (g + 0.5 * p), G, P), rtol=1e-6)
        paper = adamx.chain(adamx.add_decayed_weights(0.5, base_lr=0.2), adamx.scale_by_lr(lambda n: 0.1 * (n + 1)))
        got, state = self.variant(paper.update)(G, paper.init(P), P)
        chex.assert_trees_all_close(got, jax.tree.map(lambda g, p: -0.1 * g - 0.25 * p, G, P), rtol=1e-6)
        got, _ = self.variant(paper.update)(G, state, P)
        chex.assert_trees_all_close(got, jax.tree.map(lambda g, p: -0.2 * g - 0.5 * p, G, P), rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_masks_by_pattern_tree_prefix_and_function_agree(self):
        params = {"a": {"kernel": P["w"], "bias": P["b"]}, "z": {"kernel": P["w"]}}
        zeros = jax.tree.map(jnp.zeros_like, params)
        masks = [
            "*kernel",
            ["a/kernel", "z*"],
            {"a": {"kernel": True, "bias": False}, "z": True},
            lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
        ]
        want = {"a": {"kernel": 0.5 * P["w"], "bias": 0 * P["b"]}, "z": {"kernel": 0.5 * P["w"]}}
        for mask in masks:
            tx = adamx.add_decayed_weights(0.5, mask)
            chex.assert_trees_all_equal(self.variant(tx.update)(zeros, tx.init(params), params)[0], want)


def test_masks_fit_models_with_none_and_models_that_can_be_called():
    holes = {"kernel": P["w"], "frozen": None}
    model = eqx.filter(eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    for params in (holes, model):
        zeros = jax.tree.map(jnp.zeros_like, params)
        kernels = lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
        want = jax.tree.map(lambda x: 0.5 * x if x.ndim > 1 else 0 * x, params)
        for mask in (kernels, kernels(params)):
            tx = adamx.add_decayed_weights(0.5, mask)
            chex.assert_trees_all_equal(tx.update(zeros, tx.init(params), params)[0], want)


def test_names_tell_fields_apart():
    class Attention(eqx.Module):
        query: jax.Array
        value: jax.Array

    model = {"attention": Attention(jnp.ones(1), jnp.ones(1))}
    tx = adamx.add_decayed_weights(1.0, "*/value")
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, model), tx.init(model), model)
    assert (updates["attention"].query, updates["attention"].value) == (0, 1)


@pytest.mark.parametrize(
    "tx", [adamx.clip_by_global_norm(1.0), adamx.clip_by_leaf_norm(1.0), adamx.adaptive_grad_clip(0.1)]
)
def test_a_nan_norm_never_switches_clipping_off(tx):
    grads = {"w": jnp.array([jnp.nan, 1e6]), "b": jnp.array([1e6])}
    updates, _ = tx.update(grads, tx.init(grads), jax.tree.map(jnp.ones_like, grads))
    assert not any(jnp.any(u > 1) for u in jax.tree.leaves(updates))
    assert jnp.isnan(updates["w"]).any()


def test_an_infinite_limit_clips_nothing():
    for tx in (adamx.clip(jnp.inf), adamx.clip_by_global_norm(jnp.inf), adamx.clip_by_leaf_norm(float("inf"))):
        chex.assert_trees_all_equal(tx.update(G, tx.init(G))[0], G)


LINKS = {
    "scale_by_moments": adamx.scale_by_moments(mu=adamx.ema(0.9)),
    "bias_correct": adamx.bias_correct(0.9),
    "scale_by_lr": adamx.scale_by_lr(0.1),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_valid_alone_and_in_both_chains(name):
    link = LINKS[name]
    alone, _ = link.update(G, link.init(G))
    for chain in (optax.chain, adamx.chain):
        around = chain(optax.identity(), link, optax.identity())
        chex.assert_trees_all_equal(around.update(G, around.init(G))[0], alone)
        only = chain(link)
        chex.assert_trees_all_equal(only.update(G, only.init(G))[0], alone)


def test_three_links_become_one_function_under_one_count():
    tx = adamx.chain(*LINKS.values())
    state = tx.init(G)
    assert isinstance(state, adamx.State)
    assert list(state.moments) == ["mu"]
    assert len(tx.parts) == 3
    jaxpr = jax.make_jaxpr(tx.update)(G, state)
    calls = [e for e in jaxpr.eqns if e.primitive.name in ("jit", "pjit") and str(e.params["name"]) == "leaf"]
    assert len(calls) == len(G)
    apart = optax.chain(*LINKS.values())
    assert len([s for s in apart.init(G) if isinstance(s, adamx.State)]) == 3


def test_leaves_alike_are_traced_once():
    traces = []

    def rule(g, t, *, mu):
        traces.append(g.shape)
        return mu

    tx = adamx.scale_by_moments(rule, mu=adamx.ema(0.9))
    grads = {f"{i}": jnp.ones((4, i % 3 + 1)) for i in range(30)}
    jax.jit(tx.update).lower(grads, tx.init(grads))
    assert sorted(traces) == [(4, 1), (4, 2), (4, 3)]


def test_a_foreign_link_keeps_its_own_state_and_ours_merge_around_it():
    tx = adamx.chain(adamx.clip(1.0), adamx.ema(0.9), optax.trace(0.5), adamx.bias_correct(0.9), adamx.scale_by_lr(0.1))
    state = tx.init(G)
    assert [type(s).__name__ for s in state] == ["State", "TraceState", "State"]
    want = optax.chain(
        optax.clip(1.0), optax.ema(0.9, debias=False), optax.trace(0.5), optax.scale(1 / 0.1), optax.scale(-0.1)
    )
    chex.assert_trees_all_close(tx.update(G, state)[0], want.update(G, want.init(G))[0], rtol=1e-6)


def test_clipping_in_the_middle_keeps_one_state():
    tx = adamx.chain(adamx.ema(0.9), adamx.clip_by_global_norm(1.0), adamx.trace(0.9), adamx.clip_by_global_norm(0.5))
    state = tx.init(G)
    assert isinstance(state, adamx.State)
    updates, state = jax.jit(tx.update)(G, state)
    chex.assert_trees_all_close(optax.tree.norm(updates), 0.5, rtol=1e-6)
    chex.assert_trees_all_close(optax.tree.norm(state.moments["trace"]), 1.0, rtol=1e-6)


def test_a_norm_of_half_precision_gradients_does_not_overflow():
    grads = {"w": jnp.full(1000, 60000.0, jnp.float16)}
    tx = adamx.clip_by_global_norm(1.0)
    updates, _ = tx.update(grads, tx.init(grads))
    chex.assert_trees_all_close(optax.tree.norm(jax.tree.map(jnp.float32, updates)), 1.0, rtol=1e-3)


def test_an_empty_chain_changes_nothing():
    tx = adamx.chain()
    chex.assert_trees_all_equal(tx.update(G, tx.init(G))[0], G)
