"""What leaves in another format is what was recorded."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adamx.diagnostics import export
from adamx.diagnostics.history import About, History, Leaf
from adamx.diagnostics.metrics import LEAF, PULSE, WHOLE

ROOT = Path(__file__).parents[1]
INF, NAN = np.inf, np.nan


def made(records=12, leaves=5, every=10, seed=0):
    """A run of every number that there is, with some that do not apply and some that went wrong."""
    rng = np.random.default_rng(seed)
    names = [
        "embed/table",
        *(f"blocks/{i // 2}/{('up', 'down')[i % 2]}/kernel" for i in range(leaves - 2)),
        'say, "x"/ü',
    ]
    about = About(tuple(Leaf(name, (3, 4), "float32") for name in names), every, {"b2": 0.999, "max_norm": 1.0})
    steps, beats = every * np.arange(1, records + 1), np.arange(1, every * records + 1)
    lognormal = lambda *shape: rng.lognormal(-3, 2, shape).astype(np.float32)
    leaf = {name: lognormal(records, leaves) for name in LEAF if name != "mu_error"}
    leaf["mu_error"] = np.full((records, leaves), NAN, np.float32)  # there is no codec
    leaf["stalled"][:, 1] = NAN  # does not apply to the second leaf
    leaf["update_ratio"][-2:-1, 2:3] = INF
    leaf["update_ratio"][-1:, 2:3] = NAN
    leaf["grad_rms"][0] = NAN  # not known of any leaf at first
    pulse = {name: lognormal(len(beats)) for name in PULSE}
    pulse["loss"][[4, 5, 6]] = INF, NAN, -INF
    whole = {name: lognormal(records) for name in WHOLE if name not in PULSE}
    whole["clip"][-1] = NAN
    return History(about, steps, whole, leaf, beats, pulse, steps[:0], {})


def empty():
    return made().after(10_000, 10_000, 10_000)


def looked_up(history, step, leaf, metric):
    """The number at a place, from the arrays."""
    if leaf:
        i = [x.name for x in history.about.leaves].index(leaf)
        return history.leaf[metric][list(history.steps).index(step), i]
    if metric in history.pulse:
        return history.pulse[metric][list(history.pulse_steps).index(step)]
    return history.whole[metric][list(history.steps).index(step)]


def same_bits(a, b):
    return np.float32(a).tobytes() == np.float32(b).tobytes() or (np.isnan(a) and np.isnan(b))


# Tables


def test_every_number_of_a_run_stands_in_one_row_of_the_frame():
    history = made()
    frame = export.to_frame(history)
    assert list(frame.columns) == ["step", "leaf", "metric", "value"]
    assert frame["step"].dtype == np.int64
    assert frame["value"].dtype == np.float32
    assert frame["step"].is_monotonic_increasing
    assert not frame.duplicated(["step", "leaf", "metric"]).any()
    rows = list(frame.itertuples(index=False))
    assert all(same_bits(row.value, looked_up(history, row.step, row.leaf, row.metric)) for row in rows)
    columns = 5 * (len(LEAF) - 1) - 1  # all but mu_error, and stalled of one leaf
    assert len(rows) == 12 * (columns + len(WHOLE) - len(PULSE)) + 120 * len(PULSE)


def test_what_never_applied_is_left_out_and_what_went_wrong_is_not():
    frame = export.to_frame(made())
    assert "mu_error" not in set(frame["metric"])
    assert len(frame[(frame["metric"] == "stalled") & (frame["leaf"] == "blocks/0/up/kernel")]) == 0
    loss = frame[frame["metric"] == "loss"].set_index("step")["value"]
    assert [loss[5], loss[7]] == [INF, -INF]
    assert math.isnan(loss[6])


def test_a_number_that_is_recorded_both_ways_comes_once():
    history = made()
    history.whole["loss"] = np.full(12, 7, np.float32)
    late = history.after(0, 60, 0)  # its pulse begins later than its records
    loss = export.to_frame(late).query("metric == 'loss'")
    assert loss["step"].tolist() == [10, 20, 30, 40, 50, 60, *range(61, 121)]
    assert loss["value"].tolist()[:6] == [7] * 6
    assert same_bits(loss["value"].tolist()[-1], history.pulse["loss"][-1])


def test_an_empty_history_is_an_empty_table(tmp_path):
    assert len(export.to_frame(empty())) == 0
    export.to_csv(empty(), tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "step,leaf,metric,value\n"
    export.to_parquet(empty(), tmp_path / "x.parquet")


def test_csv_is_read_back_bit_for_bit(tmp_path):
    history, path = made(), tmp_path / "run.csv"
    export.to_csv(history, path)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(export.to_frame(history))
    for row in rows:
        assert same_bits(np.float32(row["value"]), looked_up(history, int(row["step"]), row["leaf"], row["metric"]))
    assert {"nan", "inf", "-inf"} < {row["value"] for row in rows}
    import pandas

    read = pandas.read_csv(path, keep_default_na=False, na_values={"value": "nan"})
    frame = export.to_frame(history)
    np.testing.assert_array_equal(read["value"].to_numpy(np.float32), frame["value"])
    assert read["leaf"].tolist() == frame["leaf"].tolist()


def test_parquet_is_read_back_with_what_it_is_of(tmp_path):
    import pandas
    import pyarrow
    import pyarrow.parquet

    history, path = made(), tmp_path / "run.parquet"
    export.to_parquet(history, path)
    table = pyarrow.parquet.read_table(path)
    assert About.from_json(table.schema.metadata[b"adamx"]) == history.about
    assert pyarrow.types.is_dictionary(table.schema.field("leaf").type)
    assert pyarrow.types.is_dictionary(table.schema.field("metric").type)
    pandas.testing.assert_frame_equal(pandas.read_parquet(path), export.to_frame(history))


# Dictionaries


def test_the_dictionary_of_a_record_is_flat_and_of_plain_floats():
    history = made()
    numbers = export.to_dict(history, -1)
    assert {type(x) for x in numbers.values()} == {float}
    assert same_bits(numbers["loss"], history.pulse["loss"][-1])
    assert same_bits(numbers["update_norm"], history.whole["update_norm"][-1])
    assert math.isnan(numbers["clip"])  # it was known before
    assert not [key for key in numbers if key.startswith(("mu_error", "leaf/"))]
    ordered = np.sort(history.leaf["direction_rms"][-1])
    assert [numbers[f"direction_rms/{q}"] for q in ("p10", "p50", "p90", "max")] == [
        float(str(ordered[i])) for i in (0, 2, 4, 4)
    ]


def test_any_record_can_be_had_and_none_that_is_not_there():
    history = made()
    assert same_bits(export.to_dict(history, 3)["loss"], history.pulse["loss"][39])
    assert export.to_dict(history, -12) == export.to_dict(history, 0)
    for at in (12, -13):
        with pytest.raises(ValueError, match=rf"at={at}, but the history has 12 records; record some, or name one"):
            export.to_dict(history, at)
    with pytest.raises(ValueError, match="at=-1, but the history has 0 records"):
        export.to_dict(empty())


def test_statistics_can_be_given_leaf_by_leaf():
    history = made()
    numbers = export.to_dict(history, -2, statistics=(), by_leaf=("update_ratio", "stalled"))
    by_leaf = {key: x for key, x in numbers.items() if key.startswith("leaf/")}
    assert len(by_leaf) == 5 + 4
    assert by_leaf["leaf/update_ratio/blocks/0/down/kernel"] == INF
    assert same_bits(by_leaf["leaf/stalled/embed/table"], history.leaf["stalled"][-2, 0])
    assert not [key for key in numbers if key.endswith("/p50")]


def test_percentiles_are_values_of_leaves_also_where_some_are_infinite_or_missing():
    over = export._over_leaves(np.float32([[NAN, INF, 1, -INF], [NAN] * 4, [3, 1, 2, 0], [NAN, NAN, 5, NAN]]))
    np.testing.assert_array_equal(over, [[-INF, 1, INF, INF], [NAN] * 4, [0, 1, 3, 3], [5] * 4])
    hundred = np.random.default_rng(0).permutation(np.arange(1, 101)).astype(np.float32)
    np.testing.assert_array_equal(export._over_leaves(hundred[None]), [[10, 50, 90, 100]])
    assert np.isnan(export._over_leaves(np.zeros((2, 0), np.float32))).all()


@pytest.mark.parametrize("x", [0.1, 1e-3, 1 / 3, 3.4e38, 1e-45, -0.0, 16777217.0, NAN, INF, -INF])
def test_a_plain_number_is_the_shortest_that_is_the_same_float32(x):
    plain = export._plain(np.float32(x))
    assert same_bits(plain, np.float32(x))
    assert len(repr(plain)) <= 14


def test_a_statistic_that_there_is_not_is_one_sentence():
    history = made()
    for call in (export.to_dict, lambda h, statistics: export.to_tensorboard(h, "never", statistics=statistics)):
        with pytest.raises(
            ValueError, match=r"no statistic of leaves called 'loss'; there are grad_rms, grad_max, .*\.$"
        ):
            call(history, statistics=["loss"])
    del history.leaf["lost"]
    with pytest.raises(ValueError, match=r"the history has no 'lost'; it has grad_rms,"):
        export.figures(history, ["lost"])


def test_json_is_strict_and_holds_every_record(tmp_path):
    history, path = made(), tmp_path / "run.json"
    history.about.method["eps"] = NAN

    def refuse(constant):
        raise AssertionError(constant)

    export.to_json(history, path)
    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read["about"]["method"] == {"b2": 0.999, "max_norm": 1.0, "eps": None}
    assert [record["step"] for record in read["records"]] == history.steps.tolist()
    assert same_bits(
        read["records"][3]["surprise/p50"], export.to_dict(history, 3, statistics=["surprise"])["surprise/p50"]
    )
    assert read["records"][-1]["clip"] is None
    assert "mu_error/max" not in read["records"][0]
    assert [beat["step"] for beat in read["pulse"]] == history.pulse_steps.tolist()
    assert same_bits(read["pulse"][0]["loss"], history.pulse["loss"][0])
    assert [read["pulse"][i]["loss"] for i in (4, 5, 6)] == [None] * 3


# TensorBoard


def events(directory):
    """(tag, step, value) of every scalar in a directory's event files, as TensorBoard's own reader gives them."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for file in directory.iterdir():
        for raw in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(raw)
            for value in event.summary.value:
                yield value.tag, event.step, value.simple_value


