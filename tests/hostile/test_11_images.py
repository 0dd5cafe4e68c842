"""Images from others: formats that start programs, sizes that take all memory, many broken ones among good ones."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
from PIL import Image

from capsule_sweeps import compose_config
from capsule_sweeps.data import pictures
from capsule_sweeps.data.load import load_data
from capsule_sweeps.data.pictures import Kind, Refused, look

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\n%%EOF\n"


def tree(root: Path, number: int = 3, mode: str = "RGB") -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                Image.new(mode, (12, 12), 17 * i).save(root / split / name / f"{i}.png")
    return root


def of(root: Path, *more: str):
    return compose_config(["dataset=folder", f"dataset.root={root}", *more]).dataset


def refusal(root: Path, tmp_path: Path, *more: str) -> str:
    with pytest.raises(ValueError) as error:
        load_data(of(root, *more), tmp_path / "data", "cpu")
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.npy"))
    return str(error.value)


def huge(side: int) -> bytes:
    """A PNG whose header states so many pixels a side, with next to nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_no_image_starts_ghostscript(tmp_path, monkeypatch) -> None:
    """Not the one that is measured, and not one that is read."""
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "gs"
    stub.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("cat/0.png", "dog/1.png"):
        root = tree(tmp_path / name.replace("/", "-"))
        (root / "train" / name).write_bytes(EPS)
        assert f"train/{name} cannot be read as an image" in refusal(root, tmp_path)
    assert not (tmp_path / "started").exists()


def test_only_raster_formats_are_opened() -> None:
    Image.init()
    dangerous = {"EPS", "WMF", "PSD", "FITS", "ICNS", "MPEG", "HDF5", "GRIB", "BUFR", "PDF", "FLI", "DCX", "DDS"}
    assert not dangerous & set(pictures.FORMATS) and set(pictures.FORMATS) <= set(Image.ID)


@pytest.mark.parametrize(("side", "words"), [(5000, "is 5000x5000 RGB"), (13000, "has more than 4096 pixels a side")])
@pytest.mark.parametrize("name", ["cat/0.png", "dog/1.png"])
def test_size_is_looked_at_before_pixels_are_made(tmp_path, monkeypatch, name, side, words) -> None:
    """The right file is named, whether it is the first, whose size is measured, or a later one."""
    root = tree(tmp_path / "photos")
    (root / "train" / name).write_bytes(huge(side))
    loaded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: (loaded.append(image.size), load(image))[1])
    said = refusal(root, tmp_path)
    assert f"train/{name} {words}" in said and ("12x12 RGB" in said or side == 13000)
    assert set(loaded) <= {(12, 12)}


def test_a_tree_of_large_images_is_refused(tmp_path) -> None:
    root = tree(tmp_path / "photos", number=1)
    for path in root.rglob("*.png"):
        path.write_bytes(huge(5000))
    with pytest.raises(ValueError, match=r"0\.png is 5000x5000 RGB: .* at most 4096 pixels a side"):
        of(root)


def test_all_bad_pictures_are_named_at_once(tmp_path) -> None:
    root = tree(tmp_path / "photos", number=30)
    bad = [root / "train" / "cat" / f"{i}.png" for i in range(25)]
    for path in bad[:24]:
        path.write_bytes(b"no image")
    Image.new("L", (12, 12)).save(bad[24])
    said = refusal(root, tmp_path)
    assert "25 of 120 images in" in said and "all must be 12x12 RGB" in said and "and 5 more" in said
    assert said.count("cannot be read as an image") == 19 and "train/cat/24.png is 12x12 L" in said
    assert 'convert("RGB"), (12, 12)' in said


@pytest.mark.parametrize(("usual", "odd"), [("RGB", "L"), ("L", "RGB"), ("RGB", "P"), ("L", "RGBA")])
def test_the_odd_one_out_is_named_and_the_command_converts_it(tmp_path, usual, odd) -> None:
    """Also where it is the first, from which size and channels are measured."""
    root = tree(tmp_path / "my photos", mode=usual)
    path = root / "train" / "cat" / "0.png"
    Image.new(odd, (12, 12)).save(path)
    with pytest.raises(ValueError) as error:
        load_data(compose_config(["dataset=folder", f"dataset.root='{root}'"]).dataset, tmp_path / "data", "cpu")
    said = str(error.value)
    assert said.startswith(f"{path} is 12x12 {odd}, but ") and "dog" not in said
    command = said.partition("this converts it: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    loaded = load_data(compose_config(["dataset=folder", f"dataset.root='{root}'"]).dataset, tmp_path / "data", "cpu")
    assert loaded.train.images.shape == (6, 3 if usual == "RGB" else 1, 12, 12)


def test_the_command_crops_what_is_not_square_and_turns_photographs(tmp_path) -> None:
    root = tree(tmp_path / "photos", mode="L")
    path, exif, pixels = root / "train" / "dog" / "1.png", Image.Exif(), np.zeros((12, 24), np.uint8)
    pixels[:, 6:18], exif[0x0112] = 255, 6
    Image.fromarray(pixels).save(path, exif=exif)
    said = refusal(root, tmp_path)
    command = said.partition("this converts it: ")[2].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    assert look(path) == Kind(12, 12, "L") and np.asarray(Image.open(path)).min() == 255


def test_settings_that_fit_no_image_are_named(tmp_path) -> None:
    said = refusal(tree(tmp_path / "photos", mode="L"), tmp_path, "dataset.image_size=32", "dataset.channels=3")
    assert "12 of 12 images in" in said and "set dataset.image_size=12 dataset.channels=1, or convert them" in said


def test_folders_and_links_are_named_at_once(tmp_path) -> None:
    root = tree(tmp_path / "photos")
    for name in ("owl", "rat"):
        (root / "train" / name).mkdir()
    assert "train/owl, rat hold no images" in refusal(root, tmp_path, "dataset.num_classes=4", *given())
    for name in ("owl", "rat"):
        Image.new("RGB", (12, 12)).save(root / "train" / name / "0.png")
    assert "owl, rat are classes in only one of" in refusal(root, tmp_path, "dataset.num_classes=4", *given())
    for i in range(25):
        (root / "test" / "cat" / f"link{i:02}.png").symlink_to("gone")
    said = refusal(root, tmp_path, *given())
    assert "cat/link00.png, cat/link01.png" in said and "and 5 more are links that lead nowhere" in said


def given() -> list[str]:
    return ["dataset.channels=3", "dataset.image_size=12"]


def test_folders_beside_train_and_test_are_named(tmp_path, caplog) -> None:
    root = tree(tmp_path / "photos")
    (root / "val").mkdir()
    load_data(of(root), tmp_path / "data", "cpu")
    assert "only train and test are read, not val" in caplog.text


def test_pixels_that_are_refused_are_so_by_header(tmp_path) -> None:
    path = tmp_path / "0.png"
    path.write_bytes(huge(50_000))
    with pytest.raises(Refused, match="more than 4096 pixels a side"):
        look(path)
