"""`cancel` signals no process because a file in a runs folder names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capsule_sweeps.launchers.cancel import cancel
from capsule_sweeps.runs import lock
from capsule_sweeps.runs.frame import load_runs


@pytest.mark.parametrize("kind", ["of nobody we know", "with our name in its command", "that reads another file"])
def test_a_forged_sweep_names_a_process_that_is_no_launcher(make_run, monkeypatch, kind) -> None:
    make_run()
    path = Path("runs", ".sweeps", "sweep-00000000-000000.json")
    path.parent.mkdir(exist_ok=True)
    other = path.with_name("sweep-00000000-000001.json")
    other.write_text("{}")
    code = "import sys; held = open(sys.argv[1]); print('up', flush=True); sys.stdin.read()"
    held = os.devnull if kind != "that reads another file" else str(other)
    ours = [] if kind == "of nobody we know" else ["launch.py"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, held, *ours], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        owner = {**lock.owner(), "pid": process.pid, "start": lock._process_start(process.pid), "time": time.time()}
        path.write_text(json.dumps(owner))
        signals = []
        monkeypatch.setattr(os, "kill", lambda pid, signum: signals.append((pid, signum)))
        assert cancel(Path("runs"), load_runs("runs").iloc[:0], [path.stem]) == [
            "nothing to cancel: none of these runs is running or queued"
        ]
        assert [each for each in signals if each[1]] == []
    finally:
        process.communicate("")


def test_a_launcher_that_holds_the_file_is_one(make_run, monkeypatch) -> None:
    make_run()
    path = Path("runs", ".sweeps", "sweep-00000000-000000.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(lock.owner()))
    import psutil

    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: ["python", "code/launch.py"])
    assert lock.launcher_here(path) is None
    with lock.hold(path):
        assert lock.launcher_here(path) == os.getpid()