@pytest.mark.parametrize("leaves", [2, 300])
def test_tensorboard_gets_at_most_40_tags_however_many_leaves_there_are(tmp_path, leaves):
    history = made(leaves=leaves)
    export.to_tensorboard(history, tmp_path / "tb")
    written = list(events(tmp_path / "tb"))
    tags = {tag for tag, _, _ in written}
    assert len(tags) == export.MOST_TAGS == 40
    assert len({(tag, step) for tag, step, _ in written}) == len(written)
    assert tags == set(WHOLE) | {f"{name}/{q}" for name in export.CHOSEN for q in ("p10", "p50", "p90", "max")}


def test_tensorboard_shows_the_recorded_values(tmp_path):
    history = made()
    export.to_tensorboard(history, tmp_path, statistics=["update_ratio", "grad_rms"])
    at = {(tag, step): x for tag, step, x in events(tmp_path)}
    assert all(same_bits(at["loss", s], x) for s, x in zip(history.pulse_steps, history.pulse["loss"], strict=True))
    assert at["update_ratio/max", 110] == INF
    assert at["update_ratio/max", 120] == np.nanmax(history.leaf["update_ratio"][-1])
    assert same_bits(at["grad_rms/p50", 50], np.median(history.leaf["grad_rms"][4]))
    assert ("grad_rms/p50", 10) not in at  # known of no leaf then
    assert len({tag for tag, _ in at}) == 8 + 8


