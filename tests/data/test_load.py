"""load.py with cache.py, split.py, augment.py, pairs.py: sources, cache, splits, augmentation."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import warnings
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decoded import prepare
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from capsule_sweeps.data import cache
from capsule_sweeps.data.augment import augment, crop_and_flip, normalize
from capsule_sweeps.data.load import load_data
from capsule_sweeps.data.pairs import pair
from capsule_sweeps.data.sources import folder
from capsule_sweeps.data.split import SPLIT_SEED, Split, class_counts, split_indices

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def dataset_config(**changes):
    config = {"name": "pets", "source": "folder", "num_classes": 3, "channels": 3, "image_size": 5}
    kind = {"root": None, "base": None, "labels_per_image": 1, "affine_test": False, "mean": None, "std": None}
    kind |= {"test_shift": 0, "test_rotation": 0.0, "crop_margin": 0, "test_size": None}
    return SimpleNamespace(**{**config, **kind, "train_size": None, "val_size": 0, **changes})


def digits_config(**changes):
    digits = {"name": "digits", "source": "sklearn", "num_classes": 10, "channels": 1, "image_size": 32}
    return dataset_config(**{**digits, **changes})


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("user_cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "capsule_sweeps"


@pytest.fixture
def pets(tmp_path):
    """A tree of 3 classes with 4 training and 2 test images each; returns data_dir, {(split, class, i): pixels}."""
    random = np.random.default_rng(0)
    images = {}
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "ant", "bee"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
                images[split, name, i] = pixels
    return tmp_path, images


# Sources


def test_digits_are_the_real_digits_resized_and_split(tmp_path):
    from sklearn.datasets import load_digits

    digits = load_data(digits_config(), tmp_path, "cpu")
    assert digits.train.images.shape == (1400, 1, 32, 32) and digits.test.images.shape == (397, 1, 32, 32)
    assert digits.train.images.dtype == torch.uint8 and digits.train.labels.dtype == torch.int64
    assert digits.val is None and digits.classes == tuple("0123456789") and len(digits.test) == 397
    # golden: fails when the resizing or the split changes, and with them every number ever trained on digits
    assert digits.sha256 == "c8108e7f51473e7bd81081fb006e5c01b0af151954a1ebaa44566ce0944eaf56"
    pixels, labels = load_digits(return_X_y=True)
    assert np.array_equal(np.sort(torch.cat([digits.train.labels, digits.test.labels])), np.sort(labels))
    resized = np.concatenate([digits.train.images, digits.test.images])[:, 0] / 255 * 16
    # Bilinear interpolation between pixel centers keeps each 4×4 block's mean close to its pixel: identify all images.
    order = np.random.RandomState(SPLIT_SEED).permutation(1797)
    means = resized.reshape(1797, 8, 4, 8, 4).mean(axis=(2, 4))
    nearest = [np.argmin(((pixels.reshape(-1, 8, 8) - image) ** 2).sum(axis=(1, 2))) for image in means[::50]]
    assert np.array_equal(nearest, order[::50])


def test_class_tree_is_read_in_sorted_order(pets):
    data_dir, images = pets
    (data_dir / "pets" / "train" / "ant" / "notes.txt").write_text("no image")
    (data_dir / "pets" / "train" / ".hidden").mkdir()
    loaded = load_data(dataset_config(), data_dir, "cpu")
    assert loaded.classes == ("ant", "bee", "cat")
    for split in ("train", "test"):
        part = getattr(loaded, split)
        expected = sorted(key for key in images if key[0] == split)
        assert part.labels.tolist() == [loaded.classes.index(name) for _, name, _ in expected]
        for image, key in zip(part.images, expected, strict=True):
            assert np.array_equal(image.permute(1, 2, 0), images[key])


def remove_test_images(root):
    for path in (root / "test" / "bee").iterdir():
        path.unlink()


def save_image(root, mode, size):
    Image.new(mode, size).save(root / "train" / "bee" / "odd.png")


@pytest.mark.parametrize(
    ("damage", "changes", "parts"),
    [
        (lambda root: (root / "test").rename(root / "val"), {}, ["pets/test", "{train,test}/<class>/*.png"]),
        (lambda root: root.rename(root.parent / "zoo"), {}, ["pets/train", "No such file"]),
        (remove_test_images, {}, ["pets/test/bee holds no images"]),
        (lambda root: (root / "test" / "bee").rename(root / "test" / "bug"), {}, ["bee", "only one of"]),
        (lambda root: None, {"num_classes": 10}, ["dataset.num_classes=10", "3 class folders"]),
        (lambda root: None, {"image_size": 6}, ["images in", "are 5x5 RGB", "dataset.image_size=6"]),
        (lambda root: None, {"channels": 1}, ["images in", "are 5x5 RGB", "dataset.channels=1", "5x5 L"]),
        (lambda root: save_image(root, "RGB", (5, 4)), {}, ["bee/odd.png is 5x4 RGB", "5x5 RGB"]),
        (
            lambda root: os.truncate(root / "train" / "cat" / "2.png", 60),
            {},
            ["cat/2.png cannot be read", "replace or remove it"],
        ),
        (
            lambda root: None,
            {"source": "web"},
            ["dataset.source=web", "set it to one of affnist, folder, npz, sklearn, "],
        ),
        (lambda root: None, {"source": "sklearn"}, ["dataset.source=sklearn has only digits, not pets"]),
        (
            lambda root: None,
            {"source": "torchvision"},
            ["dataset.source=torchvision", "CIFAR10, CIFAR100, SVHN, MNIST, FashionMNIST, not pets"],
        ),
        (lambda root: None, {"train_size": 13}, ["dataset.train_size=13", "1 to 12"]),
        (lambda root: None, {"val_size": 10}, ["dataset.val_size=10", "0 to 9"]),
        (lambda root: None, {"val_size": 3, "train_size": 10}, ["dataset.train_size=10", "1 to 9"]),
    ],
)
def test_what_cannot_be_had_is_one_sentence(pets, damage, changes, parts):
    data_dir, _ = pets
    damage(data_dir / "pets")
    with pytest.raises(ValueError) as error:
        load_data(dataset_config(**changes), data_dir, "cpu")
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{"num_classes": 7}, {"channels": 3}])
def test_config_that_does_not_fit_stores_nothing(tmp_path, changes):
    with pytest.raises(ValueError, match=f"dataset.{next(iter(changes))}={next(iter(changes.values()))}"):
        load_data(digits_config(**changes), tmp_path, "cpu")
    assert not list(tmp_path.rglob("*.npy"))
    load_data(digits_config(), tmp_path, "cpu")
    with pytest.raises(ValueError, match=f"dataset.{next(iter(changes))}={next(iter(changes.values()))}"):
        load_data(digits_config(**changes), tmp_path, "cpu")


# torchvision: its own code with its own md5 checks, on a data set of 12 images


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def old_pickle(content):
    """With the integers and the module name that the numpy of 2009 wrote, as in the real files."""
    written = pickle.dumps(content, protocol=2)
    return written.replace(b"\x89\x88\x87", b"K\x00K\x01\x87").replace(b"numpy._core", b"numpy.core")


@pytest.fixture
def tiny_cifar(tmp_path, monkeypatch):
    """torchvision's CIFAR10 with another address and other md5 sums; yields its images (12, 3, 32, 32)."""
    from torchvision.datasets import CIFAR10

    images = np.random.default_rng(1).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    files = {"batches.meta": old_pickle({"label_names": ["ant", "bee"]})}
    for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        files[name] = old_pickle({"data": images[2 * i : 2 * i + 2].reshape(2, 3072), "labels": [1, 0]})
    sums = {name: md5(content).hexdigest() for name, content in files.items()}
    folder = tmp_path / "served"
    folder.mkdir()
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in sums if name.startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5((folder / "cifar.tar.gz").read_bytes()).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")
        yield images
        server.shutdown()
        thread.join()


