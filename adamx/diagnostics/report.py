"""The report: a history as one HTML file that opens from disk, without a network.

The page is `page/page.html`, drawn by the scripts beside it and plotly.js, which is taken from the installed `plotly`.
Its numbers travel as deflated integers, each statistic by itself, so that the browser decodes only what is shown:
statistics of leaves as 16-bit codes of their logarithm (:class:`Coding`), so that 1000 leaves x 512 records stay near
ten megabytes.
"""

import base64
import hashlib
import html
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adamx.diagnostics import metrics
from adamx.diagnostics import thresholds as T  # noqa: N812 (a table of names)
from adamx.diagnostics.history import History

AROUND = 16  # steps around a spike that the microscope shows

# What a page holds at most, in numbers; beyond it records are left out, and the page says so. 15.4 million cells are
# 1000 leaves x 512 records x 30 statistics.
MOST_CELLS = 16_000_000
MOST_SHARES = 2_000_000
MOST_PULSES = 20_000

# Noise does not compress, so what all cells may take decides how finely they are coded: to the first of these steps
# that is small enough, in binary orders of magnitude; 2^-7 errs by 0.27 % at most, 2^-4 by 2.2 %.
MOST_BYTES = 10_500_000
STEPS = (2.0**-7, 2.0**-6, 2.0**-5, 2.0**-4)

_SCRIPTS = (
    *("data", "colours", "state", "panels", "verdict", "timeline", "heat"),
    *("depth", "spread", "phase", "micro", "precision", "compare", "page"),
)
_SEVERITIES = ("error", "warning", "note")  # worst first
_NAN, _INF, _MINUS_INF, _ZERO, _FIRST = range(5)  # codes; numbers begin at _FIRST
_CODES = 65536 - _FIRST
_SHARES = 10_000  # a share is kept to half of 1e-4


class Coding(NamedTuple):
    """How one statistic's numbers became codes: code c stands for low + step (c - 4), or 2 to that power.

    Attributes:
      log: whether it is the exponent that is coded, as wherever no number is negative. Zero, NaN and the infinities
        have codes of their own and are exact.
      low, step: of the formula.
    """

    log: bool
    low: float
    step: float

    @property
    def error(self) -> float:
        """The largest error of a number: relative to it where log, absolute otherwise."""
        return 2.0 ** (self.step / 2) - 1 if self.log else self.step / 2


def write(
    history: History,
    path: str | os.PathLike[str],
    findings: Iterable[Any] = (),
    title: str = "",
    others: Mapping[str, History] | None = None,
    unread: Iterable[str] = (),
) -> None:
    """Write the report of a run.

    The same arguments give the same bytes. An existing file is replaced in one move, so that a browser never reads
    half of it.

    Args:
      history: of the run; tables and statistics may be missing, the page says what it cannot show.
      path: of the file, usually "....html".
      findings: what the doctor found: objects, or mappings, with id, severity ("note", "warning" or "error"), leaves
        (names), step (0 or None: of no step), evidence (a mapping), says, cause, advice and source; only id and
        severity are needed.
      title: heads the page.
      others: runs to compare with, by name.
      unread: ids of the doctor's rules that had nothing to read, as `doctor.unread(history)` gives them; the page says
        so beside the findings.

    Raises:
      ValueError: if a severity is none of the three, or an array's shape is not what :class:`History` says.
      ImportError: if plotly is not installed.
    """
    runs = [("this run", history), *(others or {}).items()]
    for name, run in runs:
        _check(name, run)
    found = sorted(map(_finding, findings), key=lambda f: _SEVERITIES.index(f["severity"]))
    steps = [f["step"] for f in found if f["step"] is not None]
    coded = _runs(runs, steps)
    data = {
        "title": title,
        "metrics": {m.name: m._asdict() for m in metrics.LEAF.values()},
        "edges": {name: list(edges) for name, edges in metrics.EDGES.items()},
        "deviations": T.SPIKE_SIGMA.unit.partition(",")[0],
        "around": AROUND,
        "findings": found,
        "unread": [str(name) for name in unread],
        "rules": len(T.WORDS),
        "because": " and ".join(history.lacks),
        "runs": coded,
    }
    target = Path(path)
    partial = target.with_name(target.name + ".part")
    partial.write_bytes(_page(title, data).encode("utf-8", "replace"))
    partial.replace(target)


# The file