def test_more_tags_than_are_allowed_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(
        ValueError, match=r"these statistics make 44 tags in TensorBoard, .* 40 are allowed; name at most 8"
    ):
        export.to_tensorboard(made(), tmp_path / "tb", statistics=[*export.CHOSEN, "lost"])
    assert not (tmp_path / "tb").exists()


def test_tensorboard_takes_an_empty_history(tmp_path):
    export.to_tensorboard(empty(), tmp_path)
    assert list(events(tmp_path)) == []


# Figures


def texts(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def test_figures_fit_a_column_and_say_what_their_axes_are(tmp_path):
    drawn = export.figures(made(), ["update_ratio", "momentum_cosine", "direction_error"])
    assert list(drawn) == ["timeline", "update_ratio", "momentum_cosine", "direction_error"]
    for name, figure in drawn.items():
        assert figure.get_figwidth() == 3.25
        figure.savefig(tmp_path / f"{name}.pdf")
        assert "training step" in texts(figure)
        assert min(text.get_fontsize() for text in figure.findobj(lambda x: hasattr(x, "get_fontsize"))) >= 5
    assert {"loss", "gradient norm", "not finite", "clip at 1"} <= set(texts(drawn["timeline"]))
    assert "update's norm over parameters' norm, |u| / |w|" in texts(drawn["update_ratio"])
    assert {"leaf", "embed/table"} <= set(texts(drawn["update_ratio"]))


def test_the_heat_map_shows_each_leafs_number_and_greys_what_is_not_known():
    history = made()
    mesh = export.figures(history, ["update_ratio"])["update_ratio"].axes[0].collections[0]
    shown = mesh.get_array()
    values = history.leaf["update_ratio"].T
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), np.isnan(values))
    low, high = mesh.norm.vmin, mesh.norm.vmax
    assert math.isclose(low * high, 1e-6, rel_tol=1e-6)  # centred on the reference
    np.testing.assert_allclose(shown[~np.isnan(values)], np.clip(values, low, high)[~np.isnan(values)], rtol=1e-6)


