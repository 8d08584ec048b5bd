"""A run's log on disk, which survives a kill at any moment.

A log is a directory: `meta.json` (what the run is of, notes) and segments `000001.npz`, `000002.npz`, ... that are only
ever added. Each file is written under a temporary name, flushed to the disk and then renamed, so that a file with its
final name is whole; a kill loses at most the segment that was being written.

A segment needs nothing but NumPy and JSON to be read; `adamx.diagnostics.export` makes tables of a log. With K names in
`json.loads(str(segment["meta"]))["leaf"]` and so on, it holds

    steps: int64[R]         whole: float32[K, R]   leaf: float32[K, R, L]
    pulse_steps: int64[F]   pulse: float32[K, F]
    spread_steps: int64[D]  spread: float32[K, D, L, 16]
    meta: str[], JSON: names by table; "last", the last step of each table so far; "back_to", the step to which the run
        went back, or null; "gaps", the steps between which nothing was recorded
"""

import io
import json
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from adamx.diagnostics.history import About, History

FORMAT = 1
_TABLES = {"steps": ("whole", "leaf"), "pulse_steps": ("pulse",), "spread_steps": ("spread",)}
_SEGMENT = re.compile(r"(\d{6,})\.npz")
_TEMPORARY = re.compile(r"\.(meta\.json|\d{6,}\.npz)\.\d+\.tmp")
_TORN = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, IndexError, TypeError, ValueError, OSError, RuntimeError)


class Gap(NamedTuple):
    """Steps that a log lacks, because the ring had been overwritten before the log saw it.

    Attributes:
      table: "records" or "pulse".
      after: the last step before the gap that was logged, 0 if none.
      before: the first step behind it that was logged.
    """

    table: str
    after: int
    before: int


class _Segment(NamedTuple):
    meta: Mapping[str, Any]
    tables: Mapping[str, np.ndarray]


