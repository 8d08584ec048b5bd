"""Labelled images for the examples: scikit-learn's digits, CIFAR-10, or a folder of images.

>>> data = load(None, size=32, seed=0)
>>> data.train.images.shape, data.test.labels.dtype, data.classes[:2]
((1259, 8, 8, 1), dtype('int32'), ('0', '1'))
"""

import io
import pickle
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image, ImageOps

SHARES = {"val": 0.1, "test": 0.2}  # of every class; for the splits that the data does not bring itself

KINDS = "the CIFAR-10 python archive, or a folder with one sub-folder of images a class"

BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR_FILES = (*BATCHES, "test_batch", "batches.meta")
CIFAR_LIMIT = 64 << 20  # bytes; a batch has 31 MB

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not all that Pillow has: its EPS starts Ghostscript
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class DataError(ValueError):
    """What is at a path cannot be learned from; the message is one sentence: path, what is wrong, what was expected."""


class Split(NamedTuple):
    """Images with values in [0, 1], and for each the index of its class."""

    images: Float32[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]


class Dataset(NamedTuple):
    """What to learn from (train), to choose by (val) and to report (test)."""

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]


def load(path: str | Path | None, size: int, seed: int) -> Dataset:
    """Reads whichever of the three kinds of data is at a path.

    Args:
      path: None for scikit-learn's digits; the CIFAR-10 python archive (`cifar-10-python.tar.gz`, or the folder that it
        unpacks to); or a folder with one sub-folder of images a class, optionally below `train/`, `val/` and `test/`.
      size: side in pixels to which an image folder's images are resized; digits stay 8 x 8 and CIFAR-10 32 x 32.
      seed: of the stratified split; the same seed gives the same split.

    Raises:
      DataError: if the path holds none of these, or something in it cannot be read.
    """
    if path is None:
        return _digits(seed)
    path = Path(path)
    try:
        if path.is_file():
            return _cifar(_from_archive(path), path, seed)
        if not path.is_dir():
            raise DataError(f"{path}: no such file or folder; expected {KINDS}")
        for folder in (path, path / "cifar-10-batches-py"):
            if any((folder / name).is_file() for name in CIFAR_FILES):
                return _cifar(_from_folder(folder), folder, seed)
        return _image_folder(path, size, seed)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


def _digits(seed: int) -> Dataset:
    from sklearn.datasets import load_digits  # here, since it takes a second to import and the other kinds do without

    digits: Any = load_digits()
    pool = Split((digits.images[..., None] / 16).astype(np.float32), digits.target.astype(np.int32))
    return _dataset(pool, {}, tuple(map(str, digits.target_names)), "digits", seed)


def _dataset(pool: Split, given: dict[str, Split], classes: tuple[str, ...], path: object, seed: int) -> Dataset:
    """Cuts the splits that are not given out of the pool, at random, with their share of every class."""
    shares = {name: share for name, share in SHARES.items() if name not in given}
    rng = np.random.default_rng(seed)
    chosen: dict[str, list[np.ndarray]] = {"train": [], **{name: [] for name in shares}}
    for label in np.unique(pool.labels):
        members = rng.permutation(np.flatnonzero(pool.labels == label))
        if len(members) < len(chosen):
            raise DataError(
                f"{path}: the class {classes[label]!r} has {len(members)} image(s); "
                f"expected at least {len(chosen)}, one each for {', '.join(chosen)}"
            )
        ends = np.cumsum([max(1, round(share * len(members))) for share in shares.values()])
        for name, part in zip((*shares, "train"), np.split(members, ends), strict=True):
            chosen[name].append(part)
    cut = {name: rng.permutation(np.concatenate(parts)) for name, parts in chosen.items()}
    splits = {name: Split(pool.images[index], pool.labels[index]) for name, index in cut.items()} | given
    return Dataset(**splits, classes=classes)


# CIFAR-10


def _from_folder(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in CIFAR_FILES if (folder / name).is_file()}


def _from_archive(path: Path) -> dict[str, bytes]:
    """The archive's files, read into memory: no member is written to disk, so none can choose where."""
    files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in CIFAR_FILES and member.isfile():
                    if member.size > CIFAR_LIMIT:
                        raise DataError(f"{path}: {name} has {member.size} bytes; expected at most {CIFAR_LIMIT}")
                    content = archive.extractfile(member)
                    files[name] = content.read() if content else b""
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: no tar archive, or a truncated one; expected cifar-10-python.tar.gz") from error
    return files


class _Unpickler(pickle.Unpickler):
    """Reads what the CIFAR-10 files hold (dicts, lists, numbers, bytes, uint8 arrays), and refuses all else.

    A pickle is a program that calls whatever it names. Each of the four names in such files stands here for a function
    that can do nothing but build a uint8 array or bytes.
    """

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name in ("numpy.core.multiarray", "numpy._core.multiarray") and global_name == "_reconstruct":
            return _empty_array
        if (module_name, global_name) == ("numpy", "ndarray"):
            return "ndarray"  # only ever an argument of _reconstruct
        if (module_name, global_name) == ("numpy", "dtype"):
            return _uint8
        if (module_name, global_name) == ("_codecs", "encode"):
            return _latin1
        raise DataError(f"refuses to load {module_name + '.' + global_name!r}")


