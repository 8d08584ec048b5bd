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

import adamx
from adamx.ground.transform import states

DATA = Path(__file__).parent / "vectors"
MANIFEST = json.loads((DATA / "manifest.json").read_text())
CASES = {case["case"]: case for case in MANIFEST["cases"]}
STEPS = MANIFEST["meta"]["steps"]
ULPS = 16  # of the parameter: what 25 float64 additions may differ by
TOLERANCES = {  # beginning of a case's name -> share of the displacement, and why; everything else is held to 1e-9
    "adafactor__optax_factored": (1e-5, "float32 decay inside, and a leaf that comes back to 1% of its way"),
    "adafactor__optax": (1e-6, "float32 decay inside"),
    "soap": (1e-6, "a basis decided by QR decompositions"),
    "muon__torch__torch": (0.1, "bfloat16 iterations"),
    "muon__torch__author": (0.1, "bfloat16 iterations"),
    "schedule_free_adamw__warmup__optax": (1e-6, "float32 learning rate inside"),
}


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
    """Parameters after each step, and where a schedule-free run is evaluated then; runs of one spelling share it."""
    case = json.loads(spelling)
    streams = arrays("streams.npz")
    leaves = MANIFEST["meta"]["leaf_order"]
    pick = lambda row: {k: jnp.asarray(v) for k, v in split(row, leaves).items() if k in case["leaves"]}
    tx = spell(case, jnp.asarray(streams["lr_mult"]))

    def step(carry, row):
        params, state = carry
        updates, state = tx.update(pick(row), state, params)
        params = optax.apply_updates(params, updates)
        evaluated = adamx.schedule_free_eval_params(state, params) if averaged else None
        return (params, state), (params, evaluated)

    averaged = any("z" in s.moments for s in states(tx.init(pick(streams["init"]))))
    run = jax.jit(lambda p, rows: jax.lax.scan(step, (p, tx.init(p)), rows)[1])
    start = pick(streams["init"])
    return start, {kind: run(start, jnp.asarray(streams[f"grads_{kind}"])) for kind in kinds}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_a_method_reproduces_the_original(name):
    case = CASES[name]
    stored = CASES[case.get("same_as", name)]
    spelling = {"row": row_of(case)} | {k: case[k] for k in ("hyper", "lr_schedule", "leaves")}
    tolerance, _ = next(
        (t for begins, t in TOLERANCES.items() if name.startswith(begins)), (1e-9, "float64 throughout")
    )
    start, all_got = trajectories(json.dumps(spelling), tuple(stored["kinds_stored"]))
    recorded = arrays(stored["file"])
    for kind, (trained, evaluated) in all_got.items():
        for name, got in ((kind, trained), (f"{kind}__eval", evaluated)):
            if got is None or name not in recorded:
                continue
            chex.assert_tree_shape_prefix(got, (STEPS,))
            for t in range(STEPS):
                want = split(recorded[name][t], case["leaves"])
                for leaf, expected in want.items():
                    moved = np.max(np.abs(expected - start[leaf]))
                    floor = ULPS * np.finfo(np.float64).eps * np.max(np.abs(expected))
                    worst = np.max(np.abs(np.asarray(got[leaf][t]) - expected))
                    assert worst <= tolerance * moved + floor, f"{name}: {leaf} at step {t + 1} is off by {worst:.3g}"


def test_evaluation_points_are_recorded_and_compared():
    assert sum("gauss__eval" in arrays(case["file"]) for case in CASES.values() if "same_as" not in case) == 6


def test_every_spelling_is_used_by_a_recorded_run():
    assert {row_of(case) for case in CASES.values()} == set(SPELLINGS)
