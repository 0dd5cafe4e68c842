"""Images in one folder per class: <root>/{train,test}/<class>/*.png, listed quickly and decoded with Pillow.

Shapes: N images in a split, C channels, H rows, W columns.
"""

import logging
import os
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from capsule_sweeps.data.cache import Decoded, Images
from capsule_sweeps.data.pictures import (
    MAX_SIDE,
    MODES,
    NAMED,
    Kind,
    Refused,
    channels_of,
    check_alike,
    decode,
    look,
    text,
)
from capsule_sweeps.display import counted

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".apng", ".dib", ".gif", ".jfif", ".jpe", ".pbm", ".pcx", ".pnm", ".tga"),
)
BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")  # of image files whose names have no suffix
LOOK_AT = 200  # images, at most, when the first one is not as images must be

log = logging.getLogger(__name__)

Files = list[tuple[str, int, int]]  # name, bytes, modification time in ns


def list_source(dataset: Any, data_dir: Path) -> Any:
    """The folder, and names, sizes and times of its images. Raises ValueError for a folder without class folders."""
    root = _root(dataset, data_dir)
    return [dataset.root and os.path.abspath(root), list_class_tree(dataset, root)]


def read_source(dataset: Any, data_dir: Path) -> Decoded:
    """The images and labels of all class folders. Raises ValueError naming images that are not usable."""
    root = _root(dataset, data_dir)
    tree = list_class_tree(dataset, root)
    _report_left_out(root, tree)
    return read_class_tree(dataset, root, tree)


def _root(dataset: Any, data_dir: Path) -> Path:
    return data_dir / dataset.name if dataset.root is None else Path(dataset.root)


