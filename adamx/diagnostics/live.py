"""A run as it goes, in the terminal: loss, gradient norm, the leaves that stand out, findings, speed and time left."""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np

from adamx.diagnostics.history import History
from adamx.diagnostics.metrics import LEAF, Metric

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

MOST_LEAVES = 12
MOST_FINDINGS = 6
# The first five that a history has are shown, with these headings.
HEADINGS = {
    "update_ratio": "|u|/|w|",
    "surprise_before": "surpr.",
    "momentum_cosine": "cos m,g",
    "stalled": "stalled",
    "direction_error": "error",
    "eps_tenth": "eps",
    "saturated": "satur.",
    "zero_grad": "zero g",
    "clipped": "clip",
    "grad_rms": "rms g",
    "param_rms": "rms w",
}
_BROKEN = ("bad_grad", "bad_update", "bad_param")
_BLOCKS, _ASCII, _NOT_FINITE = "▁▂▃▄▅▆▇█", "_.-=+*%#", "!"
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_RATE_OVER = 16  # updates that the speed is a mean of


class Live:
    """Shows a run while it trains; a panel where the stream is a terminal, else (or if TERM is "dumb") lines.

    Which leaves are shown: those with a statistic farthest from its reference in :mod:`adamx.diagnostics.metrics`, in
    decades for magnitudes and in plain difference for shares and cosines; those with numbers that are not finite first.

    A view never stops a run: where its stream has been closed, it shows nothing more.

    Args:
      total: steps that the run will have, for the time left; it is not shown when left out.
      stream: where to write; standard error when left out.
      clock: seconds, as `time.monotonic`.

    Raises:
      ValueError: if total is not a whole number above 0.
      ImportError: on entering, if stream is a terminal and rich is not installed.

    >>> import io
    >>> from adamx.diagnostics.history import About, Leaf
    >>> steps, x = np.array([10]), np.float32([0.25])
    >>> about, named = About((Leaf("w", (3,), "float32"),), 10), {"update_ratio": np.float32([[0.1]])}
    >>> with Live(total=100, stream=(lines := io.StringIO())) as live:
    ...     live.update(History(about, steps, {}, named, steps, {"loss": x, "grad_norm": x}, steps[:0], {}))
    >>> print(lines.getvalue(), end="")
    step 10/100  loss 0.25  |g| 0.25  worst w: |u|/|w| 0.1
    """

    def __init__(
        self, total: int | None = None, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic
    ):
        if total is not None and (isinstance(total, bool) or not isinstance(total, int) or total < 1):
            raise ValueError(f"total must be a whole number of steps above 0, but is {total!r}.")
        self._total, self._clock = total, clock
        self._stream = sys.stderr if stream is None else stream
        self._panel = self._stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
        self._times: deque[tuple[int, float]] = deque(maxlen=_RATE_OVER)
        self._live: Any = None
        self._closed = False

    def __enter__(self) -> "Live":
        if self._panel:
            try:
                from rich.live import Live as Screen
            except ImportError as error:
                raise ImportError(f"the view needs the package rich ({error}): pip install 'adamx[report]'.") from error
            self._live = Screen(console=_console(self._stream), auto_refresh=False, vertical_overflow="crop")
            self._unless_closed(self._live.start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._unless_closed(self._live.stop)
            self._live = None

    def update(self, history: History, findings: Sequence[Any] = ()) -> None:
        """Show the run as it is now.

        Args:
          history: as it was drained; the longer it is, the farther the lines look back.
          findings: objects with severity, id, step, says, and `leaves` or `leaf`.
        """
        frame = Frame(history, tuple(findings), self._total, self._speed(history.end))
        if self._closed:
            return
        if self._live is not None:
            self._unless_closed(lambda: self._live.update(frame, refresh=True))
        else:
            self._unless_closed(lambda: self._say(frame))

    def _say(self, frame: "Frame") -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        line = frame.line() + "\n"
        self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()

    def _unless_closed(self, show: Callable[[], None]) -> None:
        try:
            show()
        except OSError:  # a pipe without a reader, a terminal that hung up
            self._closed = True

    def _speed(self, step: int) -> float:
        """Steps a second over the last updates; NaN while it is not known."""
        now = self._clock()
        if self._times and step < self._times[-1][0]:  # the run went back
            self._times.clear()
        self._times.append((step, now))
        (first, since), passed = self._times[0], step - self._times[0][0]
        return passed / (now - since) if step > first and now > since else math.nan


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True  # rich would end the program, and with it the run

    return Quiet(file=stream)


class Worst(NamedTuple):
    """A leaf that stands out.

    Attributes:
      leaf: its position.
      metric: the statistic that is farthest from its reference.
      distance: how far, as :func:`distance` says; infinite where numbers are not finite.
    """

    leaf: int
    metric: str
    distance: float


class Frame:
    """One picture of a run, which rich renders at any width.

    Args:
      history: the run.
      findings: what the doctor says of it.
      total: steps that the run will have, if that is known.
      speed: steps a second; NaN if that is not known.
    """

    def __init__(
        self, history: History, findings: Sequence[Any] = (), total: int | None = None, speed: float = math.nan
    ):
        self.history, self.findings, self.total, self.speed = history, findings, total, speed
        self.shown = shown(history)
        self.worst = worst(history, self.shown)

    def line(self) -> str:
        """All of it in one line, without colours or other characters than those of names."""
        words = [self._progress("/")]
        words += [f"{word} {number(x[-1])}" for word, x in self._pulses() if len(x)]
        words += self._pace()
        if self.worst:
            first = self.worst[0]
            value = number(self.history.leaf[first.metric][-1, first.leaf])
            what = "not finite" if math.isinf(first.distance) else f"{HEADINGS[first.metric]} {value}"
            words.append(f"worst {self._name(first.leaf)}: {what}")
        if self.findings:
            ids = ", ".join(dict.fromkeys(str(finding.id) for finding in self.findings))
            words.append(f"{len(self.findings)} finding{'s' * (len(self.findings) > 1)}: {ids}")
        return "  ".join(words)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        width, blocks = min(options.max_width, 120), _ASCII if options.ascii_only else _BLOCKS
        head = Text("  ".join([self._progress(" / "), *self._pace()]), style="bold", no_wrap=True, overflow="crop")
        yield head
        for word, x in self._pulses():
            if len(x):
                yield self._sparkline(word, x, width, blocks)
        taken = 3 + min(len(self.findings), MOST_FINDINGS + 1) + 3
        if self.worst:
            room = max(console.size.height - taken, 3) if console.is_terminal else MOST_LEAVES
            yield self._table(width, blocks, min(room, MOST_LEAVES))
        yield from self._found(width, options.ascii_only)

    def _progress(self, of: str) -> str:
        step = self.history.end
        if not self.total:
            return f"step {step:,}"
        share = f"  {step / self.total:.0%}" if of.strip() != of else ""
        return f"step {step:,}{of}{self.total:,}{share}"

    def _pace(self) -> list[str]:
        if not self.speed > 0:
            return []
        words = [f"{number(self.speed, 3)} steps/s"]
        if self.total:
            words.append(f"{duration(max(self.total - self.history.end, 0) / self.speed)} left")
        return words

    def _pulses(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, word in (("loss", "loss"), ("grad_norm", "|g|")):
            x = self.history.pulse.get(name, np.zeros(0, np.float32))
            yield word, x if not np.isnan(x).all() else x[:0]

    def _sparkline(self, word: str, x: np.ndarray, width: int, blocks: str) -> "Text":
        from rich.text import Text

        line = Text(f"{word:<5}{number(x[-1]):>9} ", no_wrap=True, overflow="crop")
        for glyph in trend(x, width - len(line), blocks, log=bool((x[np.isfinite(x)] > 0).all())):
            line.append(glyph, style="bold red" if glyph == _NOT_FINITE else "green" if word == "loss" else "blue")
        return line

    def _table(self, width: int, blocks: str, most: int) -> "Table":
        from rich.table import Table
        from rich.text import Text

        trends = int(np.clip(width // 12, 4, 14))
        rows = [[self._cell(leaf, metric) for metric in self.shown] for leaf in self.worst[:most]]
        cells = zip(*rows, strict=True)
        numbers = [max(len(HEADINGS[name]), *map(len, column)) for name, column in zip(self.shown, cells, strict=True)]
        room = max(width - sum(numbers) - trends - len(self.shown) - 1, 8)
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", show_edge=False)
        table.add_column("leaf", no_wrap=True, width=min(room, max(len(self._name(w.leaf)) for w in self.worst[:most])))
        for name in self.shown:
            table.add_column(HEADINGS[name], justify="right", no_wrap=True)
        table.add_column("trend", no_wrap=True, width=trends)
        for leaf, row in zip(self.worst[:most], rows, strict=True):
            past = self.history.leaf[leaf.metric][-4 * trends :, leaf.leaf]
            line = trend(past[np.argmax(~np.isnan(past)) :], trends, blocks, log=LEAF[leaf.metric].scale == "log")
            table.add_row(Text(shortened(self._name(leaf.leaf), room)), *row, Text(line, style="blue"))
        return table

    def _cell(self, leaf: Worst, name: str) -> "Text":
        from rich.text import Text

        x = float(self.history.leaf[name][-1, leaf.leaf])
        if math.isnan(x) and math.isinf(leaf.distance):
            return Text("NaN", style="bold red")
        if math.isnan(x):
            return Text("-", style="dim")
        far = distance(LEAF[name], x)
        worst_here = name == leaf.metric
        return Text(number(x, 2), style="bold red" if worst_here and far > 1 else "yellow" if worst_here else "")

    def _found(self, width: int, ascii_only: bool) -> Iterator["Text"]:
        from rich.text import Text

        ranks = {"error": 0, "warning": 1, "note": 2}
        ordered = sorted(self.findings, key=lambda finding: (ranks.get(finding.severity, 3), finding.step))
        for finding in ordered[:MOST_FINDINGS]:
            where = f" {shortened(_where(finding), max(width // 3, 12))}" if _where(finding) else ""
            text = Text(no_wrap=True)
            text.append(f"{finding.severity} {finding.id}", style=_COLOURS.get(finding.severity, ""))
            when = f" step {finding.step:,}" if finding.step else ""  # 0 is before any step
            text.append(f"{when}{where}: {finding.says}")
            text.truncate(width, overflow="crop" if ascii_only else "ellipsis")
            yield text
        if len(ordered) > MOST_FINDINGS:
            yield Text(f"and {len(ordered) - MOST_FINDINGS} more", style="dim")

    def _name(self, leaf: int) -> str:
        return self.history.about.leaves[leaf].name or "(the array)"


# Which leaves stand out


def shown(history: History) -> tuple[str, ...]:
    """The five statistics that are shown: the first of `HEADINGS` that apply to a leaf now."""
    known = [
        x for x in HEADINGS if x in history.leaf and len(history.steps) and not np.isnan(history.leaf[x][-1]).all()
    ]
    return tuple(known[:5])


def worst(history: History, among: Sequence[str]) -> list[Worst]:
    """Leaves by the statistic that is farthest from its reference, farthest first; of the last record.

    Args:
      history: with records, or without: then there are none.
      among: names of statistics; those without a reference are passed over.
    """
    judged = [name for name in among if LEAF[name].reference is not None]
    if not len(history.steps) or not judged:
        return []
    found = []
    broken = np.zeros(len(history.about.leaves), bool)
    for name in _BROKEN:
        if name in history.leaf:
            broken |= ~(np.nan_to_num(history.leaf[name][-1], nan=0.0) == 0)
    for leaf in range(len(history.about.leaves)):
        far = {name: distance(LEAF[name], float(history.leaf[name][-1, leaf])) for name in judged}
        name = max(judged, key=lambda x: far[x])
        away = math.inf if broken[leaf] else far[name]
        if away > -math.inf:
            found.append(Worst(leaf, name, away))
    return sorted(found, key=lambda x: -x.distance)


def distance(metric: Metric, x: float) -> float:
    """How far x is from the statistic's reference: decades for a magnitude with one above zero, else the difference.

    Infinity is infinitely far; NaN, where the statistic does not apply, is nearer than anything.

    >>> from adamx.diagnostics.metrics import LEAF
    >>> distance(LEAF["update_ratio"], 1e-5), distance(LEAF["stalled"], 0.25)
    (2.0, 0.25)
    """
    if math.isnan(x) or metric.reference is None:
        return -math.inf
    if math.isinf(x):
        return math.inf
    if metric.scale == "log" and metric.reference > 0:
        return abs(math.log10(x / metric.reference)) if x > 0 else 0.0
    return abs(x - metric.reference)


# Words and glyphs


def number(x: float, digits: int = 4) -> str:
    """A number for people: so many significant digits at most, no trailing zeros.

    >>> [number(x) for x in (0.30000000000000004, 12345.678, 1e-7, 0.001234567, 0, float("nan"), float("-inf"))]
    ['0.3', '1.235e4', '1e-7', '0.001235', '0', 'NaN', '-inf']
    >>> number(-0.000123456, 2), number(250, 2)
    ('-1.2e-4', '250')
    """
    x = float(x)
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else "inf" if x > 0 else "-inf"
    mantissa, _, exponent = f"{x:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if -4 < power < max(digits, 4) or x == 0:
        short = f"{float(f'{x:.{digits}g}'):.{max(digits - 1 - power, 0)}f}"
        return short.rstrip("0").rstrip(".") if "." in short else short
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{power}"


def duration(seconds: float) -> str:
    """A time for people.

    >>> [duration(x) for x in (0.2, 59, 61, 3700, 200_000)]
    ['0 s', '59 s', '1 min 1 s', '1 h 1 min', '2 d 7 h']
    """
    if not math.isfinite(seconds):
        return "?"
    left = round(seconds)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    at = next((i for i, (_, size) in enumerate(units) if left >= size), len(units) - 1)
    words = []
    for name, size in units[at : at + 2]:
        count, left = divmod(left, size)
        words += [f"{count} {name}"] if count or not words else []
    return " ".join(words)


def trend(x: np.ndarray, width: int, blocks: str = _BLOCKS, *, log: bool = False) -> str:
    """A curve in block glyphs; of several numbers in one glyph the largest is shown, so that no spike is hidden.

    Args:
      x: float32[n]; "!" stands for what is not finite.
      width: glyphs at most; fewer where there are fewer numbers.
      blocks: glyphs from low to high.
      log: by magnitude; zero and less are the lowest.

    >>> trend(np.array([1, 2, 3, np.nan, 3, 100.0]), 6, log=True), trend(np.arange(9.0), 3)
    ('▁▂▃!▃█', '▁▅█')
    """
    if width < 1 or not len(x):
        return ""
    x = np.asarray(x, np.float64)
    cut = np.array_split(x, min(width, len(x)))
    most = np.array([np.nan if not np.isfinite(part).all() else part.max() for part in cut])
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            most = np.where(np.isnan(most), np.nan, np.where(most > 0, np.log(most), -np.inf))
    fine = most[np.isfinite(most)]
    low, high = (fine.min(), fine.max()) if len(fine) else (0.0, 0.0)
    glyphs = []
    for value in most:
        if np.isnan(value):
            glyphs.append(_NOT_FINITE)
            continue
        share = (value - low) / (high - low) if high > low and value > low else 0.0
        glyphs.append(blocks[round(share * (len(blocks) - 1))])
    return "".join(glyphs)


def shortened(name: str, most: int) -> str:
    """A leaf's name in so many characters: parts lose all but their first letter, the outermost first.

    >>> shortened("blocks/11/attn/qkv/kernel", 15), shortened("blocks/11/attn/qkv/kernel", 6)
    ('b/11/attn/qkv/k', '~a/q/k')
    """
    parts = name.split("/")
    for i in dict.fromkeys([0, len(parts) - 1, *range(len(parts))]):
        if len("/".join(parts)) <= most or len(parts) == 1:
            break
        parts[i] = parts[i] if parts[i].isdigit() else parts[i][:1]
    name = "/".join(parts)
    return name if len(name) <= most else "~" + name[len(name) - most + 1 :]


def _where(finding: Any) -> str:
    leaves = getattr(finding, "leaves", None)
    leaves = [getattr(finding, "leaf", "")] if leaves is None else list(leaves)
    if not leaves or not leaves[0]:
        return ""
    return f"{leaves[0]} +{len(leaves) - 1}" if len(leaves) > 1 else str(leaves[0])
