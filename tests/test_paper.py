"""Each method follows its paper: float32 against the float64 oracle, over streams that stress different parts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LR, each_convention

STEPS, N = 60, 128


def _rng():
    return np.random.default_rng(0)


STREAMS = {
    "gaussian": lambda: _rng().standard_normal((STEPS, N)),
    "sparse": lambda: _rng().standard_normal((STEPS, N)) * (_rng().random((STEPS, N)) < 0.1),
    "eight-decades": lambda: _rng().standard_normal((STEPS, N)) * 10.0 ** np.linspace(-4, 4, N),
    "constant": lambda: np.ones((STEPS, 1)) * np.linspace(-2, 2, N),
    "sign-flipping": lambda: (-1.0) ** np.arange(STEPS)[:, None] * np.linspace(0.1, 2, N),
    "late": lambda: _rng().standard_normal((STEPS, N)) * (np.arange(STEPS) >= 5)[:, None],
    "zeros": lambda: np.zeros((STEPS, N)),
}


@each_convention
def test_a_method_follows_its_paper(case):
    dtype = np.float64 if case.wide else np.float32
    bound = 1e-9 if case.wide else case.ulps * 2.0**-24
    tx = case.make()

    def step(state, seen):
        updates, state = tx.update({"w": seen[0]}, state, {"w": seen[1]})
        return state, updates["w"]

    run = jax.jit(lambda g, p: jax.lax.scan(step, tx.init({"w": p[0]}), (g, p))[1])
    for stream in STREAMS.keys() - set(case.ill_posed):
        grads = STREAMS[stream]().astype(np.float32).reshape(STEPS, *case.shape)
        start = _rng().standard_normal(case.shape).astype(np.float32)
        with np.errstate(invalid="ignore"):  # without eps, papers divide 0 by 0; here that is 0
            want = np.nan_to_num(case.expect(grads.astype(np.float64), start.astype(np.float64)), posinf=np.inf)
        params = np.stack([start, *(start + np.cumsum(want, 0)[:-1])]).astype(dtype)
        with jax.enable_x64(case.wide):
            got = run(grads.astype(dtype), params)
        chex.assert_shape(got, (STEPS, *case.shape))
        # in units of the learning rate, or of the update itself where that is longer (SGD on large gradients)
        scale = np.maximum(LR, np.max(np.abs(want)))
        worst = np.max(np.abs(np.asarray(got, np.float64) - want)) / scale
        assert worst <= bound, f"{stream}: off by {worst / 2.0**-24:.3g} ulps of float32"


@pytest.mark.thin(default=4)
@each_convention
def test_a_complex_leaf_follows_its_paper_too(case):
    rng = _rng()
    drawn = lambda *shape: (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    grads, start = drawn(20, *case.shape[1:], 8), drawn(*case.shape[1:], 8)
    want = case.expect(grads.astype(np.complex128), start.astype(np.complex128))
    want = list(want)
    scale = np.maximum(LR, np.max(np.abs(want)))
    tx = case.make()
    dtype, bound = (np.complex128, 1e-9) if case.wide else (np.complex64, 2 * case.ulps * 2.0**-24)
    with jax.enable_x64(case.wide):
        p, state = start.astype(np.complex128), tx.init({"w": jnp.asarray(start.astype(dtype))})
        assert all(jnp.isrealobj(x) for x in jax.tree.leaves(state.moments.get("nu", ())))
        update = jax.jit(tx.update)
        for g, expected in zip(grads, want, strict=True):
            u, state = update({"w": jnp.asarray(g.astype(dtype))}, state, {"w": jnp.asarray(p.astype(dtype))})
            np.testing.assert_allclose(u["w"], expected, rtol=0, atol=bound * scale)
            p = p + expected