def cifar_config():
    return dataset_config(name="CIFAR10", source="torchvision", num_classes=2, image_size=32)


def test_torchvision_downloads_verifies_and_is_read_once(tiny_cifar, tmp_path, capfd, monkeypatch):
    images = tiny_cifar
    loaded = load_data(cifar_config(), tmp_path / "data", "cpu")
    assert np.array_equal(loaded.train.images, images[:10]) and np.array_equal(loaded.test.images, images[10:])
    assert loaded.train.labels.tolist() == [1, 0] * 5 and loaded.classes == ("ant", "bee")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert load_data(cifar_config(), tmp_path / "data", "cpu").sha256 == loaded.sha256


def test_torchvision_damaged_files_are_downloaded_again(tiny_cifar, tmp_path):
    sha256 = load_data(cifar_config(), tmp_path / "data", "cpu").sha256
    (tmp_path / "data" / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"damaged")
    (tmp_path / "data" / "cifar-10-python.tar.gz").unlink()
    assert load_data(cifar_config(), tmp_path / "data", "cpu").sha256 == sha256


def test_torchvision_failures_are_one_sentence(tiny_cifar, tmp_path, capfd, monkeypatch):
    from torchvision.datasets import CIFAR10

    url = CIFAR10.url
    monkeypatch.setattr(CIFAR10, "url", "https://127.0.0.1:9/cifar.tar.gz")  # no server listens there
    with pytest.raises(ValueError) as error:
        load_data(cifar_config(), tmp_path / "data", "cpu")
    tree = tmp_path / "data" / "CIFAR10" / "{train,test}" / "<class>" / "*.png"
    assert str(error.value) == (
        f"CIFAR10 is not under {tmp_path / 'data'} and could not be downloaded (Connection refused); copy "
        f"cifar-10-batches-py there, set dataset.source=folder with images in {tree}, or try dataset=digits "
        "training=quick, which needs no network."
    )
    monkeypatch.setattr(CIFAR10, "url", url)
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(ValueError, match=r"could not be downloaded .*corrupted"):
        load_data(cifar_config(), tmp_path / "data", "cpu")
    (tmp_path / "data" / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match="CIFAR10 is damaged in "):
        load_data(cifar_config(), tmp_path / "data", "cpu")
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.rglob("*.npy"))


