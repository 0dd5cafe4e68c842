"""A decoded cache from others: what was changed in it, whom it belongs to, links in its place."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from decoded import genuine, prepare

from capsule_sweeps.data import cache_files
from capsule_sweeps.data.load import load_data
from capsule_sweeps.data.open import identify


def permute(path: Path) -> None:
    labels = np.load(path / "train_labels.npy")
    np.save(path / "train_labels.npy", labels[::-1])


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


def test_labels_permuted_in_the_cache_are_not_trained_on(pets, caplog) -> None:
    path, before = prepare(*pets), load_data(*pets, "cpu")
    permute(path)
    after = load_data(*pets, "cpu")
    assert genuine(after) and after.sha256 == before.sha256
    assert "does not have the hash that is recorded" in caplog.text and "they are made again" in caplog.text


def test_content_is_hashed_once_per_file_and_change_time(pets, monkeypatch) -> None:
    path = prepare(*pets)
    hashed = []
    sha256 = cache_files.sha256
    monkeypatch.setattr(cache_files, "sha256", lambda arrays: (hashed.append(1), sha256(arrays))[1])
    for _ in range(3):
        load_data(*pets, "cpu")
    assert len(hashed) == 0  # by the one that wrote it
    os.utime(path / "train_images.npy")
    load_data(*pets, "cpu")
    load_data(*pets, "cpu")
    assert len(hashed) == 1


@needs_root
@pytest.mark.parametrize("what", ["folder", "file", "cache"])
def test_a_cache_of_another_user_is_not_used(pets, what, caplog, tmp_path) -> None:
    path = prepare(*pets)
    permute(path)
    about = json.loads((path / "about.json").read_text())
    arrays = {
        f"{split}_{kind}": np.load(path / f"{split}_{kind}.npy")
        for split in ("train", "test")
        for kind in ("labels", "images")
    }
    (path / "about.json").write_text(json.dumps({**about, "sha256": cache_files.sha256(arrays)}))  # a good forgery
    os.chown({"folder": path, "file": path / "train_labels.npy", "cache": path.parent}[what], 12345, -1)
    loaded = load_data(*pets, "cpu")
    assert genuine(loaded) and (what == "file" or list((tmp_path / "own").rglob("about.json")))
    assert "belongs to" in caplog.text
    assert identify(*pets).sha256 == loaded.sha256


@needs_root
def test_a_cache_of_the_owner_of_the_data_is_used(pets) -> None:
    path = prepare(*pets)
    for place in (pets[1], path.parent, path, *path.iterdir()):
        os.chown(place, 12345, -1)
    os.chown(path.parent / "pets-folder.lock", 12345, -1)
    assert prepare(*pets) == path


def test_names_of_the_writer_cannot_be_foreseen(pets, monkeypatch) -> None:
    made = []
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, *a, **k: (made.append(path.name), mkdir(path, *a, **k))[1])
    path = prepare(*pets)
    first = [name for name in made if name.endswith(".tmp")]
    made.clear()
    shutil.rmtree(path)
    assert prepare(*pets) == path
    second = [name for name in made if name.endswith(".tmp")]
    assert len(first) == len(second) == 1 and first != second
    assert all(re.fullmatch(r"\.pets-folder-[0-9a-f]{16}\.[0-9a-f]{16}\.tmp", name) for name in first + second)


def test_a_link_at_the_former_name_of_the_writer_is_left_alone(pets, tmp_path) -> None:
    path = prepare(*pets)
    shutil.rmtree(path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    path.with_name(f"{path.name}.tmp").symlink_to(tmp_path / "thesis")
    assert prepare(*pets) == path and genuine(load_data(*pets, "cpu"))
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize("what", ["cache", "folder", "lock", "array"])
def test_links_are_not_followed(pets, what, tmp_path, caplog) -> None:
    path, victim = prepare(*pets), tmp_path / "victim"
    place = {
        "cache": path.parent,
        "folder": path,
        "lock": path.parent / "pets-folder.lock",
        "array": path / "train_labels.npy",
    }[what]
    if place.is_dir():
        shutil.copytree(place, victim)
        shutil.rmtree(place)
    else:
        victim.write_text("mine")
        place.unlink()
    if what == "lock":
        shutil.rmtree(path)  # so that it is locked again
    place.symlink_to(victim)
    before = {file: file.read_bytes() for file in [victim, *victim.rglob("*")] if file.is_file()}
    assert genuine(load_data(*pets, "cpu"))
    assert {file: file.read_bytes() for file in [victim, *victim.rglob("*")] if file.is_file()} == before
    if what == "array":
        assert not place.is_symlink()  # the folder was made again
    else:
        assert f"{place} is a link, which is not followed" in caplog.text and place.is_symlink()
        assert list((tmp_path / "own").rglob("about.json"))


@pytest.mark.parametrize("splits", [["../pets", "test"], 7, [["train"]]])
def test_damaged_descriptions_are_made_again(pets, splits) -> None:
    path = prepare(*pets)
    about = json.loads((path / "about.json").read_text())
    (path / "about.json").write_text(json.dumps({**about, "splits": splits}))
    assert genuine(load_data(*pets, "cpu")) and prepare(*pets) == path
    (path / "about.json").write_text("[" * 200_000)
    assert genuine(load_data(*pets, "cpu"))
    (path / "about.json").unlink()
    os.mkfifo(path / "about.json")
    assert genuine(load_data(*pets, "cpu"))


def test_what_a_killed_writer_left_is_removed(pets) -> None:
    path = prepare(*pets)
    left, other = (path.with_name(f".{name}-{'0' * 16}.{'1' * 16}.tmp") for name in ("pets-folder", "cats-folder"))
    for folder in (left, other):
        folder.mkdir()
    shutil.rmtree(path)
    prepare(*pets)
    assert not left.exists() and other.exists()
