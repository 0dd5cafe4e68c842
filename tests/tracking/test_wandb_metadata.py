"""What W&B is told about the machine, and that the variables in docs/tracking.md stop it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"WANDB_X_DISABLE_META": "true", "WANDB_HOST": "somewhere", "WANDB_X_DISABLE_STATS": "true"}


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [False, True])
def test_metadata_is_sent_unless_the_documented_variables_are_set(launch, tiny, place, monkeypatch, hidden) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "5ecre7host")
    for name, value in SETTINGS.items() if hidden else ():
        monkeypatch.setenv(name, value)
        assert f"`{name}=" in (ROOT / "docs" / "tracking.md").read_text()
    base = ["tracking=wandb" if word == "tracking=none" else word for word in tiny]
    ended = launch("tracking.mode=offline", "training.epochs=1", base=base)
    assert ended.code == 0, ended.text
    (written,) = place.glob("runs/*/wandb/offline-run-*/*.wandb")
    content = written.read_bytes()
    for fact in (b"5ecre7host", sys.executable.encode()):
        assert (fact in content) != hidden, fact
    assert b"data_dir" in content, "the configuration is sent in any case"
