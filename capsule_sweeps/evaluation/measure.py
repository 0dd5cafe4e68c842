"""Measures of the logits of test images: accuracy, loss, calibration, confusion."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from capsule_sweeps.console import bar
from capsule_sweeps.data.augment import normalize
from capsule_sweeps.data.load import Data
from capsule_sweeps.data.split import Split
from capsule_sweeps.training.evaluation import evaluation_batch, named_classes, num_correct
from capsule_sweeps.training.losses import LOSSES

NUM_BINS = 15


class Evaluation(NamedTuple):
    """On all test images with so many iterations (None: the model has none). class_accuracy (K,): of the images that
    show a class; confusion (K, K): images of the row's class that were classified as the column's. Calibration and
    confusion are None where an image has several labels. `weights`: the last ones, or the average of training.ema."""

    num_routing: int | None
    loss: float
    accuracy: float
    calibration_error: float | None
    class_images: np.ndarray
    class_accuracy: np.ndarray
    confusion: np.ndarray | None
    weights: str = "last"


def evaluations(
    model: nn.Module, config: DictConfig, data: Data, iterations: Sequence[int | None], name: str
) -> list[Evaluation]:
    model = model.to(data.test.labels.device).eval()
    found, size = [], evaluation_batch(config)
    with bar(name, len(data.test) * len(iterations)) as advance:
        for number in iterations:
            if number is not None:
                model.capsules.num_routing = number  # type: ignore[union-attr]
            logits = []
            for first in range(0, len(data.test), size):
                logits.append(batch_logits(model, config, data.test.images[first : first + size]))
                advance(len(logits[-1]))
            found.append(measure(torch.cat(logits).cpu(), data.test.labels.cpu(), config.training.get("loss"), number))
    return found


def share_correct(
    model: nn.Module,
    config: DictConfig,
    split: Split,
    harder: Callable[[Tensor, Tensor], Tensor] = lambda images, labels: images,
    advance: Callable[[int], None] = lambda done: None,
) -> float:
    """The share of images that a model classifies correctly.

    `harder` changes the images (B, C, H, W) with labels (B,) of a batch first; `advance` is called with each batch's B.
    """
    model = model.to(split.labels.device).eval()
    size, correct = evaluation_batch(config), 0
    for first in range(0, len(split), size):
        labels = split.labels[first : first + size]
        logits = batch_logits(model, config, harder(split.images[first : first + size], labels))
        correct += int(num_correct(logits, labels, config.training.get("loss")))
        advance(len(labels))
    return correct / len(split)


@torch.no_grad()
def batch_logits(model: nn.Module, config: DictConfig, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.training.amp == "bf16"):
        logits: Tensor = model(normalize(images, config.dataset.mean, config.dataset.std))
    return logits.float()


def measure(logits: Tensor, labels: Tensor, loss: str | None, num_routing: int | None = None) -> Evaluation:
    """All measures of logits (N, K) and labels (N,) or (N, L); `loss` is a key of LOSSES (None: cross_entropy)."""
    num_images, num_classes = logits.shape
    several = labels.ndim == 2
    shown = torch.zeros(num_images, num_classes, dtype=torch.bool)
    # argmax and topk name different classes of equal ones: as num_correct does it
    largest = shown.clone().scatter(1, logits.argmax(1, keepdim=True), True)
    named = named_classes(logits, labels.shape[1], loss) if several else largest
    shown = shown.scatter(1, labels.view(num_images, -1), True)
    class_images, class_right = shown.sum(0).double(), (shown & named).sum(0).double()
    confusion = None
    if not several:
        pairs = labels * num_classes + logits.argmax(1)
        confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).numpy()
    return Evaluation(
        num_routing,
        float(LOSSES[loss or "cross_entropy"](logits, labels, 1.0, "sum").double()) / num_images,
        100 * int(num_correct(logits, labels, loss or "cross_entropy")) / num_images,
        None if several else 100 * calibration_error(logits, labels),
        class_images.long().numpy(),
        (100 * class_right / class_images).numpy(),  # NaN for a class that no image shows
        confusion,
    )


def calibration_error(logits: Tensor, labels: Tensor, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error (Guo et al. 2017): Σ over bins of |accuracy − confidence|, weighted by their images.

    Confidence is the largest softmax probability; bins are of equal width, ((b − 1) / num_bins, b / num_bins].
    """
    confidence, named = logits.double().softmax(1).max(1)
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, (named == labels).double() - confidence)
    return float(gaps.abs().sum()) / len(labels)
