"""The comparison of methods runs, compiles once a method, and reports what it measured; no test here looks at time."""

from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import methods


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
