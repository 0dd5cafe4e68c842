"""Images in one folder per class: <root>/{train,test}/<class>/*.png, listed quickly and decoded with Pillow.

Shapes: N images in a split, C channels, H rows, W columns.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from capsule_sweeps.data.cache import Decoded, Images

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".apng", ".dib", ".gif", ".jfif", ".jpe", ".pbm", ".pcx", ".pnm", ".tga"),
)
BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")  # of image files whose names have no suffix
IMAGE_MODES = {1: "L", 3: "RGB"}

log = logging.getLogger(__name__)

Files = list[tuple[str, int, int]]  # name, bytes, modification time in ns


def list_source(dataset: Any, data_dir: Path) -> Any:
    root = _root(dataset, data_dir)
    return [dataset.root and os.path.abspath(root), list_class_tree(dataset, root)]


def read_source(dataset: Any, data_dir: Path) -> Decoded:
    root = _root(dataset, data_dir)
    tree = list_class_tree(dataset, root)
    _report_left_out(root, tree)
    return read_class_tree(dataset, root, tree)


def _root(dataset: Any, data_dir: Path) -> Path:
    return data_dir / dataset.name if dataset.root is None else Path(dataset.root)


def list_files(folder: Path) -> Files:
    """The files in `folder` and in the folders below it, sorted; empty if there is no such folder.

    Hidden folders do not count. Raises ValueError for an image's link that leads nowhere, since it would be missed
    silently, and for a link to a folder that the link is in.
    """
    files = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if has_suffix(entry.name) and entry.is_symlink() and not os.path.exists(entry.path):
                    raise ValueError(f"{entry.path} is a link that leads nowhere; bring its file, or remove it.")
                if entry.is_dir() and not entry.name.startswith("."):
                    if entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve()):
                        raise ValueError(f"{entry.path} is a link to a folder that it is in; remove it.")
                    files += [(f"{entry.name}/{file[0]}", *file[1:]) for file in list_files(Path(entry.path))]
                elif entry.is_file():
                    status = entry.stat()
                    files.append((entry.name, status.st_size, status.st_mtime_ns))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(files)


def list_class_tree(dataset: Any, root: Path) -> dict[str, dict[str, Files]]:
    """{train, test} → class, sorted by name → its images, with those in folders below, as torchvision's ImageFolder.

    Hidden files and files that are no images do not count.

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
            tree[split] = {
                name: [file for file in list_files(folder / name) if _is_image(folder / name, file[0])]
                for name in classes
            }
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
        images = [entry.name for entry in entries if has_suffix(entry.name) and entry.is_file()]
        if classes and not images:
            images = [file[0] for file in list_files(classes[0]) if _is_image(classes[0], file[0])]
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


def has_suffix(name: str) -> bool:
    """Whether a file is an image by its name."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _is_image(folder: Path, place: str) -> bool:
    """Whether a file is an image by its name or, if the name has no suffix, by its first bytes."""
    name = place.rpartition("/")[2]
    if has_suffix(name) or "." in name:
        return has_suffix(name)
    with open(folder / place, "rb") as file:
        return file.read(4).startswith(BEGINNINGS)


def _report_left_out(root: Path, tree: dict[str, dict[str, Files]]) -> None:
    """Names files below train and test that are not read, hidden ones aside."""
    read = {
        f"{split}/{name}/{f[0]}" for split, classes in tree.items() for name, files in classes.items() for f in files
    }
    found = [f"{split}/{file[0]}" for split in tree for file in list_files(root / split)]
    left_out = [name for name in found if name not in read and not Path(name).name.startswith(".")]
    if left_out:
        files = f"{len(left_out):,} files, for instance {left_out[0]}," if len(left_out) > 1 else left_out[0]
        verb = "are" if len(left_out) > 1 else "is"
        log.warning(_text(f"In {root}, {files} {verb} left out: no image by name or content."))


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
    """The pixels (H, W) or (H, W, C) as a viewer shows them, and Pillow's name of their mode.

    Raises ValueError for a file of which only a part would count.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            lost = _lost(image)
            if lost is None:
                image.load()
                shown = ImageOps.exif_transpose(image) or image
                return np.asarray(shown), shown.mode
    except Exception as error:  # Pillow has many for a broken file
        raise ValueError(f"{path} cannot be read as an image; replace or remove it.") from error
    raise ValueError(f"{path} has {lost}, which would be lost; convert or remove it.")


def _lost(image: Any) -> str | None:
    """What an opened file has that Pillow leaves out without an error when it becomes 8 bits of grey or RGB."""
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":  # a camera's JPEG with a preview
        return f"{frames} frames"
    if "transparency" in image.info:
        return "transparency"
    raw = " ".join(str(tile[3]) for tile in image.tile)  # how the file stores pixels: 'RGB;16B'
    maxima = re.findall(r"\d+", raw) if image.format == "PPM" else []
    if re.search(r"\b(L|LA|RGB|RGBX|RGBA);16", raw) or any(int(largest) > 255 for largest in maxima):
        return "more than 8 bits per channel"
    return None
