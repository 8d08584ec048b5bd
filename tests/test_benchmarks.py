"""The comparisons run, compile no more than they must, and report what they measured; no test here looks at time."""

from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import convergence, drift, methods, precision


@pytest.fixture
def compiles():
    """Grows by one for every program that XLA compiles."""
    seen = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def made_up(rates, accuracy):
    return methods.Sweep(np.array(rates), np.array(accuracy), 8.0, 1.0, 1.0)


def test_a_short_run_compiles_each_method_once_and_reports_both(tmp_path, capsys, compiles):
    picture = tmp_path / "new" / "picture.png"
    sweeps = methods.main(["--short", "--methods", "adam", "sgd", "--out", str(picture)])
    assert len(compiles) == 2
    assert list(sweeps) == ["adam", "sgd"]
    out, err = capsys.readouterr()
    rows = {line.split("`")[1]: line for line in out.splitlines() if line.startswith("| `")}
    for name, sweep in sweeps.items():
        assert sweep.accuracy.shape == (9, 2)  # rates, seeds
        assert np.isfinite(sweep.accuracy).all()
        assert np.isfinite([sweep.error, sweep.width, sweep.compile_seconds, sweep.run_seconds]).all()
        assert 0 <= sweep.width <= 8
        assert f"{name:20} compile " in err
        assert f"| {100 * sweep.mean.max():.2f} ± {100 * sweep.error:.2f} | {sweep.rates[sweep.best]:g} |" in rows[name]
    assert list(rows) == list(methods.ranked(sweeps))
    assert [sweeps["adam"].state_bytes, sweeps["sgd"].state_bytes] == [8, 0]
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100  # something is drawn


def test_every_run_of_a_sweep_equals_the_same_run_alone():
    data = methods.load()
    start = methods.starts(data, 2, 5)
    train = jax.jit(partial(methods.train, "adam"))
    together = methods.sweep("adam", data, start, (1e-3, 1e-2)).accuracy
    for seed in range(2):
        one = jax.tree.map(lambda x, seed=seed: x[seed], start)
        for place, rate in enumerate((1e-3, 1e-2)):
            alone = train(data, np.float32(rate), one)
            assert abs(together[place, seed] - alone) <= 2 / 540  # rounding may turn an image or two


def test_starts_are_the_same_every_time_and_differ_by_seed():
    data = methods.load()
    start, again = methods.starts(data, 2, 50), methods.starts(data, 2, 50)
    jax.tree.map(np.testing.assert_array_equal, start, again)
    assert start.batches.shape == (2, 50, methods.BATCH)
    assert (start.batches[0] != start.batches[1]).any()
    assert (start.params["layer0"]["kernel"][0] != start.params["layer0"]["kernel"][1]).any()
    first_epoch = start.batches[0, :39].ravel()
    assert len(np.unique(first_epoch)) == len(first_epoch)  # no image twice


def test_a_run_that_became_nan_counts_as_its_share_of_zeros():
    data = methods.load()
    accuracy = methods.sweep("sgd", data, methods.starts(data, 1, 3), (1e30,)).accuracy
    assert accuracy == pytest.approx((data.test_labels == 0).mean())


def test_the_width_is_interpolated_between_rates():
    sweep = made_up([1e-3, 1e-2, 1e-1], [[0.94, 0.96], [0.96, 0.98], [0.95, 0.95]])
    assert sweep.best == 1
    assert sweep.error == pytest.approx(0.01)
    assert sweep.width == pytest.approx(1.0, abs=1e-3)  # one point of two, half a decade, on both sides
    assert list(sweep.good) == [False, True, False]
    assert "| 97.00 ± 1.00 | 0.01 | 1.00 | 8 |" in methods.table({"x": sweep})


def test_a_best_rate_at_the_edge_is_noticed():
    inside = made_up([1, 2, 3], [[0.1, 0.1], [0.9, 0.9], [0.1, 0.1]])
    low = made_up([1, 2, 3], [[0.9, 0.9], [0.5, 0.5], [0.1, 0.1]])
    high = made_up([1, 2, 3], [[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]])
    assert methods.at_the_edge({"inside": inside, "low": low, "high": high}) == ["low", "high"]
    assert "| ≥ " in methods.table({"low": low})
    assert "≥" not in methods.table({"inside": inside})


def test_an_unknown_method_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        methods.main(["--methods", "adamn"])
    assert stopped.value.code == 2
    assert "unknown method 'adamn'; there are " in capsys.readouterr().err


def converge(folder, *argv):
    results, picture = str(folder / "new" / "runs.json"), str(folder / "picture.svg")
    return convergence.main(["--short", "--results", results, "--picture", picture, *argv])


def trained(err):
    return [line.split(":")[0].split() for line in err.splitlines()]


