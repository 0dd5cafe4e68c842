"""Reading checkpoints, and the rows of metrics that belong to them."""

import io
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capsule_sweeps.display import counted
from capsule_sweeps.runs.files import open_regular
from capsule_sweeps.runs.metrics import read_metrics
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.stored_weights import check_archive

BEST = "best.pt"  # in a run folder: the weights of the best epoch, where config.selection_rule chooses one


def read_checkpoint(path: Path, device: torch.device, needed: int | None = None) -> dict[str, Any]:
    """The content of a checkpoint, at most `needed` bytes. Raises ValueError naming the file if it is damaged."""
    try:
        content = load_tensors(path, device, needed)
    except Exception as error:
        raise ValueError(damaged(path, error)) from error
    if not isinstance(content, dict):
        raise ValueError(damaged(path, TypeError("not a dict")))
    return content


def load_tensors(file: Path | io.BytesIO, device: torch.device | str, needed: int | None = None) -> Any:
    """Read a file of torch.save without executing anything in it.

    `needed` is the largest size in bytes that the caller accepts. Raises ValueError, before anything is unpacked, for a
    larger file.
    """
    with open_regular(file) if isinstance(file, Path) else nullcontext(file) as opened:
        if zipfile.is_zipfile(opened):
            check_archive(opened, needed)
        opened.seek(0)
        return torch.load(opened, map_location=device, weights_only=True)


def bytes_needed(model: nn.Module) -> int:
    """The largest size in bytes of a checkpoint of a model: weights, momentum and average, and losses and names."""
    tensors = [*model.parameters(), *model.buffers()]
    return 3 * sum(tensor.numel() * tensor.element_size() for tensor in tensors) + 1_000 * len(tensors) + 2**24


def damaged(path: Path, error: Exception) -> str:
    """The message for a checkpoint that is damaged."""
    reason = " ".join(str(error).split())[:200]
    return f"{path} is damaged ({reason}); remove it and the run starts from scratch"


def check_progress(checkpoint: dict[str, Any], epochs: int, num_batches: int) -> None:
    """Raises ValueError for an epoch or batch that a run with this many epochs and batches does not have."""
    epoch, batch = checkpoint["epoch"], checkpoint["batch"]
    losses, correct = checkpoint["losses"], checkpoint["correct"]
    for name, value, most in (("epoch", epoch, epochs), ("batch", batch, 0 if epoch == epochs else num_batches - 1)):
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"{name}={str(value)[:20]} is out of range: it must be 0 to {most}")
    if losses.ndim != 1 or len(losses) not in ({batch} if batch else {0, num_batches}):
        raise ValueError(f"it has {tuple(losses.shape)} losses at batch {batch} of {num_batches}")
    if correct.ndim or correct.is_floating_point() or correct < 0:
        raise ValueError("its number of correct images is not a count")


def load_momentum(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Load the momentum of an optimizer. Learning rate, weight decay and other settings stay as configured.

    Raises ValueError for momenta that do not have the shapes of the weights.
    """
    ours = optimizer.state_dict()["param_groups"]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, values in stored["state"].items():
        momentum = values.get("momentum_buffer")
        if momentum is not None and momentum.shape != weights[index].shape:
            raise ValueError(f"the momentum of weight {index} has the shape {tuple(momentum.shape)}")
    optimizer.load_state_dict({"state": stored["state"], "param_groups": ours})


def keep_rows(run: Run, epochs: int, unless_last: bool = False) -> list[dict[str, Any]]:
    """The metrics of the epochs up to the checkpoint; later epochs are repeated.

    With `unless_last` the last of them may be missing, because its evaluation had not ended. Raises ValueError if any
    other is missing or damaged.
    """
    found, damage = read_metrics(run)
    rows = found[:epochs]
    epochs -= unless_last and len(rows) == epochs - 1
    if [row.get("epoch") for row in rows] != list(range(1, epochs + 1)):
        few = f"it has {counted(len(rows), 'epoch')}, the checkpoint beside it {epochs}"
        why = damage or f"{run.folder / 'metrics.jsonl'} is damaged ({few})"
        advice = "; remove checkpoint.pt in the same folder and the run starts from scratch"
        raise ValueError(why + advice * ("is damaged" in why))  # and not where reading fails
    return rows
