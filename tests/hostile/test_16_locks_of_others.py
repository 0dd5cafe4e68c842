"""A cache that another user locks: who holds it is said, and the images are decoded without a cache."""

import shutil
import subprocess
import sys

import pytest
from decoded import genuine, prepare
from filelock import FileLock

from capsule_sweeps.data import cache_files, cache_lock
from capsule_sweeps.data.load import load_data


def test_a_lock_of_another_user_is_named_and_not_waited_for(pets, monkeypatch, caplog, tmp_path) -> None:
    monkeypatch.setattr(cache_lock, "SAY_AFTER", 0.05)
    monkeypatch.setattr(cache_lock, "WAIT", 0.1)
    (pets[1] / ".cache").mkdir(parents=True)
    program = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(1, flush=True); input()"
    )
    lock = pets[1] / ".cache" / "pets-folder.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "1\n"
        loaded = load_data(*pets, "cpu")
        assert genuine(loaded) and loaded.normalization.mean == (0.5,)
        assert f"{lock} is locked by process {holder.pid} of " in caplog.text and "without the cache" in caplog.text
        assert prepare(*pets) is None and not list(tmp_path.rglob("*.npy"))
    finally:
        holder.communicate("\n")
    assert prepare(*pets) is not None and load_data(*pets, "cpu").sha256 == loaded.sha256


def test_a_lock_that_is_released_in_time_is_waited_for(pets, monkeypatch) -> None:
    """The one that held it has made the cache meanwhile."""
    path = prepare(*pets)
    shutil.move(path, aside := path.with_name("aside"))
    acquire = cache_lock.FileLock.acquire

    def late(lock, timeout):
        shutil.move(aside, path)
        return acquire(lock, timeout=timeout)

    monkeypatch.setattr(FileLock, "acquire", late)
    monkeypatch.setattr(cache_files, "write", lambda *_: pytest.fail("writes"))
    assert prepare(*pets) == path
