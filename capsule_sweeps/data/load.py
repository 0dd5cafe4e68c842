"""Data sets as uint8 tensors on the device: read once, memory-mapped afterwards, augmented batch by batch.

Shapes: N images in a split, B in a batch, C channels, H rows, W columns (H = W = dataset.image_size), p padding.

A data set is read from its source (sources/), changed as its configuration asks (open.py), and cached (cache.py).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from capsule_sweeps.data.cache import Decoded, Images, Labels
from capsule_sweeps.data.cache_files import warn
from capsule_sweeps.data.open import open_data, variants
from capsule_sweeps.data.split import Data, Normalization, Split, split_indices, test_indices
from capsule_sweeps.display import counted


def load_data(dataset: Any, data_dir: str | Path, device: str | torch.device) -> Data:
    """The data set that the config node `dataset` names, on `device`; decoded first if that has not been done.

    val (dataset.val_size images) and then train (dataset.train_size, or all others) are taken from the training set,
    each balanced by class as far as the smallest class reaches, and beyond in proportion (`class_counts`). Which images
    those are follows from SPLIT_SEED alone, and a larger train_size contains every smaller one. On a CPU whole splits
    stay memory-mapped: processes share them.

    With dataset.labels_per_image=2 each of these digits begins one pair; its partner is from the same split. Pairs for
    training are made batch by batch, others once. Where the config has no mean and std, they are those of all training
    images of the data set (or of the pairs of all of them in the first epoch), whatever train_size and val_size take.

    Test images are turned left by dataset.test_rotation degrees, then moved dataset.test_shift pixels to the right.

    Raises ValueError (one sentence) for data that are not available or do not fit the config, and for invalid sizes.
    """
    decoded, sha256, _ = open_data(dataset, Path(data_dir))
    images, labels = decoded.train
    own_val = _own_val(dataset, decoded)
    train, val = split_indices(labels, dataset.train_size, dataset.val_size if own_val is None else 0)
    if own_val is None:
        _report_balance("val_size", labels, val, decoded.classes)
    if dataset.train_size is not None:
        _report_balance("train_size", labels, train, decoded.classes)

    margin = slice(dataset.crop_margin, images.shape[3] - dataset.crop_margin)

    def to_split(images: Images, labels: Labels) -> Split:
        return Split(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))

    tested = slice(None) if dataset.test_size is None else test_indices(decoded.test[1], dataset.test_size)
    given = (dataset.mean, dataset.std) if dataset.mean is not None else (decoded.mean, decoded.std)
    data = Data(
        train=to_split(images, labels) if len(train) == len(labels) else to_split(images[train], labels[train]),
        val=to_split(*(own_val or (images[val][:, :, margin, margin], labels[val]))) if dataset.val_size else None,
        test=to_split(*(decoded.test if dataset.test_size is None else (part[tested] for part in decoded.test))),
        sha256=sha256,
        classes=decoded.classes,
        normalization=Normalization(*map(tuple, given)),
    )
    for variant in variants(dataset):
        data = variant.apply(data)
    return data


def _own_val(dataset: Any, decoded: Decoded) -> tuple[Images, Labels] | None:
    """The validation images that come with the data set; without any, they are taken from the training images."""
    if decoded.val is not None and dataset.val_size not in (0, number := len(decoded.val[1])):
        raise ValueError(
            f"dataset.val_size={dataset.val_size}, but {dataset.name} comes with "
            f"{counted(number, 'validation image')}: set dataset.val_size={number} to use them, or 0 to leave them out."
        )
    return decoded.val


def _report_balance(key: str, labels: Labels, chosen: Labels, classes: tuple[str, ...]) -> None:
    """Names the class that is too small for a balanced choice, once in a process."""
    everything, counts = (np.bincount(part, minlength=len(classes)) for part in (labels, labels[chosen]))
    if counts.max() - counts.min() > 1:
        rare = int(everything.argmin())
        none = ", and none of it is among them" if counts[rare] == 0 else ""
        images = "image" if everything[rare] == 1 else "images"
        warn(
            f"dataset.{key}={len(chosen)} is not balanced by class: {classes[rare]} has {everything[rare]:,} training "
            f"{images}{none}."
        )