# The decoded cache


def stored(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_cache_is_mapped_and_follows_the_source(pets, monkeypatch):
    data_dir, _ = pets
    path = prepare(dataset_config(), data_dir)
    assert path.parent == data_dir / ".cache" and not list(path.parent.glob("*.tmp"))
    before = stored(path)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "read_class_tree", None)  # not needed any more
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = load_data(dataset_config(), data_dir, "cpu")
        maps = Path("/proc/self/maps")
        assert not maps.exists() or str(path) in maps.read_text()
        loaded.train.images.zero_()  # a private mapping: even a mistake cannot reach the file
        assert stored(path) == before
        assert load_data(dataset_config(), data_dir, "cpu").train.images.any()
    changed = data_dir / "pets" / "train" / "ant" / "0.png"
    Image.new("RGB", (5, 5)).save(changed)
    again = load_data(dataset_config(), data_dir, "cpu")
    assert again.sha256 != loaded.sha256 and not again.train.images[0].any()
    path, now = prepare(dataset_config(), data_dir), changed.stat()
    os.utime(changed, ns=(now.st_atime_ns, now.st_mtime_ns + 1))
    assert prepare(dataset_config(), data_dir) != path  # the time alone makes another key
    assert load_data(dataset_config(), data_dir, "cpu").sha256 == again.sha256


def garble(name, change):
    def garbled(path):
        (path / name).write_bytes(change((path / name).read_bytes()))

    return garbled


def save(name, make):
    return lambda path: np.save(path / name, make(np.load(path / name)), allow_pickle=True)


@pytest.mark.parametrize(
    "damage",
    [
        *(garble(name, lambda _: b"") for name in ("about.json", "train_images.npy", "test_labels.npy")),
        garble("test_images.npy", lambda content: content[:40]),
        garble("train_labels.npy", lambda content: b"\0" * len(content)),
        garble("about.json", lambda _: b"[]"),
        garble("about.json", lambda content: content.replace(b'"classes"', b'"clasess"')),
        garble("about.json", lambda content: content.replace(b'["train", "test"]', b'["train"]')),
        save("test_labels.npy", lambda labels: labels + 9),
        save("test_labels.npy", lambda labels: labels[:-1]),
        save("train_labels.npy", lambda labels: labels.astype(object)),
        save("train_images.npy", lambda images: images.astype(np.int8)),
        save("train_images.npy", lambda images: images[..., 0]),
        lambda path: (path / "test_images.npy").unlink(),
        shutil.rmtree,
        lambda path: [shutil.rmtree(path), (path.with_name(path.name + ".tmp")).mkdir()],
    ],
)
def test_damaged_cache_is_made_again(pets, damage):
    data_dir, _ = pets
    path = prepare(dataset_config(), data_dir)
    good = stored(path)
    damage(path)
    assert prepare(dataset_config(), data_dir) == path
    assert stored(path) == good


