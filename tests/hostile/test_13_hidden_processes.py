"""On nodes that hide the processes of other users (hidepid), a living run is not taken over."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from capsule_sweeps.runs import lock
from capsule_sweeps.runs.run import Busy, Run

SOMEBODY = 4_000_000  # a process that /proc does not show here


def claim_of(folder: Path, start: str = "12345", pid: int = SOMEBODY) -> Path:
    folder.mkdir()
    path = folder / "attempt-1.json"
    path.write_text(json.dumps({**lock.owner(), "pid": pid, "start": start}))
    return path


def answer(monkeypatch, error: type[OSError] | None) -> None:
    def kill(pid: int, signum: int) -> None:
        assert signum == 0, "a process was signaled"
        if error is not None:
            raise error

    monkeypatch.setattr(lock.os, "kill", kill)


@pytest.mark.parametrize("error", [PermissionError, None])
def test_a_hidden_process_lives_until_its_heartbeat_is_old(tmp_path, monkeypatch, error) -> None:
    run = Run(tmp_path / "name-00000000")
    path = claim_of(run.folder)
    answer(monkeypatch, error)
    assert lock.alive(path) and run.state() == "running"
    with pytest.raises(Busy), run.claim():
        pass
    os.utime(path, (time.time() - 2 * lock.STALE_SECONDS,) * 2)
    assert not lock.alive(path)
    with run.claim() as claim:
        assert claim.attempt == 2


def test_a_process_that_is_gone_is_dead_at_once(tmp_path, monkeypatch) -> None:
    path = claim_of(tmp_path / "name-00000000")
    answer(monkeypatch, ProcessLookupError)
    assert not lock.alive(path)


def test_a_hidden_process_is_never_taken_for_a_launcher(tmp_path, monkeypatch) -> None:
    path = claim_of(tmp_path / "name-00000000", start=lock.HIDDEN)
    answer(monkeypatch, PermissionError)
    assert lock.launcher_here(path) is None
