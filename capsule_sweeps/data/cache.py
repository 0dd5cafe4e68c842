"""The decoded data set as a folder of .npy files, written once by one process and memory-mapped by all.

Shapes: N images in a split, C channels, H rows, W columns.

The folder holds images and labels of each split, and about.json with the names of the classes and the mean and standard
deviation of the training images, measured in whole numbers, so that they are the same on every machine. The folder's
name ends in a key that follows from the listing of the source (names, sizes, times). A folder with an outdated key is
left alone, since a run may still have it mapped; to free its space, delete `.cache` when nothing runs.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from capsule_sweeps.data.cache_files import Arrays, is_refused, map_arrays, read_about, sha256, warn, write
from capsule_sweeps.data.cache_lock import acquire

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

CACHE_FORMAT = 3  # part of the key: raise it when the layout of the folder or a reader's result changes
TRIES = 3


@dataclass(frozen=True)
class Decoded:
    """The whole data set: images (N, C, H, W) uint8 and labels (N,) int64 of its splits, and the classes' names."""

    train: tuple[Images, Labels]
    test: tuple[Images, Labels]
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()  # of each channel of the training images, black 0 and white 1; else it is measured
    std: tuple[float, ...] = ()
    val: tuple[Images, Labels] | None = None  # where the source has validation images of its own

    def splits(self) -> dict[str, tuple[Images, Labels]]:
        """Split → images (N, C, H, W) and labels."""
        return {"train": self.train, "test": self.test} | ({} if self.val is None else {"val": self.val})

    def arrays(self) -> Arrays:
        """By the names of their files, in the order in which they are hashed."""
        return {
            f"{split}_{kind}": array
            for split, (images, labels) in self.splits().items()
            for kind, array in (("labels", labels), ("images", images))
        }

    def sha256(self) -> str:
        """The hash of all shapes, labels and images."""
        return sha256(self.arrays())


class Identity(NamedTuple):
    """The identity of a dataset: the hash of its images and labels, and the names of its labels."""

    sha256: str
    classes: tuple[str, ...]


def stored_identity(stem: str, data_dir: Path, listing: Any) -> Identity | None:
    """That of the cached data with this listing, without a look at the images; None if they are not cached."""
    for path, trusted in _places(stem, data_dir, listing):
        with suppress(Exception):  # a damaged one
            about = read_about(path, trusted)
            return Identity(str(about["sha256"]), tuple(map(str, about["classes"])))
    return None