def test_files_that_change_while_they_are_read_are_read_again(pets, monkeypatch):
    data_dir, _ = pets
    read, changes = folder.read_class_tree, iter([30, 40])

    def slow(dataset, root, tree):
        found = read(dataset, root, tree)
        if (gray := next(changes, None)) is not None:
            Image.new("RGB", (5, 5), (gray, gray, gray)).save(root / "train" / "ant" / f"new{gray}.png")
        return found

    monkeypatch.setattr(folder, "read_class_tree", slow)
    images = load_data(dataset_config(), data_dir, "cpu").train.images
    assert len(images) == 14 and {30, 40} <= set(images[:6].amax((1, 2, 3)).tolist())
    changes = iter(range(50, 60))
    (data_dir / "pets" / "train" / "ant" / "new30.png").unlink()
    with pytest.raises(ValueError, match=r"pets-folder changed 3 times while they were read"):
        prepare(dataset_config(), data_dir)


def test_data_dir_that_cannot_be_written(pets, user_cache, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    path = prepare(digits_config(), file / "data")  # no folder can be made below a file, not even by root
    assert path.parent == user_cache
    assert len(load_data(digits_config(), file / "data", "cpu").test) == 397

    data_dir, _ = pets
    make_folder = Path.mkdir

    def read_only(self, *args, **kwargs):
        if data_dir in (self, *self.parents):
            raise PermissionError(13, "Permission denied", str(self))
        make_folder(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert prepare(dataset_config(), data_dir).parent == user_cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(ValueError, match=r"neither in .*data_dir or XDG_CACHE_HOME"):
        prepare(dataset_config(), data_dir)
    monkeypatch.undo()
    assert prepare(dataset_config(), data_dir).parent == data_dir / ".cache"
    monkeypatch.setattr(Path, "mkdir", read_only)  # a shared folder that somebody else has prepared is used
    assert prepare(dataset_config(), data_dir).parent == data_dir / ".cache"


def test_full_disk_is_one_sentence_and_leaves_nothing(pets, monkeypatch):
    data_dir, _ = pets

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(ValueError, match=r"could not be written to .*No space left"):
        prepare(dataset_config(), data_dir)
    assert not (data_dir / ".cache").exists()


@pytest.mark.slow
def test_processes_that_start_together_decode_once(pets):
    data_dir, _ = pets
    program = """if True:
        import sys, time
        from pathlib import Path
        from types import SimpleNamespace
        from capsule_sweeps.data import load as data
        from capsule_sweeps.data.sources import folder
        data_dir, name = Path(sys.argv[1]), sys.argv[2]
        read = folder.read_class_tree
        def slow_read(*args):
            (data_dir / f"decoded-by-{name}").touch()
            time.sleep(1)
            return read(*args)
        folder.read_class_tree = slow_read
        (data_dir / f"ready-{name}").touch()
        while len(list(data_dir.glob("ready-*"))) < 3:
            time.sleep(0.01)
        config = dict(name="pets", source="folder", num_classes=3, channels=3, image_size=5, root=None, base=None)
        config |= dict(labels_per_image=1, affine_test=False, mean=None, std=None, test_shift=0, test_rotation=0.0)
        config |= dict(crop_margin=0, test_size=None)
        print(data.load_data(SimpleNamespace(**config, train_size=None, val_size=0), data_dir, "cpu").sha256)
    """
    command = [sys.executable, "-c", program, str(data_dir)]
    processes = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(3)]
    try:
        hashes = {process.communicate(timeout=300)[0] for process in processes}
    finally:
        for process in processes:
            process.kill()
    assert len(list(data_dir.glob("ready-*"))) == 3
    assert len(list(data_dir.glob("decoded-by-*"))) == 1
    assert hashes == {load_data(dataset_config(), data_dir, "cpu").sha256 + "\n"}


def test_stored_hash_is_that_of_the_arrays(pets):
    data_dir, _ = pets
    loaded = load_data(dataset_config(), data_dir, "cpu")
    splits = [(s.images.numpy().copy(), s.labels.numpy().copy()) for s in (loaded.train, loaded.test)]
    assert cache.Decoded(splits[0], splits[1], loaded.classes).sha256() == loaded.sha256
    splits[1][1][-1] = 0
    assert cache.Decoded(splits[0], splits[1], loaded.classes).sha256() != loaded.sha256
    about = json.loads((prepare(dataset_config(), data_dir) / "about.json").read_text())
    assert about["sha256"] == loaded.sha256


# Splits


@st.composite
def labels_and_sizes(draw):
    counts = draw(st.lists(st.integers(1, 9), min_size=2, max_size=6).filter(lambda counts: max(counts) > 1))
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(np.repeat(np.arange(len(counts)), counts))
    val_size = draw(st.integers(0, len(labels) - len(counts)))
    train_size = draw(st.integers(1, len(labels)))
    return labels, train_size, val_size


def assert_shared_out(counts, available):
    """All equal, or some one more; else the smallest class is taken whole, and no other has given less than it."""
    if counts.max() - counts.min() > 1:
        assert counts[available == available.min()].tolist() == available[available == available.min()].tolist()
        left = available - available.min() - 1
        parts = (counts - available.min() - 1)[left > 0]
        shares = parts.sum() * left[left > 0] / left[left > 0].sum()
        assert np.abs(parts - shares).max() < 1.5


@given(labels_and_sizes())
def test_splits_are_shared_out_disjoint_and_fixed(case):
    labels, train_size, val_size = case
    everything, val = split_indices(labels, None, val_size)
    assert sorted([*everything, *val]) == list(range(len(labels)))
    num_classes = labels.max() + 1
    assert len(val) == val_size and set(labels[everything]) == set(range(num_classes))
    assert_shared_out(np.bincount(labels[val], minlength=num_classes), np.bincount(labels) - 1)
    available = np.bincount(labels[everything], minlength=num_classes)
    if train_size > available.sum():
        with pytest.raises(
            ValueError, match=rf"dataset\.train_size={train_size} is not possible .* 1 to {available.sum()} "
        ):
            split_indices(labels, train_size, val_size)
        return
    train, same_val = split_indices(labels, train_size, val_size)
    assert np.array_equal(val, same_val) and np.array_equal(train, split_indices(labels, train_size, val_size)[0])
    assert len(set(train)) == train_size and set(train) <= set(everything)
    assert_shared_out(np.bincount(labels[train], minlength=num_classes), available)
    if train_size > 1:
        assert set(split_indices(labels, train_size - 1, val_size)[0]) < set(train)
    if val_size > 0:
        assert set(split_indices(labels, None, val_size - 1)[1]) < set(val)


@pytest.mark.parametrize(
    ("available", "size", "counts"),
    [
        ([500, 500, 500], 100, [34, 33, 33]),
        ([500, 500, 20], 30, [10, 10, 10]),  # as it was before sizes beyond were possible
        ([499, 499, 0], 100, [50, 50, 0]),
        ([499, 499, 1], 100, [50, 49, 1]),
        ([600, 300, 0], 90, [60, 30, 0]),
        ([600, 300, 0], 900, [600, 300, 0]),
    ],
)
def test_counts_by_hand(available, size, counts):
    assert class_counts(available, size, np.array([0, 1, 2])) == counts


def test_a_rare_class_limits_nothing_and_is_named(tmp_path, caplog):
    for name, count in (("cat", 20), ("dog", 20), ("fox", 1)):
        for split, number in (("train", count), ("test", 1)):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (5, 5)).save(tmp_path / "pets" / split / name / f"{i}.png")
    loaded = load_data(dataset_config(val_size=10, train_size=21), tmp_path, "cpu")
    assert torch.bincount(loaded.val.labels, minlength=3).tolist() == [5, 5, 0]
    assert torch.bincount(loaded.train.labels).tolist() == [10, 10, 1]
    assert "dataset.val_size=10 is not balanced by class: fox has 1 training image, and none of it" in caplog.text
    with pytest.raises(ValueError, match=r"dataset.val_size=39 is not possible .*: set 0 to 38 "):
        load_data(dataset_config(val_size=39), tmp_path, "cpu")


