"""Every method reproduces every recorded trajectory of the original implementations that names it."""

import json
from functools import cache
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from spellings import SPELLINGS, row_of, spell

DATA = Path(__file__).parent / "vectors"
MANIFEST = json.loads((DATA / "manifest.json").read_text())
CASES = {case["case"]: case for case in MANIFEST["cases"]}
STEPS = MANIFEST["meta"]["steps"]
ULPS = 16  # of the parameter: what 25 float64 additions may differ by


@cache
def arrays(file):
    with np.load(DATA / file) as f:
        return {k: f[k] for k in f.files}


def split(row, leaves):
    out, at = {}, 0
    for leaf in leaves:
        shape = tuple(MANIFEST["meta"]["shapes"][leaf])
        size = int(np.prod(shape, dtype=int))
        out[leaf] = row[at : at + size].reshape(shape)
        at += size
    return out


@cache
def trajectories(spelling, kinds):
    """Parameters after each step, for each stream, of the method that `spelling` (JSON) names; runs alike share it."""
    case = json.loads(spelling)
    streams = arrays("streams.npz")
    leaves = MANIFEST["meta"]["leaf_order"]
    pick = lambda row: {k: jnp.asarray(v) for k, v in split(row, leaves).items() if k in case["leaves"]}
    tx = spell(case, jnp.asarray(streams["lr_mult"]))

    def step(carry, row):
        params, state = carry
        updates, state = tx.update(pick(row), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    run = jax.jit(lambda p, rows: jax.lax.scan(step, (p, tx.init(p)), rows)[1])
    start = pick(streams["init"])
    return start, {kind: run(start, jnp.asarray(streams[f"grads_{kind}"])) for kind in kinds}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_a_method_reproduces_the_original(name):
    case = CASES[name]
    stored = CASES[case.get("same_as", name)]
    spelling = {"row": row_of(case)} | {k: case[k] for k in ("hyper", "lr_schedule", "leaves")}
    start, all_got = trajectories(json.dumps(spelling), tuple(stored["kinds_stored"]))
    for kind, got in all_got.items():
        chex.assert_tree_shape_prefix(got, (STEPS,))
        for t in range(STEPS):
            want = split(arrays(stored["file"])[kind][t], case["leaves"])
            for leaf, expected in want.items():
                moved = np.max(np.abs(expected - start[leaf]))
                floor = ULPS * np.finfo(np.float64).eps * np.max(np.abs(expected))
                worst = np.max(np.abs(np.asarray(got[leaf][t]) - expected))
                assert worst <= 1e-9 * moved + floor, f"{kind}: {leaf} at step {t + 1} is off by {worst:.3g}"


def test_every_spelling_is_used_by_a_recorded_run():
    assert {row_of(case) for case in CASES.values()} == set(SPELLINGS)
