"""Run folders, sweeps and processes as an attacker would leave them in a runs folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from synthetic import finished_run

from capsule_sweeps import compose_config
from capsule_sweeps.data import cache_files

LONG_AGO = 10 * 86_400


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the user that has nothing to do with runs, with old files in it."""
    folder = tmp_path / "victim"
    (folder / ".ssh").mkdir(parents=True)
    for path in (folder / "thesis.tex", folder / ".ssh" / "id_ed25519", folder / ".bashrc"):
        path.write_text("5ecre7\n")
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - LONG_AGO,) * 2)
    return folder


@pytest.fixture
def untouched(victim: Path) -> Iterator[None]:
    """Whatever the test does, the victim's folder is afterwards what it was."""
    before = contents(victim)
    yield
    assert contents(victim) == before


def contents(folder: Path) -> dict[str, tuple[float, bytes]]:
    """Path → time and bytes of each file, b"" for folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            found[str(path)] = (path.lstat().st_mtime, path.read_bytes())
        else:
            found[str(path)] = (0.0, b"")
    return found


@pytest.fixture
def make_run(place: Path) -> Callable[..., Path]:
    """make_run(seed, state): the folder of a run of digits in `place`/runs, without training."""

    def make(seed: int = 0, state: str = "finished", accuracy: float = 0.5, runs_dir: str = "runs") -> Path:
        return finished_run(["dataset=digits", f"seed={seed}", f"runs_dir={runs_dir}"], accuracy, state=state)

    return make


@pytest.fixture
def forget(monkeypatch, tmp_path):
    """As in a process of its own: nothing is checked already, and every warning is new."""
    monkeypatch.setattr(cache_files, "_checked", set())
    cache_files.warn.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))


@pytest.fixture
def pets(tmp_path, forget):
    """A data set and its data_dir: class cat is black, dog is white."""
    for split in ("train", "test"):
        for name, gray in (("cat", 0), ("dog", 255)):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (8, 8), gray).save(tmp_path / "pets" / split / name / f"{i}.png")
    return compose_config(["dataset=folder", f"dataset.root={tmp_path / 'pets'}"]).dataset, tmp_path / "data"