def test_splits_are_those_of_the_fixed_seed():
    train, val = split_indices(np.arange(60) % 3, 4, 3)
    assert (train.tolist(), val.tolist()) == ([13, 32, 36, 49], [34, 42, 59])


def test_load_data_returns_the_splits(pets):
    data_dir, _ = pets
    whole = load_data(dataset_config(), data_dir, "cpu")
    parts = load_data(dataset_config(train_size=6, val_size=3), data_dir, "cpu")
    train, val = split_indices(whole.train.labels.numpy(), 6, 3)
    assert torch.equal(parts.train.images, whole.train.images[train]) and parts.val is not None
    assert torch.equal(parts.val.images, whole.train.images[val])
    assert parts.train.labels.tolist() == [0, 0, 1, 1, 2, 2] and parts.val.labels.tolist() == [0, 1, 2]
    assert torch.equal(parts.test.images, whole.test.images) and parts.sha256 == whole.sha256
    images, labels = whole.train.batch(torch.tensor([7, 0, 7]))
    assert torch.equal(images, whole.train.images[[7, 0, 7]]) and labels.tolist() == [1, 0, 1]


# Augmentation


@given(st.data())
def test_crop_and_flip_equals_a_loop_over_images(draw):
    num_images, channels = draw.draw(st.integers(1, 5)), draw.draw(st.sampled_from([1, 3]))
    height, width, padding = draw.draw(st.integers(1, 7)), draw.draw(st.integers(1, 7)), draw.draw(st.integers(0, 4))
    generator = torch.Generator().manual_seed(draw.draw(st.integers(0, 99)))
    images = torch.randint(0, 256, (num_images, channels, height, width), dtype=torch.uint8, generator=generator)
    top, left = torch.randint(2 * padding + 1, (2, num_images), generator=generator)
    mirrored = torch.rand(num_images, generator=generator) < 0.5
    ours = crop_and_flip(images, top, left, mirrored, padding)
    for n in range(num_images):
        padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), np.uint8)
        padded[:, padding : padding + height, padding : padding + width] = images[n]
        image = padded[:, top[n] : top[n] + height, left[n] : left[n] + width]
        assert np.array_equal(ours[n], image[:, :, ::-1] if mirrored[n] else image)


