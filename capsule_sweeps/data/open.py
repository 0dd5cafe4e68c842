"""A data set as its configuration describes it, decoded: from the cache, or from its source. Nothing imports torch.

What of a configuration changes a data set between its source and the training loop is listed in VARIANTS.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capsule_sweeps.data.affine import AffineTest, TurnedTest
from capsule_sweeps.data.cache import Decoded, Identity, open_decoded, stored_identity
from capsule_sweeps.data.canvas import Canvas
from capsule_sweeps.data.in_pairs import InPairs
from capsule_sweeps.data.sources import find_source
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
        decoded = source.read_source(origin, data_dir)
        for variant in asked:
            decoded = variant.change(decoded)
        _check_fit(dataset, decoded)
        return decoded

    stem = re.sub(r"[^A-Za-z0-9_.+-]", "_", f"{dataset.name[:100]}-{dataset.source}")
    return stem, lambda: [source.list_source(origin, data_dir), dataset.image_size, *keys], read


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
