"""Where images come from: scikit-learn, torchvision, or a tree of image files; and test images that are made of them.

Each source has a listing, which is quick and changes when the data do, and a reader. A data set with a `base` shows the
digits of another one, in the middle of a larger canvas.
"""

import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from capsule_sweeps.data.affine import RANGES, moved
from capsule_sweeps.data.cache import Decoded, Images
from capsule_sweeps.data.class_tree import list_class_tree, list_files, read_class_tree

# Belongs to the data sets, not to a run: with config.seed in its place, two seeds would train and be judged on
# different images, and their spread would no longer be that of training alone.
SPLIT_SEED = 20200430
NUM_DIGITS_TRAIN = 1400
DIGIT_SIZE, INK_SIZE = 28, 20  # of MNIST's images, and of the box in their middle that all ink lies in
READ = ("name", "source", "root", "base", "affine_test", "num_classes", "channels", "image_size")  # keys read in here
TORCHVISION_FOLDERS = {
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "SVHN": "SVHN",
    "MNIST": "MNIST/raw",
    "FashionMNIST": "FashionMNIST/raw",
}


def list_source(dataset: Any, data_dir: Path) -> Any:
    """What the cache's key follows from; raises ValueError where that is enough to see that the data are wrong."""
    if dataset.affine_test:
        return ["affine test", RANGES, SPLIT_SEED, list_source(_changed(dataset, affine_test=False), data_dir)]
    if dataset.base is not None:
        return ["on a canvas", dataset.image_size, list_source(_base(dataset), data_dir)]
    match dataset.source:
        case "sklearn":
            if dataset.name != "digits":
                raise ValueError(f"dataset.source=sklearn has only digits, not {dataset.name}.")
            return ["digits", dataset.image_size, NUM_DIGITS_TRAIN, SPLIT_SEED]
        case "torchvision":
            return list_files(data_dir / _torchvision_folder(dataset))  # empty before the download
        case "folder":
            root = _root(dataset, data_dir)
            return [dataset.root and os.path.abspath(root), list_class_tree(dataset, root)]
    raise ValueError(f"dataset.source={dataset.source} is not one of torchvision, folder, sklearn.")


def read_source(dataset: Any, data_dir: Path) -> tuple[Decoded, Any]:
    """The data, and the listing that they belong to. Raises ValueError for data that cannot be had."""
    if dataset.affine_test:
        decoded, _ = read_source(_changed(dataset, affine_test=False), data_dir)
        images, labels = decoded.test
        decoded = Decoded(decoded.train, (moved(images, SPLIT_SEED), labels), decoded.classes)
    elif dataset.base is not None:
        decoded, _ = read_source(_base(dataset), data_dir)
        train, test = (
            (_on_canvas(images, dataset.image_size), labels) for images, labels in (decoded.train, decoded.test)
        )
        decoded = Decoded(train, test, decoded.classes)
    elif dataset.source == "sklearn":
        decoded = _read_digits(dataset)
    elif dataset.source == "torchvision":
        decoded = _read_torchvision(dataset, data_dir)
    else:
        listing = list_source(dataset, data_dir)  # first: a file that changes meanwhile changes the next key
        return read_class_tree(dataset, _root(dataset, data_dir), listing[1]), listing
    return decoded, list_source(dataset, data_dir)


def _root(dataset: Any, data_dir: Path) -> Path:
    return data_dir / dataset.name if dataset.root is None else Path(dataset.root)


def _changed(dataset: Any, **changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**{key: getattr(dataset, key) for key in READ}, **changes})


def _base(dataset: Any) -> SimpleNamespace:
    """The data set whose digits are put on a canvas."""
    if dataset.image_size < DIGIT_SIZE:
        raise ValueError(
            f"dataset.image_size={dataset.image_size} is too small a canvas for {dataset.name}: its digits need "
            f"{DIGIT_SIZE}x{DIGIT_SIZE} pixels."
        )
    size = INK_SIZE if dataset.source == "sklearn" else DIGIT_SIZE
    return _changed(dataset, name=dataset.base, base=None, image_size=size)


def _on_canvas(images: Images, size: int) -> Images:
    """Images (N, C, H, W) in the middle of black ones (N, C, size, size)."""
    before = [(size - length) // 2 for length in images.shape[2:]]
    after = [size - length - margin for length, margin in zip(images.shape[2:], before, strict=True)]
    return np.pad(images, ((0, 0), (0, 0), *zip(before, after, strict=True)))


def _read_digits(dataset: Any) -> Decoded:
    """scikit-learn's handwritten digits, resized bilinearly, split by SPLIT_SEED."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "dataset=digits comes with scikit-learn, which is missing; pip install scikit-learn."
        ) from error
    images, labels = load_digits(return_X_y=True)
    grey, size = torch.from_numpy(images).view(-1, 1, 8, 8), dataset.image_size
    # Enlarged, a pixel is a whole number of (1 / 2·size)²: with that number, the bytes are the same on every machine.
    parts = (2 * size) ** 2
    grey = F.interpolate(grey, (size, size), mode="bilinear", antialias=True).mul_(parts).round_()
    pixels = grey.mul_(255).div_(16 * parts).round_().clamp_(0, 255).byte().numpy()
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
            if dataset.name == "SVHN":
                splits = [datasets.SVHN(data_dir / folder, split, download=True) for split in ("train", "test")]
                train, test = ((s.data, s.labels) for s in splits)
                return Decoded(train, test, tuple("0123456789"))
            made = getattr(datasets, dataset.name)
            splits = [made(data_dir, train=train, download=True) for train in (True, False)]
    except Exception as error:  # whatever goes wrong in torchvision, an archive or the network, the user does the same
        cause = getattr(error, "reason", error)  # urllib wraps the operating system's error
        reason = " ".join(str(getattr(cause, "strerror", None) or cause).split()).rstrip(".")
        tree = data_dir / dataset.name / "{train,test}/<class>/*.png"
        raise ValueError(
            f"{dataset.name} is {state} {data_dir} and could not be downloaded ({reason}); copy {folder} there, "
            f"or use dataset.source=folder with images in {tree}, or dataset=digits, which needs no network."
        ) from error
    train, test = (
        (_channels_first(torch.as_tensor(s.data).numpy()), torch.as_tensor(s.targets, dtype=torch.int64).numpy())
        for s in splits
    )
    return Decoded(train, test, tuple(splits[0].classes))


def _channels_first(images: Images) -> Images:
    """(N, H, W) or (N, H, W, C) → (N, C, H, W)."""
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


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
