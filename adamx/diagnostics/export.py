"""Histories for other tools: tables, TensorBoard, experiment trackers, JSON and figures for papers.

The packages that do the work are imported where they are needed. What is in a history as NaN throughout, since it does
not apply to a leaf or was never passed, is left out everywhere; a NaN that came up during the run is kept.

Distributions are not exported; they stay in the log.
"""

import importlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adamx.diagnostics.history import History
from adamx.diagnostics.metrics import LEAF, WHOLE, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

MOST_TAGS = 40  # TensorBoard takes minutes to load thousands
OVER_LEAVES = ("p10", "p50", "p90", "max")
CHOSEN = (
    "update_ratio", "grad_rms", "direction_rms", "surprise_before", "momentum_cosine", "eps_tenth", "stalled",
    "direction_error",
)  # fmt: skip
_Steps = tuple[np.ndarray, np.ndarray]  # steps and the values there
_Series = dict[str, _Steps]
_WIDTH = 3.25  # inches; a column of the conferences' two-column styles
_INK = {"loss": "#1f4e79", "grad_norm": "#8c4a00", "bad": "#c1121f", "none": "#e4e4e4"}


# Tables


def to_frame(history: History) -> "DataFrame":
    """A long table, ordered by step.

    Returns:
      A pandas DataFrame, one number a row: step (int64), leaf (category, "" for the whole tree), metric (category),
      value (float32). No three of step, leaf and metric come twice.

    Raises:
      ImportError: if pandas is not installed.
    """
    pandas, long = _need("pandas"), _long(history)
    columns = {
        "step": long.step,
        "leaf": pandas.Categorical.from_codes(long.leaf, long.leaves),
        "metric": pandas.Categorical.from_codes(long.metric, long.metrics),
        "value": long.value,
    }
    return pandas.DataFrame(columns)


def to_csv(history: History, path: str | os.PathLike) -> None:
    """The table of :func:`to_frame` as CSV; float32 in as few digits as tell it apart, "nan", "inf" and "-inf".

    pandas reads the whole tree's leaf "" back with `read_csv(path, keep_default_na=False, na_values={"value": "nan"})`.

    Raises:
      ImportError: if pandas is not installed.
      OSError: if path cannot be written.
    """
    frame = to_frame(history)
    with open(path, "w", encoding="utf-8", newline="") as file:
        frame.to_csv(file, index=False, na_rep="nan", lineterminator="\n")


def to_parquet(history: History, path: str | os.PathLike) -> None:
    """The table of :func:`to_frame` as Parquet, names encoded as dictionaries.

    What the history is of stands in the schema's metadata under "adamx", as `About.to_json` writes it.

    Raises:
      ImportError: if pyarrow is not installed.
      OSError: if path cannot be written.
    """
    arrow, parquet, long = _need("pyarrow"), _need("pyarrow.parquet"), _long(history)
    named = lambda codes, names: arrow.DictionaryArray.from_arrays(
        arrow.array(codes, arrow.int32()), arrow.array(names, arrow.string())
    )
    columns = [long.step, named(long.leaf, long.leaves), named(long.metric, long.metrics), long.value]
    table = arrow.table(columns, ["step", "leaf", "metric", "value"], metadata={"adamx": history.about.to_json()})
    with open(path, "wb") as file:
        parquet.write_table(table, file, compression="zstd")


class _Long(NamedTuple):
    """The columns of the long table; leaf and metric are codes, places in leaves and metrics."""

    step: np.ndarray
    leaf: np.ndarray
    metric: np.ndarray
    value: np.ndarray
    leaves: list[str]
    metrics: list[str]


