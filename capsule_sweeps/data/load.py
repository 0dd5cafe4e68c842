"""Data sets as uint8 tensors on the device: read once, memory-mapped afterwards, augmented batch by batch.

Shapes: N images in a split, B in a batch, C channels, H rows, W columns (H = W = dataset.image_size), p padding.

A data set is read from its source (sources.py) into the file of decoded.py.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from capsule_sweeps.data.affine import turned
from capsule_sweeps.data.cache import Decoded, Images, Labels, measure, open_decoded
from capsule_sweeps.data.pairs import fixed, pair
from capsule_sweeps.data.sources import DIGIT_SIZE, SPLIT_SEED, list_source, read_source
from capsule_sweeps.data.split import Split, split_indices


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, black 0 and white 1: those of the config, or as measured."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Data:
    """What `load_data` returns; `val` is None for val_size = 0, `sha256` is that of the whole data set as decoded."""

    train: Split
    val: Split | None
    test: Split
    sha256: str
    classes: tuple[str, ...]
    normalization: Normalization


def load_data(dataset: Any, data_dir: str | Path, device: str | torch.device) -> Data:
    """The data set that the config node `dataset` names, on `device`; decoded first if that has not been done.

    val (dataset.val_size images) and then train (dataset.train_size, or all others) are taken from the training set,
    each class-balanced: class counts differ by at most 1. Which images those are follows from SPLIT_SEED alone, and a
    larger train_size contains every smaller one. On a CPU whole splits stay memory-mapped: processes share them.

    With dataset.labels_per_image=2 each of these digits begins one pair; its partner is from the same split. Pairs for
    training are made batch by batch, others once. Where the config has no mean and std, they are those of all training
    images of the data set (or of the pairs of all of them in the first epoch), whatever train_size and val_size take.

    Test images are turned left by dataset.test_rotation degrees, then moved dataset.test_shift pixels to the right.

    Raises ValueError (one sentence) for data that cannot be had or do not fit the config, and for impossible sizes.
    """
    decoded, sha256, _ = _open(dataset, Path(data_dir))
    images, labels = decoded.train
    train, val = split_indices(labels, dataset.train_size, dataset.val_size)

    def to_split(images: Images, labels: Labels) -> Split:
        return Split(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))

    given = (dataset.mean, dataset.std) if dataset.mean is not None else (decoded.mean, decoded.std)
    data = Data(
        train=to_split(images, labels) if len(train) == len(labels) else to_split(images[train], labels[train]),
        val=to_split(images[val], labels[val]) if len(val) else None,
        test=to_split(*decoded.test),
        sha256=sha256,
        classes=decoded.classes,
        normalization=Normalization(*map(tuple, given)),
    )
    if dataset.labels_per_image == 2:
        data = in_pairs(data, _shift(dataset))
    if dataset.test_rotation or dataset.test_shift:
        images = turned(data.test.images.cpu().numpy(), dataset.test_rotation, dataset.test_shift)
        data = replace(data, test=Split(torch.from_numpy(images).to(device), data.test.labels))
    return data


def _shift(dataset: Any) -> int:
    """By how many pixels the digits of a pair may move in each direction."""
    return int(dataset.image_size - DIGIT_SIZE) // 2


def in_pairs(digits: Data, shift: int) -> Data:
    """The digits of each split in pairs that move by up to `shift` pixels: for training new ones in every epoch."""
    return replace(
        digits,
        train=pair(digits.train, shift, [SPLIT_SEED, 0]),
        val=fixed(pair(digits.val, shift, SPLIT_SEED + 1)) if digits.val else None,
        test=fixed(pair(digits.test, shift, SPLIT_SEED + 2)),
    )


def prepare(dataset: Any, data_dir: str | Path) -> Path:
    """Make sure that the decoded cache exists (download, read, convert) and return its path. Raises as `load_data`."""
    return _open(dataset, Path(data_dir))[2]


# The decoded file


def _open(dataset: Any, data_dir: Path) -> tuple[Decoded, str, Path]:
    def listed(listing: Any) -> Any:
        return ["normalised in pairs", listing] if dataset.labels_per_image == 2 else listing

    def read() -> tuple[Decoded, Any]:
        decoded, listing = read_source(dataset, data_dir)
        _check_fit(dataset, decoded)
        if dataset.labels_per_image == 2:
            digits = Split(*map(torch.from_numpy, decoded.train))
            mean, std = measure(fixed(pair(digits, _shift(dataset), [SPLIT_SEED, 0])).images.numpy())
            decoded = replace(decoded, mean=tuple(mean), std=tuple(std))
        return decoded, listed(listing)

    decoded, sha256, path = open_decoded(
        stem=re.sub(r"[^A-Za-z0-9_.+-]", "_", f"{dataset.name}-{dataset.source}"),
        data_dir=data_dir,
        list_source=lambda: listed(list_source(dataset, data_dir)),
        read_source=read,
    )
    _check_fit(dataset, decoded)
    return decoded, sha256, path


def _check_fit(dataset: Any, decoded: Decoded) -> None:
    num_classes, (_, channels, height, width) = len(decoded.classes), decoded.train[0].shape
    if num_classes != dataset.num_classes:
        raise ValueError(
            f"dataset.num_classes={dataset.num_classes} does not fit {dataset.name}: it has {num_classes}."
        )
    if (channels, height, width) != (dataset.channels, dataset.image_size, dataset.image_size):
        raise ValueError(
            f"dataset.channels={dataset.channels} and dataset.image_size={dataset.image_size} do not fit "
            f"{dataset.name}: its images have {channels} channels and {height}x{width} pixels."
        )
