"""A run's model as one file that needs torch alone: `python -m capsule_sweeps export`.

Letters as in `routing`. What is exported takes images as they are, (B, C, H, W) uint8, normalizes them itself and
returns logits (B, classes) in float32, for any B. The fast routed pass is an operator of this package, so
exported models use RecordingVotes, the same in plain operations.
"""

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from capsule_sweeps.data.augment import normalize
from capsule_sweeps.evaluation.weights import code_note, load_weights
from capsule_sweeps.networks.capsnet import CapsNet
from capsule_sweeps.routing.votes import RecordingVotes
from capsule_sweeps.runs.files import write_atomic
from capsule_sweeps.runs.run import Run

BATCHES = (1, 3, 8)  # that the program is checked with; it is traced with 2
TOLERANCE = 1e-4  # of the largest logit
NAMED = {"last": "weights", "ema": "averaged weights", "best": "best weights"}
FACTS = "capsule_sweeps.json"  # beside the program in the file


class Whole(nn.Module):
    """What is exported: images (B, C, H, W) uint8 → logits (B, classes)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        means, stds = (torch.tensor(list(values), dtype=torch.float64)[:, None, None] for values in (mean, std))
        self.register_buffer("scale", (1 / (255 * stds)).float())
        self.register_buffer("shift", (-means / stds).float())

    def forward(self, images: Tensor) -> Tensor:
        normalized = images.float() * self.scale + self.shift
        plain = {"votes": RecordingVotes} if isinstance(self.model, CapsNet) else {}
        logits: Tensor = self.model(normalized, **plain)
        return logits


def export(run: Run, out: Path, weights: str | None = None) -> str:
    """Write the file, with the weights that `load_trained` chooses; returns what the command prints.

    Raises ValueError if the export fails, if the file exists, or if the program does not compute what the model does;
    nothing is written then.
    """
    if out.suffix != ".pt2":
        raise ValueError(f"--out {out} must end in .pt2, which torch.export requires")
    if out.exists():
        raise ValueError(f"{out} exists; remove it, or set --out to another file")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    model, config, chosen = load_weights(run.folder, weights)
    shape = config.dataset.channels, config.dataset.image_size, config.dataset.image_size
    images = torch.randint(256, (max(BATCHES), *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(normalize(images, config.dataset.mean, config.dataset.std))
    facts = describe(run, config, chosen)
    data = program_bytes(model, config, images[:2], facts)
    largest, error = float(wanted.abs().max()), difference(data, images, wanted)
    if not error <= TOLERANCE * largest:
        raise ValueError(
            f"the exported program does not compute what {run.folder.name} does: logits of up to {largest:.3g} differ "
            f"by up to {error:.2g}; nothing was written"
        )
    write_atomic(out, data)
    size = ", ".join(map(str, shape))
    recorded = f", whose test accuracy is {chosen['accuracy']:.2%}" if chosen["accuracy"] is not None else ""
    note = f" {text}" if (text := code_note(run.record())) else ""
    return (
        f"{out} is written ({len(data) / 1e6:.1f} MB) with the {NAMED[chosen['weights']]} of epoch {chosen['epoch']}"
        f"{recorded}: logits differ from the run's model by at most {error:.1g} "
        f"(the largest is {largest:.3g}; batches of {', '.join(map(str, BATCHES))}).{note}\n"
        "In Python, without this package:\n\n"
        f"    program = torch.export.load({str(out)!r}).module()\n"
        f"    images = torch.zeros(1, {size}, dtype=torch.uint8)  # batch, channels, rows, columns; 0 to 255\n"
        "    logits = program(images)  # batch, classes; images are normalized inside\n\n"
        f"The file also contains facts about it: extra_files={{{FACTS!r}: ''}} of torch.export.load."
    )


def describe(run: Run, config: DictConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    """Metadata for users who have only the file."""
    record, dataset = run.record(), config.dataset
    size = [dataset.channels, dataset.image_size, dataset.image_size]
    return {
        "run": run.folder.name,
        "dataset": dataset.name,
        "num_routing": config.model.get("num_routing"),
        "input": f"images, uint8, from 0 to 255, of shape (batch, {', '.join(map(str, size))}); normalized inside",
        "output": f"logits, float32, of shape (batch, {dataset.num_classes})",
        "classes": record.get("classes"),
        "normalization": {"mean": list(dataset.mean), "std": list(dataset.std)},
        **chosen,  # the weights, and their accuracy alone
        "imported": "imported" in record,
        "torch": torch.__version__,
    }


def program_bytes(model: nn.Module, config: DictConfig, example: Tensor, facts: dict[str, Any]) -> bytes:
    whole = Whole(model, config.dataset.mean, config.dataset.std).eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's, about itself
        program = torch.export.export(whole, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        for node in program.graph.nodes:
            assert "capsule_sweeps" not in str(node.target), node.target
            node.meta.pop("stack_trace", None)  # paths of this machine
        torch.export.save(program, buffer, extra_files={FACTS: json.dumps(facts, indent=1)})
    return buffer.getvalue()


def difference(data: bytes, images: Tensor, wanted: Tensor) -> float:
    """The largest difference between logits of the program in a file's content and those that are wanted."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO(data)).module()
        return max(float((program(images[:size]) - wanted[:size]).abs().max()) for size in BATCHES)
