"""smallNORB: stereo pairs of gray 96x96 images of toys, by category, instance, elevation, azimuth and lighting.

The original binary files are read from `<data_dir>/small_norb`, packed (.gz) or not; missing ones are downloaded and
compared with their published MD5 sums. Images are halved (2x2 means, rounded) to 48x48, of which training takes random
windows of `dataset.image_size` pixels and evaluation the middle: dataset.crop_margin = (48 − image_size) / 2.
`dataset.channels`: 2 keeps a pair together, 1 makes two images of it.

`dataset.views`: `all` trains and tests on all views. `azimuth` and `elevation` train on the FAMILIAR views only; of the
test objects the familiar views become the validation images and the novel views the test images.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import tempfile
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from capsule_sweeps.data.cache import Decoded, Images, Labels
from capsule_sweeps.data.sources.folder import list_files

URL = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small"
CLASSES = ("animal", "human", "airplane", "truck", "car")
SIZE = 48  # of the halved images
FAMILIAR = {"azimuth": (2, (30, 32, 34, 0, 2, 4)), "elevation": (1, (0, 1, 2))}  # column of info, codes
TYPES: dict[int, Any] = {0x1E3D4C55: np.dtype(np.uint8), 0x1E3D4C54: np.dtype("<i4")}  # by a file's first number
STEMS = {"train": "smallnorb-5x46789x9x18x6x2x96x96-training", "test": "smallnorb-5x01235x9x18x6x2x96x96-testing"}
MD5 = {  # of the unpacked files
    "train-dat": "8138a0902307b32dfa0025a36dfa45ec",
    "train-cat": "fd5120d3f770ad57ebe620eb61a0b633",
    "train-info": "19faee774120001fc7e17980d6960451",
    "test-dat": "e9920b7f7b2869a8f1a12e945b2c166c",
    "test-cat": "fd5120d3f770ad57ebe620eb61a0b633",
    "test-info": "7c5b871cc69dcadec1bf6a18141f5edc",
}
LARGEST = 2**29  # bytes of a file: the images are 448 MB


class Part(NamedTuple):
    """Images (N, C, 48, 48), labels (N,) and info (N, 4): instance, elevation, azimuth, lighting."""

    images: Images
    labels: Labels
    info: NDArray[np.int32]

    def of(self, chosen: NDArray[np.bool_]) -> Part:
        """The chosen (N,) images."""
        return Part(self.images[chosen], self.labels[chosen], self.info[chosen])


def list_source(dataset: Any, data_dir: Path) -> Any:
    """Names, sizes and times of the files, and the settings that the images depend on."""
    return [list_files(data_dir / "small_norb"), _views(dataset), dataset.channels, dataset.crop_margin]


def read_source(dataset: Any, data_dir: Path) -> Decoded:
    """Raises ValueError for files that are damaged or cannot be downloaded, and for settings that do not fit."""
    views, folder = _views(dataset), data_dir / "small_norb"
    if dataset.image_size + 2 * dataset.crop_margin != SIZE or dataset.channels not in (1, 2):
        raise ValueError(
            f"dataset.image_size={dataset.image_size}, dataset.crop_margin={dataset.crop_margin} and dataset.channels="
            f"{dataset.channels} do not fit small_norb: set dataset.image_size + 2 · dataset.crop_margin to {SIZE}, "
            "and dataset.channels to 1 or 2."
        )
    train, test = (_read_part(folder, split, dataset.channels) for split in ("train", "test"))
    val = None
    if views in FAMILIAR:
        column, codes = FAMILIAR[views]
        train = train.of(np.isin(train.info[:, column], codes))
        familiar = np.isin(test.info[:, column], codes)
        val, test = test.of(familiar), test.of(~familiar)
    margin = slice(dataset.crop_margin, SIZE - dataset.crop_margin)
    middle = [(part.images[:, :, margin, margin], part.labels) if part else None for part in (test, val)]
    assert middle[0] is not None
    return Decoded((train.images, train.labels), middle[0], CLASSES, val=middle[1])


def _views(dataset: Any) -> str:
    if dataset.views not in ("all", *FAMILIAR):
        raise ValueError(
            f"dataset.views={dataset.views} is unknown for small_norb: set it to all, {' or '.join(FAMILIAR)}."
        )
    return str(dataset.views)


def _read_part(folder: Path, split: str, channels: int) -> Part:
    pairs, labels, info = (_read_matrix(folder, split, kind) for kind in ("dat", "cat", "info"))
    number = len(labels)
    right = pairs.shape == (number, 2, 96, 96) and pairs.dtype == np.uint8 and info.shape == (number, 4)
    if not right or labels.ndim != 1 or not np.isin(labels, range(5)).all():
        raise ValueError(f"{folder}/{STEMS[split]}-*.mat do not belong together: copy the original files there again.")
    halves = [_halved(pairs[:, camera]) for camera in (0, 1)]
    if channels == 2:
        return Part(np.stack(halves, 1), labels.astype(np.int64), info)
    images = np.concatenate(halves)[:, None]
    return Part(images, np.tile(labels, 2).astype(np.int64), np.tile(info, (2, 1)))


def _halved(images: Images) -> Images:
    """(N, 96, 96) → (N, 48, 48): means of 2x2 pixels, rounded half up."""
    found = np.empty((len(images), SIZE, SIZE), np.uint8)
    for first in range(0, len(images), 1000):  # sums need twice the memory
        some = images[first : first + 1000].reshape(-1, SIZE, 2, SIZE, 2)
        found[first : first + 1000] = (some.sum((2, 4), dtype=np.uint16) + 2) // 4
    return found


def _read_matrix(folder: Path, split: str, kind: str) -> NDArray[Any]:
    """The array in a file: a number for its type, the number of dimensions, at least three lengths, the values."""
    name = f"{STEMS[split]}-{kind}.mat"
    content = _bytes_of(folder / name, MD5[f"{split}-{kind}"])
    try:
        magic, dimensions = struct.unpack_from("<ii", content)
        shape: Sequence[int] = struct.unpack_from(f"<{max(3, dimensions)}i", content, 8)[:dimensions]
        start = 8 + 4 * max(3, dimensions)
        array = np.frombuffer(content, TYPES[magic], offset=start)
        return array.reshape(shape)
    except (struct.error, KeyError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{folder / name} is damaged ({error}): delete it, and copy the original file there."
        ) from error


def _bytes_of(path: Path, md5: str) -> bytes:
    """The content of a file, of its packed form beside it, or downloaded and kept packed."""
    packed = path.with_name(path.name + ".gz")
    try:
        if path.is_file():
            with open(path, "rb") as file:
                return file.read(LARGEST)
        if not packed.is_file():
            packed.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(f"{URL}/{packed.name}", timeout=30) as answer:
                received = answer.read(LARGEST)
            with gzip.GzipFile(fileobj=io.BytesIO(received)) as unpacked:
                content = unpacked.read(LARGEST)
            if hashlib.md5(content).hexdigest() != md5:
                raise OSError("what was downloaded is damaged")
            with tempfile.TemporaryDirectory(dir=packed.parent) as folder:  # of an unpredictable name
                part = Path(folder) / packed.name
                part.write_bytes(received)
                os.replace(part, packed)
            return content
        with gzip.open(packed) as file:
            return file.read(LARGEST)
    except (OSError, EOFError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"small_norb is not under {path.parent} and could not be downloaded ({reason}): copy {packed.name} there, "
            "or choose another dataset."
        ) from error