def _long(history: History) -> _Long:
    whole = _whole(history)
    leaves = list(dict.fromkeys(["", *(leaf.name for leaf in history.about.leaves)]))
    names = list(history.leaf)
    metrics = list(dict.fromkeys([*whole, *names]))
    blocks = [
        (steps, np.zeros(len(steps)), np.full(len(steps), metrics.index(name)), values)
        for name, (steps, values) in whole.items()
    ]
    if names and history.about.leaves:
        cube = np.stack([history.leaf[name] for name in names], -1)
        applies = ~np.isnan(cube).all(0)
        code = {name: i for i, name in enumerate(leaves)}
        where = np.array([code[leaf.name] for leaf in history.about.leaves])
        leaf, metric = np.nonzero(applies)
        n = len(history.steps)
        metric_codes = np.array([metrics.index(name) for name in names])
        columns = (np.repeat(history.steps, len(leaf)), np.tile(where[leaf], n), np.tile(metric_codes[metric], n))
        blocks.append((*columns, cube[:, leaf, metric].ravel()))
    kinds = (np.int64, np.int32, np.int32, np.float32)
    columns = [
        np.concatenate([np.zeros(0, kind), *(block[i] for block in blocks)]).astype(kind)
        for i, kind in enumerate(kinds)
    ]
    order = np.argsort(columns[0], kind="stable")
    step, leaf, metric, value = (column[order] for column in columns)
    return _Long(step, leaf, metric, value, leaves, metrics)


# Dictionaries


def to_dict(
    history: History, at: int = -1, *, statistics: Sequence[str] | None = None, by_leaf: Sequence[str] = ()
) -> dict[str, float]:
    """One record as a flat dictionary for experiment trackers: `run.log(to_dict(history), step=...)`.

    Args:
      history: with at least one record.
      at: which record, as an index of `history.steps`.
      statistics: of leaves, to be summed up over them as "update_ratio/p10", "/p50", "/p90" and "/max" (each the value
        of a leaf, by nearest rank); those of `CHOSEN` that history has when left out.
      by_leaf: of leaves, to be given for each, as "leaf/update_ratio/blocks/0/up/kernel".

    Returns:
      Plain floats, NaN and infinity among them. Numbers of the whole tree have their name as key.

    Raises:
      ValueError: if there is no such record or statistic.

    >>> from adamx.diagnostics.history import About, Leaf
    >>> import pprint
    >>> about, steps = About((Leaf("a", (), "float32"), Leaf("b", (), "float32")), 1), np.array([1])
    >>> x = np.float32([[0.001, 0.1]])
    >>> history = History(about, steps, {"clip": x[:, 0]}, {"update_ratio": x}, steps, {}, steps[:0], {})
    >>> pprint.pprint(to_dict(history))
    {'clip': 0.001,
     'update_ratio/max': 0.1,
     'update_ratio/p10': 0.001,
     'update_ratio/p50': 0.001,
     'update_ratio/p90': 0.1}
    """
    count = len(history.steps)
    if not -count <= at < count:
        raise ValueError(f"at={at}, but the history has {count} records; record some, or name one of them.")
    over = {name: history.leaf[name] for name in _statistics(history, statistics)}
    numbers = _record(_whole(history), over, int(history.steps[at]), at)
    for name in _statistics(history, by_leaf):
        values = history.leaf[name]
        applied = np.flatnonzero(~np.isnan(values).all(0))
        numbers |= {f"leaf/{name}/{history.about.leaves[i].name}": _plain(values[at, i]) for i in applied}
    return numbers


def _record(whole: _Series, over: Mapping[str, np.ndarray], step: int, at: int) -> dict[str, float]:
    numbers = {}
    for name, (steps, values) in whole.items():
        i = np.searchsorted(steps, step)
        if i < len(steps) and steps[i] == step:
            numbers[name] = _plain(values[i])
    for name, values in over.items():
        some = _over_leaves(values[at][None])[0]
        numbers |= {f"{name}/{what}": _plain(x) for what, x in zip(OVER_LEAVES, some, strict=True) if not np.isnan(x)}
    return numbers


