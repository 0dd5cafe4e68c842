"""Routing inside a trained run: coefficients, their entropy, agreement, and how poses follow the input.

Letters as in `routing`. All of it comes from `model(images, intermediates=True)`; what is returned is NumPy or pandas,
ready to draw. Layers are counted from 1; the last one is that of the class capsules.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from capsule_sweeps.data.affine import rotate_shift
from capsule_sweeps.data.augment import normalize
from capsule_sweeps.data.split import Split
from capsule_sweeps.display import counted
from capsule_sweeps.networks.capsnet import Intermediates

BATCH = 32


def most_routed(runs: pd.DataFrame, runs_dir: Path) -> Path:
    """The folder of the finished run with the largest num_routing that has weights, the first by name of several."""
    finished = runs[runs.state == "finished"].dropna(subset="num_routing")
    finished = finished[[(runs_dir / name / "checkpoint.pt").is_file() for name in finished.run]]
    if finished.empty:
        raise ValueError(
            f"none of {counted(len(runs), 'run')} in {runs_dir} is finished and has a num_routing and a checkpoint.pt; "
            "choose another runs_dir"
        )
    return runs_dir / finished.sort_values(["num_routing", "run"], ascending=[False, True]).run.iloc[0]


def sample(split: Split, number: int) -> Split:
    """So many images of a split, evenly spaced, always the same ones."""
    picked = torch.linspace(0, len(split) - 1, min(number, len(split))).round().long().to(split.labels.device)
    return Split(*split.batch(picked))


@torch.no_grad()
def watch(model: nn.Module, config: DictConfig, images: Tensor) -> tuple[Tensor, Intermediates]:
    """Class probabilities (B, classes) and Intermediates for images (B, C, H, W) uint8, or float from 0 to 255."""
    logits, seen = model(normalize(images, config.dataset.mean, config.dataset.std), intermediates=True)
    return logits.softmax(1), seen


def routing_statistics(model: nn.Module, config: DictConfig, images: Tensor) -> pd.DataFrame:
    """One row for each image, layer and iteration: entropy, agreement.

    `entropy` of a child's coefficients over its parents, as a fraction of that of even ones, log M (NaN for one
    parent); `agreement` ⟨vote, parent⟩ / √E, weighted by the coefficients, with the parents that this iteration made.
    Both are means over the children. A child's coefficients are divided by their sum, which is 1 already where parents
    compete.
    """
    rows = []
    for first in range(0, len(images), BATCH):
        _, seen = watch(model, config, images[first : first + BATCH])
        for layer, steps in enumerate(seen.layers, 1):
            for iteration, step in enumerate(steps, 1):
                shares = step.coefficients / step.coefficients.sum(-1, keepdim=True)
                even = math.log(shares.shape[-1]) or math.nan
                entropy = -torch.xlogy(shares, shares).sum(-1).flatten(1).mean(1) / even
                agreement = (shares * step.agreement).sum(-1).flatten(1).mean(1)
                for image, values in enumerate(zip(entropy.tolist(), agreement.tolist(), strict=True), first):
                    rows.append((image, layer, iteration, *values))
    return pd.DataFrame(rows, columns=["image", "layer", "iteration", "entropy", "agreement"])


def coefficient_maps(seen: Intermediates, image: int) -> list[list[np.ndarray]]:
    """[layer][iteration] → a map over the grid: at each place, how much of a child goes to its favorite parent.

    The mean over children of their largest coefficient: 1/M for uniform coefficients, 1 if each has one parent. The
    grid is the parents'; of a fully connected layer, whose parents have one place, it is the children's.
    """
    maps = []
    for steps in seen.layers:
        of_layer = []
        for step in steps:
            r = step.coefficients[image]
            largest = (r / r.sum(-1, keepdim=True)).amax(-1)  # h w k l N
            over_kernel = largest.mean((2, 3, 4))
            of_layer.append((over_kernel if over_kernel.numel() > 1 else largest.mean((0, 1, 4))).numpy())
        maps.append(of_layer)
    return maps


def class_feeds(seen: Intermediates, image: int, label: int) -> np.ndarray:
    """The contribution of each child (k, l, N) of a class capsule: coefficient × agreement, in the last iteration.

    Their sum is how far the summed votes reach along the capsule's pose, ⟨Σ r V, U⟩ / √E.
    """
    step = seen.layers[-1][-1]
    return (step.coefficients * step.agreement)[image, 0, 0, ..., label].numpy()


def pose_response(
    model: nn.Module, config: DictConfig, image: Tensor, label: int, shifts: Sequence[int], angles: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """How a class capsule follows the input: `shift` (pixels to the right) and `rotation` (degrees, to the left).

    For each: amount (S,), poses (S, D) of the capsule of class `label`, and probability (S,) of that class. image
    (C, H, W) uint8; what comes in from outside is black.
    """
    found = {}
    moves: dict[str, tuple[Sequence[float], list[Any]]] = {
        "shift": (shifts, [rotate_shift(image[None].numpy(), 0.0, amount)[0] for amount in shifts]),
        "rotation": (angles, [rotate_shift(image[None].numpy(), amount, 0.0)[0] for amount in angles]),
    }
    for name, (amounts, images) in moves.items():
        probabilities, seen = watch(model, config, torch.from_numpy(np.stack(images)))
        poses = seen.layers[-1][-1].poses[:, label, 0, 0].numpy()
        found[name] = {"amount": np.array(amounts), "poses": poses, "probability": probabilities[:, label].numpy()}
    return found
