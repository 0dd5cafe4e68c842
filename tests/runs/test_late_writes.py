"""A write that hangs while another process takes the run over, and lands when that one has finished."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signals import Stop
from capsule_sweeps.runs.signature import columns
from capsule_sweeps.training.train import train


class Silent:
    def start(self, *_: Any) -> None: ...

    batch = epoch = start


def train_here(config) -> Path:
    folder = Path(config.runs_dir) / columns(config)["run"]
    train(config, Run(folder), "", Silent(), Stop())
    return folder


def seem_dead(folder: Path) -> None:
    """The first attempt's claim becomes that of another host, whose heartbeat is old."""
    path = folder / "attempt-1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "elsewhere"}))
    os.utime(path, (0, 0))


@pytest.mark.parametrize(
    ("call", "file"),
    [("fsync", "checkpoint.pt"), ("replace", "checkpoint.pt"), ("write", "metrics.jsonl"), ("replace", "run.json")],
)
def test_what_an_ousted_attempt_writes_late_is_never_the_runs(tiny_config, runs, monkeypatch, call, file) -> None:
    undisturbed = train_here(tiny_config("runs_dir=others", "training.checkpoint_epochs=1"))
    config, original, late = tiny_config("training.checkpoint_epochs=1"), getattr(os, call), []

    def hang(first: Any, *rest: Any) -> Any:
        path = Path(first if call == "replace" else os.readlink(f"/proc/self/fd/{first}"))
        ours = path.name == file or (path.name.startswith(f".{file}.") and path.name.endswith(".tmp"))
        ours = ours and path.parent.parent.name == "runs"
        begun = file != "run.json" or (path.parent / "checkpoint.pt").exists()  # so that there is something to resume
        if ours and begun and not late:
            late.append(path)
            seem_dead(path.parent)
            assert train_here(config).name == path.parent.name  # takes over and finishes
            late.append({each.name: each.read_bytes() for each in path.parent.iterdir() if each.name != "log.txt"})
        return original(first, *rest)

    monkeypatch.setattr(os, call, hang)
    with pytest.raises((ValueError, OSError)):
        train_here(config)
    assert len(late) == 2, "the write did not hang, or no process took the run over"
    folder = runs.only()
    runs.assert_same(folder, undisturbed)
    assert {each.name: each.read_bytes() for each in folder.iterdir() if each.name != "log.txt"} == late[1]
    assert not (folder / "error.txt").exists() and Run(folder).state() == "finished"
    assert runs.record(folder)["state"] == "finished"


def test_an_epoch_that_is_only_evaluated_again_has_its_own_learning_rate(tiny_config, runs, monkeypatch) -> None:
    overrides = ["training.milestones=[1]"]
    undisturbed = train_here(tiny_config(*overrides, "runs_dir=others"))
    with monkeypatch.context() as patch:
        patch.setattr("capsule_sweeps.training.train.evaluate", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            train_here(tiny_config(*overrides, "training.eval_every=2"))
    resumed = train_here(tiny_config(*overrides, "training.eval_every=2"))
    assert [row["lr"] for row in runs.metrics(resumed)] == [row["lr"] for row in runs.metrics(undisturbed)]
