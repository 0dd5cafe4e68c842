"""The decoded cache, as tests of data look at it."""

from pathlib import Path
from typing import Any

from capsule_sweeps.data.open import open_data


def prepare(dataset: Any, data_dir: str | Path) -> Path | None:
    """The place of a data set in the cache, where it is decoded first if it is not there; None if it cannot be."""
    return open_data(dataset, Path(data_dir))[2]


def genuine(loaded: Any) -> bool:
    """Whether the images of `pets` (tests/hostile/conftest.py) have their own labels."""
    return ((loaded.train.images[:, 0, 0, 0] == 255) == (loaded.train.labels == 1)).all().item()
