"""What the examples' loaders read, and the sentence with which they refuse the rest."""

import io
import os
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import loaders

NAMES = [b"airplane", b"automobile", b"bird"]
PER_BATCH = 12  # images; classes take turns


def rows(seed, n=PER_BATCH):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def turns(n=PER_BATCH):
    return [i % len(NAMES) for i in range(n)]


def cifar_files():
    """The archive's files, a batch's seed being its number, the test batch's 6."""
    files = {"batches.meta": {b"label_names": NAMES, b"num_cases_per_batch": PER_BATCH, b"num_vis": 3072}}
    for seed, name in enumerate(loaders.CIFAR_FILES[:6], 1):
        files[name] = {b"batch_label": name.encode(), b"data": rows(seed), b"labels": turns(), b"filenames": [b"x"]}
    return {name: pickle.dumps(value, protocol=2) for name, value in files.items()}


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path, files, prefix="cifar-10-batches-py/"):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_images(root, classes, n=10, size=(9, 7), mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
            Image.fromarray(pixels, "RGBA").convert(mode).save(root / name / f"{i}.png")
    return root


def refusal(path, size=8):
    with pytest.raises(loaders.DataError) as caught:
        loaders.load(path, size, seed=0)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def check(data, side, channels):
    """The promises of Dataset that hold for all data."""
    for split in data[:3]:
        assert split.images.shape == (len(split.labels), side, side, channels)
        assert split.images.dtype == np.float32
        assert split.labels.dtype == np.int32
        assert 0 <= split.images.min() < split.images.max() <= 1
        assert set(split.labels) == set(range(len(data.classes)))


def test_digits_are_split_by_class_without_overlap():
    data = loaders.load(None, size=32, seed=0)
    check(data, 8, 1)
    assert data.classes == tuple("0123456789")
    labels = np.concatenate([split.labels for split in data[:3]])
    for share, split in zip((0.7, 0.1, 0.2), data[:3], strict=True):
        np.testing.assert_allclose(np.bincount(split.labels), share * np.bincount(labels), atol=1)
    images = np.concatenate([split.images for split in data[:3]]).reshape(-1, 64)
    np.testing.assert_array_equal(np.sort(16 * images, axis=0), np.sort(load_digits().data, axis=0))


def test_a_split_is_decided_by_its_seed():
    first, again, other = (loaders.load(None, size=8, seed=seed).test.images for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("kind", ["folder", "parent folder", "archive"])
def test_cifar_is_read_from_its_folder_and_from_its_archive(tmp_path, kind):
    path = (
        write_archive(tmp_path / "cifar-10-python.tar.gz", cifar_files())
        if kind == "archive"
        else write_folder(tmp_path / "data" / "cifar-10-batches-py", cifar_files())
    )
    before = sorted(tmp_path.rglob("*"))
    data = loaders.load(path.parent if kind == "parent folder" else path, size=8, seed=0)
    check(data, 32, 3)
    assert data.classes == ("airplane", "automobile", "bird")
    assert [len(split.labels) for split in data[:3]] == [54, 6, 12]
    assert list(data.test.labels) == turns()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cifar_row_is_red_then_green_then_blue(tmp_path):
    data = loaders.load(write_folder(tmp_path / "data", cifar_files()), size=8, seed=0)
    first = rows(6)[0]
    np.testing.assert_array_equal(data.test.images[0, 0, :5, 0], first[:5] / np.float32(255))
    np.testing.assert_array_equal(data.test.images[0, 0, :5, 1], first[1024:1029] / np.float32(255))
    np.testing.assert_array_equal(data.test.images[0, 1, :5, 2], first[2080:2085] / np.float32(255))


def test_the_original_pickles_of_python_2_are_read(tmp_path):
    def string(text):
        return b"U" + bytes([len(text)]) + text

    def as_python_2_wrote_it(data, labels):
        return (
            b"\x80\x02}("
            + string(b"data")
            + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
            + string(b"b")
            + b"\x87R(K\x01"
            + b"".join(b"M" + struct.pack("<H", n) for n in data.shape)
            + b"\x86cnumpy\ndtype\n"
            + string(b"u1")
            + b"K\x00K\x01\x87R(K\x03"
            + string(b"|")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
            + struct.pack("<i", data.size)
            + data.tobytes()
            + b"tb"
            + string(b"labels")
            + b"]("
            + b"".join(b"K" + bytes([label]) for label in labels)
            + b"eu."
        )

    files = cifar_files()
    files["test_batch"] = as_python_2_wrote_it(rows(6), turns())
    data = loaders.load(write_folder(tmp_path / "data", files), size=8, seed=0)
    np.testing.assert_array_equal(data.test.images[:, 0, 0, 0], rows(6)[:, 0] / np.float32(255))


class Call:
    """Pickles to a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "named"),
    [(os.mkdir, "posix.mkdir"), (exec, "__builtin__.exec"), (np.frombuffer, "numpy.frombuffer"), (Path, "pathlib.")],
    ids=["mkdir", "exec", "frombuffer", "Path"],
)
def test_a_pickle_that_calls_something_is_refused_by_name_and_not_run(tmp_path, function, named):
    argument = {exec: f"import os; os.mkdir({str(tmp_path / 'made')!r})"}.get(function, str(tmp_path / "made"))
    files = cifar_files()
    files["data_batch_3"] = pickle.dumps({b"data": Call(function, argument), b"labels": []}, protocol=2)
    sentence = refusal(write_folder(tmp_path / "data", files))
    assert sentence.startswith(f"{tmp_path / 'data' / 'data_batch_3'}: refuses to load '{named}")
    assert sentence.endswith("expected a file of the CIFAR-10 python archive: numbers, names and uint8 arrays")
    assert not (tmp_path / "made").exists()


def test_an_array_of_objects_is_refused(tmp_path):
    files = cifar_files() | {"test_batch": pickle.dumps({b"data": np.array([{}, []], object)}, protocol=2)}
    assert "refuses to load an array of 'O8'" in refusal(write_folder(tmp_path / "data", files))


def test_a_pickle_of_something_else_is_refused(tmp_path):
    cases = {
        "data_batch_1": (pickle.dumps([1, 2], protocol=2), "holds a list"),
        "data_batch_2": (cifar_files()["data_batch_2"][:-500], "a truncated or damaged pickle"),
        "data_batch_3": (pickle.dumps({b"data": rows(0)[:, :-1], b"labels": turns()}, protocol=2), "no images"),
        "data_batch_4": (pickle.dumps({b"data": rows(0), b"labels": [3] * PER_BATCH}, protocol=2), "no fitting labels"),
        "data_batch_5": (pickle.dumps({b"data": rows(0), b"labels": turns(5)}, protocol=2), "no fitting labels"),
        "batches.meta": (pickle.dumps({}, protocol=2), "no class names"),
    }
    for name, (content, fault) in cases.items():
        folder = write_folder(tmp_path / f"with other {name}", cifar_files() | {name: content})
        assert refusal(folder).startswith(f"{folder / name}: {fault}")


def test_a_missing_batch_is_named(tmp_path):
    files = {name: content for name, content in cifar_files().items() if name not in ("data_batch_2", "batches.meta")}
    for path in (write_folder(tmp_path / "data", files), write_archive(tmp_path / "data.tar.gz", files)):
        assert refusal(path) == (
            f"{path}: lacks data_batch_2, batches.meta; expected the files of the CIFAR-10 python archive"
        )


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_archive_is_refused(tmp_path, share):
    path = write_archive(tmp_path / "cifar.tar.gz", cifar_files())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(path) == f"{path}: no tar archive, or a truncated one; expected cifar-10-python.tar.gz"


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a tar")
    assert refusal(path) == f"{path}: no tar archive, or a truncated one; expected cifar-10-python.tar.gz"


def test_a_member_far_larger_than_a_batch_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "CIFAR_LIMIT", 1000)
    path = write_archive(tmp_path / "cifar.tar.gz", cifar_files())
    assert "expected at most 1000" in refusal(path)


def test_no_member_is_written_to_where_its_name_points(tmp_path):
    (tmp_path / "inside").mkdir()
    path = write_archive(tmp_path / "inside" / "cifar.tar.gz", cifar_files(), prefix="../")
    loaders.load(path, size=8, seed=0)
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]


def test_a_flat_folder_is_split_by_class(tmp_path):
    data = loaders.load(write_images(tmp_path / "photos", ["cat", "dog"], n=20), size=12, seed=0)
    check(data, 12, 3)
    assert data.classes == ("cat", "dog")
    assert [len(split.labels) for split in data[:3]] == [28, 4, 8]


@pytest.mark.parametrize("brought", [["train"], ["train", "test"], ["train", "val"], ["train", "val", "test"]])
def test_splits_that_a_folder_brings_are_kept_and_the_others_cut_from_train(tmp_path, brought):
    for seed, name in enumerate(brought):
        write_images(tmp_path / name, ["cat", "dog"], n=10, seed=seed)
    data = loaders.load(tmp_path, size=8, seed=0)
    check(data, 8, 3)
    cut = {"val": 2, "test": 4}
    expected = {name: 20 if name in brought else n for name, n in cut.items()}
    assert {"val": len(data.val.labels), "test": len(data.test.labels)} == expected
    assert len(data.train.labels) == 20 - sum(n for name, n in cut.items() if name not in brought)


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("LA", 1), ("1", 1), ("I;16", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)]
)
def test_every_kind_of_png_is_read_and_grey_ones_keep_one_channel(tmp_path, mode, channels):
    base = "L" if mode == "I;16" else mode
    root = write_images(tmp_path / "photos", ["cat", "dog"], n=5, mode=base)
    if mode == "I;16":
        for file in root.rglob("*.png"):
            Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 257).save(file)
    check(loaders.load(root, size=8, seed=0), 8, channels)


def test_one_coloured_image_makes_all_of_them_coloured(tmp_path):
    write_images(tmp_path, ["cat"], mode="L")
    write_images(tmp_path, ["dog"], mode="RGBA")
    check(loaders.load(tmp_path, size=8, seed=0), 8, 3)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    for name in ("eight", "sixteen"):
        (tmp_path / name).mkdir()
        for i in range(5):
            grey = np.full((8, 8), 40 * i, np.uint8 if name == "eight" else np.uint16)
            Image.fromarray(grey if name == "eight" else grey * 257).save(tmp_path / name / f"{i}.png")
    data = loaders.load(tmp_path, size=8, seed=0)
    images, labels = (np.concatenate([split[i] for split in data[:3]]) for i in (0, 1))
    eight, sixteen = (sorted(images[labels == label, 0, 0, 0]) for label in (0, 1))
    np.testing.assert_array_equal(sixteen, eight)


def test_other_files_beside_the_images_are_ignored(tmp_path):
    write_images(tmp_path, ["cat", "dog"])
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"?")
    (tmp_path / "README").write_text("about cats and dogs")
    (tmp_path / ".cache").mkdir()
    assert loaders.load(tmp_path, size=8, seed=0).classes == ("cat", "dog")


def test_a_wrong_path_is_named(tmp_path):
    path = tmp_path / "nowhere"
    assert refusal(path) == f"{path}: no such file or folder; expected {loaders.KINDS}"


def test_an_empty_folder_is_refused(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}: no sub-folders; expected {loaders.KINDS}"
    (tmp_path / "train").mkdir()
    assert refusal(tmp_path) == f"{tmp_path / 'train'}: no sub-folders; expected {loaders.KINDS}"


def test_a_single_class_is_refused(tmp_path):
    write_images(tmp_path, ["cat"])
    assert refusal(tmp_path) == (
        f"{tmp_path}: one class only, 'cat'; expected a folder of images for each of two or more"
    )


def test_a_class_without_images_is_refused(tmp_path):
    write_images(tmp_path, ["cat", "dog"])
    (tmp_path / "eel").mkdir()
    assert refusal(tmp_path).startswith(f"{tmp_path / 'eel'}: no images; expected files that end in .bmp, ")


def test_a_class_too_small_to_split_is_refused(tmp_path):
    write_images(tmp_path, ["cat"])
    write_images(tmp_path, ["dog"], n=2)
    assert refusal(tmp_path) == (
        f"{tmp_path}: the class 'dog' has 2 image(s); expected at least 3, one each for train, val, test"
    )


def test_a_test_class_that_training_lacks_is_refused(tmp_path):
    write_images(tmp_path / "train", ["cat", "dog"])
    write_images(tmp_path / "test", ["cat", "eel"])
    assert refusal(tmp_path) == (f"{tmp_path / 'test' / 'eel'}: a class that train/ lacks; expected one of cat, dog")


@pytest.mark.parametrize("fault", ["empty", "text", "truncated", "32 bits"])
def test_a_broken_image_is_named(tmp_path, fault):
    write_images(tmp_path, ["cat", "dog"], size=(64, 64))
    file = tmp_path / "dog" / "3.png"
    if fault == "32 bits":
        file = file.with_suffix(".tif")
        Image.fromarray(np.ones((8, 8), np.float32)).save(file)
    else:
        file.write_bytes({"empty": b"", "text": b"hello", "truncated": file.read_bytes()[:5000]}[fault])
    assert refusal(tmp_path) == (
        f"{file}: a broken image, or none at all; expected PNG, JPEG or another 8- or 16-bit format that Pillow reads"
    )
