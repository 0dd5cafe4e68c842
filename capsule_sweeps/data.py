"""Data sets as uint8 tensors on the device: read once, memory-mapped afterwards, augmented batch by batch.

Shapes: N images in a split, B in a batch, C channels, H rows, W columns (H = W = dataset.image_size), p padding.

A data set is read from its source (sources.py) into the file of decoded.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from capsule_sweeps.affine import turned
from capsule_sweeps.decoded import Decoded, Images, Labels, measure, open_decoded
from capsule_sweeps.sources import DIGIT_SIZE, SPLIT_SEED, list_source, read_source


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

    def of_epoch(self, epoch: int) -> "Split":
        """What there is to train on in an epoch, counted from 0."""
        return self


@dataclass(frozen=True)
class Pairs(Split):
    """Single digits that are shown in pairs: each with another of a different class, both shifted, one over the other.

    images (N, C, H, W) and labels (N,) are those of the single digits, in the middle of a canvas; a digit may move by
    `shift` pixels in each direction. partners (N,) and offsets (N, 4) (rows and columns of both, 0 to 2·shift) follow
    from the seed alone.
    """

    shift: int
    partners: Tensor
    offsets: Tensor

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) of the pairs that begin with the digits at `indices` (B,), and both labels (B, 2)."""
        partners, offsets = self.partners[indices], self.offsets[indices]
        unmirrored = torch.zeros_like(indices, dtype=torch.bool)
        (one, label), (other, other_label) = super().batch(indices), super().batch(partners)
        one = crop_and_flip(one, offsets[:, 0], offsets[:, 1], unmirrored, self.shift)
        other = crop_and_flip(other, offsets[:, 2], offsets[:, 3], unmirrored, self.shift)
        return torch.maximum(one, other), torch.stack([label, other_label], dim=1)

    def of_epoch(self, epoch: int) -> "Pairs":
        """Every epoch has pairs of its own, the same ones in every run."""
        return pair(Split(self.images, self.labels), self.shift, [SPLIT_SEED, epoch])


def pair(digits: Split, shift: int, seed: int | list[int]) -> Pairs:
    """Pairs of single digits: partners even among those of other classes, offsets even."""
    random, labels = np.random.RandomState(seed), digits.labels.cpu().numpy()
    order, counts = np.argsort(labels, kind="stable"), np.bincount(labels)
    own_first, own_count = (np.cumsum(counts) - counts)[labels], counts[labels]
    if not (own_count < len(labels)).all():
        raise ValueError(
            "dataset.labels_per_image=2 needs digits of two classes or more: raise dataset.train_size or val_size"
        )
    place = (random.random_sample(len(labels)) * (len(labels) - own_count)).astype(np.int64)
    partners = order[place + own_count * (place >= own_first)]  # in the order by class, the own class is left out
    offsets = random.randint(0, 2 * shift + 1, (len(labels), 4))
    drawn = (torch.from_numpy(np.asarray(values, np.int64)).to(digits.labels.device) for values in (partners, offsets))
    return Pairs(digits.images, digits.labels, shift, *drawn)


def fixed(pairs: Pairs) -> Split:
    """The images of all pairs, made once."""
    parts = torch.arange(len(pairs), device=pairs.labels.device).split(1000)
    images, labels = zip(*map(pairs.batch, parts), strict=True)
    return Split(torch.cat(images), torch.cat(labels))


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


# Batches: a few tensor operations on the device, no loop over images and nothing that waits for the device.


def augment(images: Tensor, crop_padding: int, flip: bool) -> Tensor:
    """Random crop after zero padding and, with `flip`, a horizontal flip of every other image or so.

    images (B, C, H, W) uint8 → the same shape and type. The padding is black: it comes before normalisation. Draws
    from the global generator of the images' device: first the 2·B offsets (if crop_padding > 0), then the B flips.
    """
    if crop_padding == 0 and not flip:
        return images
    num_images, device = len(images), images.device
    top = left = torch.zeros(num_images, dtype=torch.int64, device=device)
    mirrored = torch.zeros(num_images, dtype=torch.bool, device=device)
    if crop_padding:
        top, left = torch.randint(2 * crop_padding + 1, (2, num_images), device=device)
    if flip:
        mirrored = torch.rand(num_images, device=device) < 0.5
    return crop_and_flip(images, top, left, mirrored, crop_padding)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, crop_padding: int) -> Tensor:
    """Cut H×W windows out of the padded images (B, C, H, W) at (top, left), each 0..2p (B,), and mirror some (B,)."""
    B, C, H, W = images.shape
    padded = F.pad(images, (crop_padding,) * 4)
    rows = top[:, None] + torch.arange(H, device=images.device)
    columns = torch.arange(W, device=images.device)
    columns = left[:, None] + torch.where(mirrored[:, None], W - 1 - columns, columns)
    # One gather over flattened pixels, its index shared by the channels: on a CPU twice as fast as unfold and where.
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    return padded.flatten(2).gather(2, pixels.view(B, 1, H * W).expand(B, C, H * W)).view(B, C, H, W)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images/255 − mean)/std per channel: (B, C, H, W) uint8 → float32 on the same device."""
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), images.device)
    return images.float().mul_(scale).add_(shift)


@lru_cache
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept, because copying a list to a GPU in every batch would make the host wait for it.
    mean_, std_ = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
    return (1 / (255 * std_)).float().to(device), (-mean_ / std_).float().to(device)


# Splits


def split_indices(labels: Labels, train_size: int | None, val_size: int) -> tuple[Labels, Labels]:
    """Indices (ascending) of train and val, which share none; train_size None means all that val leaves over.

    Every class is shuffled once; val takes images from the front and train from the back.
    """
    random = np.random.RandomState(SPLIT_SEED)  # the one numpy generator whose numbers are frozen for good
    by_class = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    priority = random.permutation(len(by_class))
    # val leaves one image of each class for training
    val_counts = _balanced_counts([len(c) - 1 for c in by_class], val_size, priority, "dataset.val_size", smallest=0)
    rest = [c[count:] for c, count in zip(by_class, val_counts, strict=True)]
    num_rest = [len(c) for c in rest]
    train_counts = num_rest
    if train_size is not None:
        train_counts = _balanced_counts(num_rest, train_size, priority, "dataset.train_size", smallest=1)
    train = np.concatenate([c[len(c) - count :] for c, count in zip(rest, train_counts, strict=True)])
    val = np.concatenate([c[:count] for c, count in zip(by_class, val_counts, strict=True)])
    return np.sort(train), np.sort(val)


def _balanced_counts(available: list[int], size: int, priority: Labels, key: str, smallest: int) -> list[int]:
    """How many of each class make `size`: all equal, or some one more, given by `priority` to those that have more."""
    fewest = min(available)
    largest = fewest * len(available) + sum(count > fewest for count in available)
    if not smallest <= size <= largest:
        raise ValueError(f"{key}={size} cannot be taken class-balanced from this training set: {smallest} to {largest}")
    each, num_extra = divmod(size, len(available))
    extra = [label for label in priority if available[label] > each][:num_extra]
    return [each + (label in extra) for label in range(len(available))]


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
