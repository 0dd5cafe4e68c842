"""A data set as its configuration describes it, decoded: from the cache, or from its source. Nothing imports torch.

What of a configuration changes a data set between its source and the training loop is listed in VARIANTS.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from capsule_sweeps.data.affine import AffineTest, TurnedTest
from capsule_sweeps.data.cache import Decoded, Identity, open_decoded, stored_identity
from capsule_sweeps.data.canvas import Canvas
from capsule_sweeps.data.in_pairs import InPairs
from capsule_sweeps.data.sources import find_source, source_errors
from capsule_sweeps.data.variant import Variant
from capsule_sweeps.display import counted

VARIANTS: tuple[type[Variant], ...] = (Canvas, AffineTest, InPairs, TurnedTest)  # in the order in which they apply


def open_data(dataset: Any, data_dir: Path) -> tuple[Decoded, str, Path | None]:
    """The decoded data, their sha256 and their place in the cache. Raises ValueError (one sentence) for data that
    cannot be had or do not fit the configuration."""
    stem, list_source, read_source = _source(dataset, data_dir)
    decoded, sha256, path = open_decoded(stem, data_dir, list_source, read_source)
    _check_fit(dataset, decoded)
    return decoded, sha256, path


def identify(dataset: Any, data_dir: Path) -> Identity | None:
    """What tells the images that are here now from others: known from names, sizes and times of their files, or, where
    these are new, from the images. None where there are no files, which are not downloaded for it.

    Raises ValueError for files that cannot be read.
    """
    stem, list_source, _ = _source(dataset, data_dir)
    listing = list_source()
    if not listing[0]:
        return None
    if (known := stored_identity(stem, data_dir, listing)) is not None:
        return known
    decoded, sha256, _ = open_data(dataset, data_dir)
    return Identity(sha256, decoded.classes)


def variants(dataset: Any) -> list[Variant]:
    return [variant(dataset) for variant in VARIANTS if variant.asked(dataset)]


def _source(dataset: Any, data_dir: Path) -> tuple[str, Callable[[], Any], Callable[[], Decoded]]:
    """The first part of the name in the cache, and how to list and to read the data."""
    asked, origin = variants(dataset), dataset
    for variant in asked:
        origin = variant.origin(origin)
    source = find_source(origin.source)
    keys = [variant.key for variant in asked if variant.key is not None]

    def read() -> Decoded:
        with source_errors(origin.source):
            decoded = source.read_source(origin, data_dir)
        _check_decoded(origin, decoded)
        for variant in asked:
            decoded = variant.change(decoded)
        _check_fit(dataset, decoded)
        return decoded

    def listing() -> Any:
        with source_errors(origin.source):
            listed = source.list_source(origin, data_dir)
            json.dumps(listed)
        return [listed, dataset.image_size, *keys]

    stem = re.sub(r"[^A-Za-z0-9_.+-]", "_", f"{dataset.name[:100]}-{dataset.source}")
    return stem, listing, read


def _check_decoded(dataset: Any, decoded: Any) -> None:
    """Raises ValueError if a source returned something else than decoded images with their labels."""

    def wrong(what: str) -> ValueError:
        return ValueError(f"dataset.source={dataset.source}: read_source returned {what}.")

    if not isinstance(decoded, Decoded):
        raise wrong(f"a {type(decoded).__name__}, but it must return Decoded")
    if not all(isinstance(name, str) for name in decoded.classes):
        raise wrong(f"classes={decoded.classes}, but names of classes are text")
    for split, (images, labels) in decoded.splits().items():
        for name, array, dtype, dims in ("images", images, np.uint8, 4), ("labels", labels, np.int64, 1):
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != dims:
                found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else f"{type(array)}"
                letters = "(N, C, H, W)" if dims == 4 else "(N,)"
                raise wrong(f"{name} of {split} as {found}, but they are an array {np.dtype(dtype)} of shape {letters}")
        if not len(images) == len(labels) > 0:
            raise wrong(f"{len(images)} images and {len(labels)} labels of {split}; each image has one label")
        if labels.min() < 0 or labels.max() >= len(decoded.classes):
            raise wrong(
                f"labels of {split} from {labels.min()} to {labels.max()}, but its {len(decoded.classes)} classes have "
                f"the labels 0 to {len(decoded.classes) - 1}"
            )
    channels = decoded.train[0].shape[1]
    number = channels if any(map(np.size, (decoded.mean, decoded.std))) else 0
    for name, values in ("mean", decoded.mean), ("std", decoded.std):
        listed = isinstance(values, tuple | list)
        right = listed and all(isinstance(one, int | float) and math.isfinite(one) for one in values)
        if not right or len(values) != number or (name == "std" and min(values, default=1) <= 0):
            raise wrong(
                f"{name}={values}, but it is a tuple with a number for each of {counted(channels, 'channel')}, "
                "std above 0"
            )


def _check_fit(dataset: Any, decoded: Decoded) -> None:
    num_classes, (_, channels, height, width) = len(decoded.classes), decoded.train[0].shape
    if num_classes != dataset.num_classes:
        raise ValueError(
            f"dataset.num_classes={dataset.num_classes} does not fit {dataset.name}: it has {num_classes}."
        )
    size = dataset.image_size + 2 * dataset.crop_margin
    if (channels, height, width) != (dataset.channels, size, size):
        raise ValueError(
            f"dataset.channels={dataset.channels} and dataset.image_size={dataset.image_size} do not fit "
            f"{dataset.name}: its images have {counted(channels, 'channel')} and {height}x{width} pixels."
        )
    shapes = {images.shape[1:] for split, (images, _) in decoded.splits().items() if split != "train"}
    if wrong := shapes - {(channels, dataset.image_size, dataset.image_size)}:
        raise ValueError(
            f"dataset.image_size={dataset.image_size} does not fit the validation or test images of {dataset.name}: "
            f"their shape is {max(wrong)}."
        )