def _page(title: str, data: dict[str, Any]) -> str:
    page = resources.files("adamx.diagnostics") / "page"
    script = "\n".join((page / f"{name}.js").read_text("utf-8") for name in _SCRIPTS)
    plotly = _plotly()
    values = {
        "policy": _policy(script, plotly),
        "title": html.escape(title or "Training report"),
        "css": (page / "page.css").read_text("utf-8"),
        # Inside a script element only "<" could end it or begin a comment.
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "plotly": _deflated(plotly.encode()),
        "js": script,
    }
    # Split, not replaced one after the other: a title may hold a placeholder's text.
    pieces = (page / "page.html").read_text("utf-8").split("@@")
    return "".join(values[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _policy(*scripts: str) -> str:
    """Nothing is loaded, and no script runs but these; plotly sets styles, and draws heat maps as data: images."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none';"
        " form-action 'none'"
    )


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as e:
        raise ImportError("plotly, which draws the report, is not installed: pip install 'adamx[report]'.") from e
    return get_plotlyjs()


# What was found


def _finding(one: Any) -> dict[str, Any]:
    get = one.get if isinstance(one, Mapping) else lambda key, default=None: getattr(one, key, default)
    severity = str(get("severity"))
    if severity not in _SEVERITIES:
        raise ValueError(f"a finding's severity is {severity!r}; it must be one of {', '.join(_SEVERITIES)}.")
    step = get("step")
    return {
        "id": str(get("id")),
        "severity": severity,
        "leaves": [str(leaf) for leaf in get("leaves") or ()],
        "step": int(step) if step else None,  # 0 is what was known before the first
        "evidence": _plain(dict(get("evidence") or {})),
        **{key: str(get(key) or "") for key in ("says", "cause", "advice", "source")},
    }


def _plain(x: Any) -> Any:
    """X as JSON has it: no NumPy, and what is not finite as text."""
    if isinstance(x, Mapping):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, np.generic | np.ndarray):
        return _plain(x.tolist())
    if isinstance(x, list | tuple | set | frozenset):
        return [_plain(value) for value in x]
    if isinstance(x, float):
        return x if math.isfinite(x) else str(x)
    return x if x is None or isinstance(x, bool | int | str) else str(x)


# A run


def _check(name: str, run: History) -> None:
    leaves, edges = len(run.about.leaves), 16
    tables = [
        ("whole", run.whole, (run.steps.size,)),
        ("leaf", run.leaf, (run.steps.size, leaves)),
        ("pulse", run.pulse, (run.pulse_steps.size,)),
        ("spread", run.spread, (run.spread_steps.size, leaves, edges)),
    ]
    for table, arrays, shape in tables:
        for key, x in arrays.items():
            if np.shape(x) != shape:
                raise ValueError(
                    f"{table}[{key!r}] of {name} has shape {np.shape(x)}, but its steps and leaves say {shape};"
                    " pass a History as the log or drain returns it."
                )


def _runs(runs: list[tuple[str, History]], found: list[int]) -> list[dict[str, Any]]:
    """All runs, the report's own first, as the page reads them; found: the steps of its findings."""
    cells = [run.steps.size * len(run.about.leaves) * len(run.leaf) for _, run in runs]
    near = [[*(found if i == 0 else []), *_spikes(run)] for i, (_, run) in enumerate(runs)]
    kept = []
    for (_, run), n, around in zip(runs, cells, near, strict=True):
        most = MOST_CELLS * n / max(sum(cells), 1) / max(len(run.about.leaves) * len(run.leaf), 1)
        kept.append(_thinned(run.steps, int(most), around))
    leaves = _fitting([run for _, run in runs], kept)
    return [
        _run(name, run, rows, around, i == 0) | {"leaf": leaf}
        for i, ((name, run), rows, around, leaf) in enumerate(zip(runs, kept, near, leaves, strict=True))
    ]


def _fitting(runs: list[History], kept: list[np.ndarray]) -> list[dict[str, Any]]:
    """Statistics of leaves at the kept records, coded as finely as MOST_BYTES allows."""
    tables = [
        {key: x[rows] for key, x in run.leaf.items() if not np.isnan(x).all()}
        for run, rows in zip(runs, kept, strict=True)
    ]
    coded = []
    for step in STEPS:
        coded = [{key: _coded(x, step) for key, x in table.items()} for table in tables]
        if sum(len(statistic["codes"]) for table in coded for statistic in table.values()) <= MOST_BYTES:
            break
    return coded


def _run(name: str, run: History, rows: np.ndarray, near: list[int], spreads: bool) -> dict[str, Any]:
    """A run without its leaves' statistics; distributions are drawn only of the report's own."""
    about, beats = run.about, _beats(run)
    spread = {key: x for key, x in run.spread.items() if spreads and key in metrics.EDGES and not np.isnan(x).all()}
    bands = _thinned(run.spread_steps, MOST_SHARES // max(len(about.leaves) * 16 * len(spread), 1), near)
    return {
        "name": name,
        "leaves": [[leaf.name, list(leaf.shape), leaf.dtype] for leaf in about.leaves],
        "every": about.every,
        "spike": _spike(run),
        "method": _plain(dict(about.method)),
        "steps": _steps(run.steps[rows]),
        "whole": {key: _floats(x[rows]) for key, x in run.whole.items()},
        "pulse_steps": _steps(run.pulse_steps[beats]),
        "pulse": {key: _floats(x[beats]) for key, x in run.pulse.items()},
        "spread_steps": _steps(run.spread_steps[bands]),
        "spread": {key: _shared(x[bands]) for key, x in spread.items()},
        "of": [int(run.steps.size), int(run.pulse_steps.size), int(run.spread_steps.size)],  # before thinning
    }


def _spike(run: History) -> float:
    """Deviations from which on a step was a spike: what was said to `watch`."""
    return float(run.about.method.get("spike", T.SPIKE_SIGMA.value))


def _spikes(run: History) -> list[int]:
    """Steps at which a score is above that."""
    scores = [run.pulse[key] for key in ("loss_score", "grad_score") if key in run.pulse]
    return run.pulse_steps[np.any([x > _spike(run) for x in scores], axis=0)].tolist() if scores else []


def _thinned(steps: np.ndarray, most: int, near: Iterable[int]) -> np.ndarray:
    """Positions of at most `most` records (2 at least): those within AROUND of `near` first, the rest evenly."""
    n, most = steps.size, max(most, 2)
    if n <= most:
        return np.arange(n)
    wanted = np.zeros(n, bool)
    for step in near:
        wanted[np.searchsorted(steps, step - AROUND) : np.searchsorted(steps, step + AROUND, "right")] = True
    close = np.flatnonzero(wanted)[: most // 2]
    rest = np.setdiff1d(np.arange(n), close)
    return np.union1d(close, rest[np.linspace(0, rest.size - 1, most - close.size).astype(int)])


def _beats(run: History) -> np.ndarray:
    """Positions of at most about MOST_PULSES pulses: of each stretch the extremes of every curve, and all spikes."""
    n = run.pulse_steps.size
    if n <= MOST_PULSES:
        return np.arange(n)
    curves = [run.pulse[key] for key in ("loss", "grad_norm") if key in run.pulse]
    stretches = np.array_split(np.arange(n), MOST_PULSES // (2 * max(len(curves), 1) + 1))
    kept = [s[0] for s in stretches] + [n - 1]
    for x in curves:
        low, high = np.where(np.isnan(x), np.inf, x), np.where(np.isnan(x), -np.inf, x)
        kept += [s[np.argmin(low[s])] for s in stretches] + [s[np.argmax(high[s])] for s in stretches]
    spikes = np.searchsorted(run.pulse_steps, _spikes(run)[:MOST_PULSES])
    return np.union1d(np.array(kept), spikes).astype(int)


# Arrays as text


def _deflated(x: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> str:
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return base64.b64encode(packer.compress(x) + packer.flush()).decode()


def _planes(codes: np.ndarray) -> str:
    """uint16 codes: differences along the last axis, small ones first (0, -1, 1, -2), all low bytes before all high.

    That is 14 % smaller than differences alone, and 30 times as fast to deflate with Z_FILTERED, which looks for
    frequent bytes rather than for repeated ones.
    """
    d = np.diff(codes, axis=-1, prepend=np.zeros_like(codes[..., :1])).astype(np.int16)  # modulo 2^16
    small = ((d << 1) ^ (d >> 15)).astype("<u2")
    pairs = small.reshape(-1).view(np.uint8).reshape(-1, 2)
    return _deflated(np.ascontiguousarray(pairs.T).tobytes(), zlib.Z_FILTERED)


def _steps(steps: np.ndarray) -> str:
    return _deflated(np.diff(steps, prepend=0).astype("<u4").tobytes())


def _floats(x: np.ndarray) -> str:
    return _deflated(np.asarray(x, "<f4").tobytes())


def _shared(x: np.ndarray) -> str:
    """float[D, L, 16] shares as codes [L, D, 16]: 0 for NaN, else 1 + 10,000 x share."""
    codes = np.where(np.isnan(x), 0, 1 + np.rint(np.clip(np.nan_to_num(x), 0, 1) * _SHARES)).astype(np.uint16)
    return _planes(codes.transpose(1, 0, 2))


def _coded(x: np.ndarray, step: float) -> dict[str, Any]:
    """float[R, L] as codes [L, R] and what they stand for."""
    x = np.asarray(x, np.float64).T
    coding = _coding(x[np.isfinite(x) & (x != 0)], step)
    with np.errstate(divide="ignore", invalid="ignore"):
        number = np.log2(np.abs(x)) if coding.log else x
        codes = _FIRST + np.rint((number - coding.low) / coding.step)
    kinds = [np.isnan(x), x == np.inf, x == -np.inf, x == 0]
    codes = np.select(kinds, [_NAN, _INF, _MINUS_INF, _ZERO], codes)
    return {"codes": _planes(codes.astype(np.uint16)), **coding._asdict(), "error": coding.error}


def _coding(numbers: np.ndarray, step: float) -> Coding:
    """For these finite numbers other than zero: step by step of their logarithm, or as many steps of their range."""
    log = bool((numbers > 0).all())
    numbers = np.log2(numbers) if log else numbers
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    step = step if log else step * (high - low) / 8
    return Coding(log, low, max(step, (high - low) / (_CODES - 1), 2.0**-64))
