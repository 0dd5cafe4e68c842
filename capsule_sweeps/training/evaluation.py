"""Loss and accuracy of a model on a split."""

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from capsule_sweeps.data.augment import normalize
from capsule_sweeps.data.load import Data
from capsule_sweeps.data.split import Split
from capsule_sweeps.training.losses import LOSSES

MAX_BATCH = 256


def evaluation_batch(config: DictConfig) -> int:
    """Number of images per batch in evaluation: at most training.batch_size, which needs less memory than a step.

    Configurations of imported checkpoints have no training.batch_size.
    """
    return min(MAX_BATCH, config.training.get("batch_size", MAX_BATCH))


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, split: Split, config: DictConfig) -> tuple[float, float]:
    """Mean loss per image and accuracy (a fraction) on a split of some data, in evaluation mode.

    The losses of batches are added in double precision on the host, because not every device supports it (mps).
    """
    model.eval()
    size, device = evaluation_batch(config), split.labels.device
    losses = []
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for first in range(0, len(split.labels), size):
        labels = split.labels[first : first + size]
        images = normalize(split.images[first : first + size], *data.normalization)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.training.amp == "bf16"):
            logits = model(images)
        losses.append(LOSSES[config.training.loss](logits.float(), labels, 1.0, "sum"))
        correct += num_correct(logits, labels, config.training.loss)
    loss = 0.0
    for value in torch.stack(losses).tolist():  # in this order: sum() differs between versions of Python
        loss += value
    return loss / len(split.labels), int(correct) / len(split.labels)


def constant_answer(labels: Tensor) -> float | None:
    """The accuracy of the best constant prediction for labels (N,): the share of the largest class; None for pairs."""
    return None if labels.ndim > 1 else int(labels.bincount().max()) / len(labels)


def num_correct(logits: Tensor, labels: Tensor, loss: str = "cross_entropy") -> Tensor:
    """Number of correctly classified images, a tensor (). logits (B, classes), labels (B,) or, for L classes per image,
    (B, L): such an image counts if exactly these classes are predicted."""
    if labels.ndim == 1:
        return (logits.argmax(1) == labels).sum()
    shown = torch.zeros_like(logits, dtype=torch.bool).scatter(1, labels, True)
    return (shown == named_classes(logits, labels.shape[1], loss)).all(1).sum()


def named_classes(logits: Tensor, num_labels: int, loss: str | None) -> Tensor:
    """The predicted classes (B, classes), bool: the `num_labels` largest logits or, for a model that was trained with
    binary_cross_entropy, all classes with an activation above 0.5 (exact match)."""
    if loss == "binary_cross_entropy":
        return logits > 0
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(num_labels).indices, True)