class Log:
    """A log that one process appends to; any number may read it meanwhile.

    Where several processes train together, let one of them write. Files that a killed writer left half-written are
    removed; a last segment that cannot be read is renamed to `NNNNNN.npz.torn`, and a warning says so.

    Args:
      path: a directory; it is made if there is none, and continued if it holds a log.
      notes: what else is worth keeping, such as {"name": "lr 3e-4"}; anything that JSON can say. Added to the notes
        that the log has.
      resume: whether the run was restored from a checkpoint that may be older than the log's end. The steps that were
        logged behind it, and that the run takes anew, are dropped, with a warning. Otherwise a log that has steps
        takes those that follow, also if they come with the last ones again, and refuses another run's.

    Raises:
      ValueError: if path is a file, holds no log of this format, or notes are not JSON.

    >>> import tempfile
    >>> from adamx.diagnostics.history import Leaf
    >>> about = About((Leaf("w", (3,), "float32"),), every=1)
    >>> steps, x = np.arange(1, 3), np.ones(2, np.float32)
    >>> history = History(about, steps, {"loss": x}, {"grad_rms": x[:, None]}, steps, {"loss": x}, steps[:0], {})
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     Log(directory, {"name": "first"}).append(history)
    ...     sorted(os.listdir(directory)), read(directory).steps.tolist(), notes(directory)
    (['000001.npz', 'meta.json'], [1, 2], {'name': 'first'})
    """

    def __init__(self, path: str | os.PathLike, notes: Mapping[str, Any] | None = None, *, resume: bool = False):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"a log is a directory, but {self.path} is a file; name another.")
        self._notes = _json_notes(notes or {})
        self.path.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self._meta = None
        self._about: About | None = None
        self._number, self._last = 0, (0, 0, 0)
        self._mark: tuple[str, int, bytes] | None = None
        self._any_run = resume  # else the first append must go on from what the log has
        if (self.path / "meta.json").exists() or _numbers(self.path):
            self._resume()

    def append(self, history: History) -> None:
        """Write what the log does not have yet; nothing if there is nothing new.

        What is behind the last step written is new. Where history has steps that the log has too, and with other
        numbers, the run went back to an earlier step: then everything from the first such step on is written, and
        stands instead of what was there; a warning names the steps that are dropped.

        Args:
          history: of the same leaves as what was appended before; it may overlap that.

        Raises:
          TypeError: if it is no History.
          ValueError: if it is of other leaves, another process has written to this log, or it is the first append to a
            log that has steps, does not go on from its last step, and `resume` was not said.
          OSError: if the disk does not take it. The log is then as it was before.
        """
        if not isinstance(history, History):
            raise TypeError(
                f"append takes a History, but got {type(history).__name__}: log.append(adamx.drain(state).history())."
            )
        if self._about is not None:
            _check_leaves(self.path, self._about, history.about)
        back_to = None if self._follows(history) else _parting(read(self.path), history)
        end = max(self._last)
        if not self._any_run and history.end:
            if back_to is not None or history.end < end:
                raise ValueError(_other_run(self.path, end, history, back_to))
            self._any_run = True
        last = self._last if back_to is None else tuple(min(step, back_to - 1) for step in self._last)
        new = history.after(*last)
        if not new.end:
            return
        path = self.path / _name(self._number + 1)
        if path.exists():
            raise ValueError(
                f"{path} was written by another process; one process may append to a log, so give this one another."
            )
        self._write_meta(history.about)
        reached = tuple(_final(getattr(new, steps), before) for steps, before in zip(_TABLES, last, strict=True))
        _write(path, new, {"last": reached, "back_to": back_to, "gaps": _gaps(new, last)})
        self._number += 1
        self._last, self._mark = reached, _mark(new) or self._mark
        if back_to is not None and back_to <= end:
            dropped = f"what was logged of steps {back_to} to {end} is dropped"
            warnings.warn(f"{self.path}: the run went back to step {back_to - 1}; {dropped}.", stacklevel=2)

    def _resume(self) -> None:
        meta = _read_meta(self.path)
        self._meta, self._about = meta, _about(meta)
        self._notes = {**meta["notes"], **self._notes}
        numbers = _numbers(self.path)
        _check_numbers(self.path, numbers)
        if not numbers:
            return
        try:
            segment = _load(self.path, numbers[-1], self._about)
        except _TORN as error:
            segment = self._put_aside(numbers.pop(), error, numbers)
        self._number = len(numbers)
        self._last = tuple(segment.meta["last"]) if segment else (0, 0, 0)

    def _put_aside(self, number: int, error: Exception, before: Sequence[int]) -> _Segment | None:
        """Rename the torn last segment, and return the one before it."""
        torn = self.path / _name(number)
        segment = _load_whole(self.path, before[-1], _about(_read_meta(self.path))) if before else None
        os.replace(torn, torn.with_name(torn.name + ".torn"))
        warnings.warn(_lost(torn, error, segment) + f" It is now {torn.name}.torn.", stacklevel=4)
        return segment

    def _sweep(self) -> None:
        for file in self.path.iterdir():
            if _TEMPORARY.fullmatch(file.name):
                file.unlink(missing_ok=True)

    def _follows(self, history: History) -> bool:
        """Whether history goes on from the log, as far as this can be told without reading the log."""
        firsts = [getattr(history, steps)[0] for steps in _TABLES if len(getattr(history, steps))]
        if not self._number or not firsts or min(firsts) > max(self._last):
            return True
        return self._mark is not None and _row(history, *self._mark[:2]) == self._mark[2]

    def _write_meta(self, about: About) -> None:
        meta = {"format": FORMAT, "about": json.loads(about.to_json()), "notes": self._notes}
        if meta != self._meta:
            text = json.dumps(meta, indent=1).encode()
            _put(self.path / "meta.json", lambda file: file.write(text))
        self._meta, self._about = meta, about


def read(path: str | os.PathLike, *, first: int = 1) -> History:
    """All that a log holds; where a run went back to an earlier step, what was written later stands.

    Nothing is written. Where the last segment cannot be read it is left out, and a warning names it.

    Args:
      path: the log's directory.
      first: number of the segment to begin with, to follow a log that grows.

    Returns:
      A history; without rows if nothing has been appended yet. A number that some segments lack is NaN there.

    Raises:
      FileNotFoundError: if there is no such directory.
      ValueError: if it is not a log, of a newer format, or a segment in its middle is missing or cannot be read.
    """
    path = Path(path)
    about = _about(_read_meta(path))
    numbers = _numbers(path)
    _check_numbers(path, numbers)
    found: list[_Segment] = []
    for number in numbers[max(first, 1) - 1 :]:
        if number != numbers[-1]:
            found.append(_load_whole(path, number, about))
            continue
        try:
            found.append(_load(path, number, about))
        except _TORN as error:
            before = found[-1] if found else _load_whole(path, number - 1, about) if number > 1 else None
            warnings.warn(_lost(path / _name(number), error, before), stacklevel=2)
    return _joined(about, found)


def notes(path: str | os.PathLike) -> dict[str, Any]:
    """The notes of a log.

    Raises:
      FileNotFoundError: if there is no such directory.
      ValueError: if it is not a log, or of a newer format.
    """
    return _read_meta(Path(path))["notes"]


