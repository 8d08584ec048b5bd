"""Each method follows its paper: float32 against the float64 oracle, over streams that stress different parts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LR, each_method

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


@pytest.mark.parametrize("stream", STREAMS)
@each_method
def test_a_method_follows_its_paper(case, stream):
    grads = STREAMS[stream]().astype(np.float32)
    start = _rng().standard_normal(N).astype(np.float32)
    with np.errstate(invalid="ignore"):  # without eps, papers divide 0 by 0; here that is 0
        want = np.nan_to_num(case.expect(grads.astype(np.float64), start.astype(np.float64)), posinf=np.inf)
    params = np.stack([start, *(start + np.cumsum(want, 0)[:-1])]).astype(np.float32)
    tx = case.make()

    def step(state, seen):
        updates, state = tx.update(*({"w": x} for x in (seen[0],)), state, {"w": seen[1]})
        return state, updates["w"]

    _, got = jax.jit(lambda g, p: jax.lax.scan(step, tx.init({"w": p[0]}), (g, p)))(grads, params)
    chex.assert_shape(got, (STEPS, N))
    # in units of the learning rate, or of the update itself where that is longer (SGD on large gradients)
    scale = np.maximum(LR, np.max(np.abs(want)))
    worst = np.max(np.abs(np.asarray(got, np.float64) - want)) / scale
    assert worst <= case.ulps * 2.0**-24, f"off by {worst / 2.0**-24:.1f} ulps"


@each_method
def test_a_complex_leaf_follows_its_paper_too(case):
    rng = _rng()
    grads = (rng.standard_normal((20, 8)) + 1j * rng.standard_normal((20, 8))).astype(np.complex64)
    start = (rng.standard_normal(8) + 1j * rng.standard_normal(8)).astype(np.complex64)
    want = case.expect(grads.astype(np.complex128), start.astype(np.complex128))
    tx = case.make()
    p, state = start.astype(np.complex128), tx.init({"w": jnp.asarray(start)})
    chex.assert_type(jax.tree.leaves(state.moments.get("nu", ())), jnp.float32)
    update = jax.jit(tx.update)
    for g, expected in zip(grads, want, strict=True):
        u, state = update({"w": jnp.asarray(g)}, state, {"w": jnp.asarray(p.astype(np.complex64))})
        np.testing.assert_allclose(u["w"], expected, rtol=0, atol=2 * case.ulps * 2.0**-24 * LR)
        p = p + expected
