"""The examples run, and say what they promise."""

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import charlm
import compare
import digits
import regression
import trouble
from loaders import Split

ROOT = Path(__file__).parents[1]


def write_images(root, classes=("dark", "light"), n=20):
    rng = np.random.default_rng(0)
    for brightness, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(100 * brightness, 100 * brightness + 130, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def check_picture(path, least=600):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > least // 2
        assert max(image.size) > least
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100  # something is drawn


def leaves(tree):
    def plain(x):
        return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return [plain(x) for x in jax.tree.leaves(tree)]


@pytest.fixture
def trained(monkeypatch):
    """(state, history) of every digits run, as they are when its training ends."""
    runs, train = [], digits.train

    def record(run):
        train(run)
        runs.append((leaves(run.state()), list(run.history)))

    monkeypatch.setattr(digits, "train", record)
    return runs


# Fast: no network is compiled, or a small one


def test_regression_explains_the_target(capsys):
    final = regression.main(["--short"])
    variance = float(regression.data()[1].var())
    assert final < 1e-3 * variance
    assert f"the target's variance is {variance:.3f}" in capsys.readouterr().out


def test_a_wrong_path_is_one_sentence_and_exit_code_2(tmp_path):
    command = [sys.executable, ROOT / "examples" / "digits.py", "--data", "nowhere", "--out", "out"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "digits.py: nowhere: no such file or folder; expected the CIFAR-10 python archive, or a folder with one "
        "sub-folder of images a class\n"
    )
    assert list(tmp_path.iterdir()) == []


def one_class(path):
    write_images(path, ["dark"])


def broken_image(path):
    (write_images(path) / "dark" / "0.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Path.mkdir, "{path}: no sub-folders; expected the CIFAR-10 python archive, or a folder with "),
        (one_class, "{path}: one class only, 'dark'; expected a folder of images for each of two or more"),
        (broken_image, "{path}/dark/0.png: a broken image, or none at all; expected PNG, JPEG or another "),
        (lambda path: path.write_bytes(b"\x1f\x8b"), "{path}: no tar archive, or a truncated one; expected cifar-10"),
    ],
    ids=["empty folder", "one class", "broken image", "truncated archive"],
)
def test_data_that_cannot_be_read_is_one_sentence_and_exit_code_2(tmp_path, capsys, make, sentence):
    path = tmp_path / "data"
    make(path)
    assert digits.main(["--data", str(path), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("digits.py: " + sentence.format(path=path))
    assert not (tmp_path / "out").exists()


def test_settings_that_do_not_fit_are_one_sentence_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for argv, sentence in {
        ("--batch", "5000", "--out", str(tmp_path)): "--batch 5000: more than the 1259 training images",
        ("--out", str(tmp_path / "file")): f"{tmp_path / 'file'}: cannot be a folder for results (File exists)",
    }.items():
        assert digits.main([*argv, "--short"]) == 2
        assert capsys.readouterr().err == f"digits.py: {sentence}\n"


@pytest.mark.parametrize("argv", ["--epochs 0", "--lr -1", "--lr nan", "--size 2", "--seed x", "--batch 0.5"])
def test_a_number_out_of_range_is_refused(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        digits.main(argv.split())
    assert stopped.value.code == 2
    assert f"argument {argv.split()[0]}: " in capsys.readouterr().err


def test_a_shifted_image_has_moved_by_at_most_an_eighth():
    images = np.zeros((200, 16, 16, 1), np.float32)
    images[:, 8, 8] = 1
    moved = digits.shifted(images, np.random.default_rng(0))
    assert moved.shape == images.shape
    _, row, column, _ = np.nonzero(moved)
    assert set(row) == set(column) == {6, 7, 8, 9, 10}


@pytest.mark.parametrize("side", [4, 7, 8, 28, 32, 100])
def test_the_network_fits_every_size(side):
    def build():
        return digits.Net(side, 3, 5, rngs=digits.nnx.Rngs(0))(np.zeros((2, side, side, 3), np.float32))

    assert jax.eval_shape(build).shape == (2, 5)


def test_smoothed_cross_entropy_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    target = np.array([[0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3], [0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3]])
    loss = digits.smoothed_cross_entropy(jax.numpy.log(p.astype(np.float32)), jax.numpy.array([0, 1]))
    np.testing.assert_allclose(loss, -(target * np.log(p)).sum(1).mean(), rtol=1e-6)


def test_pictures_are_drawn_for_one_epoch_and_for_few_images(tmp_path):
    row = {"epoch": 1, "loss": 1.0, "train": 0.5, "val_loss": 1.0, "val": 0.5, "test_loss": 1.0, "test": 0.5}
    digits.draw_curves([row], 1, tmp_path / "curves.png")
    check_picture(tmp_path / "curves.png")
    rng = np.random.default_rng(0)
    split = Split(rng.random((3, 16, 16, 3), np.float32), np.array([0, 1, 1], np.int32))
    digits.draw_predictions(split, np.array([0, 1, 0]), ("a class with a long name", "b"), tmp_path / "predictions.png")
    check_picture(tmp_path / "predictions.png")


def test_the_library_is_read_as_ascii_and_split_by_file():
    text, again = charlm.load(), charlm.load()
    for part, same in zip(text, again, strict=True):
        np.testing.assert_array_equal(part, same)
        assert part.dtype == np.uint8
        assert part.max() < charlm.CHARACTERS
        assert b"import " in part.tobytes()
    sizes = [len(part) for part in text]
    assert 0.02 < sizes[1] / sum(sizes) < 0.3
    assert text.val[:2000].tobytes() not in text.train.tobytes()


def test_windows_are_cut_from_the_text_and_the_seed_decides_which():
    text = np.arange(100, dtype=np.uint8)
    first, again, other = (np.stack(list(charlm.batches(text, seed, 5, 4, 10))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.shape == (5, 4, 11)
    assert (np.diff(first) == 1).all()
    val = charlm.val_windows(text, 100, 10)
    assert val.shape == (6, 100, 11)  # whole batches, at least WINDOWS
    assert (val.min(), val.max()) == (0, 99)


def test_the_language_model_sees_no_character_before_its_turn():
    graph, params = charlm.initial(0, 2, 32, 8)
    text = np.random.default_rng(0).integers(0, 128, (2, 8))
    changed = text.copy()
    changed[:, 5:] = (text[:, 5:] + 1) % 128
    logits = jax.jit(lambda text: charlm.nnx.merge(graph, params)(text))
    one, other = np.asarray(logits(text)), np.asarray(logits(changed))
    assert one.shape == (2, 8, 128)
    np.testing.assert_array_equal(one[:, :5], other[:, :5])
    assert (one[:, 5:] != other[:, 5:]).any(axis=2).all()


@pytest.mark.thin(default=2)
@pytest.mark.parametrize(
    ("storage", "kept"),
    [
        *((storage, "float32") for storage in charlm.STORAGE),
        *(("8bit", kept) for kept in charlm.PARAMS if kept != "float32"),
    ],
)
def test_a_step_of_the_language_model_leaves_every_dtype_as_it_was(storage, kept):
    graph, params = charlm.initial(0, 1, 32, 8)
    tx, start = charlm.keep(charlm.STORAGE[storage](charlm.method(1e-3, 0.1)), kept)
    before = jax.eval_shape(start, params)
    text = jax.ShapeDtypeStruct((2, 9), np.int32)
    after = jax.eval_shape(partial(charlm.train_step, graph, tx), *before, text)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after[:2]) == jax.tree.map(lambda x: (x.shape, x.dtype), before)
    assert {x.dtype.name for x in jax.tree.leaves(before[0])} == {"float32" if kept == "float32" else "bfloat16"}


@pytest.mark.parametrize("argv", ["--steps 0", "--width 48", "--params int8", "--storage 2bit"])
def test_an_option_of_the_language_model_out_of_range_is_refused(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        charlm.main(argv.split())
    assert stopped.value.code == 2
    assert f"argument {argv.split()[0]}: " in capsys.readouterr().err


# Slow: networks are compiled


@pytest.mark.slow
def test_the_language_model_learns_and_says_what_it_costs(capsys):
    final = charlm.main(["--short"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" held out; 22,720 parameters")
    begun = float(lines[1].split()[-1])
    assert final < begun < 2 * math.log(charlm.CHARACTERS)
    assert lines[-3] == f"validation loss {final:.4f} nats, {final / math.log(2):.4f} bits a character"
    assert lines[-1] == "16.00 bytes a parameter: 4.00 parameters, 8.00 optimiser, 4.00 gradients"


@pytest.mark.slow
def test_digits_are_learned_and_a_finished_run_is_only_evaluated_again(tmp_path, capsys):
    argv = ["--short", "--out", str(tmp_path)]
    assert digits.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1259 train, 179 val, 359 test images of 8x8x1, 10 classes"
    assert [line.split()[0] for line in lines[2:6]] == ["1", "2", "3", "4"]
    assert float(lines[-1].split()[2].rstrip("%")) > 90
    for name in ("curves.png", "predictions.png"):
        check_picture(tmp_path / name)
        (tmp_path / name).unlink()

    assert digits.main(argv) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[1].startswith(f"{tmp_path}: training finished after epoch 4; evaluating and drawing again")
    assert again[-1].partition(";")[0] == lines[-1].partition(";")[0]
    for name in ("curves.png", "predictions.png"):
        check_picture(tmp_path / name)

    assert digits.main([*argv, "--seed", "3"]) == 2
    sentence = (
        f"digits.py: {tmp_path}: holds a run with seed 0 (now 3); expected the same, or --fresh, or another --out\n"
    )
    assert capsys.readouterr().err == sentence


@pytest.mark.slow
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, capsys, monkeypatch, trained):
    data = write_images(tmp_path / "images")

    def main(out):
        argv = ["--data", str(data), "--size", "8", "--epochs", "4", "--batch", "8", "--out", str(tmp_path / out)]
        return digits.main(argv)

    assert main("whole") == 0
    capsys.readouterr()

    save = digits.Run.save

    def save_and_stop(run, checkpoints):
        save(run, checkpoints)
        if len(run.history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(digits.Run, "save", save_and_stop)
        assert main("stopped") == 130
    assert "Stopped; the same command goes on" in capsys.readouterr().err
    assert main("stopped") == 0
    assert f"{tmp_path / 'stopped'}: resuming after epoch 2 of 4." in capsys.readouterr().out

    (whole, whole_history), (resumed, resumed_history) = trained
    assert resumed_history == whole_history
    assert len(resumed) > 30
    for one, other in zip(whole, resumed, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_training_stops_early_keeps_the_best_weights_and_starts_over_when_told(tmp_path, capsys, monkeypatch, trained):
    losses = iter([9.0, 0.5, 9.0] + [9.0, 0.4, 9.0] + [9.0, 0.6, 9.0] * 3)  # training, validation, test; by epoch
    bests = []

    def evaluate(model, split):
        bests.append(leaves(digits.nnx.state(model, digits.nnx.Param)))
        return next(losses), 0.5

    data = write_images(tmp_path / "images")
    argv = ["--data", str(data), "--size", "8", "--epochs", "9", "--batch", "8", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(digits, "PATIENCE", 3)
    with monkeypatch.context() as patch:
        patch.setattr(digits, "evaluate", evaluate)
        assert digits.main(argv) == 0
    assert "with the weights of epoch 2;" in capsys.readouterr().out
    state, history = trained[0]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    second_epoch = bests[4]
    for one, other in zip(second_epoch, state, strict=False):  # "best" comes first
        np.testing.assert_array_equal(one, other)

    assert digits.main(argv) == 0
    assert "training finished after epoch 5" in capsys.readouterr().out
    assert digits.main([*argv, "--fresh", "--epochs", "1"]) == 0
    assert "finished" not in capsys.readouterr().out
    assert len(trained[2][1]) == 1


@pytest.mark.slow
def test_compare_tables_six_methods_that_all_learn(tmp_path, capsys):
    results = compare.main(["--short", "--out", str(tmp_path)])
    assert list(results) == ["SGD", "momentum", "AdaGrad", "RMSProp", "NAdam", "Adam"]
    table = capsys.readouterr().out
    for name, result in results.items():
        assert result.curve.shape == (5, 5)  # seeds, epochs
        assert len(np.unique(result.curve[:, -1])) == 5  # every seed is another run
        assert result.test.mean() > 0.75
        assert result.curve[:, -1].mean() < result.curve[:, 0].mean()
        assert f"{name:10}{compare.METHODS[name][1]:6g}   {100 * result.test.mean():10.2f} ± " in table
    check_picture(tmp_path / "compare.png")


@pytest.mark.parametrize(
    ("fault", "finds", "also"),  # what it also may find: what says the same, or what the fault did
    [
        ("none", set(), set()),
        pytest.param("eps", {"EPS_LARGE"}, set(), marks=pytest.mark.slow),
        pytest.param("lr", {"LOSS_ROSE"}, {"UPDATE_RATIO", "MOMENTUM_FIGHT", "DEAD_LEAF"}, marks=pytest.mark.slow),
        pytest.param("b2", {"V_COASTING"}, set(), marks=pytest.mark.slow),
        pytest.param("bf16", {"BF16_STALL"}, {"UPDATE_RATIO"}, marks=pytest.mark.slow),
    ],
)
def test_the_doctor_names_what_went_wrong_and_blames_nothing_else(fault, finds, also, tmp_path, capsys):
    found = trouble.main(["--short", "--fault", fault, "--out", str(tmp_path)])
    assert finds <= set(found) <= finds | also
    assert f"{len(found)} findings" in capsys.readouterr().out
    assert (tmp_path / fault / "report.html").stat().st_size > 10**6
    with pytest.raises(SystemExit) as refused:
        trouble.main(["--short", "--fault", fault, "--out", str(tmp_path)])
    assert refused.value.code == 2
    assert "holds a log already" in capsys.readouterr().err
