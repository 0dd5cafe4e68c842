"""The decoded data set as one file, written once by one process and memory-mapped by all.

Shapes: N images in a split, C channels, H rows, W columns.

The file begins with one line of JSON, padded so that the arrays behind it are aligned: labels and images of the
training set, labels and images of the test set. Mean and standard deviation of the training images are in that line,
measured in whole numbers, so that they are the same on every machine. The file's name holds a key that follows from the
listing of the source (names, sizes, times). A file with an outdated key is left alone, since a run may still have it
mapped; whoever needs the space may delete the folder `.cache` when nothing runs.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

CACHE_FORMAT = 2  # part of the key: raise it when the layout of the file or a reader's result changes
ALIGNMENT = 64


@dataclass(frozen=True)
class Decoded:
    """The whole data set: images (N, C, H, W) uint8 and labels (N,) int64 of both splits, and the classes' names."""

    train: tuple[Images, Labels]
    test: tuple[Images, Labels]
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()  # of each channel of the training images, black 0 and white 1; else it is measured
    std: tuple[float, ...] = ()

    def sha256(self) -> str:
        """The hash of all shapes, labels and images."""
        digest = hashlib.sha256()
        for array in _arrays(self):
            digest.update(str(array.shape).encode())
            digest.update(array.data)
        return digest.hexdigest()


def open_decoded(
    stem: str, data_dir: Path, list_source: Callable[[], Any], read_source: Callable[[], tuple[Decoded, Any]]
) -> tuple[Decoded, str, Path]:
    """The memory-mapped data, their sha256 and their file `<stem>-<key>.bin`, which is made first if it is missing.

    It lies in `<data_dir>/.cache` or, where that cannot be written, in the user's cache folder. `list_source` returns
    the listing (JSON values), `read_source` the data and the listing they belong to; of several processes that start
    together one reads. Raises ValueError when the file can be written nowhere, and whatever the two functions raise.
    """
    folders = (data_dir / ".cache", _user_cache_folder())
    listing = list_source()
    for folder in folders:
        path = _path(folder, stem, listing)
        if (opened := _read(path)) is not None:
            return *opened, path

    for folder in folders:
        lock = FileLock(folder / f"{stem}.lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError:
            continue
        try:
            path = _path(folder, stem, list_source())
            if (opened := _read(path)) is not None:  # made by another process while this one waited
                return *opened, path
            decoded, listing = read_source()
            path = _path(folder, stem, listing)
            _write(path, decoded)
            opened = _read(path)
            assert opened is not None, path
            return *opened, path
        except BaseException:
            with suppress(OSError):  # nothing came of it: leave nothing, if nobody else uses the folder
                Path(lock.lock_file).unlink()
                folder.rmdir()
            raise
        finally:
            lock.release()
    raise ValueError(
        f"The decoded data can be stored neither in {folders[0]} nor in {folders[1]}; "
        "set data_dir or XDG_CACHE_HOME to a folder that can be written."
    )


def _user_cache_folder() -> Path:
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "capsule_sweeps"


def _path(folder: Path, stem: str, listing: Any) -> Path:
    key = hashlib.sha256(json.dumps([CACHE_FORMAT, listing]).encode()).hexdigest()[:16]
    return folder / f"{stem}-{key}.bin"


def _arrays(decoded: Decoded) -> list[NDArray[Any]]:
    """In the order of the file."""
    return [np.ascontiguousarray(a) for images, labels in (decoded.train, decoded.test) for a in (labels, images)]


def measure(images: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of (N, C, H, W), to four digits; std is never 0."""
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, np.int64)
        for first in range(0, len(images), 1000):  # in parts, which need little memory
            counts += np.bincount(images[first : first + 1000, channel].ravel(), minlength=256)
        total, values = int(counts.sum()), np.arange(256)
        first_moment, second_moment = int(counts @ values), int(counts @ values**2)
        variance = (total * second_moment - first_moment**2) / total**2  # whole numbers, rounded once
        means.append(round(first_moment / total / 255, 4))
        stds.append(max(round(variance**0.5 / 255, 4), 1e-4))
    return means, stds


def _write(path: Path, decoded: Decoded) -> None:
    header: dict[str, Any] = {
        "train": decoded.train[0].shape,
        "test": decoded.test[0].shape,
        "classes": decoded.classes,
        "sha256": decoded.sha256(),
    }
    header["mean"], header["std"] = (decoded.mean, decoded.std) if decoded.mean else measure(decoded.train[0])
    line = json.dumps(header).encode()
    line += b" " * (-(len(line) + 1) % ALIGNMENT) + b"\n"
    beside = path.with_suffix(".tmp")  # one name is enough: the writer holds the lock
    try:
        with open(beside, "wb") as file:
            file.write(line)
            for array in _arrays(decoded):
                file.write(array.data)
                file.write(b"\0" * (-array.nbytes % ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise ValueError(
            f"The decoded data could not be written to {path} ({error.strerror}); "
            "make room there, or set data_dir to another folder."
        ) from error


def _read(path: Path) -> tuple[Decoded, str] | None:
    """Views of the file and the sha256 it states; None if it is missing, cut off or garbled, then it is made anew."""
    try:
        # Copy on write: torch warns of arrays that cannot be written to, and this way nobody can harm the file.
        content = np.memmap(path, dtype=np.uint8, mode="c")
        start = content[: 1 << 20].tobytes().index(b"\n") + 1
        header = json.loads(content[:start].tobytes())
        splits = []
        for shape in (header["train"], header["test"]):
            num_bytes = 8 * shape[0]
            labels = np.asarray(content[start : start + num_bytes]).view(np.int64)
            start += num_bytes + -num_bytes % ALIGNMENT
            num_bytes = int(np.prod(shape))
            images = np.asarray(content[start : start + num_bytes]).reshape(shape)
            start += num_bytes + -num_bytes % ALIGNMENT
            if labels.min() < 0 or labels.max() >= len(header["classes"]):
                return None
            splits.append((images, labels))
        if start != len(content):
            return None
        mean, std = tuple(header["mean"]), tuple(header["std"])
        return Decoded(splits[0], splits[1], tuple(header["classes"]), mean, std), header["sha256"]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
