"""The view of a run in a terminal, as text."""

import io
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from adamx.diagnostics.history import About, History, Leaf
from adamx.diagnostics.live import HEADINGS, Frame, Live, distance, duration, number, shortened, shown, trend, worst
from adamx.diagnostics.metrics import LEAF

INF, NAN = np.inf, np.nan


class Terminal(io.StringIO):
    """A stream that says that somebody looks at it."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _a_plain_terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "40")


def made(blocks=8, records=30, every=10, seed=0):
    """A healthy run of a transformer."""
    rng = np.random.default_rng(seed)
    kinds = ("attn/qkv/kernel", "attn/out/kernel", "mlp/up/kernel", "mlp/down/kernel")
    names = ["embed/table", *(f"blocks/{i}/{kind}" for i in range(blocks) for kind in kinds)]
    shape, beats = (records, len(names)), np.arange(1, every * records + 1)
    leaf = {
        "update_ratio": 10 ** rng.normal(-3, 0.1, shape),
        "surprise_before": 10 ** rng.normal(0, 0.05, shape),
        "momentum_cosine": rng.normal(0, 0.05, shape),
        "stalled": np.full(shape, NAN),
        "direction_error": np.full(shape, NAN),
        "eps_tenth": np.zeros(shape),
        "saturated": np.full(shape, 1e-4),
        "zero_grad": np.zeros(shape),
        "bad_grad": np.zeros(shape),
    }
    pulse = {
        "loss": 4 * np.exp(-beats / 100) + 1 + 0.01 * rng.normal(size=len(beats)),
        "grad_norm": rng.lognormal(size=len(beats)),
    }
    as_stored = lambda table: {name: x.astype(np.float32) for name, x in table.items()}
    about = About(tuple(Leaf(name, (64, 64), "float32") for name in names), every)
    return History(
        about, every * np.arange(1, records + 1), {}, as_stored(leaf), beats, as_stored(pulse), beats[:0], {}
    )


def finding(**fields):
    return SimpleNamespace(
        **{"severity": "warning", "id": "stale_nu", "leaves": ("blocks/3/mlp/up/kernel",), "step": 1290}
        | {"says": "the gradient is 7.3 times what the second moment expects"}
        | fields
    )


def rendered(frame, width, height=60):
    """The lines of a frame, without colours."""
    from rich.console import Console

    console = Console(width=width, height=height, force_terminal=True, record=True, file=io.StringIO())
    console.print(frame)
    return console.export_text().splitlines()


def index(history, name):
    return [leaf.name for leaf in history.about.leaves].index(name)


# Which leaves


def test_the_worst_leaf_is_the_farthest_from_a_reference_in_decades_or_in_difference():
    history = made()
    history.leaf["update_ratio"][-1, 5] = 1e-5  # 2 decades
    history.leaf["surprise_before"][-1, 9] = 40  # 1.6
    history.leaf["momentum_cosine"][-1, 2] = -0.9
    history.leaf["eps_tenth"][-1, 7] = 0.7
    found = worst(history, shown(history))
    assert [(x.leaf, x.metric) for x in found[:4]] == [
        (5, "update_ratio"), (9, "surprise_before"), (2, "momentum_cosine"), (7, "eps_tenth"),
    ]  # fmt: skip
    np.testing.assert_allclose([x.distance for x in found[:4]], [2, np.log10(40), 0.9, 0.7], rtol=1e-5)
    assert len(found) == 33


def test_what_is_not_finite_is_worst_of_all():
    history = made()
    history.leaf["update_ratio"][-1, 5] = 1e3
    history.leaf["bad_grad"][-1, 6] = 2
    history.leaf["update_ratio"][-1, 7] = INF
    assert {x.leaf for x in worst(history, shown(history))[:2]} == {6, 7}
    assert worst(history, shown(history))[2].leaf == 5


def test_a_leaf_of_which_nothing_is_known_is_not_judged():
    history = made()
    for name in shown(history):
        history.leaf[name][-1, 4] = NAN
    assert 4 not in {x.leaf for x in worst(history, shown(history))}


def test_five_statistics_are_shown_that_apply_to_a_leaf():
    assert shown(made()) == ("update_ratio", "surprise_before", "momentum_cosine", "eps_tenth", "saturated")
    history = made()
    history.leaf["stalled"][-1, 3] = 0.5
    assert shown(history) == ("update_ratio", "surprise_before", "momentum_cosine", "stalled", "eps_tenth")
    assert set(HEADINGS) <= set(LEAF)


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("update_ratio", 1e-2, 1), ("update_ratio", 0.0, 0), ("update_ratio", INF, INF), ("update_ratio", NAN, -INF),
        ("clipped", 0.25, 0.75), ("sign_agreement", 0.1, 0.4), ("momentum_cosine", -0.5, 0.5), ("lost", 0.3, 0.3),
        ("grad_rms", 1e9, -INF), ("bad_grad", 3, 3),
    ],
)  # fmt: skip
def test_distances(name, x, expected):
    assert distance(LEAF[name], x) == pytest.approx(expected)


# The panel


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_panel_fits_and_shows_everything(width):
    history = made()
    history.leaf["update_ratio"][-1, index(history, "blocks/3/mlp/up/kernel")] = 0.0734
    found = [
        finding(),
        finding(severity="error", id="nonfinite", leaves=()),
        finding(severity="note", id="eps", step=0),
    ]
    lines = rendered(Frame(history, found, 5000, 12.34), width)
    assert max(map(len, lines)) <= width
    assert lines[0].rstrip() == "step 300 / 5,000  6%  12.3 steps/s  6 min 21 s left"
    assert lines[1].startswith("loss ")
    assert lines[1].count("█") >= 1
    assert lines[2].startswith("|g|  ")
    assert min(len(lines[1].rstrip()), len(lines[2].rstrip())) == min(width, 120)
    assert lines[3].split() == ["leaf", "|u|/|w|", "surpr.", "cos", "m,g", "eps", "satur.", "trend"]
    table = lines[4:16]
    assert len([line for line in lines if "kernel" in line or "/k " in line]) >= 12
    assert "0.073" in table[0]
    assert table[0].split()[-1].endswith("█")  # the trend ends at its top
    assert ("blocks/3/mlp/up/kernel" if width >= 80 else "b/3/mlp/up/k") in table[0]
    assert lines[16].startswith("error nonfinite step 1,290: the gradient is")
    assert lines[17].startswith("warning stale_nu step 1,290 ")
    assert re.match(r"note eps [^ ]+/up/k(ernel)?: the gradient", lines[18])
    assert len(lines) == 19


def test_leaves_can_be_told_apart_on_a_narrow_terminal():
    lines = rendered(Frame(made(), [], 5000, 1.0), 60)[4:]
    assert len({line.split()[0] for line in lines}) == 12


def test_a_low_terminal_shows_fewer_leaves_and_never_scrolls():
    findings = [finding(step=step) for step in range(20)]
    for height in (14, 20, 30):
        assert len(rendered(Frame(made(), findings), 80, height)) <= max(height, 14)
    lines = rendered(Frame(made(), findings), 80, 40)
    assert lines[-1] == "and 14 more"


def test_numbers_on_the_screen_are_short():
    history = made()
    for values in history.leaf.values():
        values[-1] = np.float32(0.1) + np.float32(0.2)
    lines = rendered(Frame(history, [], None, 1 / 3), 120)
    assert lines[0].rstrip() == "step 300  0.333 steps/s"
    assert all(len(word) <= 9 for line in lines[4:] for word in line.split()[1:-1])


def test_a_run_at_its_very_beginning_is_shown():
    nothing = made().after(10_000, 10_000, 10_000)
    assert rendered(Frame(nothing), 60) == ["step 0"]
    only_pulses = made().after(10_000, 0, 0)
    assert len(rendered(Frame(only_pulses), 60)) == 3
    one = made(records=1)
    assert len(rendered(Frame(one), 60)) == 4 + 12
    one.pulse["loss"][:] = NAN  # none was passed
    assert rendered(Frame(one), 60)[1].startswith("|g|")


def test_a_diverged_run_is_shown():
    history = made()
    history.pulse["loss"][-30:], history.pulse["grad_norm"][-20:] = NAN, INF
    for values in history.leaf.values():
        values[-3:] = NAN
    history.leaf["bad_grad"][-3:] = 4096
    lines = rendered(Frame(history), 80)
    assert "NaN" in lines[1]
    assert lines[1].rstrip().endswith("!!!")
    assert "inf" in lines[2]
    history.leaf["update_ratio"][-1, 3] = 0.5
    assert "NaN" in rendered(Frame(history), 80)[5]


def test_a_terminal_without_block_glyphs_gets_ascii():
    from rich.console import Console

    class Ascii(Terminal):
        encoding = "ascii"

    stream = Ascii()
    Console(file=stream, width=80, force_terminal=True, color_system=None).print(
        Frame(made(), [finding(says="x" * 90)], 500, 2.0)
    )
    assert stream.getvalue().isascii()
    assert "#" in stream.getvalue()


# Lines


def test_a_stream_that_is_no_terminal_gets_one_line_an_update():
    stream, now = io.StringIO(), iter([100.0, 110.0, 130.0])
    history = made()
    with Live(total=1000, stream=stream, clock=lambda: next(now)) as live:
        for last in (100, 200, 300):
            rest = history.after(0, 0, 0)
            keep = lambda table, n: {name: x[:n] for name, x in table.items()}
            live.update(
                History(
                    rest.about, rest.steps[: last // 10], {}, keep(rest.leaf, last // 10), rest.pulse_steps[:last],
                    keep(rest.pulse, last), rest.spread_steps, {},
                ),
                [finding()] * (last // 200) + [finding(id="spike")] * (last // 300),
            )  # fmt: skip
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    first, second, third = (line.split("  ") for line in lines)
    assert first[0] == "step 100/1,000"
    assert first[1].startswith("loss 2.4")
    assert first[3].startswith("worst blocks/")
    assert second[3:5] == ["10 steps/s", "1 min 20 s left"]
    assert second[-1] == "1 finding: stale_nu"
    assert third[3:5] == ["6.67 steps/s", "1 min 45 s left"]
    assert third[-1] == "2 findings: stale_nu, spike"


def test_a_dumb_terminal_gets_lines_too(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Live(stream=stream) as live:
        live.update(made())
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_the_line_says_what_is_not_finite():
    history = made()
    history.leaf["bad_grad"][-1, 6] = 2
    assert "worst blocks/1/attn/out/kernel: not finite" in Frame(history).line()


def test_names_that_a_stream_cannot_write_do_not_stop_the_run():
    history = made()
    about = About((Leaf("größe", (), "float32"), *history.about.leaves[1:]), 10)
    history.leaf["update_ratio"][-1, 0] = 1
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Live(stream=stream) as live:
        live.update(History(about, *(getattr(history, x) for x in list(history.__dataclass_fields__)[1:])))
    assert b"worst gr\\xf6\\xdfe: |u|/|w| 1" in stream.buffer.getvalue()


def test_the_speed_starts_again_when_a_run_goes_back():
    stream, now = io.StringIO(), iter([0.0, 1.0, 2.0, 3.0])
    history = made()
    upto = lambda n: History(
        history.about, history.steps[:0], {}, {}, history.pulse_steps[:n], {k: x[:n] for k, x in history.pulse.items()},
        history.spread_steps, {},
    )  # fmt: skip
    with Live(stream=stream, clock=lambda: next(now)) as live:
        for n in (100, 200, 50, 70):
            live.update(upto(n))
    assert [line.partition("  ")[2].count("steps/s") for line in stream.getvalue().splitlines()] == [0, 1, 0, 1]
    assert "20 steps/s" in stream.getvalue().splitlines()[-1]


# In a terminal


def test_a_terminal_gets_a_panel_that_is_drawn_over():
    stream = Terminal()
    with Live(total=5000, stream=stream, clock=iter([0.0, 10.0]).__next__) as live:
        live.update(made(records=10))
        live.update(made(records=30), [finding()])
    text = stream.getvalue()
    assert "\x1b[2K" in text  # a line is cleared and written again
    assert "step 300 / 5,000  6%  20 steps/s  3 min 55 s left" in text
    assert "warning stale_nu" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is shown again


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "Input/output error")], ids=repr)
@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_stream_that_is_closed_does_not_stop_the_run(kind, error, after):
    class Closing(kind):
        closing = False

        def write(self, text):
            if self.closing:
                raise error
            return super().write(text)

    stream = Closing()
    stream.closing = after == 0
    with Live(stream=stream) as live:
        for i in range(1, 4):
            live.update(made())
            stream.closing |= after == i
    assert stream.getvalue().count("step 300") == after


def test_an_error_in_the_run_leaves_the_terminal_usable():
    stream = Terminal()

    def run():
        with Live(stream=stream) as live:
            live.update(made())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")


def test_without_rich_a_terminal_is_one_sentence_and_lines_still_work(monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == "rich":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r"^the view needs the package rich \(.*\): pip install 'adamx\[report\]'\.$"):
        Live(stream=Terminal()).__enter__()
    with Live(stream=(stream := io.StringIO())) as live:
        live.update(made())
    assert stream.getvalue().startswith("step 300  loss")


@pytest.mark.parametrize("total", [0, -1, 1.5, True, "100"])
def test_a_total_that_is_no_number_of_steps_is_one_sentence(total):
    with pytest.raises(ValueError, match=rf"^total must be a whole number of steps above 0, but is {total!r}\.$"):
        Live(total=total)


# Words and glyphs


@pytest.mark.parametrize("digits", [2, 3, 4])
def test_a_number_has_at_most_so_many_digits_and_is_the_nearest_such(digits):
    rng = np.random.default_rng(digits)
    for x in [*(rng.choice([-1, 1], 500) * 10 ** rng.uniform(-12, 12, 500)), 9999.5, 99995, 0.00099999, 999.96, 1e-4]:
        text = number(x, digits)
        assert float(text) == pytest.approx(float(f"{x:.{digits}g}"), rel=1e-12)
        mantissa = text.partition("e")[0].lstrip("-").replace(".", "").strip("0")
        assert len(mantissa) <= digits
        assert len(text) <= digits + 7


def test_a_trend_hides_no_spike_and_no_nan():
    x = np.ones(1000)
    x[517] = 50
    assert trend(x, 20).count("█") == 1
    x[3] = NAN
    assert trend(x, 20)[0] == "!"
    assert trend(x, 20).count("!") == 1
    assert trend(np.full(9, NAN), 3) == "!!!"
    assert trend(np.array([INF, 1, -INF]), 3) == "!▁!"
    assert trend(np.ones(5), 3) == "▁▁▁"
    assert trend(np.array([]), 3) == trend(np.ones(3), 0) == ""
    assert trend(np.array([0, -1, 1e-3, 1e3]), 4, log=True) == "▁▁▁█"
    assert len(trend(np.arange(7), 60)) == 7


def test_times():
    assert [duration(x) for x in (59.6, 3599, 86400, 1e9, NAN, INF)] == [
        "1 min", "59 min 59 s", "1 d", "11574 d 1 h", "?", "?",
    ]  # fmt: skip


def test_names_are_shortened_without_losing_their_numbers():
    assert shortened("blocks/11/attn/qkv/kernel", 25) == "blocks/11/attn/qkv/kernel"
    assert shortened("blocks/11/attn/qkv/kernel", 20) == "b/11/attn/qkv/kernel"
    assert shortened("a_single_long_name", 8) == "~ng_name"
    assert all(len(shortened("blocks/11/attn/qkv/kernel", n)) <= n for n in range(1, 30))
