"""sources/npz.py: files as MedMNIST publishes them, and what cannot be read."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps import compose_config
from capsule_sweeps.data.load import load_data
from capsule_sweeps.data.sources import find_source, npz
from capsule_sweeps.runs.signature import run_name, signature, signed_config


def arrays(channels: int = 3, size: int = 12, val: bool = True, column: bool = True) -> dict[str, np.ndarray]:
    random, found = np.random.default_rng(5), {}
    for split, count in (("train", 9), ("test", 6), *([("val", 5)] if val else [])):
        shape = (count, size, size) if channels == 1 else (count, size, size, channels)
        found[f"{split}_images"] = random.integers(0, 256, shape, dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        found[f"{split}_labels"] = labels[:, None] if column else labels
    return found


def save(folder: Path, content: dict[str, np.ndarray], how=np.savez_compressed) -> Path:
    path = folder / "bloodmnist.npz"
    how(path, **content)
    return path


def config(path: Path, *overrides: str):
    return compose_config(["dataset=npz", f"dataset.root={path}", *overrides])


@pytest.mark.parametrize("how", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("channels", "column"), [(1, True), (3, False)])
def test_arrays_are_read_and_measured(tmp_path, how, channels, column) -> None:
    content = arrays(channels, column=column)
    path = save(tmp_path, content, how)
    dataset = config(path).dataset
    measured = {"name": "bloodmnist", "num_classes": 3, "channels": channels, "image_size": 12, "val_size": 5}
    assert {key: dataset[key] for key in measured} == measured == npz.measure(path)
    loaded = load_data(dataset, tmp_path, "cpu")
    assert loaded.classes == ("0", "1", "2") and loaded.val is not None
    for split in ("train", "val", "test"):
        part = getattr(loaded, split)
        images = part.images.permute(0, 2, 3, 1).numpy().reshape(content[f"{split}_images"].shape)
        assert np.array_equal(images, content[f"{split}_images"])
        assert part.labels.tolist() == content[f"{split}_labels"].ravel().tolist()
    pixels = loaded.train.images.numpy() / 255  # and none of the validation images
    np.testing.assert_allclose(loaded.normalization.mean, pixels.mean((0, 2, 3)), atol=6e-5)
    np.testing.assert_allclose(loaded.normalization.std, pixels.std((0, 2, 3)), atol=6e-5)
    assert load_data(dataset, tmp_path, "cpu").val.labels.tolist() == loaded.val.labels.tolist()  # from the cache


def test_classes_without_test_images_are_named(tmp_path, caplog) -> None:
    content = arrays()
    load_data(config(save(tmp_path, content)).dataset, tmp_path, "cpu")
    assert "has no image" not in caplog.text
    content["test_labels"][:] = 1
    path = save(tmp_path, content)
    load_data(config(path).dataset, tmp_path, "cpu")
    assert f"{path}: test_labels has no image of class 0, 2." in caplog.text


def test_validation_images_are_never_trained_on(tmp_path) -> None:
    path = save(tmp_path, arrays())
    without = load_data(config(path, "dataset.val_size=0").dataset, tmp_path, "cpu")
    assert without.val is None and len(without.train) == 9
    some = load_data(config(path, "dataset.train_size=3").dataset, tmp_path, "cpu")
    assert len(some.train) == 3 and len(some.val) == 5
    with pytest.raises(ValueError, match=r"dataset\.val_size=3, but bloodmnist comes with 5 validation images: set "):
        load_data(config(path, "dataset.val_size=3").dataset, tmp_path, "cpu")


def test_names_beyond_what_file_systems_take_are_cut(tmp_path) -> None:
    long = config(save(tmp_path, arrays()), f'dataset.name="{300 * "ä"}"')
    assert len(load_data(long.dataset, tmp_path, "cpu").train) == 9
    (cached,) = [path.name for path in (tmp_path / ".cache").iterdir() if path.is_dir()]
    assert cached.startswith(100 * "_" + "-npz-"), "the cache is used, although the name is long"
    name = run_name(long, signature(signed_config(long)))
    assert len(name) < 140 and name.endswith(
        f"-capsnet-resnet-inverted_attention-r1-s0-{signature(signed_config(long))}"
    )


def test_without_validation_images_they_are_taken_from_the_training_images(tmp_path) -> None:
    path = save(tmp_path, arrays(val=False))
    assert config(path).dataset.val_size == 0
    loaded = load_data(config(path, "dataset.val_size=3").dataset, tmp_path, "cpu")
    assert (len(loaded.train), len(loaded.val)) == (6, 3)


def test_a_changed_file_is_read_and_measured_again(tmp_path) -> None:
    path = save(tmp_path, arrays())
    before = load_data(config(path).dataset, tmp_path, "cpu").sha256
    save(tmp_path, arrays(channels=1, val=False))
    assert config(path).dataset.channels == 1
    assert load_data(config(path).dataset, tmp_path, "cpu").sha256 != before


def test_a_network_is_trained_on_it(tmp_path, launch) -> None:
    small = ["training=quick", "training.epochs=1", "training.batch_size=4", "training.compile=off", "tracking=none"]
    small += ["backbone=simple", "backbone.channels=4", "capsules.primary={num_capsules:2,pose_size:4}"]
    path = save(tmp_path, arrays(channels=1, size=16))
    ended = launch(
        "dataset=npz", f"dataset.root={path}", "capsules.classes.pose_size=4", "selection_rule=best_val", base=small
    )
    assert ended.code == 0 and "bloodmnist" in ended.text, ended.text


# What cannot be read


def changed(**changes):
    return lambda path: np.savez(path, **{k: v for k, v in {**arrays(), **changes}.items() if v is not None})


def written(name: str, header: str | None = None, content: bytes = b"", method: int = zipfile.ZIP_STORED):
    """One member of the file becomes a .npy file with this header."""

    def write(path: Path) -> None:
        members = {f"{key}.npy": value for key, value in arrays().items()}
        with zipfile.ZipFile(path, "w", method) as archive:
            for member, array in members.items():
                file = io.BytesIO()
                np.save(file, array)
                if member == name:
                    text = (header or "").encode().ljust(117) + b"\n"
                    file = io.BytesIO(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content)
                archive.writestr(member, file.getvalue())

    return write


def cut(path: Path) -> None:
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:-300])


def flipped(path: Path) -> None:
    np.savez(path, **arrays())
    content = bytearray(path.read_bytes())
    place = content.index(arrays()["train_labels"].tobytes())
    content[place] ^= 1
    path.write_bytes(content)


GIGABYTES = "{'descr': '|u1', 'fortran_order': False, 'shape': (9, 60000, 60000), }"
LABELS = np.arange(9) % 3


@pytest.fixture(scope="module")
def described() -> DictConfig:
    """A data set for which nothing has to be measured."""
    given = ["dataset.name=x", "dataset.num_classes=3", "dataset.channels=3", "dataset.image_size=12"]
    return config(Path("x.npz"), *given, "dataset.val_size=0").dataset


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: None, ["dataset.root=", "No such file"]),
        (lambda path: path.mkdir(), ["cannot be read", "Is a directory"]),
        (lambda path: path.write_bytes(b""), ["cannot be read", "numpy.savez"]),
        (cut, ["cannot be read", "numpy.savez"]),
        (flipped, ["cannot be read", "CRC"]),
        (changed(test_labels=None), ["has no test_labels", "train_images, train_labels"]),
        (changed(train_images=np.zeros((9, 12, 12), np.float32)), ["train_images is float32 of shape (9, 12, 12)"]),
        (changed(train_images=np.zeros((9, 12, 12, 2), np.uint8)), ["(9, 12, 12, 2)", "1 channel (gray) or 3"]),
        (changed(train_images=np.zeros((9, 12, 12, 12), np.uint8)), ["(9, 12, 12, 12)"]),  # volumes
        (changed(train_images=np.zeros((9, 12, 10, 3), np.uint8)), ["must be square"]),
        (changed(train_images=np.zeros((0, 12, 12, 3), np.uint8)), ["train_images is uint8 of shape (0, 12, 12, 3)"]),
        (changed(test_images=np.zeros((6, 10, 10, 3), np.uint8)), ["test_images is", "must be alike"]),
        (changed(val_images=np.zeros((5, 12, 12), np.uint8)), ["val_images is", "must be alike"]),
        (changed(train_labels=LABELS[:8]), ["train_labels has 8 labels for 9 images"]),
        (changed(train_labels=np.eye(9, 14, dtype=np.uint8)), ["train_labels is uint8 of shape (9, 14)", "one class"]),
        (changed(train_labels=LABELS.astype(float)), ["train_labels is float64", "integers"]),
        (changed(train_labels=LABELS + 1), ["classes 1, 2, 3;", "numbered from 0"]),
        (changed(train_labels=LABELS * 2), ["classes 0, 2, 4;", "without a gap"]),
        (changed(train_labels=LABELS * 0), ["classes 0;", "two or more"]),
        (changed(test_labels=np.full(6, 7)), ["test_labels has the class 7", "no training image"]),
        (changed(test_labels=np.array([{}] * 6)), ["test_labels holds Python objects"]),
        (written("train_images.npy", GIGABYTES), ["train_images is not as large as it states"]),
        (written("train_images.npy", GIGABYTES.replace("9, ", "-9, ")), ["cannot be read"]),
        (written("train_labels.npy", "{'descr': '|u1', 'shape': 'x'"), ["cannot be read"]),
        (written("train_labels.npy", "__import__('os').system('false')"), ["cannot be read"]),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, described, damage, words) -> None:
    path = tmp_path / "bloodmnist.npz"
    damage(path)
    for attempt in (
        lambda: config(path),
        lambda: load_data(OmegaConf.merge(described, {"root": str(path)}), tmp_path, "cpu"),
    ):
        with pytest.raises(ValueError) as error:
            attempt()
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        for word in words:
            assert word in str(error.value)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_missing_root() -> None:
    with pytest.raises(ValueError, match=r"^dataset.root has no value"):
        compose_config(["dataset=npz"])
    given = ["dataset.num_classes=3", "dataset.channels=3", "dataset.image_size=12", "dataset.val_size=0"]
    dataset = compose_config(["dataset=npz", "dataset.name=x", *given]).dataset
    with pytest.raises(ValueError, match=r"dataset.source=npz needs a file; set dataset.root=FILE.npz"):
        load_data(dataset, ".", "cpu")


def test_what_a_source_does_not_measure(tmp_path) -> None:
    given = ["dataset.name=x", "dataset.num_classes=3", "dataset.channels=3", "dataset.image_size=12"]
    with pytest.raises(
        ValueError, match=r"dataset.source=sklearn does not measure dataset.val_size; set dataset.val_s"
    ):
        config(tmp_path, "dataset.source=sklearn", *given)


def test_values_given_that_do_not_fit(tmp_path) -> None:
    path = save(tmp_path, arrays())
    for override in ("dataset.num_classes=4", "dataset.image_size=10", "dataset.channels=1"):
        with pytest.raises(ValueError, match=override):
            load_data(config(path, override).dataset, tmp_path, "cpu")


def test_sources_are_found_by_the_name_of_their_file() -> None:
    assert find_source("npz") is npz
    for name in ("web", "__init__", "", "../load", "os"):
        with pytest.raises(ValueError, match=r"is unknown; set it to one of affnist, folder, npz, sklearn, "):
            find_source(name)
