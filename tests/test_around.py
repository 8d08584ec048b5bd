"""What stands around a method: each wrapper does what its formula says, and any two compose or refuse with a reason."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adamx

LR = 0.01
PARAMS = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), jnp.float32), "b": jnp.ones(4)}


def grads_of(seed, like=PARAMS):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), like)


def trained(tx, steps=5, params=PARAMS, grads=grads_of):
    """Parameters after each step, and the last state."""
    state, out = tx.init(params), []
    update = jax.jit(tx.update)
    for t in range(steps):
        updates, state = update(grads(t), state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out, state


def close(a, b, rtol=1e-5):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=1e-7)


# --- cautious


@pytest.mark.parametrize("rescale", ["mean", "count"])
def test_a_cautious_step_keeps_what_the_gradient_agrees_with(rescale):
    plain, masked = adamx.adam(LR), adamx.cautious(adamx.adam(LR), rescale=rescale)
    s, c = plain.init(PARAMS), masked.init(PARAMS)
    for t in range(4):
        g = grads_of(t)
        u, s = plain.update(g, s)
        v, c = masked.update(g, c)
        chex.assert_trees_all_equal(s, c)  # the state never sees the mask
        for name in u:
            x, y = np.asarray(u[name], np.float64), np.asarray(g[name])
            kept = x * y < 0
            factor = 1 / max(kept.mean(), 1e-3) if rescale == "mean" else kept.size / (kept.sum() + 1)
            np.testing.assert_allclose(v[name], x * kept * factor, rtol=1e-6)


def test_a_cautious_direction_is_the_cautious_update_turned_round():
    core = adamx.chain(
        adamx.scale_by_moments(adamx.rules.ratio(1e-8), mu=adamx.ema(0.9), nu=adamx.ema(0.999, 2)),
        adamx.bias_correct(0.9, 0.999),
    )
    inside = adamx.chain(adamx.cautious(core, of="direction"), adamx.scale_by_lr(LR))
    close(trained(inside)[0], trained(adamx.cautious(adamx.chain(core, adamx.scale_by_lr(LR))))[0])


def test_cautious_decay_only_pulls_where_the_step_goes_towards_zero_too():
    link = adamx.add_decayed_weights(0.5, cautious=True)
    u = {"w": jnp.array([1.0, -1.0, 2.0])}
    p = {"w": jnp.array([2.0, 2.0, -4.0])}
    np.testing.assert_array_equal(link.update(u, link.init(p), p)[0]["w"], [2.0, -1.0, 2.0])


# --- averages


def test_schedule_free_follows_its_three_sequences():
    b1, power = 0.8, 2.0
    rate = lambda n: LR * jnp.minimum(1, (n + 1) / 3)
    tx = adamx.schedule_free(adamx.sgd(rate), rate, b1, power)
    got, state = trained(tx, 6)
    z = x = y = np.asarray(PARAMS["w"], np.float64)
    weights = top = 0.0
    for t in range(6):
        lr = float(rate(t))
        z = z - lr * np.asarray(grads_of(t)["w"], np.float64)
        top = max(top, lr)
        weights += top**power
        x = x + top**power / weights * (z - x)
        y = (1 - b1) * z + b1 * x
        np.testing.assert_allclose(got[t]["w"], y, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(adamx.schedule_free_eval_params(state, got[-1])["w"], x, rtol=2e-6, atol=1e-6)
    chex.assert_trees_all_equal(adamx.schedule_free_eval_params(tx.init(PARAMS), PARAMS), PARAMS)


def test_a_warm_up_from_zero_gives_schedule_free_no_nan():
    rate = optax.linear_schedule(0.0, LR, 3)
    chex.assert_tree_all_finite(trained(adamx.schedule_free(adamx.sgd(rate), rate))[0])


def test_lookahead_goes_back_every_few_steps():
    tx = adamx.lookahead(adamx.sgd(0.1), sync_period=3, slow_step_size=0.25)
    got, state = trained(tx, 7)
    slow = fast = np.asarray(PARAMS["w"], np.float64)
    for t in range(7):
        fast = fast - 0.1 * np.asarray(grads_of(t)["w"], np.float64)
        if (t + 1) % 3 == 0:
            slow = fast = slow + 0.25 * (fast - slow)
        np.testing.assert_allclose(got[t]["w"], fast, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(adamx.slow_params(state, got[-1])["w"], slow, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("warm", [False, True])
def test_ema_of_params_averages_what_training_left(warm):
    got, state = trained(adamx.ema_of_params(adamx.adam(LR), 0.9, warm=warm), 6)
    chex.assert_trees_all_close(got, trained(adamx.adam(LR), 6)[0], rtol=0, atol=0)
    average = np.asarray(PARAMS["w"], np.float64)
    for t, p in enumerate(got, 1):
        b = min(0.9, (1 + t) / (10 + t)) if warm else 0.9
        average = b * average + (1 - b) * np.asarray(p["w"], np.float64)
    np.testing.assert_allclose(adamx.averaged_params(state, got[-1])["w"], average, rtol=2e-6)


def test_getters_find_their_state_in_a_flax_optimizer_and_keep_dtypes():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    tx = optax.chain(optax.clip(1.0), adamx.skip_nonfinite(adamx.ema_of_params(adamx.adam(LR))))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 3)))))(model)
    optimizer.update(model, grads)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    average = adamx.averaged_params(nnx.as_pure(optimizer.opt_state), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(average, params)


@pytest.mark.parametrize(
    ("getter", "says"),
    [
        (adamx.schedule_free_eval_params, "wrap the method in schedule_free"),
        (adamx.slow_params, "wrap the method in lookahead"),
        (adamx.averaged_params, "wrap the method in ema_of_params"),
    ],
)
def test_a_getter_says_what_is_missing(getter, says):
    with pytest.raises(ValueError, match=says):
        getter(adamx.adam(LR).init(PARAMS), PARAMS)


# --- accumulation

TAKES_PIECES = {
    "sgd": lambda lr: adamx.sgd(lr, momentum=0.9),
    "adam": adamx.adam,
    "adamw": lambda lr: adamx.adamw(lr, weight_decay=0.1),
    "l2": lambda lr: adamx.chain(adamx.add_decayed_weights(0.1), adamx.adam(lr)),
    "lamb": adamx.lamb,
    "ademamix": adamx.ademamix,
}


@pytest.mark.parametrize("name", TAKES_PIECES)
def test_equal_pieces_make_the_whole_step(name):
    """With every piece the same gradient, mean and mean square are its own; schedules and corrections count steps."""
    rate = lambda n: LR / (1 + n)
    tx = adamx.accumulate(TAKES_PIECES[name](rate), every=3)
    got, state = trained(tx, 12, grads=lambda t: grads_of(t // 3))
    want, whole = trained(TAKES_PIECES[name](rate), 4)
    close(got[2::3], want)
    chex.assert_trees_all_equal(got[0], got[1], PARAMS)  # nothing moves before the last piece
    close(state.moments, whole.moments)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, whole)  # and there is no buffer of gradients


def test_first_moments_are_those_of_the_mean_gradient():
    tx, every = adamx.sgd(LR, momentum=0.9), 4
    got, _ = trained(adamx.accumulate(tx, every), 12)
    multi = optax.MultiSteps(tx, every)
    state, params, update = multi.init(PARAMS), PARAMS, jax.jit(multi.update)
    for t in range(12):
        u, state = update(grads_of(t), state, params)
        params = optax.apply_updates(params, u)
        close(got[t], params)


def test_second_moments_average_the_squares_of_the_pieces():
    _, state = trained(adamx.accumulate(adamx.adam(LR, b2=0.9), 2), 2)
    squares = np.mean([np.asarray(grads_of(t)["w"], np.float64) ** 2 for t in range(2)], 0)
    np.testing.assert_allclose(state.moments["nu"]["w"], 0.1 * squares, rtol=1e-6)


@pytest.mark.parametrize(
    ("tx", "says"),
    [
        (adamx.lion(LR), "scale_by_moments.mu. .it keeps mu. needs a step's whole gradient"),
        (adamx.nadam(LR), "needs a step's whole gradient"),
        (adamx.amsgrad(LR), "needs a step's whole gradient"),
        (adamx.rmsprop(LR, momentum=0.9), "needs a step's whole gradient"),
        (adamx.chain(adamx.clip_by_global_norm(1.0), adamx.adam(LR)), "clip_by_global_norm needs"),
        (adamx.prodigy(), "needs a step's whole gradient"),
        (adamx.sgd(LR), "keeps no moment"),
    ],
)
def test_a_method_that_needs_the_whole_gradient_refuses_pieces(tx, says):
    with pytest.raises(ValueError, match=says):
        adamx.accumulate(tx, 2)


# --- links that came with the family


def test_centralised_gradients_have_no_mean_over_inputs():
    link = adamx.centralize()
    u, _ = link.update(grads_of(0), link.init(PARAMS))
    np.testing.assert_allclose(np.mean(u["w"], 0), 0, atol=1e-7)
    chex.assert_trees_all_equal(u["b"], grads_of(0)["b"])
    np.testing.assert_allclose(
        np.mean(adamx.centralize(-1).update(grads_of(0), link.init(PARAMS))[0]["w"], 1), 0, atol=1e-7
    )


@pytest.mark.parametrize("per_leaf", [False, True])
def test_a_spike_is_cut_to_what_its_z_score_leaves(per_leaf):
    link = adamx.clip_spikes(2.5, 0.97, warmup=10, per_leaf=per_leaf)
    state, update = link.init(PARAMS), jax.jit(link.update)
    norms, norm = [], lambda g: float(optax.tree.norm(g["w"] if per_leaf else g))
    for t in range(10):
        g = grads_of(t)
        u, state = update(g, state)
        chex.assert_trees_all_equal(u, g)  # while watching
        norms.append(norm(g))
    mean, var = np.mean(norms), np.var(norms)
    spike = jax.tree.map(lambda x: 100 * x, grads_of(11))
    u, after = update(spike, state)
    z = (norm(spike) - mean) / np.sqrt(var)
    most = mean + np.sqrt(var) * 2.5**2 / z
    np.testing.assert_allclose(norm(u), most, rtol=1e-4)
    kept = after.moments["norm_mean"]["w"].item() if per_leaf else float(after.scalars["norm_mean"])
    np.testing.assert_allclose(kept, 0.97 * mean + 0.03 * most, rtol=1e-4)
    calm = grads_of(12)
    if norm(calm) < mean:
        chex.assert_trees_all_equal(update(calm, after)[0], calm)


def test_noise_has_its_variance_and_every_leaf_and_step_its_own():
    link, zeros = adamx.add_noise(4.0, gamma=0.5, seed=3), {"a": jnp.zeros(200_000), "b": jnp.zeros(200_000)}
    state = link.init(zeros)
    first, state = jax.jit(link.update)(zeros, state)
    second, _ = jax.jit(link.update)(zeros, state)
    draws = [np.asarray(x, np.float64) for x in (first["a"], first["b"], second["a"])]
    for x, var in zip(draws, (4.0, 4.0, 4.0 / np.sqrt(2)), strict=True):
        n = x.size
        assert abs(x.mean()) < 5 * np.sqrt(var / n)
        assert abs(x.var() - var) < 5 * var * np.sqrt(2 / n)
    for x, y in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(len(x))
    again, _ = jax.jit(link.update)(zeros, link.init(zeros))
    chex.assert_trees_all_equal(first, again)


# --- parameter groups

NET = {
    "embed": {"table": jnp.ones((8, 4))},
    "block": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
    "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
}
GROUPS = [
    ("embed/*", {"freeze": True}),
    ("*bias", {"weight_decay": 0.0}),
    ("head/*", {"lr_mult": 10.0, "b1": 0.5}),
]


def grouped():
    return adamx.param_groups(adamx.adamw, GROUPS, learning_rate=LR, weight_decay=0.1)


def test_each_group_trains_as_if_it_were_alone():
    got, state = trained(grouped(), 4, NET, lambda t: grads_of(t, NET))
    alone = {
        ("block", "bias"): adamx.adamw(LR, weight_decay=0.0),
        ("head", "bias"): adamx.adamw(LR, weight_decay=0.0),
        ("head", "kernel"): adamx.adamw(10 * LR, b1=0.5, weight_decay=0.1),
        ("block", "kernel"): adamx.adamw(LR, weight_decay=0.1),
    }
    for (layer, leaf), tx in alone.items():
        only = lambda t, layer=layer, leaf=leaf: grads_of(t, NET)[layer][leaf]
        want, _ = trained(tx, 4, NET[layer][leaf], only)
        chex.assert_trees_all_close([g[layer][leaf] for g in got], want, rtol=0, atol=0)
    chex.assert_trees_all_equal(got[-1]["embed"], NET["embed"])
    assert isinstance(state, adamx.State)  # one state, one tree a moment
    assert state.moments["mu"]["embed"]["table"].shape == (1, 1)
    assert jax.tree.structure(state.moments["nu"]) == jax.tree.structure(NET)


def test_the_table_says_who_is_in_which_group():
    lines = grouped().table(NET).splitlines()
    assert [line.split()[0] for line in lines] == ["pattern", "embed/*", "*bias", "head/*", "(rest)"]
    assert "freeze=True" in lines[1]
    assert lines[1].endswith("1          32  embed/table")
    assert lines[2].endswith("2           6  block/bias, head/bias")
    assert lines[3].endswith("1           8  head/kernel")  # its bias went to the first match
    assert lines[4].endswith("1          16  block/kernel")


def test_groups_see_one_global_norm():
    clipped = lambda learning_rate: adamx.chain(adamx.clip_by_global_norm(0.1), adamx.sgd(learning_rate))
    tx = adamx.param_groups(clipped, [("*bias", {"lr_mult": 2.0})], learning_rate=1.0)
    g = grads_of(0, NET)
    u, _ = tx.update(g, tx.init(NET), NET)
    factor = 0.1 / float(optax.tree.norm(g))
    close(u["head"]["kernel"], -factor * g["head"]["kernel"])
    close(u["head"]["bias"], -2 * factor * g["head"]["bias"])


@pytest.mark.parametrize(
    ("groups", "shared", "says"),
    [
        ([("*kernl", {})], {"learning_rate": LR}, "'.kernl' of param_groups matches none of the 5 leaves"),
        ([("*", {}), ("*bias", {})], {"learning_rate": LR}, "matches only leaves that . took before it"),
        ([("*", {"freeze": True, "b1": 0.5})], {"learning_rate": LR}, "is frozen, so b1 would do nothing"),
        ([("*", {"lr_mult": 2.0, "learning_rate": 1.0})], {"learning_rate": LR}, "multiplies the shared learning_rate"),
        ([("*", {"b1": 1.5})], {"learning_rate": LR}, "b1 must be in"),
        ([], {"learning_rate": LR}, "needs at least one"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups, shared, says):
    with pytest.raises(ValueError, match=says):
        adamx.param_groups(adamx.adamw, groups, **shared).init(NET)


def test_groups_cannot_share_one_distance():
    with pytest.raises(ValueError, match="prodigy_distance keeps d, d_max, r, k for the whole tree"):
        adamx.param_groups(adamx.prodigy, [("*bias", {"weight_decay": 0.0})], learning_rate=1.0)


def test_layers_decay_from_the_output_down():
    groups = adamx.layerwise_lr_decay(["embed/*", "block/*", "head/*"], 0.5)
    tx = adamx.param_groups(adamx.sgd, groups, learning_rate=1.0)
    u, _ = tx.update(jax.tree.map(jnp.ones_like, NET), tx.init(NET), NET)
    for layer, factor in (("embed", 0.25), ("block", 0.5), ("head", 1.0)):
        assert all(np.all(x == -factor) for x in jax.tree.leaves(u[layer]))


def test_a_scheduled_rate_is_multiplied_too():
    tx = adamx.param_groups(adamx.sgd, [("b", {"lr_mult": 3.0})], learning_rate=lambda n: 1.0 / (n + 1))
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    _, state = tx.update(ones, tx.init(PARAMS))
    u, _ = tx.update(ones, state)
    assert np.all(u["w"] == -0.5)
    assert np.all(u["b"] == -1.5)


# --- matrices


def test_muon_steps_matrices_orthogonally_and_the_rest_as_adamw():
    tx = adamx.muon(0.02, adam_learning_rate=LR, adam_weight_decay=0.1)
    got, state = trained(tx, 3)
    want, _ = trained(adamx.adamw(LR, weight_decay=0.1), 3, {"b": PARAMS["b"]}, lambda t: {"b": grads_of(t)["b"]})
    close([g["b"] for g in got], [w["b"] for w in want])
    singular = np.linalg.svd(np.asarray(got[0]["w"] - PARAMS["w"]))[1] / 0.02
    assert np.all((singular > 0.6) & (singular < 1.3))
    assert state.moments["nu"]["w"].shape == (1, 1)


def test_muon_treats_the_matrices_that_are_named():
    net = {"embed": jnp.ones((6, 4)), "hidden": jnp.ones((4, 4))}
    tx = adamx.muon(0.02, matrices="hidden", adam_learning_rate=LR)
    u, state = tx.update(grads_of(0, net), tx.init(net), net)
    np.testing.assert_allclose(np.abs(u["embed"]), LR, rtol=1e-5)  # Adam's first step
    assert state.moments["nu"]["embed"].shape == (6, 4)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_galore_steps_in_the_span_of_the_largest_singular_vectors(shape):
    params = {"w": jnp.zeros(shape), "b": jnp.zeros(3)}
    tx = adamx.galore(adamx.adam(LR), rank=2, update_proj_gap=3, scale=0.5)
    state, update = tx.init(params), jax.jit(tx.update)
    alone = []
    assert state.inner.moments["mu"]["w"].shape == ((40, 2) if shape == (40, 6) else (2, 40))
    for t in range(4):
        g = grads_of(t, params)
        u, state = update(g, state, params)
        if t % 3 == 0:
            left, _, right = np.linalg.svd(np.asarray(g["w"], np.float64), full_matrices=False)
            basis = left[:, :2] if shape[0] <= shape[1] else right[:2].T
        move = np.asarray(u["w"], np.float64) if shape[0] <= shape[1] else np.asarray(u["w"], np.float64).T
        np.testing.assert_allclose(basis @ (basis.T @ move), move, atol=1e-6)
        assert np.linalg.matrix_rank(move, tol=1e-5) == 2
        if t == 0:  # Adam's first step has size lr in the projected space
            np.testing.assert_allclose(np.abs(basis.T @ move), 0.5 * LR, rtol=1e-4)
        alone.append(u["b"])
    want, _ = trained(adamx.adam(LR), 4, {"b": params["b"]}, lambda t: {"b": grads_of(t, params)["b"]})
    close(np.cumsum(alone, 0), np.stack([w["b"] for w in want]))


def test_galore_refuses_a_method_that_reads_the_parameters():
    with pytest.raises(ValueError, match="add_decayed_weights reads the parameters; put it behind"):
        adamx.galore(adamx.adamw(LR))


@pytest.mark.parametrize("short", [0, 1])
def test_chains_of_any_lengths_stand_side_by_side(short):
    """MARS has two more links in front of the moments that AdamW has too."""
    both = [adamx.mars(LR), adamx.adamw(LR)]
    tx = adamx.by_leaf(lambda params: [short, 1 - short], *both)
    got, state = trained(tx, 3)
    for name, mine in (("b", both[short]), ("w", both[1 - short])):
        want, _ = trained(mine, 3, {name: PARAMS[name]}, lambda t, name=name: {name: grads_of(t)[name]})
        chex.assert_trees_all_close([g[name] for g in got], [w[name] for w in want], rtol=0, atol=0)
    assert sorted(state.moments) == ["diff", "mu", "nu"]


def test_soap_keeps_adams_bound_where_gradients_span_little():
    """A gradient of rank one leaves a null space whose basis is rounding; nothing may be divided by it."""
    rng = np.random.default_rng(0)
    g = np.outer(rng.standard_normal(16), rng.standard_normal(12)).astype(np.float32)
    for scale in (1.0, 1e3, 1e6):
        params = {"w": jnp.zeros((16, 12))}
        got, _ = trained(adamx.soap(LR, weight_decay=0.0), 25, params, lambda t, s=scale: {"w": jnp.asarray(s * g)})
        steps = np.diff(np.stack([p["w"] for p in got]), axis=0) / LR
        # At most one rate for each element in the basis, but at a renewal, which does not turn the second moment. With
        # a momentum that is turned afresh at each step it was 334 rates for a single element at scale 1e3.
        longest = np.max(np.linalg.norm(steps, axis=(1, 2)))
        assert longest < 10 * np.sqrt(g.size), scale


@pytest.mark.parametrize("kind", ["masked", "partition"])
def test_flax_models_may_hide_leaves_from_a_method(kind):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    matrices = lambda p: jax.tree.map(lambda x: x.ndim == 2, p)
    if kind == "masked":
        tx = optax.masked(adamx.adam(LR), matrices)
    else:
        label = lambda p: jax.tree.map(lambda x: "a" if x.ndim == 2 else "b", p)
        tx = optax.partition({"a": adamx.muon(LR), "b": adamx.lookahead(adamx.lion(LR))}, label)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = model.kernel[...]
    optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 3)))))(model))
    assert not np.array_equal(model.kernel[...], before)


@pytest.mark.parametrize("name", ["schedule_free", "lookahead", "ema_of_params", "galore"])
def test_what_counts_steps_refuses_a_method_that_takes_pieces(name):
    wrap = {"schedule_free": lambda tx: adamx.schedule_free(tx, LR)}.get(name, getattr(adamx, name))
    pieces = adamx.accumulate(adamx.adam(LR), 2)
    for tx in (pieces, adamx.skip_nonfinite(pieces), adamx.cautious(pieces)):
        with pytest.raises(ValueError, match="MultiSteps"):
            wrap(tx)
    with pytest.raises(ValueError, match="would act at every gradient"):
        adamx.chain(pieces, adamx.decay_after(LR, 0.1))


def test_chains_that_clip_share_one_norm_and_others_are_not_in_it():
    g = {"w": jnp.full((6, 4), 0.5), "b": jnp.full(4, 100.0)}
    clipped = adamx.chain(adamx.clip_by_global_norm(1.0), adamx.sgd(1.0))
    for rate in (1e-3, 10.0):
        tx = adamx.by_leaf(adamx.matrices(), clipped, adamx.sgd(rate))
        u, _ = tx.update(g, tx.init(PARAMS))
        close(u["w"], -g["w"] / np.linalg.norm(g["w"]))
        close(u["b"], -rate * g["b"])


@pytest.mark.parametrize("name", ["ademamix", "madgrad", "prodigy", "mars"])
def test_wrappers_names_are_nobodys_moments(name):
    tx = adamx.ema_of_params(adamx.lookahead(adamx.schedule_free(getattr(adamx, name)(learning_rate=LR), LR)))
    chex.assert_tree_all_finite(trained(tx, 2)[0])
    with pytest.raises(ValueError, match="wrap the method in lookahead"):
        adamx.slow_params(getattr(adamx, name)(learning_rate=LR).init(PARAMS), PARAMS)


def test_evaluation_points_are_found_in_a_flax_optimizer_as_it_is():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adamx.schedule_free(adamx.sgd(LR), LR), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 3)))))(model))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    chex.assert_tree_all_finite(adamx.schedule_free_eval_params(optimizer.opt_state, params))


def test_a_gradient_that_is_not_finite_does_not_disarm_the_spike_clip():
    link = adamx.clip_spikes(warmup=2)
    state, update = link.init(PARAMS), jax.jit(link.update)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    for g in (ones, ones, ones, jax.tree.map(lambda x: x * jnp.nan, ones), ones):
        _, state = update(g, state)
    u, _ = update(jax.tree.map(lambda x: 1e6 * x, ones), state)  # of constant norms, a hundredth is the deviation
    assert float(optax.tree.norm(u)) < 1.1 * float(optax.tree.norm(ones))


@pytest.mark.parametrize("wrap", [adamx.skip_nonfinite, adamx.cautious, lambda tx: adamx.accumulate(tx, 1)])
def test_galore_says_at_init_what_it_cannot_wrap(wrap):
    with pytest.raises(ValueError, match="galore projects gradients only"):
        adamx.galore(wrap(adamx.adamw(LR)), rank=2).init(PARAMS)


def test_galore_keeps_float32_moments_of_bfloat16_gradients():
    rng = np.random.default_rng(0)
    g = {"w": jnp.asarray(rng.standard_normal((64, 96)), jnp.bfloat16)}
    tx = adamx.galore(adamx.adam(LR), rank=4)
    _, state = jax.jit(tx.update)(g, tx.init(g))
    exact = 0.1 * np.asarray(state.bases["w"]).T @ np.asarray(g["w"], np.float32)
    np.testing.assert_allclose(state.inner.moments["mu"]["w"], exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: adamx.adamx(LR, b1_decay=2.0),
        lambda: adamx.padam(LR, partial=0.9),
        lambda: adamx.madgrad(LR, momentum=1.0),
        lambda: adamx.adafactor(LR, min_dim_size_to_factor=-1),
        lambda: adamx.adafactor(LR, min_dim_size_to_factor="x"),
        lambda: adamx.prodigy(growth_rate=0.5),
        lambda: adamx.prodigy(betas=0.9),
        lambda: adamx.prodigy(estim_lr0=lambda n: 1e-6),
        lambda: adamx.qhadam(LR, nu1=-3.0),
        lambda: adamx.adam_mini(LR, axes=True),
        lambda: adamx.adam_mini(LR, axes=(0.5,)),
        lambda: adamx.centralize(1.5),
        lambda: adamx.adaptive_grad_clip(0.1, axis="x"),
        lambda: adamx.add_noise(1.0, seed=2**70),
        lambda: adamx.orthogonalise(coefficients=(1.0, 2.0)),
        lambda: adamx.projections.factored((0, 0)),
        lambda: adamx.projections.factored(rest="foo"),
        lambda: adamx.ema(0.9, of="x"),
        lambda: adamx.param_groups(adamx.sgd, [("*", {"freeze": "no"})], learning_rate=LR),
        lambda: adamx.param_groups(adamx.sgd, [("*", {"lr_mult": -2.0})], learning_rate=LR),
        lambda: adamx.param_groups(adamx.sgd, {"b": {"freeze": True}}, learning_rate=LR),
        lambda: adamx.layerwise_lr_decay("abc", 0.5),
        lambda: adamx.lookahead(adamx.sgd(LR), sync_period=0),
        lambda: adamx.ema_of_params(adamx.sgd(LR), 1.0),
        lambda: adamx.cautious(adamx.sgd(LR), floor=0.0),
        lambda: adamx.galore(adamx.sgd(LR), rank=1.5),
    ],
)
def test_bad_arguments_are_refused_at_construction(make):
    with pytest.raises((ValueError, TypeError)) as refused:
        make()
    assert len(str(refused.value)) > 25


@pytest.mark.parametrize("name", ["lookahead", "galore", "accumulate", "ema_of_params"])
def test_wrappers_can_be_injected(name):
    args = {"galore": {"rank": 2}, "accumulate": {"every": 2}}.get(name, {})
    tx = optax.inject_hyperparams(getattr(adamx, name))(tx=adamx.adam(LR), **args)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    state = tx.init(params)
    u, _ = jax.jit(tx.update)(grads_of(0, params), state, params)
    chex.assert_tree_all_finite(u)


# --- pairs

WRAPPERS = {
    "skip_nonfinite": adamx.skip_nonfinite,
    "store_state": lambda tx: adamx.store_state(tx, mu=jnp.bfloat16, min_size=0),
    "cautious": adamx.cautious,
    "schedule_free": lambda tx: adamx.schedule_free(tx, LR),
    "lookahead": lambda tx: adamx.lookahead(tx, 2),
    "ema_of_params": adamx.ema_of_params,
    "accumulate": lambda tx: adamx.accumulate(tx, 2),
    "galore": lambda tx: adamx.galore(tx, rank=2),
    "param_groups": lambda tx: adamx.param_groups(
        lambda lr: adamx.chain(tx, adamx.scale(lr)), [("b", {"lr": 2.0})], lr=1.0),
    "clipped": lambda tx: adamx.chain(adamx.clip_by_global_norm(1.0), tx),
    "spikes": lambda tx: adamx.chain(adamx.clip_spikes(), tx),
    "centralized": lambda tx: adamx.chain(adamx.centralize(), tx),
    "noisy": lambda tx: adamx.chain(adamx.add_noise(1e-4), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
}  # fmt: skip


@pytest.mark.thin(default=4)
@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(WRAPPERS, WRAPPERS)))
def test_two_wrappers_compose_or_refuse_at_construction(outer, inner):
    try:
        tx, refusal = WRAPPERS[outer](WRAPPERS[inner](adamx.adam(LR))), None
    except (ValueError, TypeError) as error:
        tx, refusal = None, str(error)
    if tx is None:
        assert len(refusal) > 40  # a sentence with a reason
        return
    state = tx.init(PARAMS)
    before = jax.eval_shape(lambda: state)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = PARAMS
    for t in range(4):
        params, state = step(params, state, grads_of(t))
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(lambda: state), before)
    chex.assert_tree_all_finite(params)
    assert step._cache_size() == 1
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), params, PARAMS)
    assert 0 < max(jax.tree.leaves(moved)) < 1
