"""Two overlapping digits in one image, made from single ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from capsule_sweeps.data.augment import crop_and_flip
from capsule_sweeps.data.split import SPLIT_SEED, Split


@dataclass(frozen=True)
class Pairs(Split):
    """Single digits that are shown in pairs: each with another of a different class, both shifted, one over the other.

    images (N, C, H, W) and labels (N,) are those of the single digits, in the middle of a canvas; a digit may move by
    `shift` pixels in each direction. partners (N,) and offsets (N, 4) (rows and columns of both, 0 to 2·shift) follow
    from the seed alone, as `alone` (N,): digits that are shown without their partner, and have their label twice.
    `overlay` of two digits: the larger pixel (max), the mean, or the sum, cut at white.
    """

    shift: int
    partners: Tensor
    offsets: Tensor
    alone: Tensor
    single_share: float = 0.0
    overlay: str = "max"

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) of the pairs that begin with the digits at `indices` (B,), and both labels (B, 2)."""
        partners, offsets = self.partners[indices], self.offsets[indices]
        unmirrored = torch.zeros_like(indices, dtype=torch.bool)
        (one, label), (other, other_label) = super().batch(indices), super().batch(partners)
        one = crop_and_flip(one, offsets[:, 0], offsets[:, 1], unmirrored, self.shift)
        other = crop_and_flip(other, offsets[:, 2], offsets[:, 3], unmirrored, self.shift)
        alone = self.alone[indices]
        labels = torch.stack([label, torch.where(alone, label, other_label)], dim=1)
        return torch.where(alone[:, None, None, None], one, OVERLAYS[self.overlay](one, other)), labels

    def of_epoch(self, epoch: int) -> Pairs:
        """Every epoch has pairs of its own, the same ones in every run."""
        digits = Split(self.images, self.labels)
        return pair(digits, self.shift, [SPLIT_SEED, epoch], self.single_share, self.overlay)


OVERLAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "max": torch.maximum,
    "mean": lambda one, other: ((one.short() + other.short() + 1) // 2).to(torch.uint8),
    "sum": lambda one, other: (one.short() + other.short()).clamp_max(255).to(torch.uint8),
}


def pair(digits: Split, shift: int, seed: int | list[int], single_share: float = 0.0, overlay: str = "max") -> Pairs:
    """Pairs of single digits: partners even among those of other classes, offsets even; a share of them alone.

    Raises ValueError if all digits are of one class.
    """
    random, labels = np.random.RandomState(seed), digits.labels.cpu().numpy()
    order, counts = np.argsort(labels, kind="stable"), np.bincount(labels)
    own_first, own_count = (np.cumsum(counts) - counts)[labels], counts[labels]
    if not (own_count < len(labels)).all():
        raise ValueError(
            "dataset.labels_per_image=2 needs digits of two classes or more: raise dataset.train_size or val_size"
        )
    place = (random.random_sample(len(labels)) * (len(labels) - own_count)).astype(np.int64)
    partners = order[place + own_count * (place >= own_first)]  # in the order by class, the own class is left out
    offsets = random.randint(0, 2 * shift + 1, (len(labels), 4))
    alone = np.zeros(len(labels), bool)
    if single_share:
        alone = random.random_sample(len(labels)) < single_share
    device = digits.labels.device
    drawn = [
        torch.from_numpy(np.asarray(values)).to(device)
        for values in (partners.astype(np.int64), offsets.astype(np.int64), alone)
    ]
    return Pairs(digits.images, digits.labels, shift, drawn[0], drawn[1], drawn[2], single_share, overlay)


def render(pairs: Pairs) -> Split:
    """The images of all pairs, made once."""
    parts = torch.arange(len(pairs), device=pairs.labels.device).split(1000)
    images, labels = zip(*map(pairs.batch, parts), strict=True)
    return Split(torch.cat(images), torch.cat(labels))
