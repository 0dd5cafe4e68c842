"""Images in one folder per class: <root>/{train,test}/<class>/*.png, listed quickly and decoded with Pillow.

Shapes: N images in a split, C channels, H rows, W columns.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from capsule_sweeps.data.cache import Decoded, Images

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_MODES = {1: "L", 3: "RGB"}

Files = list[tuple[str, int, int]]  # name, bytes, modification time in ns


def list_source(dataset: Any, data_dir: Path) -> Any:
    root = _root(dataset, data_dir)
    return [dataset.root and os.path.abspath(root), list_class_tree(dataset, root)]


def read_source(dataset: Any, data_dir: Path) -> Decoded:
    root = _root(dataset, data_dir)
    return read_class_tree(dataset, root, list_class_tree(dataset, root))


def _root(dataset: Any, data_dir: Path) -> Path:
    return data_dir / dataset.name if dataset.root is None else Path(dataset.root)


def list_files(folder: Path) -> Files:
    """The files in `folder`, sorted by name; empty if there is no such folder.

    Raises ValueError for an image's link that leads nowhere: it would be missed silently.
    """
    files = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_image(entry.name) and entry.is_symlink() and not os.path.exists(entry.path):
                    raise ValueError(f"{entry.path} is a link that leads nowhere; bring its file, or remove it.")
                if entry.is_file():
                    status = entry.stat()
                    files.append((entry.name, status.st_size, status.st_mtime_ns))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(files)


def list_class_tree(dataset: Any, root: Path) -> dict[str, dict[str, Files]]:
    """{train, test} → class, sorted by name → its images. Hidden files and files that are no images do not count.

    Raises ValueError for a missing or empty folder, and for classes that differ between train and test or in number
    from dataset.num_classes.
    """
    layout = f"dataset.source=folder needs {root}/{{train,test}}/<class>/*.png (or {', '.join(IMAGE_SUFFIXES[1:])})"
    tree = {}
    for split in ("train", "test"):
        folder = root / split
        try:
            with os.scandir(folder) as entries:
                classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
            tree[split] = {name: [f for f in list_files(folder / name) if _is_image(f[0])] for name in classes}
        except OSError as error:
            place = error.filename or folder
            raise ValueError(f"{dataset.name} cannot be read from {place} ({error.strerror}); {layout}.") from error
        if empty := [name for name, files in tree[split].items() if not files]:
            raise ValueError(f"{folder / empty[0]} holds no images; {layout}.")
    if odd := sorted(tree["train"].keys() ^ tree["test"].keys()):
        raise ValueError(f"{odd[0]} is a class in only one of {root}/train and {root}/test; both need the same.")
    if (num_classes := len(tree["train"])) != dataset.num_classes:
        raise ValueError(
            f"dataset.num_classes={dataset.num_classes}, but {root}/train has {num_classes} class folders."
        )
    return tree


def measure(root: Path) -> dict[str, Any]:
    """name, num_classes, channels and image_size of a tree, from its folders and from one training image.

    Reading all of it is what finds images that differ. Raises ValueError where there are none, or no square ones, or
    less than two classes.
    """
    needs = f"dataset.root={root} must be a folder with {{train,test}}/<class>/ and images in there"
    try:
        classes = sorted(path for path in (root / "train").iterdir() if path.is_dir() and path.name[0] != ".")
        # By name alone, since every configuration asks several times: the sizes of 100,000 files take seconds.
        entries = os.scandir(classes[0]) if classes else ()
        images = [entry.name for entry in entries if _is_image(entry.name) and entry.is_file()]
    except OSError as error:
        raise ValueError(f"{needs} ({error.strerror}: {error.filename})") from error
    if not images:
        raise ValueError(f"{needs} ({classes[0] if classes else root / 'train'} holds none)")
    if len(classes) == 1:
        raise ValueError(f"{root / 'train'} has one class folder, {classes[0].name}; a data set needs two or more")
    path = classes[0] / min(images)
    pixels, mode = _decode(path)
    channels = next((number for number, known in IMAGE_MODES.items() if known == mode), None)
    height, width = pixels.shape[:2]
    if channels is None or height != width:
        raise ValueError(f"{path} is {width}x{height} {mode}: images must be square, and L (grey) or RGB; convert them")
    return {
        "name": _text(Path(os.path.abspath(root)).name),
        "num_classes": len(classes),
        "channels": channels,
        "image_size": height,
    }


def _text(name: str) -> str:
    """A file's name as it can be written down: one that is no UTF-8 has question marks."""
    return os.fsencode(name).decode(errors="replace")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def read_class_tree(dataset: Any, root: Path, tree: dict[str, dict[str, Files]]) -> Decoded:
    """Decode the images of `list_class_tree`, class by class; a label is its class's place in sorted order.

    Raises ValueError for an image that is unreadable or not of dataset.image_size and dataset.channels.
    """
    from rich.console import Console
    from rich.progress import Progress

    if dataset.channels not in IMAGE_MODES:
        raise ValueError(f"dataset.channels={dataset.channels} is neither 1 (grey) nor 3 (RGB).")
    shape = (dataset.channels, dataset.image_size, dataset.image_size)
    decoded = []
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        for split, classes in tree.items():
            files = [(root / split / name / file[0], i) for i, name in enumerate(classes) for file in classes[name]]
            images = np.empty((len(files), *shape), np.uint8)
            for n, (path, _) in enumerate(progress.track(files, description=f"Decoding {dataset.name} {split}")):
                images[n] = _read_image(path, shape)
            decoded.append((images, np.array([label for _, label in files], np.int64)))
    return Decoded(decoded[0], decoded[1], tuple(map(_text, tree["train"])))


def _read_image(path: Path, shape: tuple[int, int, int]) -> Images:
    """(C, H, W); nothing is resized or converted silently."""
    channels, height, width = shape
    pixels, mode = _decode(path)
    if mode != IMAGE_MODES[channels] or pixels.shape[:2] != (height, width):
        raise ValueError(
            f"{path} is {pixels.shape[1]}x{pixels.shape[0]} {mode}, but dataset.image_size={height} and "
            f"dataset.channels={channels} ask for {width}x{height} {IMAGE_MODES[channels]}; convert or remove it."
        )
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _decode(path: Path) -> tuple[Images, str]:
    """The pixels (H, W) or (H, W, C), and Pillow's name of their mode."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image), image.mode
    except Exception as error:  # Pillow has many for a broken file
        raise ValueError(f"{path} cannot be read as an image; replace or remove it.") from error