def test_augment_draws_every_offset_and_flip_evenly():
    # One lit pixel in the middle shows where its image went; mirrored it lands on the other side of the middle.
    images = torch.zeros(20_000, 1, 12, 12, dtype=torch.uint8)
    images[:, :, 5, 2] = 255
    torch.manual_seed(3)
    rows, columns = augment(images, 2, flip=True)[:, 0].nonzero()[:, 1:].T
    assert len(rows) == 20_000
    counts = np.zeros((12, 12))
    np.add.at(counts, (rows.numpy(), columns.numpy()), 1)
    hit = [(row, column) for row in range(3, 8) for column in [*range(5), *range(7, 12)]]
    expected = 20_000 / len(hit)
    assert sum(counts[place] for place in hit) == 20_000
    chi_squared = sum((counts[place] - expected) ** 2 / expected for place in hit)
    assert chi_squared < 93  # 49 degrees of freedom: one seed in 7,000 is beyond


def test_augment_follows_from_the_global_seed_and_can_be_switched_off():
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    torch.manual_seed(5)
    first = augment(images, 4, True)
    torch.manual_seed(5)
    assert torch.equal(augment(images, 4, True), first) and not torch.equal(augment(images, 4, True), first)
    assert torch.equal(augment(images, 0, False), images)
    torch.manual_seed(5)
    top, left = torch.randint(9, (2, 64))
    mirrored = torch.rand(64) < 0.5
    assert torch.equal(crop_and_flip(images, top, left, mirrored, 4), first)
    only_flipped = augment(images, 0, True)
    is_flipped = (only_flipped == images.flip(3)).flatten(1).all(1)
    assert (is_flipped | (only_flipped == images).flatten(1).all(1)).all() and 10 < is_flipped.sum() < 54
    torch.manual_seed(5)
    top, left = torch.randint(9, (2, 64))
    never = torch.zeros(64, dtype=torch.bool)
    torch.manual_seed(5)
    assert torch.equal(augment(images, 4, False), crop_and_flip(images, top, left, never, 4))


