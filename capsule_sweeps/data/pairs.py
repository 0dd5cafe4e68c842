"""Two overlapping digits in one image, made from single ones."""

from __future__ import annotations

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
    from the seed alone.
    """

    shift: int
    partners: Tensor
    offsets: Tensor

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) of the pairs that begin with the digits at `indices` (B,), and both labels (B, 2)."""
        partners, offsets = self.partners[indices], self.offsets[indices]
        unmirrored = torch.zeros_like(indices, dtype=torch.bool)
        (one, label), (other, other_label) = super().batch(indices), super().batch(partners)
        one = crop_and_flip(one, offsets[:, 0], offsets[:, 1], unmirrored, self.shift)
        other = crop_and_flip(other, offsets[:, 2], offsets[:, 3], unmirrored, self.shift)
        return torch.maximum(one, other), torch.stack([label, other_label], dim=1)

    def of_epoch(self, epoch: int) -> Pairs:
        """Every epoch has pairs of its own, the same ones in every run."""
        return pair(Split(self.images, self.labels), self.shift, [SPLIT_SEED, epoch])


def pair(digits: Split, shift: int, seed: int | list[int]) -> Pairs:
    """Pairs of single digits: partners even among those of other classes, offsets even."""
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
    drawn = (torch.from_numpy(np.asarray(values, np.int64)).to(digits.labels.device) for values in (partners, offsets))
    return Pairs(digits.images, digits.labels, shift, *drawn)


def render(pairs: Pairs) -> Split:
    """The images of all pairs, made once."""
    parts = torch.arange(len(pairs), device=pairs.labels.device).split(1000)
    images, labels = zip(*map(pairs.batch, parts), strict=True)
    return Split(torch.cat(images), torch.cat(labels))
