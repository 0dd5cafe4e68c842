"""sources/affnist.py on small files in the genuine format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from capsule_sweeps import compose_config
from capsule_sweeps.data.cache import Decoded
from capsule_sweeps.data.load import load_data
from capsule_sweeps.data.sources import torchvision

RANDOM = np.random.default_rng(3)
TRAIN = RANDOM.integers(0, 256, (20, 1, 28, 28), dtype=np.uint8), np.arange(20) % 10
TEST = RANDOM.integers(0, 256, (12, 40, 40), dtype=np.uint8), np.arange(12) % 10


@pytest.fixture
def affnist(tmp_path, monkeypatch) -> Path:
    """The official structure: a column per image, and more fields than are read."""
    monkeypatch.setattr(
        torchvision, "read_source", lambda dataset, data_dir: Decoded(TRAIN, TRAIN, tuple("0123456789"))
    )
    (tmp_path / "affNIST").mkdir()
    images, labels = TEST
    fields = {"image": images.reshape(12, 1600).T, "label_int": labels[None].astype(np.uint8), "human_readable": "x"}
    savemat(tmp_path / "affNIST" / "test.mat", {"affNISTdata": fields})
    return tmp_path


def test_official_test_images_beside_digits_on_a_canvas(affnist) -> None:
    data = load_data(compose_config(["dataset=affnist"]).dataset, affnist, "cpu")
    assert np.array_equal(data.test.images[:, 0].numpy(), TEST[0]) and data.test.labels.tolist() == TEST[1].tolist()
    assert np.array_equal(data.train.images[..., 6:34, 6:34].numpy(), TRAIN[0]) and data.train.images.shape[2:] == (
        40,
        40,
    )


@pytest.mark.parametrize(("content", "message"), [(None, "is not under"), (b"not a file", "is not an affNIST file")])
def test_missing_and_damaged_files_are_one_sentence(affnist, content, message) -> None:
    path = affnist / "affNIST" / "test.mat"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as failed:
        load_data(compose_config(["dataset=affnist"]).dataset, affnist, "cpu")
    assert len(str(failed.value).splitlines()) == 1