def open_decoded(
    stem: str, data_dir: Path, list_source: Callable[[], Any], read_source: Callable[[], Decoded]
) -> tuple[Decoded, str, Path | None]:
    """The memory-mapped data, their sha256 and their folder `<stem>-<key>`, which is made first if it is missing.

    It is in `<data_dir>/.cache` or, where that is not writable or not trusted, in the user's cache folder; a link, and
    what belongs neither to the user nor to the owner of data_dir, is not used. `list_source` returns JSON values that
    follow from what `read_source` reads; of several processes that start together one reads. When another process holds
    the lock for a minute, the data are read without the cache, and their folder is None. Raises ValueError when the
    folder can be written nowhere, and whatever the two functions raise.
    """
    listing = list_source()
    places = _places(stem, data_dir, listing)
    for path, trusted in places:
        if (opened := _read(path, trusted)) is not None:
            return *opened, path

    for path, trusted in places:
        folder = path.parent
        lock = FileLock(folder / f"{stem}.lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locked = acquire(lock)
        except OSError:
            continue
        if not locked:
            decoded = _measured(_unchanged(stem, list_source, read_source)[0])
            return decoded, decoded.sha256(), None
        try:
            path = _path(folder, stem, list_source())
            if (opened := _read(path, trusted)) is None:  # else made by another process while this one waited
                decoded, listing = _unchanged(stem, list_source, read_source)
                path = _path(folder, stem, listing)
                _write(path, decoded := _measured(decoded))
                if (opened := _read(path, trusted)) is None:  # for example if a file server maps owners to nobody
                    warn(
                        f"The decoded data in {path} are not readable after they were written, so every command "
                        "decodes them again; set data_dir to a folder of your own."
                    )
                    return decoded, decoded.sha256(), None
            return *opened, path
        except BaseException:
            with suppress(OSError):  # it failed: remove the folder unless others use it
                Path(lock.lock_file).unlink()
                folder.rmdir()
            raise
        finally:
            lock.release()
    raise ValueError(
        f"The decoded data can be stored neither in {data_dir / '.cache'} nor in {_user_cache_folder()}; "
        "set data_dir or XDG_CACHE_HOME to a folder that can be written."
    )


def _places(stem: str, data_dir: Path, listing: Any) -> list[tuple[Path, set[int]]]:
    """Where decoded data with this listing may be, and the users whose files are believed there."""
    own = {os.geteuid()}
    try:
        shared = own | {os.stat(data_dir).st_uid}
    except OSError:  # not there yet
        shared = own
    found = [(_path(data_dir / ".cache", stem, listing), shared), (_path(_user_cache_folder(), stem, listing), own)]
    return [
        (path, trusted)
        for path, trusted in found
        if not any(is_refused(place, trusted) for place in (path.parent, path.parent / f"{stem}.lock", path))
    ]


def _unchanged(stem: str, list_source: Callable[[], Any], read_source: Callable[[], Decoded]) -> tuple[Decoded, Any]:
    """The data and the listing that they belong to: read again if files changed meanwhile, as by a download."""
    listing = list_source()
    for _ in range(TRIES):
        decoded = read_source()
        before, listing = listing, list_source()
        if listing == before:
            return decoded, listing
        del decoded  # before memory is needed for the next
    raise ValueError(
        f"The files of {stem} changed {TRIES} times while they were read; start again when they are final."
    )


def _user_cache_folder() -> Path:
    folder = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "capsule_sweeps"
    return folder.resolve()  # the user's own links are his business


def _path(folder: Path, stem: str, listing: Any) -> Path:
    key = hashlib.sha256(json.dumps([CACHE_FORMAT, listing]).encode()).hexdigest()[:16]
    return folder / f"{stem}-{key}"


def measure_mean_std(images: Images) -> tuple[list[float], list[float]]:
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


def _measured(decoded: Decoded) -> Decoded:
    """With the mean and deviation of the training images, where the source has none."""
    if decoded.mean:
        return decoded
    mean, std = measure_mean_std(decoded.train[0])
    return replace(decoded, mean=tuple(mean), std=tuple(std))


def _write(path: Path, decoded: Decoded) -> None:
    about = {"splits": list(decoded.splits()), "classes": decoded.classes, "mean": decoded.mean, "std": decoded.std}
    try:
        write(path, {**about, "sha256": decoded.sha256()}, decoded.arrays())
    except OSError as error:
        raise ValueError(
            f"The decoded data could not be written to {path} ({error.strerror or error}); "
            "make room there, or set data_dir to another folder."
        ) from error


def _read(path: Path, trusted: set[int]) -> tuple[Decoded, str] | None:
    """Views of the files and their sha256; None if one is missing or damaged: then they are made again."""
    try:
        about = read_about(path, trusted)
        splits = [split for split in ("train", "test", "val") if split in about["splits"]]
        names = [f"{split}_{kind}" for split in splits for kind in ("labels", "images")]
        arrays = map_arrays(path, names, about["sha256"], trusted)
        found: dict[str, Any] = {key: tuple(about[key]) for key in ("classes", "mean", "std")}
        for split in splits:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            kinds = (images.dtype, images.ndim, labels.dtype, labels.shape)
            if kinds != (np.uint8, 4, np.int64, (len(images),)):
                return None
            if labels.min() < 0 or labels.max() >= len(about["classes"]):
                return None
            found[split] = images, labels
        return Decoded(**found), about["sha256"]
    except Exception as error:  # numpy has many for a damaged file
        if path.exists():
            warn(f"The decoded data in {path} cannot be used ({' '.join(str(error).split())}); they are made again.")
        return None
