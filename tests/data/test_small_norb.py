"""sources/small_norb.py on small files in the genuine format."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import urllib.request
from http.client import IncompleteRead
from pathlib import Path

import numpy as np
import pytest
import torch

from capsule_sweeps import compose_config
from capsule_sweeps.data.augment import augment
from capsule_sweeps.data.load import load_data
from capsule_sweeps.data.sources import small_norb
from capsule_sweeps.data.sources.small_norb import STEMS

AZIMUTHS, ELEVATIONS = range(0, 36, 2), range(9)


def matrix(values: np.ndarray) -> bytes:
    magic = 0x1E3D4C55 if values.dtype == np.uint8 else 0x1E3D4C54
    lengths = [*values.shape, *([1] * (3 - values.ndim))]
    return struct.pack(f"<ii{len(lengths)}i", magic, values.ndim, *lengths) + values.tobytes()


def content(split: str) -> dict[str, np.ndarray]:
    """One instance of two categories under every second azimuth and every elevation, with one light."""
    views = [(toy, e, a) for toy in (0, 1) for e in ELEVATIONS for a in AZIMUTHS]
    random = np.random.default_rng(len(split))
    info = np.array([(4, e, a, 0) for _, e, a in views], np.int32)
    images = random.integers(0, 256, (len(views), 2, 96, 96), dtype=np.uint8)
    return {"dat": images, "cat": np.array([toy for toy, _, _ in views], np.int32), "info": info}


@pytest.fixture
def norb(tmp_path) -> Path:
    folder = tmp_path / "small_norb"
    folder.mkdir()
    for split, stem in STEMS.items():
        for kind, values in content(split).items():
            packed = split == "test"
            path = folder / f"{stem}-{kind}.mat{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(matrix(values)) if packed else matrix(values))
    return tmp_path


def dataset(*overrides: str):
    return compose_config(["dataset=small_norb", *overrides]).dataset


def halved(images: np.ndarray) -> np.ndarray:
    return np.floor(images.reshape(*images.shape[:-2], 48, 2, 48, 2).mean((-3, -1)) + 0.5).astype(np.uint8)


def test_all_views_in_pairs(norb) -> None:
    data = load_data(dataset(), norb, "cpu")
    assert data.classes == ("animal", "human", "airplane", "truck", "car") and data.val is None
    assert data.train.images.shape == (324, 2, 48, 48) and data.test.images.shape == (324, 2, 32, 32)
    assert np.array_equal(data.train.images.numpy(), halved(content("train")["dat"]))
    assert np.array_equal(data.test.images.numpy(), halved(content("test")["dat"])[..., 8:40, 8:40])
    assert data.test.labels.tolist() == content("test")["cat"].tolist()


def test_each_image_of_a_pair_alone(norb) -> None:
    data = load_data(dataset("dataset.channels=1"), norb, "cpu")
    pairs = halved(content("train")["dat"])
    assert np.array_equal(data.train.images[:, 0].numpy(), np.concatenate([pairs[:, 0], pairs[:, 1]]))
    assert data.train.labels.tolist() == 2 * content("train")["cat"].tolist()


@pytest.mark.parametrize(("views", "familiar"), [("azimuth", {0, 2, 4, 30, 32, 34}), ("elevation", {0, 1, 2})])
def test_novel_views_are_the_test_set(norb, views, familiar) -> None:
    column = {"azimuth": 2, "elevation": 1}[views]
    known = {split: np.isin(content(split)["info"][:, column], list(familiar)) for split in ("train", "test")}
    data = load_data(dataset(f"dataset.views={views}", f"dataset.val_size={known['test'].sum()}"), norb, "cpu")
    middle = halved(content("test")["dat"])[..., 8:40, 8:40]
    assert np.array_equal(data.train.images.numpy(), halved(content("train")["dat"])[known["train"]])
    assert np.array_equal(data.val.images.numpy(), middle[known["test"]])
    assert np.array_equal(data.test.images.numpy(), middle[~known["test"]])


def test_held_out_training_images_are_shown_as_test_images_are(norb) -> None:
    data = load_data(dataset("dataset.num_classes=5", "dataset.val_size=20"), norb, "cpu")
    assert data.val.images.shape == (20, 2, 32, 32)


def test_training_takes_windows_without_padding() -> None:
    torch.manual_seed(0)
    images = torch.arange(48 * 48).view(1, 1, 48, 48).remainder(251).to(torch.uint8).expand(200, 1, 48, 48)
    windows = augment(images, 0, False, margin=8)
    assert windows.shape == (200, 1, 32, 32)
    every = {bytes(images[0, 0, y : y + 32, x : x + 32].contiguous().numpy()) for y in range(17) for x in range(17)}
    found = {bytes(window[0].numpy()) for window in windows}
    assert found <= every and len(found) > 100


def test_missing_files_are_downloaded_and_checked(norb, monkeypatch) -> None:
    path = norb / "small_norb" / f"{STEMS['test']}-info.mat.gz"
    sent, asked = path.read_bytes(), []
    path.unlink()

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(sent)

    def cut(url: str, timeout: float) -> io.BytesIO:
        raise IncompleteRead(sent[:9])

    monkeypatch.setattr(urllib.request, "urlopen", cut)
    with pytest.raises(ValueError, match=r"could not be downloaded \(IncompleteRead\(9 bytes read\)\): copy"):
        load_data(dataset(), norb, "cpu")
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(ValueError, match=r"could not be downloaded \(what was downloaded is damaged\)"):
        load_data(dataset(), norb, "cpu")
    assert not path.exists()
    monkeypatch.setitem(small_norb.MD5, "test-info", hashlib.md5(gzip.decompress(sent)).hexdigest())
    load_data(dataset(), norb, "cpu")
    assert path.read_bytes() == sent and asked[-1].endswith(f"norb-v1.0-small/{path.name}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-7], "is damaged"),
        (lambda data: b"\0" * 4 + data[4:], "is damaged"),
        (lambda data: data[:8] + struct.pack("<i", 2**31 - 1) + data[12:], "is damaged"),
        (lambda data: b"", "is damaged"),
    ],
)
def test_damaged_files_are_one_sentence(norb, damage, message) -> None:
    path = norb / "small_norb" / f"{STEMS['train']}-info.mat"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as failed:
        load_data(dataset(), norb, "cpu")
    assert len(str(failed.value).splitlines()) == 1


@pytest.mark.parametrize("override", ["dataset.views=front", "dataset.image_size=40", "dataset.channels=3"])
def test_settings_that_do_not_fit_are_one_sentence(norb, override) -> None:
    with pytest.raises(ValueError, match=override.replace(".", r"\.")):
        load_data(dataset(override), norb, "cpu")
