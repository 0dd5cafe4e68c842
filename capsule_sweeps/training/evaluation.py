"""Loss and accuracy of a model on a split."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from capsule_sweeps.data.augment import normalize
from capsule_sweeps.data.load import Data
from capsule_sweeps.data.split import Split
from capsule_sweeps.training.losses import LOSSES

EVAL_BATCH = 256


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, split: Split, config: DictConfig) -> tuple[float, float]:
    """Mean loss and accuracy on a split of some data, in evaluation mode."""
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    for first in range(0, len(split.labels), EVAL_BATCH):
        labels = split.labels[first : first + EVAL_BATCH]
        images = normalize(split.images[first : first + EVAL_BATCH], *data.normalization)
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=config.training.amp == "bf16"):
            logits = model(images)
        loss += LOSSES[config.training.loss](logits.float(), labels, 1.0, "sum")
        correct += num_correct(logits, labels)
    return float(loss) / len(split.labels), int(correct) / len(split.labels)


def num_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images are named rightly; of an image with L labels (B, L) all must be, by the L largest logits."""
    if labels.ndim == 1:
        return (logits.argmax(1) == labels).sum()
    named = logits.topk(labels.shape[1]).indices
    return (named.sort().values == labels.sort().values).all(1).sum()
