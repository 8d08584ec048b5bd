"""The command `adamx`: what a log says, from the shell."""

import argparse
import json
import os
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from adamx.diagnostics import log
from adamx.diagnostics.history import History
from adamx.diagnostics.live import Frame, Live, number

POLL = 1.0  # seconds between looks at a log that is followed
FORMATS = ("csv", "parquet", "tensorboard", "json", "figures")


class _Wrong(Exception):  # noqa: N818 (it is the user who is told)
    """Input that cannot be used; one sentence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      argv: the arguments; the process's own when left out.

    Returns:
      The exit code: 0, 1 where `doctor` found a warning or an error, 2 for wrong input (and one sentence on standard
      error), 130 when interrupted, 141 when the reader of a pipe is gone.
    """
    try:
        arguments = _parser().parse_args(argv)
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except _Wrong as error:
        print("adamx:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except BrokenPipeError:
        # What is still in the buffer would be tried again, and complained about, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:  # argparse, after --help
        return int(end.code or 0)


# Commands


def _report(arguments: argparse.Namespace) -> int:
    history = _read(arguments.log)
    path = Path(arguments.log).resolve()
    out = arguments.output or path.with_name(path.name + ".html")
    findings, names = _diagnose(history), _unread(history)
    _write_report(history, out, findings, title=_title(arguments.log), unread=names)
    print(f"{out}: {_count(len(findings), 'finding')}, {_extent(history)}")
    if names:
        print(_filled(_nothing_to_read(names, history), ""))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    paths = [arguments.log, *arguments.others]
    names = _distinct(paths)
    histories = [_read(path) for path in paths]
    others = dict(zip(names[1:], histories[1:], strict=True))
    title = f"{names[0]} beside {', '.join(names[1:])}"
    found, nothing = _diagnose(histories[0]), _unread(histories[0])
    _write_report(histories[0], arguments.output, found, title=title, others=others, unread=nothing)
    width = max(map(len, names))
    for name, history in zip(names, histories, strict=True):
        print(f"{name:<{width}}  {Frame(history).line()}")
    print(f"{arguments.output}: {_count(len(names), 'run')}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    history = _read(arguments.log)
    findings = _diagnose(history)
    if arguments.json:
        found = [finding.to_dict() for finding in findings]
        whole = {
            "log": str(arguments.log), "records": len(history.steps), "step": history.end,
            "gaps": [gap._asdict() for gap in log.gaps(arguments.log)], "unread": _unread(history), "findings": found,
        }  # fmt: skip
        print(json.dumps(_strict(whole), indent=2, allow_nan=False))
    else:
        print(f"{arguments.log}: {_count(len(findings), 'finding')}, {_extent(history)}")
        if names := _unread(history):
            print(_filled(_nothing_to_read(names, history), ""))
        for finding in findings:
            print(_in_words(finding))
    return int(any(finding.severity != "note" for finding in findings))


def _tail(arguments: argparse.Namespace) -> int:
    if not arguments.follow:
        _print_last(_read(arguments.log), arguments.lines, 0, arguments.total)
        return 0
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        with _needed(), Live(total=arguments.total, stream=sys.stdout) as live:
            for now in _grown(arguments.log):
                live.update(now, _diagnose(now))
        return 0
    printed, count = 0, arguments.lines
    for now in _grown(arguments.log):
        _print_last(now, count, printed, arguments.total)
        printed, count = now.end, None
        sys.stdout.flush()
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from adamx.diagnostics import export

    history = _read(arguments.log)
    write = {
        "csv": export.to_csv,
        "parquet": export.to_parquet,
        "tensorboard": export.to_tensorboard,
        "json": export.to_json,
        "figures": export.to_figures,
    }[arguments.to]
    with _needed(), _writing(arguments.output):
        write(history, arguments.output)
    print(f"{arguments.output}: {arguments.to}, {_extent(history)}")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from adamx.diagnostics.doctor import RULES, explain

    if arguments.id is None:
        for name in RULES:
            print(explain(name).partition("\n")[0])
        return 0
    names = {name.lower(): name for name in RULES}
    if arguments.id.lower() not in names:
        raise _Wrong(f"there is no finding called {arguments.id!r}; there are {', '.join(RULES)}.")
    print(explain(names[arguments.id.lower()]).rstrip())
    return 0


# Logs


def _read(path: str | os.PathLike, *, first: int = 1, empty: bool = False) -> History:
    """A log, without traceback if it is none.

    Args:
      path: its directory.
      first: segment to begin with.
      empty: whether it may have no records yet.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            history = log.read(path, first=first)
        except (OSError, ValueError) as error:
            raise _Wrong(_sentence(error)) from error
    for warning in caught:
        print("adamx: warning:", warning.message, file=sys.stderr)
    if first == 1:
        _say_gaps(path)
    if not empty and not history.end:
        raise _Wrong(f"{path} holds no records yet; append to it after the first steps of the run.")
    return history


def _sentence(error: Exception) -> str:
    """What it says; the system's own words as a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename} cannot be read: {error.strerror}; name a log that can."
    return str(error)


def _say_gaps(path: str | os.PathLike) -> None:
    found, mend = log.gaps(path), "drain more often, or keep a longer history"
    inner, late = [gap for gap in found if gap.after], {gap.table: gap.before for gap in found if not gap.after}
    if late:
        begins = " and ".join(f"the {table} with step {step:,}" for table, step in late.items())
        print(f"adamx: warning: {path} begins late, {begins}: {mend}.", file=sys.stderr)
    if inner:
        table, after, before = inner[0]
        print(
            f"adamx: warning: {path} has {_count(len(inner), 'gap')}, the first in the {table} between steps {after:,}"
            f" and {before:,}: {mend}.",
            file=sys.stderr,
        )


def _grown(path: str | os.PathLike) -> Iterator[History]:
    """The log as it is, and again whenever it has grown."""
    # Segments are counted before they are read, so that one that comes meanwhile is read twice, not missed.
    try:
        seen = log.segments(path)
    except (OSError, ValueError):
        seen = 0  # reading says what is wrong
    history = _read(path, empty=True)
    while True:
        if history.end:
            yield history
        while (count := _segments(path)) <= seen:
            time.sleep(POLL)
        new = _read(path, first=seen + 1, empty=True)
        # Where the run went back, only the whole log says what stands.
        history = history.then(new) if new.begin > history.end else _read(path, empty=True)
        seen = count


def _segments(path: str | os.PathLike) -> int:
    try:
        return log.segments(path)
    except OSError as error:
        raise _Wrong(f"{path} cannot be read any more ({error.strerror}); it was there before.") from error


def _title(path: str | os.PathLike) -> str:
    return str(log.notes(path).get("name") or Path(path).resolve().name)


def _distinct(paths: Sequence[str]) -> list[str]:
    """A name for each run: as much of the end of its path as tells it from the others."""
    parts = [Path(path).resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        again = next(path for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1)
        raise _Wrong(f"{again} is named twice; name each run once.")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return list(map(str, paths))


def _print_last(history: History, count: int | None, behind: int, total: int | None) -> None:
    """A line for each of the last records behind a step; of the pulse where there are none."""
    steps = history.steps if len(history.steps) else history.pulse_steps
    for step in steps[steps > behind][-count if count else None :]:
        print(Frame(history.between(1, int(step)), total=total).line())


# Findings and reports, which others make


def _diagnose(history: History) -> list[Any]:
    from adamx.diagnostics.doctor import diagnose

    return list(diagnose(history))


def _unread(history: History) -> list[str]:
    from adamx.diagnostics.doctor import unread

    return list(unread(history))


def _nothing_to_read(names: Sequence[str], history: History) -> str:
    from adamx.diagnostics.doctor import RULES

    of = f"{len(names)} of {_count(len(RULES), 'rule')} had nothing to read"
    return f"{of}: {', '.join(names)}, because {' and '.join(history.lacks)}."


def _write_report(history: History, out: str | os.PathLike, findings: Sequence[Any], **more: Any) -> None:
    with _needed(), _writing(out):
        from adamx.diagnostics.report import write

        write(history, out, findings=findings, **more)


def _in_words(finding: Any) -> str:
    leaves = list(finding.leaves)
    where = f" in {leaves[0]}" if leaves else ""
    where += f" and {len(leaves) - 1} more" if len(leaves) > 1 else ""
    when = f" at step {finding.step:,}" if finding.step else ""
    numbers = ", ".join(f"{name} {number(x)}" for name, x in finding.evidence.items())
    lines = [
        ("seen", finding.says), ("cause", finding.cause), ("try", finding.advice), ("numbers", numbers),
        ("source", finding.source),
    ]  # fmt: skip
    filled = [_filled(text, f"  {word + ':':<9}") for word, text in lines if text]
    return "\n".join(["", f"{finding.severity} {finding.id}{when}{where}", *filled])


def _filled(text: str, begin: str) -> str:
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    return textwrap.fill(text, width, initial_indent=begin, subsequent_indent=" " * len(begin), break_on_hyphens=False)


# Words


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}{'s' * (n != 1)}"


def _extent(history: History) -> str:
    return f"{_count(len(history.steps), 'record')} to step {history.end:,}"


def _strict(x: Any) -> Any:
    """What JSON can say: NumPy's numbers as plain ones, those that are not finite as null."""
    if isinstance(x, dict):
        return {str(name): _strict(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_strict(value) for value in x]
    x = x.item() if isinstance(x, np.generic) else x
    return None if isinstance(x, float) and not np.isfinite(x) else x


@contextmanager
def _needed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise _Wrong(str(error)) from error


@contextmanager
def _writing(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Wrong(f"cannot write {path}: {error.strerror or error}; name another place with -o.") from error
    except ValueError as error:
        raise _Wrong(str(error)) from error


# Arguments


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise _Wrong(f"{message}; see {self.prog} --help.")


def _lines(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="adamx",
        description="Look into training runs from the logs that adamx.watch has written.",
        epilog="A log is the directory that was given to Log(...). Each command says more: adamx doctor --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Any, says: str, *examples: str) -> argparse.ArgumentParser:
        epilog = "\n".join(["examples:" if len(examples) > 1 else "example:", *(f"  {line}" for line in examples)])
        described = argparse.RawDescriptionHelpFormatter
        own = commands.add_parser(
            name,
            help=says.partition(".")[0],
            description=textwrap.fill(says, 79),
            epilog=epilog,
            formatter_class=described,
        )
        own.set_defaults(run=run)
        return own

    own = command(
        "report", _report, "Write a run's report, one HTML file that opens without a network.",
        "adamx report runs/1", "adamx report runs/1 -o report.html",
    )  # fmt: skip
    own.add_argument("log", metavar="LOG", help="directory of the log")
    own.add_argument("-o", "--output", metavar="FILE", help="file to write; beside the log, as LOG.html, if left out")

    own = command(
        "doctor", _doctor,
        "Say what is wrong with a run, why, and what to try. The exit code is 0 if nothing is found or notes only, 1 if"
        " there is a warning or an error, 2 if the log cannot be read.",
        "adamx doctor runs/1", "adamx doctor runs/1 --json > findings.json",
    )  # fmt: skip
    own.add_argument("log", metavar="LOG", help="directory of the log")
    own.add_argument("--json", action="store_true", help="print JSON: log, records, step, gaps, unread, findings")

    own = command(
        "tail", _tail, "Print the last records of a run, one a line.",
        "adamx tail runs/1 -n 20", "adamx tail runs/1 --follow --total 10000",
    )  # fmt: skip
    own.add_argument("log", metavar="LOG", help="directory of the log")
    own.add_argument(
        "-n", "--lines", metavar="N", type=_lines, default=10, help="how many lines at first; 10 if left out"
    )
    own.add_argument("-f", "--follow", action="store_true", help="go on as the log grows; a panel in a terminal")
    own.add_argument("--total", metavar="STEPS", type=_lines, help="steps that the run will have")

    own = command(
        "compare", _compare, "Write a report of runs side by side. Findings are those of the first.",
        "adamx compare runs/1 runs/2 runs/3 -o sweep.html",
    )  # fmt: skip
    own.add_argument("log", metavar="LOG", help="directory of the first log")
    own.add_argument("others", metavar="LOG", nargs="+", help="directories of logs to compare it with")
    own.add_argument(
        "-o", "--output", metavar="FILE", default="compare.html", help="file to write; compare.html if left out"
    )

    own = command(
        "export", _export,
        "Write a log in another format: csv and parquet are long tables (step, leaf, metric, value); tensorboard and"
        " figures are directories.",
        "adamx export runs/1 --to parquet -o run.parquet", "adamx export runs/1 --to figures -o figures/",
    )  # fmt: skip
    own.add_argument("log", metavar="LOG", help="directory of the log")
    own.add_argument("--to", required=True, choices=FORMATS, help="format")
    own.add_argument("-o", "--output", metavar="PATH", required=True, help="file or directory to write")

    own = command(
        "explain", _explain,
        "Say what a finding means, with its thresholds and where they are from; without ID, list all.",
        "adamx explain", "adamx explain SPIKE",
    )  # fmt: skip
    own.add_argument("id", metavar="ID", nargs="?", help="of a finding")
    return parser


if __name__ == "__main__":
    sys.exit(main())