def list_files(folder: Path) -> Files:
    """The files in `folder` and in the folders below it, sorted; empty if there is no such folder.

    Hidden folders do not count. An image's link that leads nowhere, which would be missed silently, has -1 bytes.
    Raises ValueError for a link to a folder that the link is in.
    """
    files = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if has_suffix(entry.name) and entry.is_symlink() and not os.path.exists(entry.path):
                    files.append((entry.name, -1, 0))
                elif entry.is_dir() and not entry.name.startswith("."):
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

    Hidden files and files that are not images are ignored.

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
        if gone := [f"{name}/{file[0]}" for name, files in tree[split].items() for file in files if file[1] < 0]:
            what = "is a link that leads" if len(gone) == 1 else "are links that lead"
            files = "its file" if len(gone) == 1 else "their files"
            raise ValueError(
                f"{folder}/{_some(gone)} {what} nowhere; restore {files}, or remove "
                f"{'it' if len(gone) == 1 else 'them'}."
            )
        if empty := [name for name, files in tree[split].items() if not files]:
            raise ValueError(f"{folder}/{_some(empty)} hold{'s' * (len(empty) == 1)} no images; {layout}.")
    if odd := sorted(tree["train"].keys() ^ tree["test"].keys()):
        what = "is a class" if len(odd) == 1 else "are classes"
        raise ValueError(
            f"{_some(odd)} {what} in only one of {root}/train and {root}/test; both need the same classes."
        )
    if (num_classes := len(tree["train"])) != dataset.num_classes:
        raise ValueError(
            f"dataset.num_classes={dataset.num_classes}, but {root}/train has {counted(num_classes, 'class folder')}."
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
    try:
        kind: Kind | Refused = look(path)
    except Refused as error:
        kind = error
    if not (isinstance(kind, Kind) and kind.usable):  # reading all of them names it, if others are as they must be
        kind = _usual(classes) or kind
    if not (isinstance(kind, Kind) and kind.usable):
        what = f"is {kind}" if isinstance(kind, Kind) else str(kind)
        raise ValueError(
            f"{path} {what}: images must be square, of at most {MAX_SIDE} pixels a side, and L (gray) or RGB; convert "
            "them"
        )
    return {
        "name": text(Path(os.path.abspath(root)).name),
        "num_classes": len(classes),
        "channels": channels_of(kind),
        "image_size": kind.width,
    }


def _usual(classes: list[Path]) -> Kind | None:
    """The most frequent kind of image that can be used, of the first ones of each class."""
    kinds: Counter[Kind] = Counter()
    for folder in classes:
        images = [folder / file[0] for file in list_files(folder) if _is_image(folder, file[0])]
        for path in images[: max(1, LOOK_AT // len(classes))]:
            with suppress(Refused):
                kinds[look(path)] += 1
    return next((kind for kind, _ in kinds.most_common() if kind.usable), None)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return text(", ".join(names[:NAMED]) + more)


def has_suffix(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _is_image(folder: Path, place: str) -> bool:
    """Whether a file is an image by its name or, if the name has no suffix, by its first bytes."""
    name = place.rpartition("/")[2]
    if has_suffix(name) or "." in name:
        return has_suffix(name)
    with open(folder / place, "rb") as file:
        return file.read(4).startswith(BEGINNINGS)


def _report_left_out(root: Path, tree: dict[str, dict[str, Files]]) -> None:
    """Says which files below train and test are not read, hidden ones aside, and why; and which folders are beside
    these two."""
    folders = {f"{split}/{name}": files for split, classes in tree.items() for name, files in classes.items()}
    read = {f"{folder}/{file[0]}" for folder, files in folders.items() for file in files}
    found = [f"{split}/{file[0]}" for split in tree for file in list_files(root / split)]
    left_out = [name for name in found if name not in read and not Path(name).name.startswith(".")]
    if left_out:
        named = _some([f"{name} ({_reason(name)})" for name in left_out])
        log.warning("In %s, %s left out: %s.", root, counted(len(left_out), "file is", "files are"), named)
    with os.scandir(root) as entries:
        beside = sorted(e.name for e in entries if e.is_dir() and e.name not in tree and not e.name.startswith("."))
    if beside:
        log.warning("In %s, only train and test are read, not %s.", root, _some(beside))


def _reason(place: str) -> str:
    """Why `train/…` or `test/…` is not read."""
    if place.count("/") == 1:
        return "in no class folder"
    suffix = Path(place).suffix
    return f"{suffix} is no image format that is read" if suffix else "no suffix, and no image by its first bytes"


def read_class_tree(dataset: Any, root: Path, tree: dict[str, dict[str, Files]]) -> Decoded:
    """Decode the images of `list_class_tree`, class by class; a label is its class's place in sorted order.

    Raises ValueError for an image that is unreadable or not of dataset.image_size and dataset.channels.
    """
    from rich.console import Console
    from rich.progress import Progress

    if dataset.channels not in MODES:
        raise ValueError(f"dataset.channels={dataset.channels} is neither 1 (gray) nor 3 (RGB).")
    size, wanted = dataset.image_size, Kind(dataset.image_size, dataset.image_size, MODES[dataset.channels])
    decoded, found = [], dict[Path, Kind | Refused]()
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        for split, classes in tree.items():
            files = [(root / split / name / file[0], i) for i, name in enumerate(classes) for file in classes[name]]
            images = _room(len(files), dataset.channels, size)
            for n, (path, _) in enumerate(progress.track(files, description=f"Decoding {dataset.name} {split}")):
                try:
                    found[path], pixels = decode(path, wanted)
                except Refused as error:
                    found[path] = error
                    continue
                if pixels is not None and found[path] == wanted:
                    images[n] = pixels.reshape(size, size, dataset.channels).transpose(2, 0, 1)
            decoded.append((images, np.array([label for _, label in files], np.int64)))
    check_alike(found, wanted, root)
    return Decoded(decoded[0], decoded[1], tuple(map(text, tree["train"])))


def _room(number: int, channels: int, size: int) -> Images:
    try:
        return np.empty((number, channels, size, size), np.uint8)
    except MemoryError as error:
        raise ValueError(
            f"{number:,} images of {size}x{size} pixels need {number * channels * size**2 / 2**30:,.0f} GiB of memory, "
            "which is not available; make them smaller."
        ) from error
