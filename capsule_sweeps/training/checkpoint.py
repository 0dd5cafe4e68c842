"""Reading checkpoints, and the rows of metrics that belong to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from capsule_sweeps.runs.files import write_atomic

BEST = "best.pt"  # in a run folder: the weights of the best epoch, where config.selection_rule chooses one


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """A checkpoint's content. Raises ValueError that names the file when it is damaged."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(damaged(path, error)) from error
    if not isinstance(content, dict):
        raise ValueError(damaged(path, TypeError("not a dict")))
    return content


def damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{path} is damaged ({reason}); remove it and the run starts anew"


def keep_rows(path: Path, epochs: int, unless_last: bool = False) -> list[dict[str, Any]]:
    """The metrics of the epochs that the checkpoint knows; what was written after it is dropped from the file.

    The last of them may be missing with `unless_last`: its evaluation had not ended. Raises ValueError when another one
    is missing or damaged.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        rows = [json.loads(line) for line in lines[:epochs]]
        if unless_last and len(rows) == epochs - 1:
            epochs -= 1
        if [row["epoch"] for row in rows] != list(range(1, epochs + 1)):
            raise ValueError(f"it has {len(rows)} epochs, the checkpoint beside it {epochs}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove the checkpoint beside it and the run starts anew"
        ) from error
    if len(lines) > epochs:
        write_atomic(path, "".join(line + "\n" for line in lines[:epochs]).encode())
    return rows
