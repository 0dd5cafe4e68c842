"""torch executes the code in its cache, so this must be a folder that only the user can write."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from capsule_sweeps.routing import compiled


@pytest.fixture
def cache(place, monkeypatch):
    """Calls `use_own_cache` and returns the folder that torch uses."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")

    def use() -> Path:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
        compiled.use_own_cache()
        return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])

    return use


def private(folder: Path) -> bool:
    return folder.stat().st_uid == os.geteuid() and stat.S_IMODE(folder.lstat().st_mode) == 0o700


def test_cache_is_in_the_users_own_folder(cache) -> None:
    folder = cache()
    assert folder == Path.home() / ".cache/capsule_sweeps/torchinductor" and private(folder)
    assert cache() == folder


def test_torch_uses_it(cache) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert str(cache()) == cache_dir()


def test_users_choice_is_kept(cache, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled.use_own_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


@pytest.mark.parametrize("planted", ["link", "writable", "file"])
def test_folder_that_others_can_write_is_not_used(cache, planted, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    theirs = Path.home() / ".cache/capsule_sweeps/torchinductor"
    theirs.parent.mkdir(parents=True)
    if planted == "link":
        (tmp_path / "evil").mkdir()
        theirs.symlink_to(tmp_path / "evil")
    elif planted == "writable":
        theirs.mkdir()
        theirs.chmod(0o777)
    else:
        theirs.touch()
    folder = cache()
    assert folder != theirs and private(folder) and not folder.is_symlink()


def test_compiling_uses_it(place, monkeypatch) -> None:
    import torch

    used = []
    monkeypatch.setattr(compiled, "use_own_cache", lambda: used.append(True))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(compiled, "has_cpp_compiler", lambda: True)
    assert compiled.Compiled(lambda x: x + 1)(torch.ones(1)) == 2 and used