def to_json(history: History, path: str | os.PathLike) -> None:
    """What the history is of, every record as :func:`to_dict` gives it with its step, and the pulse, as strict JSON.

    Keys: "about", "records" (all statistics of leaves, summed up) and "pulse", lists of objects with "step". A number
    that is not finite is null.

    Raises:
      OSError: if path cannot be written.
    """
    whole = _whole(history)
    over = {name: values for name, values in history.leaf.items() if not np.isnan(values).all()}
    beat = {name: series for name, series in whole.items() if name in history.pulse}
    records = [
        {"step": step} | _strict(_record(whole, over, step, at)) for at, step in enumerate(history.steps.tolist())
    ]
    pulse = [{"step": step} | _strict(_record(beat, {}, step, 0)) for step in history.pulse_steps.tolist()]
    about = json.loads(history.about.to_json(), parse_constant=lambda _: None)
    text = json.dumps({"about": about, "records": records, "pulse": pulse}, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _strict(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: x if math.isfinite(x) else None for name, x in numbers.items()}


# TensorBoard


def to_tensorboard(history: History, directory: str | os.PathLike, *, statistics: Sequence[str] | None = None) -> None:
    """Scalars for TensorBoard, at most `MOST_TAGS` in all: the whole tree's, and statistics summed up over leaves.

    Args:
      history: of any length; each export makes another event file, so give each an empty directory.
      directory: made if there is none.
      statistics: as in :func:`to_dict`.

    Raises:
      ImportError: if tensorboard is not installed.
      OSError: if directory cannot be written.
      ValueError: if there is no such statistic, or the tags would be too many.
    """
    event, summary, events = (
        _need(f"tensorboard.{module}")
        for module in ("compat.proto.event_pb2", "compat.proto.summary_pb2", "summary.writer.event_file_writer")
    )
    series = dict(_series(history, statistics))
    if len(series) > MOST_TAGS:
        raise ValueError(
            f"these statistics make {len(series)} tags in TensorBoard, but it is slow with many and"
            f" {MOST_TAGS} are allowed; name at most {(MOST_TAGS - len(_whole(history))) // len(OVER_LEAVES)}."
        )
    at: dict[int, list[Any]] = {}
    for tag, (steps, values) in series.items():
        for step, x in zip(steps.tolist(), values.tolist(), strict=True):
            at.setdefault(step, []).append(summary.Summary.Value(tag=tag, simple_value=x))
    Path(directory).mkdir(parents=True, exist_ok=True)
    writer, now = events.EventFileWriter(os.fspath(directory)), time.time()
    try:
        for step in sorted(at):
            writer.add_event(event.Event(step=step, wall_time=now, summary=summary.Summary(value=at[step])))
    finally:
        writer.close()


def _series(history: History, statistics: Sequence[str] | None) -> Iterator[tuple[str, _Steps]]:
    """Tags with their steps and values."""
    yield from _whole(history).items()
    for name in _statistics(history, statistics):
        over = _over_leaves(history.leaf[name])
        known = ~np.isnan(over).all(1)
        for what, values in zip(OVER_LEAVES, over.T, strict=True):
            yield f"{name}/{what}", (history.steps[known], values[known])


# Figures


def figures(history: History, statistics: Sequence[str] | None = None) -> dict[str, "Figure"]:
    """Figures for papers, 3.25 inches wide.

    Args:
      history: with at least one record.
      statistics: of leaves, each drawn as a heat map, leaf by step; those of `CHOSEN` that history has when left out.

    Returns:
      By name: "timeline" (loss and gradient norm at every step; left out if neither is known), and each statistic.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if there are no records, or there is no such statistic.
    """
    matplotlib = _need("matplotlib")
    if not len(history.steps):
        raise ValueError("the history has 0 records, and a figure needs at least one; train for longer.")
    style = {"font.size": 7, "axes.linewidth": 0.5, "lines.linewidth": 0.7, "xtick.major.width": 0.5,
             "ytick.major.width": 0.5, "ytick.minor.width": 0.3, "axes.titlesize": 7}  # fmt: skip
    with matplotlib.rc_context(style):
        drawn = {name: _heat_map(history, name) for name in _statistics(history, statistics)}
        series = {name: x for name, x in _whole(history).items() if name in ("loss", "grad_norm")}
        return ({"timeline": _timeline(history, series)} if series else {}) | drawn


def to_figures(history: History, directory: str | os.PathLike) -> list[Path]:
    """Each of :func:`figures` as a PDF with embedded TrueType fonts, as conferences ask for; the files' paths.

    Raises:
      ImportError: if matplotlib is not installed.
      OSError: if directory cannot be written.
      ValueError: if there are no records.
    """
    drawn, paths = figures(history), []
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        paths.append(Path(directory) / f"{name}.pdf")
        with _need("matplotlib").rc_context({"pdf.fonttype": 42}):
            figure.savefig(paths[-1], dpi=300, metadata={"CreationDate": None})
    return paths


def _timeline(history: History, series: _Series) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 0.5 + 0.95 * len(series)), layout="constrained")
    axes = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
    labels = {"loss": "loss", "grad_norm": "gradient norm"}
    for ax, (name, (steps, values)) in zip(axes, series.items(), strict=True):
        fine = np.isfinite(values)
        ax.plot(steps, np.where(fine, values, np.nan), color=_INK[name], marker="." if len(steps) < 3 else "")
        if _is_wide(values[fine]):
            ax.set_yscale("log")
        ax.set_ylabel(labels[name])
        if not fine.all():
            ax.plot(steps[~fine], np.full((~fine).sum(), 0.97), "|", color=_INK["bad"], ms=5, mew=0.6,
                    transform=ax.get_xaxis_transform(), label="not finite", clip_on=False)  # fmt: skip
        limit = history.about.method.get("max_norm")
        if name == "grad_norm" and isinstance(limit, (int, float)):
            ax.axhline(limit, color="0.4", lw=0.6, ls=(0, (4, 2)), label=f"clip at {limit:.4g}")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=6, handlelength=1.5)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("training step")
    figure.align_ylabels(list(axes))
    return figure


