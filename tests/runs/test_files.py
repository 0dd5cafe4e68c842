"""Files that are created whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from capsule_sweeps.runs import files
from capsule_sweeps.runs.run import Run


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_created_once_and_whole(tmp_path, monkeypatch, links) -> None:
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    path = tmp_path / "lock"
    files.create_json(path, {"a": 1})
    with pytest.raises(FileExistsError):
        files.create_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["lock"]


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127])
def test_longest_name_is_written(tmp_path, name) -> None:
    files.write_atomic(tmp_path / name, b"content")
    assert (tmp_path / name).read_bytes() == b"content" and os.listdir(tmp_path) == [name]


def test_released_attempts_do_not_stay(tmp_path) -> None:
    run = Run(tmp_path / "name-00000000")
    run.folder.mkdir()
    (run.folder / "attempt-3.released").touch()
    with run.claim() as claim:
        assert claim.attempt == 4
    assert os.listdir(run.folder) == ["attempt-4.json"]


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    run = Run(tmp_path / "name-00000000")
    monkeypatch.setattr(files, "write_atomic", full)
    with pytest.raises(OSError, match="No space"), run.claim():
        pass
    assert run.state() == "new" and not list(run.folder.glob("*"))
