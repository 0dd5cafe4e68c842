"""The handwritten digits that come with scikit-learn: 1,797 images, no network."""

from pathlib import Path
from typing import Any

import numpy as np

from capsule_sweeps.data.cache import Decoded
from capsule_sweeps.data.split import SPLIT_SEED

NUM_TRAIN = 1400


def list_source(dataset: Any, data_dir: Path) -> Any:
    """What the images depend on. Raises ValueError for another name than digits."""
    if dataset.name != "digits":
        raise ValueError(f"dataset.source=sklearn has only digits, not {dataset.name}.")
    return ["digits", dataset.image_size, NUM_TRAIN, SPLIT_SEED]


def read_source(dataset: Any, data_dir: Path) -> Decoded:
    """The digits, resized bilinearly, split by SPLIT_SEED."""
    import torch
    from sklearn.datasets import load_digits
    from torch.nn import functional as F

    images, labels = load_digits(return_X_y=True)
    grey, size = torch.from_numpy(images).view(-1, 1, 8, 8), dataset.image_size
    # Enlarged, a pixel is a whole number of (1 / 2·size)²: with that number, the bytes are the same on every machine.
    parts = (2 * size) ** 2
    grey = F.interpolate(grey, (size, size), mode="bilinear", antialias=True).mul_(parts).round_()
    pixels = grey.mul_(255).div_(16 * parts).round_().clamp_(0, 255).byte().numpy()
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    train, test = order[:NUM_TRAIN], order[NUM_TRAIN:]
    labels = labels.astype(np.int64)
    return Decoded((pixels[train], labels[train]), (pixels[test], labels[test]), tuple("0123456789"))
