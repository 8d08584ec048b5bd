"""The command says what it found, or in one sentence what is wrong with what it was given."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from adamx.diagnostics import cli, log
from adamx.diagnostics.cli import main
from adamx.diagnostics.history import About, History, Leaf
from adamx.diagnostics.log import Log

ROOT = Path(__file__).parents[1]
COMMANDS = ("report", "doctor", "tail", "compare", "export", "explain")


def recorded(first, last, every=10, seed=0):
    """Steps of a healthy run."""
    rng = np.random.default_rng(seed)
    beats = np.arange(1, last + 1)
    steps = beats[beats % every == 0]
    x = lambda *shape: 10 ** rng.normal(-3, 0.1, shape).astype(np.float32)
    leaves = (Leaf("a/kernel", (3, 4), "float32"), Leaf("b", (4,), "float32"))
    whole = History(
        About(leaves, every, {"b2": 0.999}), steps, {"update_norm": x(len(steps))}, {"update_ratio": x(len(steps), 2)},
        beats, {"loss": x(last), "grad_norm": x(last)}, beats[:0], {},
    )  # fmt: skip
    return whole.after(first - 1, first - 1, first - 1)


@pytest.fixture
def run(tmp_path):
    """A log of 40 steps, four of them recorded."""
    Log(tmp_path / "runs" / "1", {"name": "lr 3e-4"}).append(recorded(1, 40))
    return str(tmp_path / "runs" / "1")


def finding(severity="warning", **fields):
    made = {
        "id": "STALE_V", "severity": severity, "leaves": ("a/kernel", "b"), "step": 1190,
        "evidence": {"surprise_before": np.float32(7.25), "limit": 0.1 + 0.2, "worst": float("inf")},
        "says": "the gradient is 7.25 times what the second moment expects", "cause": "b2 is so close to 1",
        "advice": "lower b2 to 0.99", "source": "somebody 2020",
    } | fields  # fmt: skip
    return SimpleNamespace(**made, to_dict=lambda: made)


@pytest.fixture
def doctor(monkeypatch):
    """A doctor that finds what a test puts into `found`, and keeps what it was asked about in `seen`."""
    fake = ModuleType("adamx.diagnostics.doctor")
    fake.found, fake.seen, fake.nothing = [], [], []
    fake.diagnose = lambda history: fake.seen.append(history) or fake.found
    fake.unread = lambda history: tuple(fake.nothing)
    fake.RULES = {"SPIKE": "the loss leaps", "STALE_V": "nu lags"}
    fake.explain = lambda name: f"{name}: {fake.RULES[name]}\n\nand why\n"
    monkeypatch.setitem(sys.modules, "adamx.diagnostics.doctor", fake)
    return fake


@pytest.fixture
def report(monkeypatch, doctor):
    """A report that is the arguments it was given; they are kept in `written`."""
    fake = ModuleType("adamx.diagnostics.report")
    fake.written = []

    def write(history, path, findings=(), title="", others=None, unread=()):
        Path(path).write_text("<html>")
        fake.written.append((history, Path(path), list(findings), title, others))
        fake.unread = list(unread)

    fake.write = write
    monkeypatch.setitem(sys.modules, "adamx.diagnostics.report", fake)
    return fake


def refused(capsys, *arguments):
    """The sentence with which arguments are refused; nothing is printed, and there is no traceback."""
    assert main([str(x) for x in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("adamx: ")
    assert err.count("\n") == 1
    assert err.endswith((".\n", "?\n"))
    return err[len("adamx: ") : -1]


# Help


def examples(text):
    return [line.strip() for line in text.splitlines() if line.startswith("  adamx ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_is_understood(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert examples(text)
    for line in examples(text):
        words = shlex.split(line.partition(" > ")[0])[1:]
        assert words[0] == command
        assert cli._parser().parse_args(words).run
    assert max(map(len, text.splitlines())) <= 100


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {command} +[A-Z]", text, re.MULTILINE) for command in COMMANDS)


def test_the_doctors_exit_codes_are_in_its_help(capsys):
    main(["doctor", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "exit code is 0 if nothing is found or notes only, 1 if there is a warning or an error, 2 if" in text


# Doctor


@pytest.mark.parametrize(
    ("severities", "code"), [((), 0), (("note",), 0), (("note", "warning"), 1), (("error",), 1), (("warning",), 1)]
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_the_doctors_exit_code_tells_findings_from_notes(run, doctor, capsys, severities, code, form):
    doctor.found = [finding(severity) for severity in severities]
    assert main(["doctor", run, *form]) == code
    assert doctor.seen[0].pulse_steps[-1] == 40


def test_the_doctor_says_all_that_a_finding_holds_in_short_numbers(run, doctor, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    doctor.found = [finding(), finding("note", id="NO_CLIP", leaves=(), step=0, evidence={})]
    main(["doctor", run])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0] == f"{run}: 2 findings, 4 records to step 40"
    assert lines[2] == "warning STALE_V at step 1,190 in a/kernel and 1 more"
    assert "note NO_CLIP" in lines
    assert "  numbers: surprise_before 7.25, limit 0.3, worst inf" in lines
    assert max(map(len, lines[1:])) <= 60
    flat = " ".join(text.split())
    for words in (
        "seen: the gradient is 7.25 times",
        "cause: b2 is so close",
        "try: lower b2",
        "source: somebody 2020",
    ):
        assert words in flat


def test_the_doctors_json_is_strict(run, doctor, capsys):
    doctor.found = [finding()]
    main(["doctor", run, "--json"])

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert list(read) == ["log", "records", "step", "gaps", "unread", "findings"]
    assert {key: read[key] for key in ("log", "records", "step")} == {"log": run, "records": 4, "step": 40}
    assert (read["gaps"], read["unread"]) == ([], [])
    assert read["findings"][0]["leaves"] == ["a/kernel", "b"]
    assert read["findings"][0]["evidence"] == {"surprise_before": 7.25, "limit": 0.1 + 0.2, "worst": None}


@pytest.mark.parametrize("found", [[], [finding()]])
def test_the_doctor_says_which_rules_had_nothing_to_read(run, doctor, report, capsys, found):
    doctor.found, doctor.nothing = found, ["STALE_V"]
    main(["doctor", run])
    said = "1 of 2 rules had nothing to read: STALE_V, because the watched transformation does not show its links."
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first.startswith(f"{run}: {len(found)} finding")
    rest = " ".join(rest.split())
    assert rest.startswith(said)
    main(["doctor", run, "--json"])
    assert json.loads(capsys.readouterr().out)["unread"] == ["STALE_V"]
    assert main(["report", run]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert report.unread == ["STALE_V"]
    assert main(["compare", run, run + "/../1/../../runs/1"]) == 2  # the same
    Log(run + "2").append(recorded(1, 20))
    assert main(["compare", run, run + "2", "-o", run + ".html"]) == 0
    assert report.unread == ["STALE_V"]


def test_without_records_that_is_the_reason(tmp_path, doctor, capsys):
    Log(tmp_path).append(recorded(1, 9))
    doctor.nothing = ["SPIKE", "STALE_V"]
    main(["doctor", str(tmp_path)])
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 rules had nothing to read: SPIKE, STALE_V, because there are no records." in said


# Report and compare


def test_a_report_stands_beside_its_log(run, report, doctor, capsys):
    doctor.found = [finding()]
    assert main(["report", run]) == 0
    history, path, findings, title, others = report.written[0]
    assert path == Path(run + ".html")
    assert history.steps.tolist() == [10, 20, 30, 40]
    assert (findings, title, others) == (doctor.found, "lr 3e-4", None)
    assert capsys.readouterr().out == f"{run}.html: 1 finding, 4 records to step 40\n"


def test_a_report_is_written_where_it_is_wanted(run, report, tmp_path, monkeypatch):
    assert main(["report", run, "-o", str(tmp_path / "x.html")]) == 0
    monkeypatch.chdir(run)
    assert main(["report", "."]) == 0
    assert [written[1] for written in report.written] == [tmp_path / "x.html", Path(run + ".html")]


def test_runs_are_compared_under_names_that_tell_them_apart(tmp_path, report, doctor, capsys, monkeypatch):
    for name in ("a/run", "b/run", "c/run"):
        Log(tmp_path / name).append(recorded(1, 20, seed=ord(name[0])))
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "a/run", "b/run", "c/run"]) == 0
    history, path, _, title, others = report.written[0]
    assert path == Path("compare.html")
    assert list(others) == ["b/run", "c/run"]
    assert title == "a/run beside b/run, c/run"
    assert doctor.seen == [history]
    np.testing.assert_array_equal(others["c/run"].pulse["loss"], recorded(1, 20, seed=ord("c")).pulse["loss"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["a/run", "b/run", "c/run", "compare.html:"]
    assert all(re.search(r" step 20  loss \d", line) for line in lines[:3])


def test_a_run_is_not_compared_with_itself(run, report, capsys):
    assert refused(capsys, "compare", run, run + "/.") == f"{run} is named twice; name each run once."


# Tail


def test_tail_prints_the_last_records_one_a_line(tmp_path, capsys):
    Log(tmp_path).append(recorded(1, 300))
    assert main(["tail", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"step {n}" for n in range(210, 301, 10)]
    loss = recorded(1, 300).pulse["loss"][299]
    assert lines[-1].split("  ")[1] == f"loss {float(f'{loss:.4g}')}"
    assert main(["tail", str(tmp_path), "-n", "1", "--total", "1000"]) == 0
    assert capsys.readouterr().out.startswith("step 300/1,000  loss ")
    assert main(["tail", str(tmp_path), "-n", "99"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 30


def test_tail_of_a_run_that_has_only_a_pulse_prints_that(tmp_path, capsys):
    Log(tmp_path).append(recorded(1, 9))
    assert main(["tail", str(tmp_path), "-n", "2"]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["step 8", "step 9"]


def growing(monkeypatch, writer, *parts):
    """Instead of waiting, append these, then be interrupted."""
    parts = iter(parts)

    def sleep(seconds):
        assert seconds == cli.POLL
        part = next(parts, None)
        if part is None:
            raise KeyboardInterrupt
        writer.append(part)

    monkeypatch.setattr(cli.time, "sleep", sleep)


def test_tail_follows_a_log_line_by_line(tmp_path, capsys, monkeypatch):
    writer = Log(tmp_path)
    writer.append(recorded(1, 300))
    growing(monkeypatch, writer, recorded(301, 305), recorded(306, 330))
    assert main(["tail", str(tmp_path), "--follow", "-n", "2"]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"step {n}" for n in (290, 300, 310, 320, 330)]


def test_tail_follows_a_run_that_goes_back(tmp_path, capsys, monkeypatch):
    writer = Log(tmp_path)
    writer.append(recorded(1, 40))
    growing(monkeypatch, writer, recorded(21, 30, seed=1), recorded(31, 60, seed=1))
    monkeypatch.setattr(log.warnings, "warn", lambda *_, **__: None)  # the writer's, of another process
    seen = []
    monkeypatch.setattr(cli, "_print_last", lambda history, *_: seen.append(history.pulse_steps.tolist()))
    assert main(["tail", str(tmp_path), "--follow"]) == 130
    assert [(steps[0], steps[-1], len(steps)) for steps in seen] == [(1, 40, 40), (1, 30, 30), (1, 60, 60)]


def test_tail_waits_for_a_run_that_has_just_begun(tmp_path, capsys, monkeypatch):
    writer = Log(tmp_path)
    writer.append(recorded(1, 10))
    (tmp_path / "000001.npz").unlink()
    growing(monkeypatch, Log(tmp_path), recorded(1, 20))
    assert main(["tail", str(tmp_path), "--follow"]) == 130
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["step 10", "step 20"]


def test_a_segment_that_comes_while_the_log_is_read_is_not_missed(tmp_path, capsys, monkeypatch):
    writer, read = Log(tmp_path), log.read
    writer.append(recorded(1, 20))
    late = iter([recorded(21, 30), recorded(31, 40), recorded(41, 50)])

    def read_slowly(path, **more):
        history = read(path, **more)
        for part in late:
            writer.append(part)
            break
        return history

    monkeypatch.setattr(log, "read", read_slowly)
    growing(monkeypatch, writer, recorded(51, 60), recorded(61, 70))
    assert main(["tail", str(tmp_path), "--follow"]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"step {n}" for n in range(10, 71, 10)]


def test_a_log_that_is_removed_while_it_is_followed_is_one_sentence(tmp_path, capsys, monkeypatch):
    Log(tmp_path / "run").append(recorded(1, 10))
    monkeypatch.setattr(cli.time, "sleep", lambda _: shutil.rmtree(tmp_path / "run"))
    assert main(["tail", str(tmp_path / "run"), "--follow"]) == 2
    err = capsys.readouterr().err
    assert err == f"adamx: {tmp_path}/run cannot be read any more (No such file or directory); it was there before.\n"


def test_tail_draws_a_panel_with_findings_in_a_terminal(run, doctor, monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    doctor.found = [finding()]
    growing(monkeypatch, Log(run), recorded(41, 50))
    assert main(["tail", run, "--follow", "--total", "100"]) == 130
    assert "step 40 / 100  40%" in terminal.getvalue()
    assert "step 50 / 100  50%" in terminal.getvalue()
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert "\nwarning STALE_V step 1,190 a/kernel +1: the gradient" in text
    assert [history.pulse_steps[-1] for history in doctor.seen] == [40, 50]


# Export and explain


@pytest.mark.parametrize("form", cli.FORMATS)
def test_every_format_is_written(run, tmp_path, capsys, form):
    out = tmp_path / "out"
    assert main(["export", run, "--to", form, "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: {form}, 4 records to step 40\n"
    if form == "csv":
        assert out.read_text().startswith("step,leaf,metric,value\n1,,loss,0.00")
    elif form == "parquet":
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(out).num_rows == 2 * 40 + 4 * 3
    elif form == "json":
        assert [record["step"] for record in json.loads(out.read_text())["records"]] == [10, 20, 30, 40]
    elif form == "figures":
        assert {path.name for path in out.iterdir()} == {"timeline.pdf", "update_ratio.pdf"}
    else:
        (events,) = out.iterdir()
        assert events.name.startswith("events.out.tfevents")


def test_explain_lists_all_findings_or_tells_of_one(doctor, capsys):
    assert main(["explain"]) == 0
    assert capsys.readouterr().out == "SPIKE: the loss leaps\nSTALE_V: nu lags\n"
    assert main(["explain", "stale_v"]) == 0
    assert capsys.readouterr().out == "STALE_V: nu lags\n\nand why\n"


def test_the_doctor_and_the_report_that_there_are_do_what_the_command_expects(run, tmp_path, capsys):
    assert main(["explain"]) == 0
    listed = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert len(listed) > 5
    for name in listed:
        assert main(["explain", name]) == 0
        assert capsys.readouterr().out.startswith(f"{name}: ")
    code = main(["doctor", run, "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    assert code == any(x["severity"] != "note" for x in found)
    assert {x["id"] for x in found} <= set(listed)
    assert main(["doctor", run]) == code
    assert main(["compare", run, str(_copy(run, tmp_path)), "-o", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")


# Wrong input


@pytest.mark.parametrize("command", ["report", "doctor", "tail", "export"])
def test_what_is_not_a_log_is_one_sentence(command, tmp_path, capsys, report):
    more = ["--to", "csv", "-o", tmp_path / "x.csv"] if command == "export" else []
    assert re.match(r"there is no directory .*none; a log is", refused(capsys, command, tmp_path / "none", *more))
    assert re.match(
        r".* is not a log of adamx: it holds no meta\.json; name", refused(capsys, command, tmp_path, *more)
    )
    (tmp_path / "file").write_text("x")
    assert re.match(r"there is no directory .*file; a log is", refused(capsys, command, tmp_path / "file", *more))
    Log(tmp_path / "new").append(recorded(1, 10))
    (tmp_path / "new" / "000001.npz").unlink()
    assert re.match(r".*new holds no records yet; append to it", refused(capsys, command, tmp_path / "new", *more))
    (tmp_path / "new" / "meta.json").write_text("{")
    assert re.match(r".*meta\.json is not that of a log of adamx", refused(capsys, command, tmp_path / "new", *more))
    assert report.written == []
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_a_log_that_may_not_be_read_is_one_sentence(run, capsys, follow):
    Path(run).chmod(0)
    try:
        assert "ermission denied" in refused(capsys, "tail", run, *follow)
    finally:
        Path(run).chmod(0o700)


@pytest.mark.parametrize("call", ["segments", "read"])
def test_a_log_that_the_system_refuses_to_read_is_one_sentence(run, capsys, monkeypatch, call):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", run)

    monkeypatch.setattr(log, call, denied)
    monkeypatch.setattr(log, "read", denied)
    assert refused(capsys, "tail", run, "--follow") == (
        f"{run} cannot be read: Permission denied; name a log that can."
    )


def test_each_log_to_compare_must_be_one(run, tmp_path, capsys, report):
    assert re.match("there is no directory .*none;", refused(capsys, "compare", run, tmp_path / "none"))
    assert re.match(
        "the following arguments are required: LOG; see adamx compare --help", refused(capsys, "compare", run)
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND; see adamx --help."),
        (["doctor"], "the following arguments are required: LOG; see adamx doctor --help."),
        (["doctor", "x", "--jsn"], "unrecognized arguments: --jsn; see adamx --help."),
        (["tail", "x", "-n", "0"], "argument -n/--lines: '0' is not a whole number above 0; see adamx tail --help."),
        (
            ["tail", "x", "--total", "ten"],
            "argument --total: 'ten' is not a whole number above 0; see adamx tail --help.",
        ),
        (["export", "x", "--to", "csv"], "the following arguments are required: -o/--output; see adamx export --help."),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, sentence, capsys):
    assert refused(capsys, *arguments) == sentence


def test_a_command_or_format_that_there_is_not_is_one_sentence(run, capsys):
    assert all(command in refused(capsys, "frobnicate") for command in COMMANDS)
    assert all(form in refused(capsys, "export", run, "--to", "hdf5", "-o", "x") for form in cli.FORMATS)


def test_a_finding_that_there_is_not_is_one_sentence(doctor, capsys):
    assert refused(capsys, "explain", "NAN") == "there is no finding called 'NAN'; there are SPIKE, STALE_V."


@pytest.mark.parametrize("form", cli.FORMATS)
def test_an_output_that_cannot_be_written_is_one_sentence(run, tmp_path, capsys, form):
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "x"
    said = refused(capsys, "export", run, "--to", form, "-o", out)
    assert said == f"cannot write {out}: Not a directory; name another place with -o."


def test_a_report_that_cannot_be_written_is_one_sentence(run, tmp_path, capsys, report):
    out = tmp_path / "none" / "x.html"
    for arguments in (["report", run], ["compare", run, _copy(run, tmp_path)]):
        said = refused(capsys, *arguments, "-o", out)
        assert said == f"cannot write {out}: No such file or directory; name another place with -o."


def _copy(run, tmp_path):
    Log(tmp_path / "copy").append(log.read(run))
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("form", "package"),
    [("csv", "pandas"), ("parquet", "pyarrow"), ("tensorboard", "tensorboard"), ("figures", "matplotlib")],
)
def test_a_missing_package_is_one_sentence(run, tmp_path, capsys, monkeypatch, form, package):
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    said = refused(capsys, "export", run, "--to", form, "-o", tmp_path / "out")
    assert re.fullmatch(rf"this needs the package {package} \(.*\): pip install 'adamx\[report\]'\.", said)


def test_a_report_without_its_package_is_one_sentence(run, capsys, report):
    def write(*_, **__):
        raise ImportError("plotly is not installed:\n  pip install 'adamx[report]'.")

    report.write = write
    assert refused(capsys, "report", run) == "plotly is not installed: pip install 'adamx[report]'."


def test_records_without_any_record_have_no_figures(tmp_path, capsys):
    Log(tmp_path / "run").append(recorded(1, 9))
    said = refused(capsys, "export", tmp_path / "run", "--to", "figures", "-o", tmp_path / "out")
    assert said == "the history has 0 records, and a figure needs at least one; train for longer."


def test_a_torn_last_segment_is_a_warning_and_the_rest_is_shown(run, capsys):
    Log(run).append(recorded(41, 60))
    (Path(run) / "000002.npz").write_bytes(b"PK")
    assert main(["tail", run, "-n", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("step 40")
    assert err.startswith(f"adamx: warning: {run}/000002.npz cannot be read (File is not a zip file); its records")
    assert err.count("\n") == 1


def test_gaps_are_a_warning(run, capsys):
    Log(run).append(recorded(1100, 1200))
    assert main(["tail", run, "-n", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("step 1,200")
    assert err == (
        f"adamx: warning: {run} has 2 gaps, the first in the records between steps 40 and 1,100:"
        " drain more often, or keep a longer history.\n"
    )


def test_an_unlogged_beginning_is_a_warning(tmp_path, doctor, capsys):
    Log(tmp_path).append(recorded(593, 640))
    assert main(["doctor", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "0 findings, 5 records to step 640" in out
    assert err == (
        f"adamx: warning: {tmp_path} begins late, the records with step 600 and the pulse with step 593: drain more"
        " often, or keep a longer history.\n"
    )
    main(["doctor", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["gaps"] == [
        {"table": "records", "after": 0, "before": 600},
        {"table": "pulse", "after": 0, "before": 593},
    ]


# As a process


def command(*arguments, **more):
    """The command as a process that imports adamx.diagnostics alone, without JAX, which takes seconds."""
    program = (
        "import sys, types\n"
        "for name in ('adamx', 'adamx.diagnostics'):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        f"    sys.modules[name].__path__ = [{str(ROOT)!r} + '/' + name.replace('.', '/')]\n"
        "from adamx.diagnostics.cli import main\n"
        "sys.exit(main())\n"
    )
    line = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def test_the_exit_code_and_the_sentence_reach_the_shell(tmp_path):
    process = command("doctor", tmp_path / "none")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err == f"adamx: there is no directory {tmp_path}/none; a log is the directory that was given to Log(...).\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no pipes that break")
def test_a_broken_pipe_is_quiet(tmp_path):
    Log(tmp_path).append(recorded(1, 4000))
    process = command("tail", tmp_path, "-n", 400)
    process.stdout.close()  # as `head` does
    assert process.wait() == 141
    assert process.stderr.read() == ""
    process.stderr.close()