def _is_wide(x: np.ndarray) -> bool:
    return bool(len(x) and x.min() > 0 and x.max() > 8 * x.min())


def _heat_map(history: History, name: str) -> "Figure":
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    metric, values = LEAF[name], history.leaf[name].T
    count = len(values)
    figure = Figure(figsize=(_WIDTH, float(np.clip(0.9 + 0.11 * count, 1.5, 5.5))), layout="constrained")
    ax = figure.subplots()
    norm, colours = _colours(metric, values)
    colours = colormaps[colours].with_extremes(bad=_INK["none"])
    x = _edges(history.steps)
    mesh = ax.pcolormesh(x, np.arange(count + 1), np.ma.masked_invalid(_finite(values, norm)), norm=norm, cmap=colours,
                         rasterized=True)  # fmt: skip
    every = max(1, math.ceil(count / 40))
    ax.set_yticks(np.arange(0, count, every) + 0.5, [_short(leaf.name) for leaf in history.about.leaves[::every]])
    ax.tick_params(axis="y", labelsize=5, length=1.5)
    ax.invert_yaxis()
    ax.set_xlabel("training step")
    ax.set_ylabel("leaf" if every == 1 else f"leaf (one label in {every})")
    bar = figure.colorbar(mesh, ax=ax, extend=_beyond(values, norm), aspect=30, pad=0.02)
    says = f"{metric.says}, {metric.formula}"
    bar.set_label(says if len(says) < 70 else metric.says, fontsize=6)
    bar.ax.tick_params(labelsize=5.5)
    if np.isnan(values).any():
        ax.set_title("grey: not known there, or not a number", fontsize=5.5, loc="left", color="0.35", pad=2)
    return figure


