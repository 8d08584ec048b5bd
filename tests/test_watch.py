"""What is recorded is what was there: every statistic against a second writing in float64, and nothing else changes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import LR, each_method_kind
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx import codecs
from adamx.diagnostics.metrics import EDGES, LEAF, PULSE

B1, B2, EPS, DECAY, CLIP = 0.9, 0.99, 1e-3, 0.1, 1.0
SHAPES = {"big": (130, 600), "odd": (33, 77), "scalar": ()}  # one leaf of several tiles


def leaves(seed, shapes=SHAPES, dtype="float32", scale=1.0):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.standard_normal(s) * scale, dtype) for k, s in shapes.items()}


def method(**how):
    return adamx.chain(adamx.clip_by_global_norm(CLIP), adamx.adamw(LR, B1, B2, EPS, weight_decay=DECAY, mask=["*odd"]))


KINDS = {
    "float32": (method, "float32"),
    "8bit": (lambda: adamx.store_state(method(), "8bit", min_size=0), "float32"),
    "seven": (lambda: adamx.seven_bytes(method(), min_size=0), "bfloat16"),
    "nearest": (lambda: adamx.store_params(adamx.store_state(method(), "bf16"), codecs.nearest()), "bfloat16"),
    "plain-bf16": (method, "bfloat16"),
}

FEW = ("seven",)


def norm(*xs):
    return np.sqrt(sum(np.sum(np.square(x)) for x in xs))


def decoded(tx, state, slot, like):
    """A moment in float64, as the state keeps it."""
    codec = {s: c for part in tx.parts for s, c in part.storage.codecs.items()}.get(slot)
    out = {}
    for k, x in like.items():
        kept = {what: state.moments[name][k] for what, name in codec.names(slot).items()} if codec else None
        value = codec.load(kept, x.shape) if codec else state.moments[slot][k]
        out[k] = np.float64(value)
    return out


def oracle(tx, grads, before, after, params, new):
    """Every statistic by leaf, from states and parameters before and after a step, in float64; t from 1."""
    t = int(before.count) + 1
    kept = any(part.storage.precision for part in tx.parts)
    full = adamx.full_params if kept else lambda _, params: params
    exact = {k: np.float64(x) for k, x in full(before, params).items()}
    landed = {k: np.float64(x) for k, x in full(after, new).items()}
    m1, v1, mS, vS = (decoded(tx, s, slot, params) for s in (before, after) for slot in ("mu", "nu"))
    g0 = {k: np.float64(x) for k, x in grads.items()}
    total = norm(*g0.values())
    out = {}
    for k in params:
        g, w, n = g0[k] * min(1, CLIP / total), exact[k], g0[k].size
        m, v = B1 * m1[k] + (1 - B1) * g, B2 * v1[k] + (1 - B2) * g * g
        mh, vh = m / (1 - B1**t), v / (1 - B2**t)
        a = mh / (np.sqrt(vh) + EPS)
        wd = DECAY if k == "odd" else 0
        u = -LR * (a + wd * w)
        moves = u != 0
        ratio = lambda m, v, t=t: m / (np.sqrt(v) + EPS * np.sqrt(1 - B2**t))
        product = m1[k] * g
        stored = {s: c for part in tx.parts for s, c in part.storage.codecs.items()}
        nan = lambda slot, x, stored=stored: x if slot in stored else np.nan
        stale = lambda new, kept, old: np.sum((kept == old) & (new != old)) / max(np.sum(new != old), 1)
        out[k] = {
            "grad_rms": norm(g0[k]) / np.sqrt(n),
            "grad_max": np.max(np.abs(g0[k])),
            "zero_grad": np.mean(g0[k] == 0),
            "bad_grad": np.sum(~np.isfinite(g0[k])),
            "bad_update": 0,
            "bad_param": 0,
            "clipped": norm(g) / norm(g0[k]),
            "param_rms": norm(w) / np.sqrt(n),
            "update_ratio": norm(u) / norm(w),
            "update_cosine": -np.sum(u * g0[k]) / norm(u) / norm(g0[k]),
            "decay_share": norm(LR * wd * w) / norm(u),
            "direction_rms": norm(a) / np.sqrt(n),
            "saturated": np.mean(np.abs(a) > 0.9),
            "momentum_cosine": np.sum(product) / norm(m1[k]) / norm(g) if t > 1 else 0,
            "sign_agreement": np.sum(product > 0) / np.sum(product != 0) if t > 1 else 0.5,
            "signal_to_noise": np.mean(np.abs(mh) / np.maximum(np.sqrt(vh), 1e-30)),
            "surprise": np.sqrt(np.mean(g**2 / np.maximum(vh, EPS**2))),
            "surprise_before": np.sqrt(np.mean(g**2 / np.maximum(v1[k] / (1 - B2 ** (t - 1)), EPS**2)))
            if t > 1
            else np.nan,
            "coasting": np.mean(g**2 < vh / 10),
            "eps_half": np.mean(np.sqrt(vh) < EPS),
            "eps_tenth": np.mean(np.sqrt(vh) < 10 * EPS),
            "nu_zero": np.mean((vS[k] == 0) & (v != 0)),
            "nu_stale": stale(v, vS[k], v1[k]),
            "mu_stale": stale(m, mS[k], m1[k]),
            "mu_error": nan("mu", norm(mS[k] - m) / norm(m)),
            "nu_error": nan("nu", norm(np.sqrt(vS[k]) - np.sqrt(v)) / norm(np.sqrt(v))),
            "direction_error": nan("nu", norm(ratio(mS[k], vS[k]) - ratio(m, v)) / norm(ratio(m, v))),
            "stalled": np.sum(moves & (landed[k] == w)) / np.sum(moves),
            "lost": norm(landed[k] - w - u) / norm(u),
        }
        below = lambda x, name: np.array([np.mean(x <= edge) for edge in EDGES[name]])
        with np.errstate(divide="ignore"):
            out[k] |= {
                "log2_grad": below(np.log2(np.abs(g0[k])), "log2_grad"),
                "log2_root_nu": below(np.log2(np.sqrt(vh)), "log2_root_nu"),
                "direction": below(a, "direction"),
                "log2_ratio": below(np.log2(np.abs(u) / np.abs(w)), "log2_ratio"),
            }
    return out


# What is left over when float32 numbers cancel is as exact as their rounding leaves it.
LOOSE = {"lost": 2e-2, "mu_error": 1e-2, "nu_error": 1e-2, "direction_error": 1e-2}
COUNTED = ("stalled", "mu_stale", "nu_stale")  # of comparisons of such numbers: two may fall otherwise


def gradients(seed):
    """Some of them zero, over four decades."""
    rng = np.random.default_rng(seed)
    grow = lambda x: x * 10.0 ** rng.integers(-4, 1, x.shape) * (rng.random(x.shape) > 0.1)
    return {k: jnp.asarray(grow(np.float64(x)) + (x.shape == ()), "float32") for k, x in leaves(seed).items()}


def run(tx, params, steps, update, dtype="float32"):
    """States and parameters before and after each step, and gradients."""
    state = tx.init(params)
    for seed in range(1, steps + 1):
        grads = {k: g.astype(dtype) for k, g in gradients(seed).items()}
        new, after = update(grads, state, params)
        yield grads, state, after, params, new
        params, state = new, after


def updated(tx, **extra):
    def update(grads, state, params):
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return update


@pytest.mark.parametrize("kind", [k if k in FEW else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_every_statistic_is_its_oracles(kind):
    make, dtype = KINDS[kind]
    tx = make()
    watched = adamx.watch(tx, every=1, distributions=True)
    params = leaves(0, dtype=dtype)
    steps = list(run(watched, params, 3, jax.jit(updated(watched)), dtype))
    history = adamx.drain(steps[-1][2]).history()
    assert list(history.steps) == [1, 2, 3]
    names = [leaf.name for leaf in history.about.leaves]
    for row, (grads, before, after, params, new) in enumerate(steps):
        want = oracle(tx, grads, before.inner, after.inner, params, new)
        for column, leaf in enumerate(names):
            for name in LEAF:
                got, w = history.leaf[name][row, column], want[leaf][name]
                bound = LOOSE.get(name, 3e-5)
                least = 2 / grads[leaf].size if name in COUNTED else bound / 10
                said = f"{name} of {leaf} in step {row + 1}"
                np.testing.assert_allclose(got, w, rtol=bound, atol=least, err_msg=said)
            for name in EDGES:
                # a number on an edge may fall on either side of it
                of = history.spread[name][row, column]
                np.testing.assert_allclose(of, want[leaf][name], atol=2e-3, err_msg=f"{name} of {leaf}")
        np.testing.assert_allclose(history.pulse["grad_norm"][row], norm(*map(np.float64, grads.values())), rtol=1e-5)
        np.testing.assert_allclose(history.whole["learning_rate"][row], LR, rtol=1e-6)


# Nothing else changes


def same_bits(got, want):
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(path)


SMALL = {"w": (6, 40), "b": (5,)}
# Compiled without contractions, so that two programs do the same operations in the same roundings.
UNCONTRACTED = {"xla_backend_optimization_level": 0}


def three_steps(tx, params, watched):
    state = tx.init(params)
    step = jax.jit(
        lambda g, s, p: updated(tx, **({"loss": 1.0} if watched else {}))(g, s, p), compiler_options=UNCONTRACTED
    )
    for seed in (1, 2, 3):
        grads = leaves(seed, {k: x.shape for k, x in params.items()}, scale=0.1)
        params, state = step({k: g.astype(params[k].dtype) for k, g in grads.items()}, state, params)
    assert step._cache_size() == 1
    return params, state


@pytest.mark.thin(default=2, slow=7)
@each_method_kind
def test_a_watched_method_takes_the_same_steps(case):
    params = leaves(0, SMALL)
    plain, watched = case.make(), adamx.watch(case.make(), every=2)
    want, state = three_steps(watched, params, True)
    p, s = three_steps(plain, params, False)
    same_bits((want, state.inner), (p, s))
    history = adamx.drain(state).history()
    assert list(history.steps) == [1, 2]
    for name in ("grad_rms", "update_ratio", "param_rms", "update_cosine", "lost"):
        assert np.isfinite(history.leaf[name]).all(), name


@pytest.mark.parametrize("kind", [k if k == "seven" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_watched_storage_takes_the_same_steps(kind):
    make, dtype = KINDS[kind]
    params = leaves(0, {"odd": (33, 77), "vector": (700,)}, dtype)
    want, state = three_steps(adamx.watch(make(), every=1), params, True)
    same_bits((want, state.inner), three_steps(make(), params, False))


def test_every_0_is_the_transformation_itself():
    tx = method()
    assert adamx.watch(tx, every=0) is tx
    text = lambda t: jax.jit(t.update).lower(leaves(1), t.init(leaves(0)), leaves(0)).as_text()
    assert text(adamx.watch(optax.adam(LR), every=0)) == text(optax.adam(LR))


def test_a_watch_calls_nothing_back_and_copies_no_parameter():
    tx = adamx.watch(method(), every=10)
    params = {"big": jnp.ones((1024, 1024)), "odd": jnp.ones((33, 77))}
    state = jax.eval_shape(tx.init, params)

    def step(params, state, grads):
        updates, state = tx.update(jax.tree.map(lambda g: g * 0.5, grads), state, params, loss=1.0)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    text = compiled.as_text()
    assert "callback" not in text
    assert "conditional" in text
    assert not re.search(r"f32\[1024,1024\]\S* copy\(", text)
    # gradients, and what a tile of 2^16 numbers needs
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 2**20 + 2**16 * 4 * 32


@pytest.mark.parametrize("distributions", [False, True])
def test_a_state_takes_the_bytes_that_the_formula_says(distributions):
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    params, tx = leaves(0), method()
    state = adamx.watch(tx, history=64, distributions=distributions).init(params)
    want = adamx.watch_bytes(len(SHAPES), 64, distributions=distributions, about=state.about.nbytes)
    assert size(state) - size(state.inner) == want
    tight = adamx.watch(tx, history=10**6, distributions=distributions, max_bytes=10**6).init(params)
    assert 10**6 - 600 < size(tight) - size(tight.inner) <= 10**6


# Everywhere


def history_of(state):
    return adamx.drain(state).history()


def assert_same_records(got, want, rtol=2e-5):
    assert list(got.steps) == list(want.steps)
    for name in LEAF:
        np.testing.assert_allclose(got.leaf[name], want.leaf[name], rtol=rtol, atol=1e-6, err_msg=name)
    for name in want.whole:
        np.testing.assert_allclose(got.whole[name], want.whole[name], rtol=rtol, err_msg=name)
    for name in PULSE:
        np.testing.assert_allclose(got.pulse[name], want.pulse[name], rtol=rtol, atol=1e-6, err_msg=name)


def plain_run(tx, params, steps=5):
    *_, (_, _, state, _, new) = run(tx, params, steps, jax.jit(updated(tx, loss=2.0)))
    return new, state


def test_a_scan_records_what_a_loop_does():
    tx, params = adamx.watch(method(), every=2), leaves(0)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(gradients(seed) for seed in range(1, 6)))
    body = lambda carry, grads: (updated(tx, loss=2.0)(grads, carry[1], carry[0]), None)
    (_, state), _ = jax.jit(lambda p, s: jax.lax.scan(body, (p, s), stacked))(params, tx.init(params))
    want = history_of(plain_run(tx, params)[1])
    assert list(want.steps) == [1, 2, 4]
    assert_same_records(history_of(state), want)


@pytest.mark.slow
def test_under_vmap_each_run_has_its_own_records():
    make = lambda lr: adamx.watch(adamx.adam(lr, B1, B2), every=2)
    params = leaves(0, SMALL)

    def trained(lr):
        state, p = make(lr).init(params), params
        for seed in (1, 2, 3):
            p, state = updated(make(lr), loss=lr)(leaves(seed, SMALL), state, p)
        return state

    rates = jnp.asarray([1e-3, 3e-3])
    swept = jax.jit(jax.vmap(trained))(rates)
    for i, lr in enumerate(rates):
        got = history_of(jax.tree.map(lambda x, i=i: x[i], swept))
        assert_same_records(got, history_of(jax.jit(trained)(lr)))
        assert np.allclose(got.whole["learning_rate"], lr)
    with pytest.raises(ValueError, match="swept by vmap"):
        adamx.drain(swept).history()


MESHED = {"rows": (16, 1024), "columns": (24, 64), "whole": (33,)}
SPECS = {"rows": P("d", None), "columns": P(None, "d"), "whole": P()}


def meshed(tx, state, specs, mesh):
    """A tree of specs for a state: moments as their parameters, everything else on every device."""
    inner = jax.tree.map(lambda x: P(), state.inner)
    inner = inner._replace(moments=dict.fromkeys(state.inner.moments, specs))
    return jax.tree.map(lambda x: P(), state)._replace(inner=inner)


@pytest.mark.parametrize("way", ["shard_map", pytest.param("jit", marks=pytest.mark.slow)])
def test_eight_devices_record_what_one_does(way):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    tx, params = adamx.watch(adamx.adamw(LR, B1, B2, EPS), every=1, distributions=True), leaves(0, MESHED)
    one = lambda p, s, g: updated(tx, loss=2.0)(g, s, p)
    state = tx.init(params)
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    specs = (SPECS, meshed(tx, state, SPECS, mesh), SPECS)
    step = jax.jit(one)
    if way == "shard_map":
        step = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=specs[:2]))
    p1, s1 = params, state
    p8, s8 = (jax.tree.map(place, x, spec) for x, spec in zip((params, state), specs, strict=False))
    for seed in (1, 2, 3):
        grads = leaves(seed, MESHED)
        p1, s1 = jax.jit(one)(p1, s1, grads)
        p8, s8 = step(p8, s8, jax.tree.map(place, grads, SPECS))
    assert_same_records(history_of(s8), history_of(s1))
    for name in EDGES:
        np.testing.assert_allclose(history_of(s8).spread[name], history_of(s1).spread[name], atol=1e-4)


def test_accumulated_gradients_are_recorded_once_a_step():
    """The pulse of all of them, and the step that the last one completes."""
    tx = adamx.watch(adamx.accumulate(adamx.adam(LR, B1, B2), 3), every=1)
    params = leaves(0, SMALL)
    state, update = tx.init(params), jax.jit(lambda g, s, p, loss: tx.update(g, s, p, loss=loss))
    norms, ratios = [], []
    for seed in range(1, 8):
        grads, before = leaves(seed, SMALL), params
        updates, state = update(grads, state, params, float(seed))
        params = optax.apply_updates(params, updates)
        norms.append(float(optax.tree.norm(grads)))
        if seed % 3 == 0:
            ratios.append([np.linalg.norm(params[k] - before[k]) / np.linalg.norm(before[k]) for k in sorted(before)])
    history = history_of(state)
    assert list(history.steps) == list(history.pulse_steps) == [1, 2]
    assert history.about.method["pieces"] == 3
    np.testing.assert_allclose(history.pulse["loss"], [2, 5], rtol=1e-6)
    rms = np.sqrt(np.square(norms[:6]).reshape(2, 3).mean(1))
    np.testing.assert_allclose(history.pulse["grad_norm"], rms, rtol=1e-5)
    np.testing.assert_allclose(history.leaf["update_ratio"], ratios, rtol=1e-3)


@pytest.mark.parametrize("piece", [0, 1])
def test_a_spike_in_any_of_a_steps_gradients_arms_the_watch(piece):
    tx = adamx.watch(adamx.accumulate(adamx.adam(1e-3), 2), every=1000, arm=3)
    params = {"w": jnp.zeros(3)}
    rng = np.random.default_rng(0)
    state, update = tx.init(params), jax.jit(lambda g, s, p: tx.update(g, s, p))
    for call in range(220):
        scale = 1e3 if call == 198 + piece else 1.0  # of the hundredth step
        _, state = update({"w": jnp.asarray(scale * rng.standard_normal(3), jnp.float32)}, state, params)
    history = history_of(state)
    assert list(history.steps) == [1, 100, 101, 102, 103]
    assert history.pulse["grad_score"][history.pulse_steps == 100] > 6


def test_what_cannot_be_watched_is_said_in_a_sentence():
    with pytest.raises(ValueError, match="is watched already"):
        adamx.watch(adamx.chain(optax.identity(), adamx.watch(adamx.adam(LR)))).init(leaves(0, SMALL))
    with pytest.raises(TypeError, match=r"write .gradient_transformation\(\) behind it"):
        adamx.watch(optax.MultiSteps(adamx.adam(LR), 2))
    tx, params = adamx.watch(adamx.adam(LR)), leaves(0, SMALL)
    with pytest.raises(ValueError, match=r"the loss must be one number, but has shape \(4,\)"):
        tx.update(params, tx.init(params), params, loss=jnp.ones(4))
    with pytest.raises(ValueError, match=r"holds 0 records of adamx\.watch, not one: wrap the method"):
        adamx.drain(adamx.adam(LR).init(params))
    both = optax.chain(tx, adamx.watch(adamx.sgd(LR)))
    with pytest.raises(ValueError, match=r"holds 2 records of adamx\.watch, not one: drain the state of one"):
        adamx.drain(both.init(params))


def test_inside_nnx_optimizer_and_optax_chain():
    model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.clip_by_global_norm(1.0), adamx.watch(adamx.adam(LR))), wrt=nnx.Param
    )

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean(m(x) ** 2))(model)
        optimizer.update(model, grads, loss=loss)

    for seed in range(10):
        step(model, optimizer, jax.random.normal(jax.random.key(seed), (4, 8)))
    history = history_of(optimizer.opt_state)
    assert [leaf.name for leaf in history.about.leaves] == ["bias", "kernel"]
    assert list(history.steps) == [1, 10]
    assert len(history.pulse["loss"]) == 10
    assert np.isfinite(history.pulse["loss"]).all()


def test_of_optax_what_needs_no_moments_is_recorded():
    tx, params = adamx.watch(optax.adamw(LR, B1, B2, weight_decay=0.1), every=1), leaves(0)
    history = history_of(plain_run(tx, params)[1])
    ours = history_of(plain_run(adamx.watch(adamx.adamw(LR, B1, B2, weight_decay=0.1), every=1), params)[1])
    for name, metric in LEAF.items():
        found = np.isfinite(history.leaf[name]).all()
        assert found == (
            metric.needs in ("", "rounding") and name not in ("clipped", "decay_share", "direction_rms", "saturated")
        ), name
        if found and name != "lost":
            np.testing.assert_allclose(history.leaf[name], ours.leaf[name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_skipped_step_is_recorded_with_what_was_wrong():
    tx = adamx.watch(adamx.skip_nonfinite(method()), every=100)
    params = leaves(0)
    state, update = tx.init(params), jax.jit(updated(tx))
    for seed in (1, 2, 3):
        grads = gradients(seed)
        if seed == 2:
            grads = grads | {"odd": grads["odd"].at[3, 4].set(jnp.nan)}
        params, state = update(grads, state, params)
    history = history_of(state)
    assert list(history.steps) == [1, 2, 3]  # 2 is no multiple of 100: it armed the watch
    at = [leaf.name for leaf in history.about.leaves].index("odd")
    assert list(history.leaf["bad_grad"][:, at]) == [0, 1, 0]
    assert history.about.method["b2"] == pytest.approx(B2)


def test_a_spike_arms_the_watch():
    tx = adamx.watch(adamx.sgd(1e-3), every=1000, arm=3, history=32)
    params = {"w": jnp.zeros(3)}
    rng = np.random.default_rng(0)
    state, update = tx.init(params), jax.jit(lambda g, s, p, loss: tx.update(g, s, p, loss=loss))
    for step in range(1, 121):
        loss = 1 + 0.1 * rng.standard_normal() + 5 * (step == 100)
        _, state = update({"w": jnp.asarray(rng.standard_normal(3), jnp.float32)}, state, params, loss)
    history = history_of(state)
    assert list(history.steps) == [1, 100, 101, 102, 103]
    score = history.pulse["loss_score"]
    assert score[99] > 6
    assert np.abs(np.delete(score, 99)).max() < 6
    assert (score[:64] == 0).all()


def test_a_ring_keeps_the_newest():
    tx = adamx.watch(adamx.sgd(0.1), every=1, history=4)
    params = {"w": jnp.ones(3)}
    state, update = tx.init(params), jax.jit(updated(tx))
    for seed in range(1, 601):
        params, state = update({"w": jnp.full(3, float(seed))}, state, params)
    history = history_of(state)
    assert list(history.steps) == [597, 598, 599, 600]
    np.testing.assert_array_equal(history.leaf["grad_max"][:, 0], history.steps)
    assert list(history.pulse_steps) == list(range(89, 601))


def test_drained_records_survive_a_donated_step():
    tx, params = adamx.watch(adamx.sgd(0.1), every=1), {"w": jnp.ones(3)}
    step = jax.jit(lambda p, s: tx.step({"w": jnp.ones(3)}, s, p, loss=3.0), donate_argnums=(0, 1))
    params, state = step(params, tx.init(params))
    drained = adamx.drain(state)
    params, state = step(params, state)
    assert list(drained.history().steps) == [1]
    assert drained.history().pulse["loss"][0] == 3


# Bad input


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: adamx.watch(adamx.adam), "call it to make one"),
        (lambda: adamx.watch(adamx.adam(LR), every=-1), "every must be a whole number"),
        (lambda: adamx.watch(adamx.adam(LR), history=1), "history must be a whole number"),
        (lambda: adamx.watch(adamx.adam(LR), spike=0.0), "spike must be finite and above 0"),
        (lambda: adamx.watch(adamx.adam(LR), max_bytes=10500).init(leaves(0)), "raise max_bytes"),
        (lambda: adamx.watch(adamx.adam(LR), distributions="yes"), "distributions must be True or False"),
        (lambda: adamx.watch_bytes(-1), "leaves must be a whole number of at least 0, but is -1"),
        (lambda: adamx.drain(adamx.adam(LR).init(leaves(0))), "holds 0 records"),
        (lambda: adamx.watch(adamx.adam(LR)).update(leaves(0), adamx.adam(LR).init(leaves(0))), "not a state of this"),
        (lambda: adamx.watch(adamx.adam(LR), distributions=True).update(
            leaves(0), adamx.watch(adamx.adam(LR)).init(leaves(0))), "does not go on from one without"),
    ],
)  # fmt: skip
def test_bad_input_is_told(call, says):
    with pytest.raises((TypeError, ValueError), match=says):
        call()
