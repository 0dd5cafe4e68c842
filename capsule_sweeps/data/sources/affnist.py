"""affNIST: MNIST's training digits on a 40x40 canvas, and the official test images under random affine maps.

The official file `test.mat` (or the folder of batches `test_batches/*.mat`) is read from `<data_dir>/affNIST`. MNIST
comes from where `dataset=MNIST` has it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from capsule_sweeps.data.cache import Decoded, Images, Labels
from capsule_sweeps.data.canvas import on_canvas
from capsule_sweeps.data.sources import torchvision
from capsule_sweeps.data.sources.folder import list_files
from capsule_sweeps.data.variant import replaced

SIZE = 40


def list_source(dataset: Any, data_dir: Path) -> Any:
    """Names, sizes and times of MNIST's files and of affNIST's."""
    return [torchvision.list_source(_mnist(dataset), data_dir), list_files(data_dir / "affNIST")]


def read_source(dataset: Any, data_dir: Path) -> Decoded:
    """Raises ValueError for a missing or damaged file."""
    folder = data_dir / "affNIST"
    found = sorted([*folder.glob("test.mat"), *folder.glob("test_batches/*.mat")])
    if not found:
        raise ValueError(
            f"affNIST is not under {folder}: copy the official test.mat or the folder test_batches there, or set "
            "dataset=affine_digits, whose test images are made from MNIST."
        )
    parts = [_read(path) for path in found]
    images, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
    mnist = torchvision.read_source(_mnist(dataset), data_dir)
    return Decoded((on_canvas(mnist.train[0], SIZE), mnist.train[1]), (images, labels), tuple("0123456789"))


def _mnist(dataset: Any) -> Any:
    return replaced(dataset, name="MNIST")


def _read(path: Path) -> tuple[Images, Labels]:
    """Images (N, 1, 40, 40) and labels (N,) of a MATLAB file with affNISTdata.image (1600, N) and .label_int (1, N)."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["affNISTdata"])["affNISTdata"][0, 0]
        images, labels = content["image"], content["label_int"].ravel()
        if (
            images.dtype != np.uint8
            or images.shape != (SIZE * SIZE, len(labels))
            or not np.isin(labels, range(10)).all()
        ):
            raise ValueError(f"image is {images.dtype} of shape {images.shape} and label_int has {len(labels)} labels")
    except Exception as error:  # scipy has many for damaged files
        raise ValueError(f"{path} is not an affNIST file ({error}): copy the official file there again.") from error
    return np.ascontiguousarray(images.T).reshape(-1, 1, SIZE, SIZE), labels.astype(np.int64)