@pytest.mark.slow
def test_convergence_goes_on_where_it_was_stopped_and_tells_seeds_apart(tmp_path, capsys):
    digits = "--tasks", "digits", "--only"
    first = converge(tmp_path, *digits, "optax-bf16")["digits"]["optax-bf16"]
    assert first.verdict == "unknown"  # without float32
    assert trained(capsys.readouterr().err) == [["digits", "optax-bf16", "seed", str(seed)] for seed in range(2)]
    both = converge(tmp_path, *digits, "float32")["digits"]
    out, err = capsys.readouterr()
    assert trained(err) == [["digits", "float32", "seed", str(seed)] for seed in range(2)]
    assert list(both) == ["float32", "optax-bf16"]
    np.testing.assert_array_equal(both["optax-bf16"].losses, first.losses)
    assert [row.bytes for row in both.values()] == [pytest.approx(16, rel=0.001), pytest.approx(8, rel=0.001)]
    assert both["float32"].sds == 0
    assert len(np.unique([row.losses for row in both.values()])) == 4
    for name, row in both.items():
        assert f"| {convergence.CONFIGURATIONS[name].label} | {row.bytes:.2f} | {row.losses.mean():.4f} | " in out
        assert convergence.CONFIGURATIONS[name].label in (tmp_path / "picture.svg").read_text()
    converge(tmp_path, *digits, "float32")
    assert capsys.readouterr().err == ""
    with pytest.raises(
        SystemExit, match=r"holds runs of digits with steps 19 \(now 5\); expected the same, or --fresh"
    ):
        converge(tmp_path, *digits, "float32", "--steps", "5")


@pytest.mark.slow
def test_a_short_run_of_convergence_trains_both_tasks(tmp_path, capsys, compiles):
    tables = converge(tmp_path)
    assert list(tables) == ["digits", "charlm"]
    for found in tables.values():
        assert tuple(found) == convergence.SHORT
        for row in found.values():
            assert row.losses.shape == (2,)
            assert np.isfinite(row.losses).all()
    done = len(compiles)
    converge(tmp_path, "--only", "float32", "--tasks", "charlm", "--fresh", "--seeds", "1")
    again = len(compiles) - done
    converge(tmp_path, "--only", "float32", "--tasks", "charlm", "--fresh", "--seeds", "3")
    assert len(compiles) - done == 2 * again  # another seed is not another program


def test_the_verdict_is_in_units_of_what_another_seed_changes(tmp_path):
    results = convergence.Results(tmp_path / "runs.json", fresh=True)
    results.open("task", {})
    losses = {
        "float32": (1, 2, 3),
        "8bit": (1.5, 3, 4),
        "bf16": (4, 4, 4),
        "4bit": (0, 0, 0),
        "4bit-zero": (1, 2, np.nan),
    }
    for name, values in losses.items():
        for seed, loss in enumerate(values):
            results.add("task", name, seed, convergence.Run(float(loss), 8.0, 0.1))
    results.add("task", "bf16+int8", 0, convergence.Run(1.0, 8.0, 0.1))  # seeds are missing
    rows = convergence.rows(convergence.Results(tmp_path / "runs.json", fresh=False), "task", 3)
    assert {name: row.verdict for name, row in rows.items()} == {
        "float32": "yes",
        "8bit": "yes",
        "4bit": "no, lower",
        "4bit-zero": "diverged",
        "bf16": "no",
    }
    assert rows["8bit"].sds == pytest.approx((8.5 / 3 - 2) / 1)
    assert "| 2.8333 | 1.2583 | +0.83 | yes |" in convergence.table(rows, "nats")
    assert "| — | — | — | diverged |" in convergence.table(rows, "nats")
    convergence.draw({"task": rows}, {"task": "nats"}, tmp_path / "picture.svg")
    assert "diverged" in (tmp_path / "picture.svg").read_text()


def test_a_picture_is_drawn_where_nothing_is_known_about_noise(tmp_path):
    for value in (1.0, np.nan):
        row = convergence.Row(np.array([value]), 16.0, np.nan)
        convergence.draw({"task": {"float32": row}}, {"task": "nats"}, tmp_path / "picture.png")
        with Image.open(tmp_path / "picture.png") as image:
            assert image.format == "PNG"


def test_an_unknown_configuration_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        convergence.main(["--only", "2bit"])
    assert stopped.value.code == 2
    assert "unknown configuration '2bit'; there are float32, 8bit, " in capsys.readouterr().err


@pytest.mark.slow
def test_the_table_of_precisions_has_a_row_for_each(capsys):
    precision.main(["--short", "--no-loss", "--rounds", "0"])
    out = capsys.readouterr().out
    for row in (
        "| float32 | 8.000 | 16.000 | ",
        "| 8bit + split8 | 3.037 | 7.037 | ",
        "| optax.adamw, bf16 | 4.000 | 8.000 | ",
    ):
        assert row in out


@pytest.mark.slow
def test_runs_that_are_float32_bit_for_bit_part_by_roundings_only(capsys):
    drift.main(["--steps", "30", "--size", "4096"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [name.strip() for name, *_ in rows[-2:]] == [
        "bf16 + int16, one program of all steps",
        "bf16 + int16, a program a step",
    ]
    assert all(float(distance) < 1e-4 for _, distance, _ in rows[1:])


def test_an_unknown_storage_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        precision.main(["--storage", "9bit"])
    assert stopped.value.code == 2
    assert "unknown name '9bit'; there are float32, bf16, 8bit" in capsys.readouterr().err