def gaps(path: str | os.PathLike) -> tuple[Gap, ...]:
    """Where a log lacks steps; drain more often, or keep a longer ring, to have none.

    Raises:
      FileNotFoundError: if there is no such directory.
      ValueError: if it is not a log, of a newer format, or a segment in its middle is missing or cannot be read.
    """
    path = Path(path)
    _read_meta(path)
    numbers = _numbers(path)
    _check_numbers(path, numbers)
    found: list[Gap] = []
    for number in numbers:
        try:
            with zipfile.ZipFile(path / _name(number)) as file:
                meta = json.loads(str(_member(file, "meta")))
        except _TORN as error:
            if number != numbers[-1]:
                raise _torn_inside(path / _name(number), error) from error
            break
        if (back_to := meta["back_to"]) is not None:
            found = [gap._replace(before=min(gap.before, back_to)) for gap in found if gap.after < back_to - 1]
        found += [Gap(*gap) for gap in meta["gaps"]]
    return tuple(found)


def segments(path: str | os.PathLike) -> int:
    """How many segments a log has, by their names alone."""
    return max(_numbers(Path(path)), default=0)


# Files


def _put(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file that is there whole or not at all, whenever the process or the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # elsewhere a directory cannot be opened
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _write(path: Path, new: History, meta: dict[str, Any]) -> None:
    """Write a segment; meta without the names of its tables' numbers."""
    arrays = {}
    for steps, tables in _TABLES.items():
        arrays[steps] = np.asarray(getattr(new, steps), np.int64)
        for table in tables:
            meta[table] = list(getattr(new, table))
            arrays[table] = np.array(list(getattr(new, table).values()), np.float32)
    _put(path, lambda file: np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays))


def _name(number: int) -> str:
    return f"{number:06d}.npz"


def _numbers(path: Path) -> list[int]:
    found = (_SEGMENT.fullmatch(name) for name in os.listdir(path))
    return sorted(int(match[1]) for match in found if match)


def _check_numbers(path: Path, numbers: Sequence[int]) -> None:
    missing = sorted(set(range(1, len(numbers) + 1)) - set(numbers))
    if missing:
        raise ValueError(
            f"{path / _name(missing[0])} is missing although the log goes on to {_name(numbers[-1])};"
            " copy the whole directory again."
        )


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no directory {path}; a log is the directory that was given to Log(...).")
    file = path / "meta.json"
    if not file.is_file():
        why = f"{len(_numbers(path))} segments, but no meta.json" if _numbers(path) else "no meta.json"
        raise ValueError(
            f"{path} is not a log of adamx: it holds {why}; name the directory that was given to Log(...)."
        )
    try:
        meta = json.loads(file.read_bytes())
        known = meta["format"]
        if known == FORMAT:
            _about(meta)
            meta["notes"].items()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not that of a log of adamx ({error!r}); name the directory that was given to Log(...)."
        ) from error
    if known != FORMAT:
        raise ValueError(
            f"{path} is a log of format {known!r}, but this adamx reads format {FORMAT}; install a newer one."
        )
    return meta


def _about(meta: Mapping[str, Any]) -> About:
    return About.from_json(json.dumps(meta["about"]))


def _json_notes(given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"notes must be a mapping from names to what JSON can say, but are {given!r:.60}.")
    for name, note in given.items():
        try:
            json.dumps({name: note}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"notes must be what JSON can say, but notes[{name!r}] is not ({error}); give str(...) of it."
            ) from error
    return json.loads(json.dumps(dict(given)))


def _member(file: zipfile.ZipFile, name: str) -> np.ndarray:
    # The whole member is read before it is parsed, so that its checksum has been compared by then.
    return np.lib.format.read_array(io.BytesIO(file.read(name + ".npy")), allow_pickle=False)


def _load(path: Path, number: int, about: About) -> _Segment:
    """A segment.

    Raises:
      any of _TORN: if it cannot be read, or does not fit what the log is of.
    """
    with zipfile.ZipFile(path / _name(number)) as file:
        meta = json.loads(str(_member(file, "meta")))
        arrays = {name: _member(file, name) for steps, tables in _TABLES.items() for name in (steps, *tables)}
    for steps, tables in _TABLES.items():
        for table in tables:
            of = (len(about.leaves),) if table in ("leaf", "spread") else ()
            expected = (len(meta[table]), *arrays[steps].shape, *of)
            if meta[table] and arrays[table].shape[: len(expected)] != expected:
                raise ValueError(f"{table} has shape {arrays[table].shape}, but {expected} was expected")
    return _Segment(meta, arrays)


def _load_whole(path: Path, number: int, about: About) -> _Segment:
    try:
        return _load(path, number, about)
    except _TORN as error:
        raise _torn_inside(path / _name(number), error) from error


def _torn_inside(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{file} cannot be read ({error}), and segments come after it; copy it again, or move it and those after it"
        " away."
    )


