"""What was appended is there, whatever happens to the process."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from adamx.diagnostics import log as watch_log
from adamx.diagnostics.history import About, History, Leaf
from adamx.diagnostics.log import Log, gaps, notes, read, segments

ROOT = Path(__file__).parents[1]
LEAVES = (Leaf("a/kernel", (3, 4), "float32"), Leaf("b", (), "bfloat16"))
EVERY = 4
CHUNK = 8


def wave(steps, *others, branch=0):
    """Numbers that look like noise, and are the same for the same step of the same branch."""
    phase = np.asarray(steps, np.float64).reshape(-1, *[1] * len(others)) + 1e3 * branch
    for i, n in enumerate(others):
        phase = phase + 7.3 * (i + 1) * np.arange(n).reshape([n if j == i else 1 for j in range(len(others))])
    return (1e4 * np.sin(phase * phase)).astype(np.float32)


def recorded(first, last, branch=0, leaves=LEAVES, names=("grad_rms", "update_ratio")):
    """What a watch records of steps first to last: pulses of all, records of every fourth, spreads of every eighth."""
    every = np.arange(first, last + 1)
    steps, spreads = every[every % EVERY == 0], every[every % (2 * EVERY) == 0]
    loss = wave(every, branch=branch)
    loss[every % 5 == 0] = np.nan
    loss[every % 7 == 0] = np.inf
    return History(
        About(leaves, EVERY, {"b2": 0.999, "parts": ["moments", "rate"]}),
        steps,
        {"update_norm": wave(steps, branch=branch)},
        {name: wave(steps, len(leaves), branch=branch + i) for i, name in enumerate(names)},
        every,
        {"loss": loss, "grad_norm": wave(every, branch=branch + 0.5)},
        spreads,
        {"direction": wave(spreads, len(leaves), 16, branch=branch)},
    )


def same(one, two):
    """Equal in every bit, NaN included."""
    for field in ("steps", "pulse_steps", "spread_steps"):
        a, b = getattr(one, field), getattr(two, field)
        if a.dtype != b.dtype or a.tolist() != b.tolist():
            return False
    for field in ("whole", "leaf", "pulse", "spread"):
        a, b = getattr(one, field), getattr(two, field)
        if a.keys() != b.keys() or any(a[k].shape != b[k].shape or a[k].tobytes() != b[k].tobytes() for k in a):
            return False
    return one.about == two.about


def tip(history, size):
    """The last of it, as a ring of this size holds it."""
    step = int(history.pulse_steps[-1]) - size
    return history.after(step, step, step)


def files(path):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}


def test_what_was_appended_is_read_bit_for_bit(tmp_path):
    log = Log(tmp_path / "runs" / "1")
    log.append(recorded(1, 20))
    log.append(recorded(21, 22))
    log.append(recorded(23, 40))
    assert same(read(tmp_path / "runs" / "1"), recorded(1, 40))
    assert segments(log.path) == 3


def test_numpy_and_json_are_enough_to_read_a_segment(tmp_path):
    Log(tmp_path).append(recorded(1, 20))
    segment, history = np.load(tmp_path / "000001.npz"), recorded(1, 20)
    names = json.loads(str(segment["meta"]))
    np.testing.assert_array_equal(segment["steps"], history.steps)
    np.testing.assert_array_equal(segment["leaf"][names["leaf"].index("update_ratio")], history.leaf["update_ratio"])
    np.testing.assert_array_equal(segment["pulse"][names["pulse"].index("loss")], history.pulse["loss"])
    np.testing.assert_array_equal(segment["spread"][0], history.spread["direction"])
    assert json.loads((tmp_path / "meta.json").read_text())["about"]["leaves"][0] == ["a/kernel", [3, 4], "float32"]


def test_only_what_is_new_is_written(tmp_path):
    log = Log(tmp_path)
    log.append(recorded(1, 20))
    before = files(tmp_path)
    log.append(recorded(1, 20))
    log.append(recorded(9, 16))  # an older ring that comes late
    log.append(recorded(1, 0))
    assert files(tmp_path) == before
    log.append(recorded(9, 24))
    np.testing.assert_array_equal(np.load(tmp_path / "000002.npz")["pulse_steps"], [21, 22, 23, 24])
    assert same(read(tmp_path), recorded(1, 24))


def test_a_log_is_continued_by_the_next_process(tmp_path):
    Log(tmp_path).append(recorded(1, 20))
    Log(tmp_path).append(recorded(5, 30))
    Log(tmp_path).append(recorded(31, 33))
    assert same(read(tmp_path), recorded(1, 33))
    assert np.load(tmp_path / "000002.npz")["pulse_steps"][0] == 21


def test_a_new_log_is_empty_until_something_is_appended(tmp_path):
    log = Log(tmp_path / "run", {"name": "x"})
    assert list(log.path.iterdir()) == []
    with pytest.raises(ValueError, match=r"run is not a log of adamx: it holds no meta.json; name the directory"):
        read(log.path)
    log.append(recorded(1, 0))
    assert list(log.path.iterdir()) == []


def test_a_log_killed_before_its_first_segment_is_empty(tmp_path):
    Log(tmp_path).append(recorded(1, 20))
    (tmp_path / "000001.npz").unlink()
    history = read(tmp_path)
    assert history.about == recorded(1, 20).about
    assert len(history.steps) == len(history.pulse_steps) == len(history.spread_steps) == 0
    Log(tmp_path).append(recorded(1, 20))
    assert same(read(tmp_path), recorded(1, 20))


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("ring", [16, 64])
def test_where_a_run_went_back_the_later_records_stand(tmp_path, ring, reopened):
    log = Log(tmp_path)
    log.append(recorded(1, 40))
    if reopened:
        log = Log(tmp_path, resume=True)
    checkpoint = recorded(1, 30)
    with pytest.warns(UserWarning, match=r"went back to step 30; what was logged of steps 31 to 40 is dropped\.$"):
        log.append(tip(checkpoint.then(recorded(31, 33, branch=1)), ring))
    assert same(read(tmp_path), checkpoint.then(recorded(31, 33, branch=1)))
    log.append(tip(checkpoint.then(recorded(31, 60, branch=1)), ring * 4))
    assert same(read(tmp_path), checkpoint.then(recorded(31, 60, branch=1)))


def test_a_run_that_went_back_and_past_its_old_end_is_told_by_its_numbers(tmp_path):
    Log(tmp_path).append(recorded(1, 40))
    past = recorded(1, 30).then(recorded(31, 50, branch=1))
    with pytest.warns(UserWarning, match="of steps 31 to 40 is dropped"):
        Log(tmp_path, resume=True).append(tip(past, 32))
    assert same(read(tmp_path), past)


@pytest.mark.parametrize(
    ("rerun", "sentence"),
    [
        (recorded(1, 10, branch=1), "steps 1 to 10 were given, differs from step 1 on"),
        (recorded(1, 60, branch=1), "steps 1 to 60 were given, differs from step 1 on"),
        (recorded(1, 10), "steps 1 to 10 were given, ends before that"),
        (tip(recorded(1, 30).then(recorded(31, 38, branch=1)), 16), "steps 23 to 38 were given, differs from step 31"),
        (recorded(41, 50).between(41, 45).then(recorded(46, 50)), None),
        (recorded(1, 40), None),
        (recorded(30, 50), None),
        (recorded(1, 0), None),
    ],
    ids=["shorter", "longer", "the same again", "restored", "next", "no step more", "overlaps", "empty"],
)
def test_another_run_does_not_hide_the_one_that_was_logged(tmp_path, rerun, sentence):
    Log(tmp_path).append(recorded(1, 40))
    before, log = files(tmp_path), Log(tmp_path)
    if sentence is None:
        log.append(rerun)
        assert read(tmp_path).end == max(40, rerun.end)
        return
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"is logged to step 40, but this run, of which {sentence}.*resume=True"):
            log.append(rerun)
    assert files(tmp_path) == before


def test_a_log_that_has_begun_may_go_back_within_its_process(tmp_path):
    Log(tmp_path).append(recorded(1, 40))
    log = Log(tmp_path)
    log.append(recorded(35, 50))
    with pytest.warns(UserWarning, match="went back to step 20; what was logged of steps 21 to 50 is dropped"):
        log.append(recorded(1, 20).then(recorded(21, 30, branch=1)))
    assert same(read(tmp_path), recorded(1, 20).then(recorded(21, 30, branch=1)))


def test_no_record_of_the_abandoned_past_outlives_a_step_back_between_records(tmp_path):
    log = Log(tmp_path)
    log.append(recorded(1, 40))
    with pytest.warns(UserWarning, match="of steps 30 to 40 is dropped"):
        log.append(recorded(30, 31, branch=1))  # pulses only
    history = read(tmp_path)
    assert history.steps.tolist() == [4, 8, 12, 16, 20, 24, 28]
    assert history.pulse_steps.tolist() == list(range(1, 32))
    assert history.spread_steps.tolist() == [8, 16, 24]


def test_a_run_that_starts_again_with_an_empty_ring_stands_too(tmp_path):
    log = Log(tmp_path)
    log.append(recorded(1, 20))
    log.append(recorded(31, 40))
    with pytest.warns(UserWarning, match="of steps 25 to 40 is dropped"):
        log.append(recorded(25, 28))  # within the gap: nothing to compare
    assert same(read(tmp_path), recorded(1, 20).then(recorded(25, 28)))


def test_a_replay_with_the_same_numbers_writes_nothing_until_it_is_ahead(tmp_path):
    Log(tmp_path).append(recorded(1, 40))
    log = Log(tmp_path, resume=True)
    log.append(recorded(15, 32))
    assert segments(tmp_path) == 1
    log.append(recorded(25, 44))
    assert same(read(tmp_path), recorded(1, 44))
    assert np.load(tmp_path / "000002.npz")["pulse_steps"].tolist() == [41, 42, 43, 44]


@pytest.mark.filterwarnings("ignore:.*went back")
@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_run_does_its_last_past_is_what_the_log_holds(tmp_path, seed):
    rng, ring = random.Random(seed), 24
    log, branch, now = Log(tmp_path), 0, recorded(1, 6)
    checkpoints, stands = [now], {}
    for _ in range(30):
        what = rng.choice(["train", "train", "train", "save", "go back", "restart"])
        if what == "train":
            step = int(now.pulse_steps[-1])
            now = now.then(recorded(step + 1, step + rng.randint(1, 9), branch))
        elif what == "save":
            checkpoints.append(now)
        elif what == "go back":
            now, branch = rng.choice(checkpoints), rng.choice([branch, branch + 1])
        else:
            log = Log(tmp_path, resume=True)
        log.append(tip(now, ring))
        seen = [(int(s), x.tobytes()) for s, x in zip(now.pulse_steps, now.pulse["grad_norm"], strict=True)][-ring:]
        other = [step for step, x in seen if stands.get(step, x) != x]
        stands = {step: x for step, x in stands.items() if not other or step < other[0]} | dict(seen)
        history = read(tmp_path)
        assert history.pulse_steps.tolist() == sorted(stands)
        assert [x.tobytes() for x in history.pulse["grad_norm"]] == [stands[step] for step in sorted(stands)]
        assert history.steps.tolist() == [step for step in sorted(stands) if step % EVERY == 0]


def test_a_statistic_that_came_later_is_nan_before(tmp_path):
    log = Log(tmp_path)
    log.append(recorded(1, 8))
    log.append(recorded(9, 16, names=("grad_rms", "lost")))
    both = recorded(1, 8).then(recorded(9, 16, names=("grad_rms", "lost")))
    assert same(read(tmp_path), both)
    assert np.isnan(both.leaf["lost"]).all(1).tolist() == [True, True, False, False]


def test_other_parameters_are_refused_and_nothing_is_written(tmp_path):
    Log(tmp_path).append(recorded(1, 8))
    before = files(tmp_path)
    other = (LEAVES[0], Leaf("b", (2,), "bfloat16"))
    with pytest.raises(
        ValueError,
        match=r"a log of other parameters: it has 'b' bfloat16\[\] where this history has 'b' bfloat16\[2\]; give this",
    ):
        Log(tmp_path).append(recorded(9, 16, leaves=other))
    with pytest.raises(ValueError, match="it has 2 leaves and this history 1; give this run a directory of its own"):
        Log(tmp_path).append(recorded(9, 16, leaves=LEAVES[:1]))
    assert files(tmp_path) == before


def test_what_is_known_of_the_method_is_that_of_the_last_run(tmp_path):
    Log(tmp_path).append(recorded(1, 8))
    later = recorded(9, 16)
    later = History(
        About(LEAVES, 8, {"b2": 0.9}), *[getattr(later, f) for f in later.__dataclass_fields__ if f != "about"]
    )
    Log(tmp_path).append(later)
    assert read(tmp_path).about == later.about


def test_notes_are_kept_and_added_to(tmp_path):
    Log(tmp_path, {"name": "first", "sweep": {"lr": [1e-3, None]}}).append(recorded(1, 8))
    Log(tmp_path).append(recorded(9, 12))
    assert notes(tmp_path) == {"name": "first", "sweep": {"lr": [1e-3, None]}}
    Log(tmp_path, {"name": "second"}).append(recorded(13, 16))
    assert notes(tmp_path) == {"name": "second", "sweep": {"lr": [1e-3, None]}}


@pytest.mark.parametrize("note", [Path("x"), float("nan"), {1, 2}, np.float32(1)], ids=repr)
def test_a_note_that_json_cannot_say_is_one_sentence(tmp_path, note):
    with pytest.raises(ValueError, match=r"^notes must be what JSON can say, but notes\['y'\] is not \(.*\); give str"):
        Log(tmp_path, {"x": 1, "y": note})


def test_what_is_no_history_is_one_sentence(tmp_path):
    import jax.numpy as jnp  # here, since processes without jax read this file

    import adamx

    tx, params = adamx.watch(adamx.sgd(1.0), every=1), jnp.ones(2)
    drained = adamx.drain(tx.update(params, tx.init(params), params)[1])
    with pytest.raises(TypeError, match=r"but got Drained: log\.append\(adamx\.drain\(state\)\.history\(\)\)\.$"):
        Log(tmp_path).append(drained)
    with pytest.raises(ValueError, match=r"^notes must be a mapping from names .* but are \['a'\]\.$"):
        Log(tmp_path, ["a"])


def test_a_gap_is_said(tmp_path):
    log = Log(tmp_path)
    log.append(recorded(1, 9))
    log.append(recorded(10, 12))  # the next step, and the next record
    assert gaps(tmp_path) == ()
    log.append(recorded(15, 24))
    assert json.loads(str(np.load(tmp_path / "000003.npz")["meta"]))["gaps"] == [["pulse", 12, 15]]
    log.append(recorded(29, 40))
    assert gaps(tmp_path) == (("pulse", 12, 15), ("records", 24, 32), ("pulse", 24, 29))
    assert same(read(tmp_path), recorded(1, 12).then(recorded(15, 24)).then(recorded(29, 40)))
    with pytest.warns(UserWarning, match="of steps 22 to 40 is dropped"):
        log.append(recorded(22, 23, branch=1))
    assert gaps(tmp_path) == (("pulse", 12, 15),)


def test_a_log_that_begins_late_says_so(tmp_path):
    Log(tmp_path).append(recorded(100, 110))
    assert gaps(tmp_path) == (("records", 0, 100), ("pulse", 0, 100))


def test_reading_writes_nothing(tmp_path):
    log = Log(tmp_path)
    log.append(recorded(1, 8))
    log.append(recorded(9, 16))
    for name in (".000003.npz.77.tmp", ".meta.json.77.tmp"):
        (tmp_path / name).write_bytes(b"half")
    before = files(tmp_path)
    assert same(read(tmp_path), recorded(1, 16))
    assert gaps(tmp_path) == ()
    assert notes(tmp_path) == {}
    assert files(tmp_path) == before


def test_what_a_killed_writer_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    Log(tmp_path).append(recorded(1, 8))
    mine = ["checkpoint.tmp", ".000002.npz.tmp", "events.npz"]
    for name in (".000002.npz.77.tmp", ".meta.json.77.tmp", *mine):
        (tmp_path / name).write_bytes(b"half")
    Log(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(["000001.npz", "meta.json", *mine])


def damaged(whole):
    """Bytes of a file after every kind of accident, with what happened."""
    rng = random.Random(0)
    for length in (0, 1, 21, *range(100, len(whole), 131), len(whole) - 1):
        yield f"cut to {length}", whole[:length]
        yield f"zeros from {length}", whole[:length] + bytes(len(whole) - length)
    for at in [rng.randrange(len(whole)) for _ in range(300)]:
        yield f"bit of byte {at}", whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
    yield "garbage", rng.randbytes(len(whole))


def test_a_torn_last_segment_is_dropped_and_said_or_was_not_harmed(tmp_path):
    log = Log(tmp_path)
    log.append(recorded(1, 8))
    log.append(recorded(9, 16))
    last, dropped = tmp_path / "000002.npz", 0
    for accident, torn in damaged(last.read_bytes()):
        last.write_bytes(torn)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            history = read(tmp_path)
        if caught:
            dropped += 1
            assert same(history, recorded(1, 8)), accident
            said = str(caught[0].message)
            assert said.startswith(f"{last} cannot be read ("), accident
            assert said.endswith("); its records, those behind step 8, are lost."), accident
        else:  # such as a date in the archive's directory
            assert same(history, recorded(1, 16)), accident
    assert dropped > 200


def test_the_next_writer_puts_a_torn_segment_aside_and_goes_on(tmp_path):
    log = Log(tmp_path)
    log.append(recorded(1, 8))
    log.append(recorded(9, 16))
    torn = tmp_path / "000002.npz"
    torn.write_bytes(torn.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=r"000002.npz cannot be read .* It is now 000002.npz.torn.$"):
        log = Log(tmp_path)
    log.append(recorded(12, 20))
    assert same(read(tmp_path), recorded(1, 8).then(recorded(12, 20)))
    assert gaps(tmp_path) == (("pulse", 8, 12),)
    assert (tmp_path / "000002.npz.torn").exists()


def test_a_log_whose_only_segment_is_torn_begins_again(tmp_path):
    Log(tmp_path).append(recorded(1, 8))
    (tmp_path / "000001.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"its records, all that the log had, are lost\.$"):
        assert len(read(tmp_path).pulse_steps) == 0
    with pytest.warns(UserWarning, match="It is now 000001.npz.torn"):
        Log(tmp_path).append(recorded(1, 12))
    assert same(read(tmp_path), recorded(1, 12))


def test_a_segment_torn_or_missing_in_the_middle_is_an_error_that_names_it(tmp_path):
    log = Log(tmp_path)
    for first in (1, 9, 17):
        log.append(recorded(first, first + 7))
    middle = tmp_path / "000002.npz"
    middle.write_bytes(middle.read_bytes()[:-40])
    for look in (read, gaps):
        with pytest.raises(ValueError, match=r"000002.npz cannot be read \(.*\), and segments come after it; copy it"):
            look(tmp_path)
    (tmp_path / "000003.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000002.npz cannot be read"):
        Log(tmp_path)
    assert (tmp_path / "000003.npz").exists()
    middle.unlink()
    for look in (read, gaps, Log):
        with pytest.raises(ValueError, match=r"000002.npz is missing although the log goes on to 000003.npz; copy"):
            look(tmp_path)


def test_a_segment_of_other_parameters_does_not_fit(tmp_path):
    Log(tmp_path / "a").append(recorded(1, 8))
    Log(tmp_path / "b").append(recorded(1, 8, leaves=LEAVES[:1]))
    shutil.copy(tmp_path / "b" / "000001.npz", tmp_path / "a" / "000002.npz")
    with pytest.warns(UserWarning, match=r"leaf has shape \(2, 2, 1\), but \(2, 2, 2\) was expected"):
        assert same(read(tmp_path / "a"), recorded(1, 8))


def test_a_log_that_grows_is_read_from_where_it_was(tmp_path):
    log = Log(tmp_path)
    for first in (1, 9, 17):
        log.append(recorded(first, first + 7))
    assert same(read(tmp_path, first=3), recorded(17, 24))
    assert same(read(tmp_path, first=2), recorded(9, 24))
    assert len(read(tmp_path, first=4).pulse_steps) == 0


def test_a_second_writer_is_told(tmp_path):
    one, two = Log(tmp_path), Log(tmp_path, {"name": "two"})
    one.append(recorded(1, 8))
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"000001.npz was written by another process; one process may append to a log"):
        two.append(recorded(1, 8, branch=1))
    assert files(tmp_path) == before


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    log = Log(tmp_path)
    log.append(recorded(1, 8))
    before = files(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            log.append(recorded(1, 16))
    assert files(tmp_path) == before
    log.append(recorded(1, 16))
    assert same(read(tmp_path), recorded(1, 16))


def test_what_is_not_a_log_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^there is no directory .*nowhere; a log is the directory that was"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"^a log is a directory, but .*file is a file; name another\.$"):
        Log(tmp_path / "file")
    Log(tmp_path / "run").append(recorded(1, 8))
    meta = tmp_path / "run" / "meta.json"
    good = meta.read_text()
    for bad in ("", "[]", "{}", '{"format": 1}', '{"format": 1, "about": {}, "notes": {}}', good[:-9]):
        meta.write_text(bad)
        for open_ in (read, Log):
            with pytest.raises(ValueError, match=r"meta.json is not that of a log of adamx \(.*\); name the directory"):
                open_(tmp_path / "run")
    meta.write_text(good.replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match="is a log of format 9, but this adamx reads format 1; install a newer one"):
        read(tmp_path / "run")
    meta.unlink()
    for open_ in (read, Log):
        with pytest.raises(ValueError, match=r"it holds 1 segments, but no meta\.json"):
            open_(tmp_path / "run")


@pytest.mark.slow
def test_reading_takes_time_in_proportion_to_the_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    log, taken = Log(tmp_path), {}
    for n in (400, 3200):
        for i in range(segments(tmp_path), n):
            log.append(recorded(4 * i + 1, 4 * i + 4))
        start = time.process_time()
        history = read(tmp_path)
        taken[n] = time.process_time() - start
        assert same(history, recorded(1, 4 * n))
    assert taken[3200] < 20 * taken[400]  # 8 if linear, 64 if every segment copied all before it


# Kills. What follows runs in a process of its own that imports neither JAX nor the rest of adamx, and forks.


def write_for_ever(path, said):
    """Append eight steps at a time, each followed by a byte to `said` once `append` has returned."""
    log = Log(path)
    step = int(read(path).pulse_steps[-1]) if segments(path) else 0
    while True:
        log.append(recorded(max(step - CHUNK, 0) + 1, step + CHUNK))
        os.write(said, b".")
        step += CHUNK


def killed(path, writer, after=None, delay=0.0):
    """Run writer(path, said) in a child; how many bytes it said until it was killed.

    It kills itself, or is killed so many seconds after it has said so many bytes.
    """
    reader, said = os.pipe()
    child = os.fork()
    if not child:
        try:
            writer(path, said)
        finally:
            os._exit(7)
    os.close(said)
    with open(reader, "rb", buffering=0) as pipe:
        heard = sum(len(pipe.read(1)) for _ in range(after or 0))
        if after is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), f"the child ended with status {status} by itself"
        assert os.WTERMSIG(status) == signal.SIGKILL
        return heard + len(pipe.read())


def check(path, appended):
    """The log holds all that was appended, at most one segment more, and nothing else."""
    if not (Path(path) / "meta.json").exists():
        assert appended == 0
        return
    history = read(path)
    assert len(history.pulse_steps) in (CHUNK * appended, CHUNK * (appended + 1))
    assert same(history, recorded(1, len(history.pulse_steps))) or not segments(path)


def kill_at_random(path, kills, seed):
    """Kill writers at random moments, ten in a row of a log; print kills, appended segments, half-written files."""
    rng, appended, torn = random.Random(seed), 0, 0
    for i in range(kills):
        run = Path(path) / str(i // 10)
        before = segments(run) if run.is_dir() else 0
        said = killed(run, write_for_ever, rng.randrange(6), rng.uniform(0.0, 0.005))
        check(run, before + said)
        appended += said
        torn += run.is_dir() and any(name.endswith(".tmp") for name in os.listdir(run))
    print(kills, appended, torn)


def kill_at_write(run, n):
    """Kill a writer at its n-th write, sync or rename of a file, or when it is done; whether it was done."""
    left = iter(range(n, -1, -1))

    def tick():
        if not next(left):
            os.kill(os.getpid(), signal.SIGKILL)

    class Counted(io.FileIO):
        def write(self, data):
            tick()
            return super().write(data)

    def counted(call):
        return lambda *given: (tick(), call(*given))[1]

    def append_once(run, said):
        watch_log.open = Counted
        os.fsync, os.replace = counted(os.fsync), counted(os.replace)
        Log(run, {"n": n}).append(recorded(1, 2 * CHUNK))
        os.write(said, b".")
        os.kill(os.getpid(), signal.SIGKILL)

    return killed(run, append_once)


def kill_at_every_write(path, stride):
    """Kill a writer that has a log of one segment at its first write, at the next, ...; print how many there are."""
    Log(f"{path}/start").append(recorded(1, CHUNK))
    for n in range(0, 10_000, stride):
        run = f"{path}/{n}"
        shutil.copytree(f"{path}/start", run)
        done = kill_at_write(run, n)
        check(run, 1 + done)
        Log(run).append(recorded(1, 3 * CHUNK))
        assert same(read(run), recorded(1, 3 * CHUNK))
        assert not [name for name in os.listdir(run) if name.endswith(".tmp")]
        if done:
            print(n)
            return


def in_a_process_without_jax(call):
    """Run a line of this file's code; what it printed."""
    program = f"""
import sys, types
for name in ("adamx", "adamx.diagnostics"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{str(ROOT)!r} + "/" + name.replace(".", "/")]
sys.path.insert(0, {str(ROOT / "tests")!r})
import test_watch_log as test
test.{call}
assert "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(n) for n in done.stdout.split()]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork and no kill -9")


def killed_at_random(path, kills):
    asked, appended, _ = in_a_process_without_jax(f"kill_at_random({str(path)!r}, {kills}, seed=0)")
    assert asked == kills
    assert appended > kills


@needs_fork
def test_10_kills_at_random_moments_lose_nothing_that_was_appended(tmp_path):
    killed_at_random(tmp_path, 10)


@needs_fork
@pytest.mark.slow
def test_100_kills_at_random_moments_lose_nothing_that_was_appended(tmp_path):
    killed_at_random(tmp_path, 100)


@needs_fork
@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_each_write_of_an_append_loses_nothing_that_was_there(tmp_path, stride):
    (writes,) = in_a_process_without_jax(f"kill_at_every_write({str(tmp_path)!r}, {stride})")
    assert writes > 20
