"""A run's model as one file that needs torch alone: `python -m capsule_sweeps export`.

Letters as in `routing`. What is exported takes images as they are, (B, C, H, W) uint8, normalises them itself and
returns logits (B, classes) in float32, for any B. The fast routed pass is an operator of this package, which nobody
else has; in its place stands the same in plain operations, PlainVotes.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from capsule_sweeps.data.augment import normalize
from capsule_sweeps.evaluation.weights import load_trained
from capsule_sweeps.networks.layers import CapsuleLayer
from capsule_sweeps.routing.votes import VoteMap
from capsule_sweeps.runs.files import write_atomic
from capsule_sweeps.runs.run import Run

BATCHES = (1, 3, 8)  # that the program is checked with; it is traced with 2
TOLERANCE = 1e-4  # of the largest logit
FACTS = "capsule_sweeps.json"  # beside the program in the file


class PlainVotes(VoteMap):
    """What VoteMap does, in operations of torch alone, for the whole batch: the votes of one place of the kernel after
    the other, so that they are never there all at once."""

    def routed(self, children: Tensor, parents: Tensor) -> Tensor:
        sums: Any = 0
        for votes in self._by_place(children):
            sums = sums + _weighted(votes, _agreement(votes, parents).softmax(4))
        return _as_parents(sums)

    def attended(self, children: Tensor, parents: Tensor) -> Tensor:
        found = torch.stack([_agreement(votes, parents) for votes in self._by_place(children)], 3)  # B h w (k l) N M
        r = found.flatten(3, 4).softmax(3).view_as(found).unbind(3)
        sums: Any = sum(_weighted(votes, own) for votes, own in zip(self._by_place(children), r, strict=True))
        return _as_parents(sums)

    def _by_place(self, children: Tensor) -> Iterator[Tensor]:
        """Votes (B, h, w, N, M, E) of the children at each place (k, l) under the kernel."""
        windows = self.windows(children.unflatten(4, (-1, self.weight.shape[3])))  # B h w k l N a x
        for k, row in enumerate(self.weight):
            for l, weight in enumerate(row):  # noqa: E741
                yield torch.einsum("bhwnax,nxmd->bhwnmad", windows[:, :, :, k, l], weight).flatten(5)


def _agreement(votes: Tensor, parents: Tensor) -> Tensor:
    """⟨V, parents⟩ / √E (B, h, w, N, M) of votes (B, h, w, N, M, E) with parents (B, M, h, w, E)."""
    return (votes * parents.movedim(1, 3).unsqueeze(3)).sum(-1) * parents.shape[-1] ** -0.5


def _weighted(votes: Tensor, r: Tensor) -> Tensor:
    return (r.unsqueeze(-1) * votes).sum(3)


def _as_parents(sums: Tensor) -> Tensor:
    """(B, h, w, M, E) → (B, M, h, w, E)."""
    return sums.movedim(3, 1)


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
        logits: Tensor = self.model(images.float() * self.scale + self.shift)
        return logits


def export(run: Run, out: Path) -> str:
    """Write the file; returns what the command prints. Raises ValueError when it cannot be, or is there already, or
    when the program does not compute what the model does; nothing is written then."""
    if out.suffix != ".pt2":
        raise ValueError(f"--out {out} must end in .pt2, as torch.export wants it")
    if out.exists():
        raise ValueError(f"{out} exists; remove it, or say another --out")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} for --out {out}; make it first")
    model, config = load_trained(run.folder)
    shape = config.dataset.channels, config.dataset.image_size, config.dataset.image_size
    images = torch.randint(256, (max(BATCHES), *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(normalize(images, config.dataset.mean, config.dataset.std))
    facts = describe(run, config)
    data = program_bytes(model, config, images[:2], facts)
    largest, error = float(wanted.abs().max()), difference(data, images, wanted)
    if not error <= TOLERANCE * largest:
        raise ValueError(
            f"the exported program does not compute what {run.folder.name} does: logits of up to {largest:.3g} differ "
            f"by up to {error:.2g}; nothing was written"
        )
    write_atomic(out, data)
    size = ", ".join(map(str, shape))
    return (
        f"{out} is written ({len(data) / 1e6:.1f} MB): logits differ from the run's model by at most {error:.1g} "
        f"(the largest is {largest:.3g}; batches of {', '.join(map(str, BATCHES))}).\n"
        "In Python, without this package:\n\n"
        f"    program = torch.export.load({str(out)!r}).module()\n"
        f"    images = torch.zeros(1, {size}, dtype=torch.uint8)  # batch, channels, rows, columns; 0 to 255\n"
        "    logits = program(images)  # batch, classes; images are normalised inside\n\n"
        f"Facts about it are in the file, too: extra_files={{{FACTS!r}: ''}} of torch.export.load."
    )


def describe(run: Run, config: DictConfig) -> dict[str, Any]:
    """What whoever has only the file wants to know of it."""
    record, dataset = run.record(), config.dataset
    size = [dataset.channels, dataset.image_size, dataset.image_size]
    return {
        "run": run.folder.name,
        "dataset": dataset.name,
        "num_routing": config.model.get("num_routing"),
        "input": f"images, uint8, from 0 to 255, of shape (batch, {', '.join(map(str, size))}); normalised inside",
        "output": f"logits, float32, of shape (batch, {dataset.num_classes})",
        "classes": record.get("classes"),
        "normalization": {"mean": list(dataset.mean), "std": list(dataset.std)},
        "accuracies": {key: value for key, value in record.items() if key.startswith("accuracy_")},
        "imported": "imported" in record,
        "torch": torch.__version__,
    }


def program_bytes(model: nn.Module, config: DictConfig, example: Tensor, facts: dict[str, Any]) -> bytes:
    """The file's content. Changes the layers of the model."""
    for layer in model.modules():
        if isinstance(layer, CapsuleLayer):
            layer.votes = partial(_plain_votes, layer)  # type: ignore[method-assign]
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


def _plain_votes(layer: CapsuleLayer) -> PlainVotes:
    return PlainVotes(*CapsuleLayer.votes(layer))


def difference(data: bytes, images: Tensor, wanted: Tensor) -> float:
    """The largest difference between logits of the program in a file's content and those that are wanted."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO(data)).module()
        return max(float((program(images[:size]) - wanted[:size]).abs().max()) for size in BATCHES)
