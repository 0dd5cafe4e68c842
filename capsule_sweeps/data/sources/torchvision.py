"""The data sets that torchvision downloads into data_dir and verifies by their md5 sums."""

import hashlib
import io
import os
import pickle
import re
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from capsule_sweeps.data.cache import Decoded, Images
from capsule_sweeps.data.sources.folder import list_files


class DataSet(NamedTuple):
    """How a data set of torchvision is read."""

    folder: str  # below data_dir
    read: Callable[[str, Path, str], Decoded]  # takes the data set's name, data_dir, folder


def list_source(dataset: Any, data_dir: Path) -> Any:
    """Names, sizes and times of the files; empty before the download. Raises ValueError for an unknown name."""
    return list_files(data_dir / _find(dataset.name).folder)  # empty before the download


def read_source(dataset: Any, data_dir: Path) -> Decoded:
    """Downloads into data_dir what is missing there or fails torchvision's md5 check.

    Raises ValueError if that is not possible.
    """
    folder, read = _find(dataset.name)
    state = "damaged in" if (data_dir / folder).exists() else "not under"
    try:
        with _quiet_downloads():
            return read(dataset.name, data_dir, folder)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # for all other errors of torchvision, archives and the network the advice is the same
        cause = getattr(error, "reason", error)  # urllib wraps the operating system's error
        reason = " ".join(str(getattr(cause, "strerror", None) or cause).split()).rstrip(".")
        tree = data_dir / dataset.name / "{train,test}/<class>/*.png"
        raise ValueError(
            f"{dataset.name} is {state} {data_dir} and could not be downloaded ({reason}); copy {folder} there, set "
            f"dataset.source=folder with images in {tree}, or try dataset=digits training=quick, which needs no "
            "network."
        ) from error


def _find(name: str) -> DataSet:
    if name not in DATA_SETS:
        raise ValueError(f"dataset.source=torchvision has {', '.join(DATA_SETS)}, not {name}.")
    return DATA_SETS[name]


def _read_cifar(name: str, data_dir: Path, folder: str) -> Decoded:
    """CIFAR's files are pickles, which torchvision verifies and then opens again: others may have changed them."""
    from torchvision import datasets

    files = getattr(datasets, name).__new__(getattr(datasets, name))  # its constructor would unpickle
    files.root = str(data_dir)
    files.download()
    splits = []
    for listed in (files.train_list, files.test_list):
        parts = [_unpickle(data_dir / folder / file, md5) for file, md5 in listed]
        images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        labels = [label for part in parts for label in part.get("labels") or part["fine_labels"]]
        splits.append((images, np.array(labels, dtype=np.int64)))
    names = _unpickle(data_dir / folder / files.meta["filename"], files.meta["md5"])[files.meta["key"]]
    return Decoded(splits[0], splits[1], tuple(names))


def _unpickle(path: Path, md5: str) -> dict[str, Any]:
    """The dictionary of numbers, texts and arrays in a file, whose bytes are read once, verified and parsed."""
    content = path.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{path} changed while it was read")
    found: dict[str, Any] = _Arrays(io.BytesIO(content), encoding="latin1").load()
    return found


class _Arrays(pickle.Unpickler):
    """Builds arrays of numpy and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if re.fullmatch(r"numpy\._?core\.multiarray", module) and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _read(name: str, data_dir: Path, folder: str) -> Decoded:
    import torch
    from torchvision import datasets

    splits = [getattr(datasets, name)(data_dir, train=train, download=True) for train in (True, False)]
    train, test = (
        (_channels_first(torch.as_tensor(s.data).numpy()), torch.as_tensor(s.targets, dtype=torch.int64).numpy())
        for s in splits
    )
    return Decoded(train, test, tuple(splits[0].classes))


def _channels_first(images: Images) -> Images:
    """(N, H, W) or (N, H, W, C) → (N, C, H, W)."""
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def _read_svhn(name: str, data_dir: Path, folder: str) -> Decoded:
    from torchvision.datasets import SVHN

    train, test = (SVHN(data_dir / folder, split, download=True) for split in ("train", "test"))
    return Decoded((train.data, train.labels), (test.data, test.labels), tuple("0123456789"))


DATA_SETS = {
    "CIFAR10": DataSet("cifar-10-batches-py", _read_cifar),
    "CIFAR100": DataSet("cifar-100-python", _read_cifar),
    "SVHN": DataSet("SVHN", _read_svhn),
    "MNIST": DataSet("MNIST/raw", _read),
    "FashionMNIST": DataSet("FashionMNIST/raw", _read),
}


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