def _lost(file: Path, error: Exception, before: _Segment | None) -> str:
    behind = f"those behind step {max(before.meta['last'])}" if before else "all that the log had"
    return f"{file} cannot be read ({error}); its records, {behind}, are lost."


# Histories


def _joined(about: About, found: Sequence[_Segment]) -> History:
    """Segments as one history, each of whose rows is copied once."""
    kept: dict[str, list[np.ndarray]] = {steps: [] for steps in _TABLES}
    for steps in _TABLES:
        limit = np.iinfo(np.int64).max  # rows from here on were written again by a later segment
        for meta, tables in reversed(found):
            kept[steps].append(tables[steps] < limit)
            again = [meta["back_to"]] if meta["back_to"] is not None else []
            limit = min([limit, *again, *tables[steps][:1].tolist()])
        kept[steps].reverse()
    joined: dict[str, Any] = {}
    for steps, tables in _TABLES.items():
        rows = kept[steps]
        parts = [segment.tables[steps][keep] for segment, keep in zip(found, rows, strict=True)]
        joined[steps] = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        for table in tables:
            joined[table] = _columns(table, found, rows)
    return History(about=about, **joined)


def _columns(table: str, found: Sequence[_Segment], rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    total = sum(int(keep.sum()) for keep in rows)
    columns: dict[str, np.ndarray] = {}
    start = 0
    for (meta, tables), keep in zip(found, rows, strict=True):
        end = start + int(keep.sum())
        for name, column in zip(meta[table], tables[table], strict=True):
            if name not in columns:
                columns[name] = np.full((total, *column.shape[1:]), np.nan, np.float32)
            columns[name][start:end] = column[keep]
        start = end
    return columns


def _gaps(new: History, last: Sequence[int]) -> list[Gap]:
    found = []
    for name, steps, before, stride in (
        ("records", new.steps, last[0], new.about.every),
        ("pulse", new.pulse_steps, last[1], 1),
    ):
        if len(steps) and steps[0] > before + stride:
            found.append(Gap(name, int(before), int(steps[0])))
    return found


def _final(steps: np.ndarray, before: int) -> int:
    return int(steps[-1]) if len(steps) else int(before)


def _row(history: History, steps: str, step: int) -> bytes | None:
    """The numbers of one step, to be compared; None where history does not have it."""
    at = np.flatnonzero(getattr(history, steps) == step)
    if not len(at):
        return None
    columns = [getattr(history, table)[name] for table in _TABLES[steps] for name in sorted(getattr(history, table))]
    return b"".join(np.asarray(column[at[0]], np.float32).tobytes() for column in columns)


def _mark(history: History) -> tuple[str, int, bytes] | None:
    """Table, step and numbers of the last row."""
    for steps in ("pulse_steps", "steps"):
        if len(getattr(history, steps)):
            step = int(getattr(history, steps)[-1])
            return steps, step, _row(history, steps, step) or b""
    return None


def _parting(stands: History, history: History) -> int | None:
    """The first step of history that another past stands for in the log; None if there is none."""
    met, parting = False, []
    for steps, tables in _TABLES.items():
        common, i, j = np.intersect1d(getattr(stands, steps), getattr(history, steps), return_indices=True)
        met |= bool(len(common))
        for table in tables:
            one, two = getattr(stands, table), getattr(history, table)
            for name in one.keys() & two.keys():
                same = _bits(one[name][i]) == _bits(two[name][j])
                parting += common[~same.all(tuple(range(1, same.ndim)))][:1].tolist()
    if not met and history.end < stands.end:
        return history.begin
    return min(parting, default=None)


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.int32)


def _other_run(path: Path, end: int, history: History, back_to: int | None) -> str:
    what = "ends before that" if back_to is None else f"differs from step {back_to} on"
    return (
        f"{path} is logged to step {end}, but this run, of which steps {history.begin} to {history.end} were given,"
        f" {what}; give another run a directory of its own, or, if it was restored from a checkpoint, say Log(...,"
        " resume=True), which drops the steps behind the checkpoint."
    )


def _check_leaves(path: Path, ours: About, theirs: About) -> None:
    if ours.leaves == theirs.leaves:
        return
    say = lambda leaf: f"{leaf.name!r} {leaf.dtype}{list(leaf.shape)}"
    differ = [(a, b) for a, b in zip(ours.leaves, theirs.leaves, strict=False) if a != b]
    what = f"it has {len(ours.leaves)} leaves and this history {len(theirs.leaves)}"
    if differ:
        what = f"it has {say(differ[0][0])} where this history has {say(differ[0][1])}"
    raise ValueError(f"{path} is a log of other parameters: {what}; give this run a directory of its own.")
