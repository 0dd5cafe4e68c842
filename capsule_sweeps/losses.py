"""Losses of the class logits: `training.loss`.

margin and spread are of the classes' activations, the sigmoids of the logits: for a routing with class logits of its
own these are the activations of its class capsules.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, progress: float, reduction: str) -> Tensor:
    return F.cross_entropy(logits, labels, reduction=reduction)


def margin(logits: Tensor, labels: Tensor, progress: float, reduction: str) -> Tensor:
    """max(0, 0.9 − a)² for the right class, plus half of max(0, a − 0.1)² for each other (Sabour 2017, eq. 4)."""
    a = logits.sigmoid()
    right = F.one_hot(labels, logits.shape[1]).to(a.dtype)
    each = right * (0.9 - a).relu().square() + 0.5 * (1 - right) * (a - 0.1).relu().square()
    return _reduced(each.sum(1), reduction)


def spread(logits: Tensor, labels: Tensor, progress: float, reduction: str) -> Tensor:
    """Σ max(0, m − (a_right − a))² over the other classes; m grows from 0.2 to 0.9 (Hinton et al. 2018, eq. 3)."""
    a = logits.sigmoid()
    right = a.gather(1, labels[:, None])
    each = (0.2 + 0.7 * progress - (right - a)).relu().square()
    others = torch.ones_like(each).scatter(1, labels[:, None], 0.0)
    return _reduced((each * others).sum(1), reduction)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses.mean() if reduction == "mean" else losses.sum()


# (logits (B, classes), labels (B,), progress from 0 to 1 through the training, "mean" or "sum" over the batch) → loss
LOSSES: dict[str, Callable[[Tensor, Tensor, float, str], Tensor]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "spread": spread,
}