def test_normalize_equals_torchvision():
    from torchvision.transforms.functional import convert_image_dtype
    from torchvision.transforms.functional import normalize as reference

    images = torch.arange(256, dtype=torch.uint8).repeat(4, 3, 1)[..., None]  # every value in every channel
    before = images.clone()
    ours = normalize(images, list(MEAN), list(STD))
    torch.testing.assert_close(ours, reference(convert_image_dtype(images), MEAN, STD), rtol=1e-6, atol=1e-6)
    assert ours.dtype == torch.float32 and torch.equal(images, before)


def test_padding_is_black_before_normalization():
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    corner = crop_and_flip(white, torch.tensor([0]), torch.tensor([0]), torch.tensor([False]), 1)
    expected = [(-m / s, (1 - m) / s) for m, s in zip(MEAN, STD, strict=True)]
    for channel, (black, lit) in zip(normalize(corner, MEAN, STD)[0], expected, strict=True):
        torch.testing.assert_close(channel, torch.tensor([[black, black], [black, lit]]))


# Pairs of digits


def digits_split(num_images=60, num_classes=3):
    """Every image has one lit pixel, whose brightness says which image it is."""
    images = torch.zeros(num_images, 1, 40, 40, dtype=torch.uint8)
    images[:, 0, 20, 20] = torch.arange(1, num_images + 1, dtype=torch.uint8)
    return Split(images, torch.arange(num_images) % num_classes)


def test_partners_are_even_among_other_classes_and_offsets_even():
    digits = Split(torch.zeros(9, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2]))
    counts, offsets = np.zeros((9, 9)), np.zeros(5)
    for seed in range(3000):
        pairs = pair(digits, 2, seed)
        counts[np.arange(9), pairs.partners] += 1
        np.add.at(offsets, pairs.offsets.flatten().numpy(), 1)
    same = digits.labels[:, None] == digits.labels
    assert not counts[same].any()
    expected = (3000 / (~same).sum(1, keepdim=True)).expand(9, 9)[~same].numpy()
    chi_squared = ((counts[~same.numpy()] - expected) ** 2 / expected).sum()
    assert chi_squared < 90  # 52 cells less 9 sums make 43 degrees of freedom: one in 30,000 is beyond
    assert np.abs(offsets / offsets.sum() - 0.2).max() < 0.005


def test_a_pair_shows_both_digits_where_its_offsets_say():
    digits = digits_split()
    pairs = pair(digits, 6, [1, 2])
    index = torch.tensor([5, 59, 5, 0])
    images, labels = pairs.batch(index)
    assert images.dtype == torch.uint8 and images.shape == (4, 1, 40, 40) and labels.shape == (4, 2)
    for image, both, i in zip(images[:, 0], labels, index.tolist(), strict=True):
        wanted, partner = torch.zeros(40, 40, dtype=torch.uint8), int(pairs.partners[i])
        for digit, (top, left) in zip((i, partner), pairs.offsets[i].view(2, 2).tolist(), strict=True):
            place = (20 + 6 - top, 20 + 6 - left)
            wanted[place] = max(int(wanted[place]), digit + 1)
        assert torch.equal(image, wanted)
        assert both.tolist() == [i % 3, partner % 3] and both[0] != both[1]


def test_each_epoch_has_pairs_of_its_own_and_they_follow_from_nothing_else():
    pairs = pair(digits_split(), 6, [0])
    torch.manual_seed(1)
    first = pairs.of_epoch(3)
    torch.manual_seed(2)
    again = pairs.of_epoch(7).of_epoch(3)
    assert torch.equal(first.partners, again.partners) and torch.equal(first.offsets, again.offsets)
    assert not torch.equal(first.partners, pairs.of_epoch(4).partners)
    plain = digits_split()
    assert plain.of_epoch(3) is plain


def test_multi_digits_from_the_embedded_digits(tmp_path):
    from capsule_sweeps import compose_config

    config = compose_config(["dataset=multi_digits", "dataset.base=digits", "dataset.val_size=100"]).dataset
    loaded = load_data(config, tmp_path, "cpu")
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (1300, 100, 397)
    assert loaded.test.images.shape == (397, 1, 40, 40) and loaded.val.labels.shape == (100, 2)
    assert (loaded.test.labels[:, 0] != loaded.test.labels[:, 1]).all()
    again = load_data(config, tmp_path, "cpu")
    for name in ("val", "test"):
        one, other = getattr(loaded, name), getattr(again, name)
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    images, labels = loaded.train.of_epoch(0).batch(torch.arange(1300))
    single = Split(loaded.train.images, loaded.train.labels)
    assert torch.equal(labels[:, 0], single.labels)
    ink, alone = (images > 0).sum((1, 2, 3)).float().mean(), (single.images > 0).sum((1, 2, 3)).float().mean()
    assert 1.4 * alone < ink < 2 * alone  # two digits, partly over each other