def _colours(metric: Metric, values: np.ndarray) -> tuple[Any, str]:
    """How numbers become colours: white at the reference of a two-sided statistic, else dark to light."""
    from matplotlib.colors import LogNorm, Normalize

    if metric.scale == "cosine":
        return Normalize(-1, 1), "RdBu_r"
    if metric.scale == "share":
        return Normalize(0, 1), "RdBu_r" if metric.reference == 0.5 else "viridis"
    seen = values[np.isfinite(values) & (values > 0)].astype(np.float64)
    if metric.reference:
        away = np.abs(np.log10(seen / metric.reference))
        # One leaf that is far away must not bleach all others; it is in the colour of the end, which has an arrow.
        reach = 10.0 ** float(np.clip(np.ceil(np.quantile(away, 0.98)) if len(away) else 1, 1, 3))
        return LogNorm(metric.reference / reach, metric.reference * reach), "RdBu_r"
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.1, 1.0)
    return LogNorm(low, max(high, 10 * low)), "viridis"


def _finite(values: np.ndarray, norm: Any) -> np.ndarray:
    """Infinity and what a logarithmic scale cannot show as its ends, so that they have a colour."""
    return np.where(np.isnan(values), np.nan, np.clip(values.astype(np.float64), norm.vmin, norm.vmax))


def _beyond(values: np.ndarray, norm: Any) -> str:
    below, above = bool((values < norm.vmin).any()), bool((values > norm.vmax).any())
    return "both" if below and above else "min" if below else "max" if above else "neither"


def _edges(steps: np.ndarray) -> np.ndarray:
    """Where a record's column begins and ends: half-way between records."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


# Common to all


def _need(package: str) -> Any:
    """The package.

    Raises:
      ImportError: in one sentence, if it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise ImportError(f"this needs the package {name} ({error}): pip install 'adamx[report]'.") from error


def _whole(history: History) -> _Series:
    """Steps and values of each number of the whole tree, of every step where it is known then."""
    found = {}
    for name in dict.fromkeys([*WHOLE, *history.pulse, *history.whole]):
        steps, values = np.zeros(0, np.int64), np.zeros(0, np.float32)
        if name in history.pulse:
            steps, values = history.pulse_steps, history.pulse[name]
        if name in history.whole:
            more = ~np.isin(history.steps, steps)
            steps, values = np.append(steps, history.steps[more]), np.append(values, history.whole[name][more])
        order = np.argsort(steps, kind="stable")
        if not np.isnan(values).all():
            found[name] = (steps[order], values[order])
    return found


def _statistics(history: History, asked: Sequence[str] | None) -> list[str]:
    """Statistics of leaves that were asked for, or those of `CHOSEN` that apply to any leaf."""
    if asked is None:
        return [name for name in CHOSEN if name in history.leaf and not np.isnan(history.leaf[name]).all()]
    for name in asked:
        if name not in LEAF:
            raise ValueError(f"there is no statistic of leaves called {name!r}; there are {', '.join(LEAF)}.")
        if name not in history.leaf:
            raise ValueError(
                f"the history has no {name!r}; it has {', '.join(history.leaf) or 'no statistics of leaves'}."
            )
    return list(asked)


def _over_leaves(values: np.ndarray) -> np.ndarray:
    """[R, L] to [R, 4]: values at `OVER_LEAVES` of those that are not NaN, by rank, as inf cannot be interpolated."""
    if not values.shape[1]:
        return np.full((len(values), len(OVER_LEAVES)), np.nan, np.float32)
    ordered = np.sort(values, 1)  # NaN last
    count = np.sum(~np.isnan(values), 1)
    ranks = np.ceil(np.outer(count, (0.1, 0.5, 0.9, 1.0)) - 1e-9).astype(np.int64) - 1
    return np.take_along_axis(ordered, np.maximum(ranks, 0), 1)


def _plain(x: Any) -> float:
    """A float32 as the float with the fewest digits that is the same float32: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(x)))
