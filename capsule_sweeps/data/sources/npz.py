"""One .npz file with the arrays train_images, train_labels, test_images, test_labels and, if wanted, val_images and
val_labels, as MedMNIST publishes its data sets.

Shapes: N images in a split, C channels, H rows, W columns. What the file claims is checked before it is read.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from capsule_sweeps.data.cache import Decoded, Labels
from capsule_sweeps.display import counted, listed

log = logging.getLogger(__name__)

LAYOUT = "train_images, train_labels, test_images, test_labels and, if wanted, val_images and val_labels"
DEFLATE = 1100  # no file is compressed to less than this part
Shape = tuple[int, ...]


def list_source(dataset: Any, data_dir: Path) -> Any:
    """The path, size and time of the file. Raises ValueError if it is missing."""
    path = _path(dataset.root)
    status = _status(path)
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def read_source(dataset: Any, data_dir: Path) -> Decoded:
    """The images and labels of the file. Raises ValueError for arrays that do not fit each other."""
    path = _path(dataset.root)
    found = _open(path)
    splits = {}
    for split in found:
        images = _read(path, f"{split}_images")
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        splits[split] = images, _labels(path, split)
    labels = {split: labels for split, (_, labels) in splits.items()}
    classes = tuple(map(str, range(_num_classes(path, labels))))
    for split, present in ((split, set(found.tolist())) for split, found in labels.items()):
        if absent := [name for name in classes if int(name) not in present]:
            log.warning("%s: %s_labels has no image of class %s.", path, split, listed(absent, 20))
    return Decoded(splits["train"], splits["test"], classes, val=splits.get("val"))


def measure(root: Path) -> dict[str, Any]:
    """name, num_classes, channels, image_size and val_size (the number of validation images, or 0) of a file.

    Reads the labels, and of the images the header only. Raises ValueError for a file that cannot be read.
    """
    status = _status(root)
    return dict(_measured(root, status.st_size, status.st_mtime_ns))


@lru_cache  # every configuration of a sweep asks several times
def _measured(path: Path, num_bytes: int, time: int) -> dict[str, Any]:
    shapes = _open(path)
    shape = shapes["train"]
    return {
        "name": os.fsencode(path.stem).decode(errors="replace"),
        "num_classes": _num_classes(path, {split: _labels(path, split) for split in shapes}),
        "channels": shape[3] if len(shape) == 4 else 1,
        "image_size": shape[1],
        "val_size": shapes["val"][0] if "val" in shapes else 0,
    }


def _path(root: str | None) -> Path:
    if not root:
        raise ValueError("dataset.source=npz needs a file; set dataset.root=FILE.npz.")
    return Path(root)


def _status(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise ValueError(f"dataset.root={path} cannot be read ({error.strerror}); set it to an .npz file.") from error


def _open(path: Path) -> dict[str, Shape]:
    """split → shape of its images, of a file whose arrays agree with each other by what their headers say."""
    headers = _headers(path)
    shapes: dict[str, Shape] = {}
    for split in ("train", "test", *(["val"] if {"val_images", "val_labels"} & headers.keys() else [])):
        for name in (f"{split}_images", f"{split}_labels"):
            if name not in headers:
                raise ValueError(f"{path} has no {name}; it must contain {LAYOUT}.")
        (shape, dtype), (label_shape, label_dtype) = (headers[f"{split}_{kind}"] for kind in ("images", "labels"))
        if dtype != np.uint8 or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)):
            raise ValueError(
                f"{path}: {split}_images is {_words(shape, dtype)}; it must be uint8, and (N, H, W) or (N, H, W, C) "
                "with 1 channel (gray) or 3 (RGB): convert it."
            )
        if shape[1] != shape[2] or 0 in shape:
            raise ValueError(
                f"{path}: {split}_images is {_words(shape, dtype)}; images must be square: crop or pad them."
            )
        if label_dtype.kind not in "iu" or label_shape[1:] not in ((), (1,)) or not label_shape:
            raise ValueError(
                f"{path}: {split}_labels is {_words(label_shape, label_dtype)}; it must be integers, and (N,) or "
                "(N, 1): one class per image."
            )
        if label_shape[0] != shape[0]:
            raise ValueError(
                f"{path}: {split}_labels has {counted(label_shape[0], 'label')} for "
                f"{counted(shape[0], 'image')}; each image needs one."
            )
        shapes[split] = shape
        if _pixels(shape) != _pixels(shapes["train"]):
            raise ValueError(
                f"{path}: {split}_images is {_words(shape, dtype)}, but train_images is "
                f"{_words(shapes['train'], dtype)}; all images must be alike."
            )
    return shapes


def _pixels(shape: Shape) -> Shape:
    return (*shape[1:], 1)[:3]  # (N, H, W) is (N, H, W, 1)


def _words(shape: Shape, dtype: np.dtype[Any]) -> str:
    return f"{dtype} of shape {shape}"


def _headers(path: Path) -> dict[str, tuple[Shape, np.dtype[Any]]]:
    """Array → shape and type. Only headers are read; they must agree with the sizes that the zip states."""
    headers = {}
    with _explained(path), ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name.removesuffix("_images").removesuffix("_labels") not in ("train", "test", "val"):
                continue
            with archive.open(entry) as file:
                shape, dtype = _header(file)
                start = file.tell()
            if dtype.hasobject:
                raise ValueError(f"{name} holds Python objects, not numbers")
            stated, most = start + prod(shape) * dtype.itemsize, DEFLATE * (entry.compress_size + 1)
            if stated != entry.file_size or entry.file_size > most:
                raise ValueError(f"{name} is not as large as it states")
            headers[name] = shape, dtype
    return headers


def _header(file: IO[bytes]) -> tuple[Shape, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format is not that of numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {shape} is negative")
    return shape, dtype


def _read(path: Path, name: str) -> NDArray[Any]:
    with _explained(path), ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _labels(path: Path, split: str) -> Labels:
    return _read(path, f"{split}_labels").reshape(-1).astype(np.int64)


def _num_classes(path: Path, labels: dict[str, Labels]) -> int:
    """Raises ValueError unless the training labels are 0, 1, 2, … without a gap, and no split has others."""
    present = np.unique(labels["train"])
    if len(present) < 2 or not np.array_equal(present, np.arange(len(present))):
        shown = ", ".join(map(str, present[:5])) + (", …" if len(present) > 5 else "")
        raise ValueError(
            f"{path}: train_labels has the classes {shown}; it must have two or more, numbered from 0 without a gap."
        )
    for split, values in labels.items():
        if odd := np.setdiff1d(values, present).tolist():
            raise ValueError(f"{path}: {split}_labels has the class {odd[0]}, of which there is no training image.")
    return len(present)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What is raised for a damaged file, as one sentence that names it."""
    try:
        yield
    except Exception as error:  # zipfile, zlib and numpy have many
        reason = str(getattr(error, "strerror", None) or error or "it ends too early").split("\n")[0].rstrip(".")
        raise ValueError(
            f"dataset.root={path} cannot be read ({reason}); it must be an .npz file as numpy.savez writes it, "
            f"with {LAYOUT}."
        ) from error
