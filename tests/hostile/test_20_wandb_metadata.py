"""What W&B receives about the machine, and that the variables in docs/tracking.md stop it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"WANDB_X_DISABLE_META": "true", "WANDB_HOST": "somewhere", "WANDB_X_DISABLE_STATS": "true"}


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [False, True])
def test_metadata_is_sent_unless_the_documented_variables_are_set(python, tiny, place, hidden) -> None:
    """In a process of its own: wandb reads these variables once per process."""
    page = (ROOT / "docs" / "tracking.md").read_text()
    assert all(f"`{name}=" in page for name in SETTINGS)
    words = [*("tracking=wandb" if word == "tracking=none" else word for word in tiny), "tracking.mode=offline"]
    ended = python(ROOT / "launch.py", *words, "training.epochs=1", **(SETTINGS if hidden else {}))
    assert ended.code == 0, ended.text
    (written,) = place.glob("runs/*/wandb/offline-run-*/*.wandb")
    content = written.read_bytes()
    host = socket.gethostname()
    for fact in (bytes([len(host)]) + host.encode(), sys.executable.encode()):  # text follows its length
        assert (fact in content) != hidden, fact
    assert (b"somewhere" in content) == hidden
    assert b"data_dir" in content, "the configuration is sent in any case"