def _empty_array(*_: object) -> UInt8[np.ndarray, " 0"]:
    return np.empty(0, np.uint8)  # __setstate__ fills it


def _uint8(name: bytes | str, *_: object) -> np.dtype:
    if name not in ("u1", b"u1"):
        raise DataError(f"refuses to load an array of {name!r}")
    return np.dtype(np.uint8, copy=True)  # a copy: __setstate__ is called on it


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise DataError(f"refuses to load text in {encoding!r}")
    return text.encode("latin1")


def _unpickle(content: bytes, path: Path) -> dict[bytes, Any]:
    expected = "expected a file of the CIFAR-10 python archive: numbers, names and uint8 arrays"
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path}: {error}; {expected}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path}: a truncated or damaged pickle; {expected}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}; {expected}")
    return value


def _cifar(files: dict[str, bytes], path: Path, seed: int) -> Dataset:
    missing = [name for name in CIFAR_FILES if name not in files]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}; expected the files of the CIFAR-10 python archive")
    names = _unpickle(files["batches.meta"], path / "batches.meta").get(b"label_names")
    if not (isinstance(names, list) and len(names) > 1 and all(isinstance(name, bytes) for name in names)):
        raise DataError(f"{path / 'batches.meta'}: no class names; expected a list of them under 'label_names'")
    splits = {name: _batch(_unpickle(files[name], path / name), len(names), path / name) for name in CIFAR_FILES[:-1]}
    pool = Split(*(np.concatenate(parts) for parts in zip(*(splits[name] for name in BATCHES), strict=True)))
    classes = tuple(name.decode(errors="replace") for name in names)
    return _dataset(pool, {"test": splits["test_batch"]}, classes, path, seed)


def _batch(batch: dict[bytes, Any], classes: int, path: Path) -> Split:
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072):
        raise DataError(f"{path}: no images; expected rows of 3072 bytes under 'data'")
    if not (isinstance(labels, list) and len(labels) == len(data) and all(label in range(classes) for label in labels)):
        raise DataError(f"{path}: no fitting labels; expected {len(data)} numbers below {classes} under 'labels'")
    pixels = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(_scaled(pixels), np.asarray(labels, np.int32))


def _scaled(pixels: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n h w c"]:
    return np.divide(pixels, np.float32(255), dtype=np.float32)


# Image folders


def _image_folder(path: Path, size: int, seed: int) -> Dataset:
    if not (path / "train").is_dir():
        classes = _classes(path)
        pixels = {"train": _read_classes(path, classes, size)}
    else:
        classes = _classes(path / "train")
        names = [name for name in ("train", "val", "test") if (path / name).is_dir()]
        pixels = {name: _read_classes(path / name, classes, size) for name in names}
    # Grey pictures come in grey files and in colour files; what counts is whether any pixel has a colour.
    channels = 3 if any((images != images[..., :1]).any() for images, _ in pixels.values()) else 1
    splits = {name: Split(_scaled(images[..., :channels]), labels) for name, (images, labels) in pixels.items()}
    return _dataset(splits.pop("train"), splits, classes, path, seed)


def _folders(root: Path) -> list[str]:
    return sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _classes(root: Path) -> tuple[str, ...]:
    classes = _folders(root)
    if not classes:
        raise DataError(f"{root}: no sub-folders; expected {KINDS}")
    if len(classes) == 1:
        raise DataError(f"{root}: one class only, {classes[0]!r}; expected a folder of images for each of two or more")
    return tuple(classes)


def _read_classes(
    root: Path, classes: tuple[str, ...], size: int
) -> tuple[UInt8[np.ndarray, "n size size 3"], Int32[np.ndarray, " n"]]:
    images, labels = [], []
    for folder in _folders(root):
        if folder not in classes:
            raise DataError(f"{root / folder}: a class that train/ lacks; expected one of {', '.join(classes)}")
        files = sorted(f for f in (root / folder).iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
        if not files:
            raise DataError(f"{root / folder}: no images; expected files that end in {', '.join(SUFFIXES)}")
        images += [_read_image(file, size) for file in files]
        labels += [classes.index(folder)] * len(files)
    if not images:
        raise DataError(f"{root}: no sub-folders; expected one folder of images a class, named as in train/")
    return np.stack(images), np.asarray(labels, np.int32)


def _read_image(file: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The picture upright, without transparency, squeezed to a square."""
    try:
        with Image.open(file, formats=FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("I", "F"):
                raise ValueError("pixels of 32 bits have no agreed range")
            if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode == "P":  # straight to RGB, Pillow warns of a palette's transparency
                image = image.convert("RGBA")
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        expected = "expected PNG, JPEG or another 8- or 16-bit format that Pillow reads"
        raise DataError(f"{file}: a broken image, or none at all; {expected}") from error
