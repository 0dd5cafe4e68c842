"""Losses of the class logits: `training.loss`.

binary_cross_entropy, margin and spread are computed from the activations of the classes, a = sigmoid(logits). For a
routing with class logits of its own these are the activations of its class capsules.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor, labels: Tensor, progress: float, reduction: str, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy; label smoothing ε distributes ε uniformly over all classes (Szegedy et al. 2016, section 7)."""
    shares = targets(labels, logits.shape[1])
    return F.cross_entropy(logits, shares, reduction=reduction, label_smoothing=label_smoothing)


def margin(logits: Tensor, labels: Tensor, progress: float, reduction: str) -> Tensor:
    """max(0, 0.9 − a)² for each correct class, 0.5 · max(0, a − 0.1)² for each other (Sabour et al. 2017, eq. 4)."""
    a = logits.sigmoid()
    right = torch.zeros_like(a).scatter(1, labels.view(len(a), -1), 1.0)
    each = right * (0.9 - a).relu().square() + 0.5 * (1 - right) * (a - 0.1).relu().square()
    return _reduced(each.sum(1), reduction)


def spread(logits: Tensor, labels: Tensor, progress: float, reduction: str) -> Tensor:
    """Σ max(0, m − (a_correct − a))² over the other classes; m grows from 0.2 to 0.9 (Hinton et al. 2018, eq. 3).

    For images with several labels, the mean over the labels.
    """
    a, labels = logits.sigmoid(), labels.view(len(logits), -1)
    right = a.gather(1, labels)
    each = (0.2 + 0.7 * progress - (right[:, :, None] - a[:, None])).relu().square()
    wrong = torch.ones_like(a).scatter(1, labels, 0.0)
    return _reduced((each * wrong[:, None]).sum(2).mean(1), reduction)


def binary_cross_entropy(logits: Tensor, labels: Tensor, progress: float, reduction: str) -> Tensor:
    """−log a for each correct class, −log (1 − a) for each other, summed over classes; logits (B, num_classes).

    It does not depend on the number of classes per image.
    """
    right = torch.zeros_like(logits).scatter(1, labels.view(len(logits), -1), 1.0)
    return _reduced(F.binary_cross_entropy_with_logits(logits, right, reduction="none").sum(1), reduction)


def targets(labels: Tensor, num_classes: int) -> Tensor:
    """Targets for the cross-entropy: labels (B,) unchanged; labels (B, L) as class probabilities (B, num_classes), 1/L
    for each label, so that the loss of an image is the mean over its labels."""
    if labels.ndim == 1:
        return labels
    shares = torch.full(labels.shape, 1 / labels.shape[1], device=labels.device)
    return shares.new_zeros(len(labels), num_classes).scatter_add_(1, labels, shares)  # one_hot would wait for a GPU


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses.mean() if reduction == "mean" else losses.sum()


# (logits (B, classes), labels (B,) or (B, L), progress from 0 to 1 through the training, "mean" or "sum") → loss;
# label_smoothing is used by cross_entropy in training only: losses in evaluation are comparable between recipes
LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "margin": margin,
    "spread": spread,
}
