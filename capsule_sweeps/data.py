"""Data sets as uint8 tensors on the device: read once, memory-mapped afterwards, augmented batch by batch.

Shapes: N images in a split, B in a batch, C channels, H rows, W columns (H = W = dataset.image_size), p padding.

A data set is read from its source (scikit-learn, torchvision, or a tree of image files) into the file of decoded.py.
"""

import os
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from capsule_sweeps.class_tree import list_class_tree, list_files, read_class_tree
from capsule_sweeps.decoded import Decoded, Images, Labels, open_decoded

# Belongs to the data sets, not to a run: with config.seed in its place, two seeds would train and be judged on
# different images, and their spread would no longer be that of training alone.
SPLIT_SEED = 20200430
NUM_DIGITS_TRAIN = 1400
TORCHVISION_FOLDERS = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}


@dataclass(frozen=True)
class Split:
    """images (N, C, H, W) uint8 and labels (N,) int64, on one device; never written to."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the images (B, C, H, W) and labels (B,) at `indices` (B,), int64 on the same device."""
        # Not images[indices], which takes five times as long on a CPU.
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)


@dataclass(frozen=True)
class Data:
    """What `load_data` returns; `val` is None for val_size = 0, `sha256` is that of the whole data set as decoded."""

    train: Split
    val: Split | None
    test: Split
    sha256: str
    classes: tuple[str, ...]


def load_data(dataset: Any, data_dir: str | Path, device: str | torch.device) -> Data:
    """The data set that the config node `dataset` names, on `device`; decoded first if that has not been done.

    val (dataset.val_size images) and then train (dataset.train_size, or all others) are taken from the training set,
    each class-balanced: class counts differ by at most 1. Which images those are follows from SPLIT_SEED alone, and a
    larger train_size contains every smaller one. On a CPU whole splits stay memory-mapped: processes share them.

    Raises ValueError (one sentence) for data that cannot be had or do not fit the config, and for impossible sizes.
    """
    decoded, sha256, _ = _open(dataset, Path(data_dir))
    images, labels = decoded.train
    train, val = split_indices(labels, dataset.train_size, dataset.val_size)

    def to_split(images: Images, labels: Labels) -> Split:
        return Split(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))

    return Data(
        train=to_split(images, labels) if len(train) == len(labels) else to_split(images[train], labels[train]),
        val=to_split(images[val], labels[val]) if len(val) else None,
        test=to_split(*decoded.test),
        sha256=sha256,
        classes=decoded.classes,
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


# Sources. Each has a listing, which is quick and changes when the data do, and a reader.


def _open(dataset: Any, data_dir: Path) -> tuple[Decoded, str, Path]:
    decoded, sha256, path = open_decoded(
        stem=f"{dataset.name}-{dataset.source}",
        data_dir=data_dir,
        list_source=lambda: _list_source(dataset, data_dir),
        read_source=lambda: _read_source(dataset, data_dir),
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


def _list_source(dataset: Any, data_dir: Path) -> Any:
    """What the cache's key follows from; raises ValueError where that is enough to see that the data are wrong."""
    match dataset.source:
        case "sklearn":
            return ["digits", dataset.image_size, NUM_DIGITS_TRAIN, SPLIT_SEED]
        case "torchvision":
            return list_files(data_dir / _torchvision_folder(dataset))  # empty before the download
        case "folder":
            return list_class_tree(dataset, data_dir / dataset.name)
    raise ValueError(f"dataset.source={dataset.source} is not one of torchvision, folder, sklearn.")


def _read_source(dataset: Any, data_dir: Path) -> tuple[Decoded, Any]:
    match dataset.source:
        case "sklearn":
            decoded = _read_digits(dataset)
        case "torchvision":
            decoded = _read_torchvision(dataset, data_dir)
        case _:
            listing = _list_source(dataset, data_dir)  # first: a file that changes meanwhile changes the next key
            decoded = read_class_tree(dataset, data_dir / dataset.name, listing)
            _check_fit(dataset, decoded)
            return decoded, listing
    _check_fit(dataset, decoded)
    return decoded, _list_source(dataset, data_dir)


def _read_digits(dataset: Any) -> Decoded:
    """scikit-learn's handwritten digits, resized bilinearly, split by SPLIT_SEED."""
    if dataset.name != "digits":
        raise ValueError(f"dataset.source=sklearn has only digits, not dataset.name={dataset.name}.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "dataset=digits comes with scikit-learn, which is missing; pip install scikit-learn."
        ) from error
    images, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(images).view(-1, 1, 8, 8)
    size = (dataset.image_size, dataset.image_size)
    # At 32×32 every product and sum is exact in float64, so the bytes are the same on every machine.
    grey = F.interpolate(grey, size, mode="bilinear", antialias=True).mul_(255 / 16).round_()
    pixels = grey.clamp_(0, 255).byte().numpy()
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    train, test = order[:NUM_DIGITS_TRAIN], order[NUM_DIGITS_TRAIN:]
    labels = labels.astype(np.int64)
    return Decoded((pixels[train], labels[train]), (pixels[test], labels[test]), tuple("0123456789"))


def _torchvision_folder(dataset: Any) -> str:
    if dataset.name not in TORCHVISION_FOLDERS:
        raise ValueError(f"dataset.source=torchvision has {', '.join(TORCHVISION_FOLDERS)}, not {dataset.name}.")
    return TORCHVISION_FOLDERS[dataset.name]


def _read_torchvision(dataset: Any, data_dir: Path) -> Decoded:
    """Downloads into data_dir what is missing there or fails torchvision's md5 check."""
    folder = _torchvision_folder(dataset)
    state = "damaged in" if (data_dir / folder).exists() else "not under"
    try:
        from torchvision import datasets

        with _quiet_downloads():
            splits = [getattr(datasets, dataset.name)(data_dir, train=train, download=True) for train in (True, False)]
    except Exception as error:  # whatever goes wrong in torchvision, an archive or the network, the user does the same
        cause = getattr(error, "reason", error)  # urllib wraps the operating system's error
        reason = str(getattr(cause, "strerror", None) or cause).rstrip(".")
        tree = data_dir / dataset.name / "{train,test}/<class>/*.png"
        raise ValueError(
            f"{dataset.name} is {state} {data_dir} and could not be downloaded ({reason}); copy {folder} there, "
            f"or use dataset.source=folder with images in {tree}, or dataset=digits, which needs no network."
        ) from error
    train, test = ((s.data.transpose(0, 3, 1, 2), np.array(s.targets, dtype=np.int64)) for s in splits)
    return Decoded(train, test, tuple(splits[0].classes))


@contextmanager
def _quiet_downloads() -> Iterator[None]:
    """Keeps torchvision from printing (but for its progress on a terminal) and from waiting for ever."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy 2.4.0 to 2.4.4 warn of the old pickles
            with redirect_stdout(nowhere), redirect_stderr(sys.stderr if sys.stderr.isatty() else nowhere):
                yield
    finally:
        socket.setdefaulttimeout(timeout)