def test_pairs_are_normalized_as_pairs(tmp_path):
    """Two digits are brighter than one: with the values of single digits a pair would have a deviation of 1.3."""
    from capsule_sweeps import compose_config

    overrides = ["dataset=multi_digits", "dataset.base=digits"]
    loaded = load_data(compose_config(overrides).dataset, tmp_path, "cpu")
    images = [loaded.test.images, loaded.train.of_epoch(5).batch(torch.arange(1400))[0]]
    for shown in images:
        normalized = normalize(shown, *loaded.normalization)
        assert abs(normalized.mean()) < 0.01 and abs(normalized.std() - 1) < 0.01
    assert loaded.normalization == ((0.1263,), (0.2646,))
    fewer = load_data(compose_config([*overrides, "dataset.train_size=20"]).dataset, tmp_path, "cpu")
    assert fewer.normalization == loaded.normalization


@pytest.mark.parametrize(("overlay", "pixel"), [("max", 150), ("mean", 125), ("sum", 250)])
def test_overlays_and_single_digits(overlay, pixel):
    """Pixels of 100 and 150 in one place; a digit alone keeps its own, and has its label twice."""
    images = torch.tensor([100, 150], dtype=torch.uint8).view(2, 1, 1, 1)
    pairs = pair(Split(images, torch.tensor([3, 7])), 0, 1, 0.0, overlay)
    shown, labels = pairs.batch(torch.tensor([0, 1]))
    assert shown.flatten().tolist() == [pixel, pixel] and labels.tolist() == [[3, 7], [7, 3]]
    alone = pair(Split(images, torch.tensor([3, 7])), 0, 1, 0.999999, overlay).of_epoch(2)
    shown, labels = alone.batch(torch.tensor([0, 1]))
    assert shown.flatten().tolist() == [100, 150] and labels.tolist() == [[3, 3], [7, 7]]
    full = pair(Split(images.new_full((2, 1, 1, 1), 200), torch.tensor([3, 7])), 0, 1, 0.0, "sum")
    assert full.batch(torch.tensor([0]))[0].item() == 255


def test_one_in_six_is_shown_alone_and_the_others_are_as_without(tmp_path):
    digits = Split(torch.zeros(6000, 1, 1, 1, dtype=torch.uint8), torch.arange(6000) % 10)
    mixed, plain = pair(digits, 4, [5, 6], 1 / 6), pair(digits, 4, [5, 6])
    assert torch.equal(mixed.partners, plain.partners) and torch.equal(mixed.offsets, plain.offsets)
    assert abs(mixed.alone.float().mean() - 1 / 6) < 0.02 and not plain.alone.any()


def test_diverse_multi_mnist_is_normalized_as_it_is_shown(tmp_path):
    from capsule_sweeps import compose_config

    config = compose_config(["dataset=diverse_multi_mnist", "dataset.base=digits"])
    assert config.training.loss == "binary_cross_entropy" and config.dataset.image_size == 36
    loaded = load_data(config.dataset, tmp_path, "cpu")
    shown = loaded.train.of_epoch(0).batch(torch.arange(1400))[0]
    assert abs(normalize(shown, *loaded.normalization).mean()) < 1e-3
    labels = loaded.test.labels
    assert 0.1 < (labels[:, 0] == labels[:, 1]).float().mean() < 0.25


def test_digits_of_one_class_make_no_pairs():
    with pytest.raises(ValueError, match=r"two classes or more: raise dataset\.train_size or val_size"):
        pair(digits_split(num_classes=1), 6, 0)


def test_measured_normalization_is_stored_with_the_data(pets):
    data_dir, _ = pets
    measured = load_data(dataset_config(), data_dir, "cpu").normalization
    about = json.loads((prepare(dataset_config(), data_dir) / "about.json").read_text())
    assert (tuple(about["mean"]), tuple(about["std"])) == measured
    given = load_data(dataset_config(mean=list(MEAN), std=list(STD)), data_dir, "cpu").normalization
    assert given == (MEAN, STD)
