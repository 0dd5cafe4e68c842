"""Reading checkpoints, and the rows of metrics that belong to them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capsule_sweeps.runs.files import write_atomic

BEST = "best.pt"  # in a run folder: the weights of the best epoch, where config.selection_rule chooses one


def read_checkpoint(path: Path, device: torch.device, needed: int | None = None) -> dict[str, Any]:
    """A checkpoint's content, of at most `needed` bytes. Raises ValueError that names the file when it is damaged."""
    try:
        content = load_tensors(path, device, needed)
    except Exception as error:
        raise ValueError(damaged(path, error)) from error
    if not isinstance(content, dict):
        raise ValueError(damaged(path, TypeError("not a dict")))
    return content


def load_tensors(file: Path | io.BytesIO, device: torch.device | str, needed: int | None = None) -> Any:
    """What torch.save wrote, read without running anything in it.

    torch.save compresses nothing, so what is unpacked is no larger than the file; `needed` is the number of bytes that
    the reader has a use for. Raises ValueError, before anything is unpacked, for a file that would take more.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        size = len(file.getbuffer()) if isinstance(file, io.BytesIO) else file.stat().st_size
        if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError(f"{size:,} bytes would be unpacked to {unpacked:,}; torch.save writes no such file")
        if needed is not None and unpacked > needed:
            raise ValueError(f"it holds {unpacked / 1e6:,.0f} MB, and the model needs {needed / 1e6:,.0f} MB at most")
    if isinstance(file, io.BytesIO):
        file.seek(0)
    return torch.load(file, map_location=device, weights_only=True)


def bytes_needed(model: nn.Module) -> int:
    """What a checkpoint of a model may hold at most: weights, momentum, their average; losses and names beside them."""
    tensors = [*model.parameters(), *model.buffers()]
    return 3 * sum(tensor.numel() * tensor.element_size() for tensor in tensors) + 1_000 * len(tensors) + 2**24


def damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{path} is damaged ({reason}); remove it and the run starts from scratch"


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
            f"{path} is damaged ({error}); remove checkpoint.pt in the same folder and the run starts from scratch"
        ) from error
    if len(lines) > epochs:
        write_atomic(path, "".join(line + "\n" for line in lines[:epochs]).encode())
    return rows