def test_the_timeline_shows_every_finite_number_and_marks_the_others():
    history = made()
    axes = export.figures(history, [])["timeline"].axes[0]
    line, marks = axes.lines
    loss = history.pulse["loss"]
    np.testing.assert_array_equal(line.get_ydata(), np.where(np.isfinite(loss), loss, NAN))
    assert marks.get_xdata().tolist() == [5, 6, 7]


ONE_OF_EACH_SCALE = ["grad_rms", "update_ratio", "lost", "stalled", "sign_agreement", "momentum_cosine", "bad_grad"]


def test_these_are_all_the_ways_to_colour():
    kinds = lambda names: {
        (LEAF[name].scale, LEAF[name].reference in (0, None), LEAF[name].reference == 0.5) for name in names
    }
    assert kinds(ONE_OF_EACH_SCALE) | kinds(["clipped"]) == kinds(LEAF)


@pytest.mark.parametrize("name", ONE_OF_EACH_SCALE)
def test_a_statistic_can_be_drawn_whatever_its_values(name):
    history = made(records=4, leaves=2)
    for values in ([[-1, 0], [1e-30, 3e38], [INF, -INF], [NAN, 1]], np.full((4, 2), NAN)):
        history.leaf[name] = np.float32(values)
        export.figures(history, [name])[name].draw_without_rendering()


def test_one_record_of_many_leaves_is_drawn_with_few_labels():
    figure = export.figures(made(records=1, leaves=200), ["update_ratio"])["update_ratio"]
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert len(axes.get_yticklabels()) == 40
    assert axes.get_ylabel() == "leaf (one label in 5)"
    assert all(len(label.get_text()) <= 26 for label in axes.get_yticklabels())


def test_a_run_whose_loss_was_not_passed_has_the_gradients_norm_alone():
    history = made()
    history.pulse["loss"][:] = NAN
    (axes,) = export.figures(history, [])["timeline"].axes
    assert axes.get_ylabel() == "gradient norm"
    with pytest.raises(ValueError, match="the history has 0 records, and a figure needs at least one"):
        export.figures(empty())


def test_figures_are_written_as_pdf_with_fonts_that_can_be_read(tmp_path):
    history = made(records=3, leaves=3)
    for name in set(export.CHOSEN) - {"stalled"}:
        del history.leaf[name]
    paths = export.to_figures(history, tmp_path / "new")
    assert [path.name for path in paths] == ["timeline.pdf", "stalled.pdf"]
    for path in paths:
        pdf = path.read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"/FontFile2" in pdf
        assert b"/Type3" not in pdf
    again = export.to_figures(history, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_figures_leave_matplotlibs_settings_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    export.figures(made(), ["update_ratio"])
    assert dict(matplotlib.rcParams) == before


# Packages


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("pandas", lambda h, path: export.to_frame(h)),
        ("pandas", export.to_csv),
        ("pyarrow", export.to_parquet),
        ("tensorboard", export.to_tensorboard),
        ("matplotlib", lambda h, path: export.figures(h)),
    ],
    ids=["frame", "csv", "parquet", "tensorboard", "figures"],
)
def test_a_missing_package_is_one_sentence_and_writes_nothing(tmp_path, monkeypatch, package, call):
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf"^this needs the package {package} \(.*\): pip install 'adamx\[report\]'\.$"
    ):
        call(made(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_importing_the_module_imports_none_of_them():
    program = (
        "import sys, types\n"
        "for name in ('adamx', 'adamx.diagnostics'):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        f"    sys.modules[name].__path__ = [{str(ROOT)!r} + '/' + name.replace('.', '/')]\n"
        "import adamx.diagnostics.export\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}\n"
        "    & {'jax', 'optax', 'pandas', 'pyarrow', 'tensorboard', 'matplotlib', 'rich'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
