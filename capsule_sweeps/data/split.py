"""A data set on the device, its splits, and which images make training and validation sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from capsule_sweeps.data.cache import Labels
from capsule_sweeps.display import counted

if TYPE_CHECKING:
    from torch import Tensor

# Belongs to the data sets, not to a run: with config.seed in its place, two seeds would train and be judged on
# different images, and their spread would no longer be that of training alone.
SPLIT_SEED = 20200430


@dataclass(frozen=True)
class Split:
    """images (N, C, H, W) uint8 and labels (N,) int64 (of pairs (N, 2)), on one device; never written to."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the images (B, C, H, W) and labels (B,) at `indices` (B,), int64 on the same device."""
        # Not images[indices], which takes five times as long on a CPU.
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)

    def of_epoch(self, epoch: int) -> Split:
        """The training data of an epoch, counted from 0."""
        return self


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


# Splits


def split_indices(labels: Labels, train_size: int | None, val_size: int) -> tuple[Labels, Labels]:
    """Indices (ascending) of train and val, which share none; train_size None means all that val leaves over.

    Every class is shuffled once; val takes images from the front and train from the back. How many of each class is
    said by `class_counts`; val leaves one image of each class for training. Raises ValueError for sizes beyond that.
    """
    random = np.random.RandomState(SPLIT_SEED)  # the one numpy generator whose numbers are frozen for good
    by_class = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    priority = random.permutation(len(by_class))
    spare = [len(c) - 1 for c in by_class]
    _check_size("dataset.val_size", val_size, 0, sum(spare), "one of each class stays for training")
    val_counts = class_counts(spare, val_size, priority)
    rest = [c[count:] for c, count in zip(by_class, val_counts, strict=True)]
    train_counts = num_rest = [len(c) for c in rest]
    if train_size is not None:
        _check_size("dataset.train_size", train_size, 1, sum(num_rest), f"dataset.val_size={val_size}")
        train_counts = class_counts(num_rest, train_size, priority)
    train = np.concatenate([c[len(c) - count :] for c, count in zip(rest, train_counts, strict=True)])
    val = np.concatenate([c[:count] for c, count in zip(by_class, val_counts, strict=True)])
    return np.sort(train), np.sort(val)


def test_indices(labels: Labels, size: int) -> Labels:
    """Indices (ascending) of `size` test images, with the classes in the proportions of `class_counts`; a larger size
    contains every smaller one. Raises ValueError for a size beyond the number of images."""
    if not size <= len(labels):
        raise ValueError(
            f"dataset.test_size={size} is more than the {counted(len(labels), 'test image')}; set {len(labels)} or less"
        )
    return split_indices(labels, size, 0)[0]


def _check_size(key: str, size: int, smallest: int, largest: int, why: str) -> None:
    if not smallest <= size <= largest:
        raise ValueError(
            f"{key}={size} is not possible with these training images: set {smallest} to {largest} ({why})."
        )


def class_counts(available: Sequence[int], size: int, priority: Labels) -> list[int]:
    """How many images of each class make `size`, of those that are available.

    As long as the smallest class reaches, all equal, or some one more, by `priority`, where there is one more. Beyond,
    the smallest class is taken whole, and what is missing is shared out in proportion to what the other classes have
    left. A larger size takes no fewer of any class.
    """
    fewest = min(available)
    if size <= fewest * len(available) + sum(count > fewest for count in available):
        each, num_extra = divmod(size, len(available))
        extra = [label for label in priority if available[label] > each][:num_extra]
        return [each + (label in extra) for label in range(len(available))]
    counts = class_counts(available, fewest * len(available) + sum(count > fewest for count in available), priority)
    left = np.subtract(available, counts)
    # The next image is of the class that has given the smallest part of what it had (Webster's rule): no class shrinks.
    turns = np.concatenate([(2 * np.arange(number) + 1) / (2 * number) for number in left if number])
    owners = np.repeat(np.arange(len(left)), left)
    rank = np.argsort(priority)
    chosen = owners[np.lexsort((rank[owners], turns))][: size - sum(counts)]
    return list(np.add(counts, np.bincount(chosen, minlength=len(counts))).tolist())
