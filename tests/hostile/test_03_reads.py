"""Configurations and checkpoints are regular files of bounded size (records and logs: tests/runs/test_record.py)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from capsule_sweeps.evaluation.weights import load_checkpoint
from capsule_sweeps.runs.run import Run
from capsule_sweeps.training.checkpoint import keep_rows, read_checkpoint


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_only_regular_configurations_and_checkpoints_are_read(trained, runs, victim, kind) -> None:
    trained(signal_at=(signal.SIGTERM, 3))
    folder, started = runs.only(), time.process_time()
    for name in ("checkpoint.pt", "config.yaml", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(folder / name)
        else:
            (folder / name).symlink_to(victim / ".bashrc" if kind == "link" else Path("/dev/zero"))
        with pytest.raises(ValueError, match=name):
            if name == "checkpoint.pt":
                read_checkpoint(folder / name, torch.device("cpu"))
            elif name == "config.yaml":
                Run(folder).config()
            else:
                keep_rows(Run(folder), 1)
    with pytest.raises(ValueError, match=r"it is|has no checkpoint") as raised:
        load_checkpoint(folder)
    assert "5ecre7" not in str(raised.value) and time.process_time() - started < 60


def test_a_checkpoint_of_another_epoch_than_the_run_is_damaged(launch, trained, runs) -> None:
    """As late writes left it before they were fenced: a finished run with the weights of an earlier epoch."""
    trained(signal_at=(signal.SIGTERM, 8))
    early = (runs.only() / "checkpoint.pt").read_bytes()
    assert launch().code == 0
    (runs.only() / "checkpoint.pt").write_bytes(early)
    with pytest.raises(ValueError, match="it is of epoch 1 of a finished run with 2 epochs"):
        load_checkpoint(runs.only())
