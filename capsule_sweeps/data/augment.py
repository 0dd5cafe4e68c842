"""Batches: a few tensor operations on the device, no loop over images, nothing that waits for the device."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, crop_padding: int, flip: bool, margin: int = 0) -> Tensor:
    """Random crop after zero padding and, with `flip`, a horizontal flip of every other image or so.

    images (B, C, H, W) uint8 → (B, C, H − 2·margin, W − 2·margin) uint8. The padding is black: it comes before
    normalization. Draws from the global generator of the images' device: first the 2·B offsets (if there is something
    to choose), then the B flips.
    """
    free = crop_padding + margin  # places to either side of the middle
    if free == 0 and not flip:
        return images
    num_images, device = len(images), images.device
    top = left = torch.zeros(num_images, dtype=torch.int64, device=device)
    mirrored = torch.zeros(num_images, dtype=torch.bool, device=device)
    if free:
        top, left = torch.randint(2 * free + 1, (2, num_images), device=device)
    if flip:
        mirrored = torch.rand(num_images, device=device) < 0.5
    return crop_and_flip(images, top, left, mirrored, crop_padding, margin)


def crop_and_flip(
    images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, crop_padding: int, margin: int = 0
) -> Tensor:
    """Cut windows, smaller than the images (B, C, H, W) by 2·margin, out of the padded images and mirror some (B,).

    (top, left), each 0..2·(crop_padding + margin) (B,), is their first pixel.
    """
    B, C = images.shape[:2]
    H, W = (size - 2 * margin for size in images.shape[2:])
    padded = F.pad(images, (crop_padding,) * 4)
    rows = top[:, None] + torch.arange(H, device=images.device)
    columns = torch.arange(W, device=images.device)
    columns = left[:, None] + torch.where(mirrored[:, None], W - 1 - columns, columns)
    # One gather over flattened pixels, its index shared by the channels: on a CPU twice as fast as unfold and where.
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    return padded.flatten(2).gather(2, pixels.view(B, 1, H * W).expand(B, C, H * W)).view(B, C, H, W)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images/255 − mean)/std per channel: (B, C, H, W) uint8 → float32 on the same device."""
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), images.device)
    return images.float().mul_(scale).add_(shift)


@lru_cache
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept, because copying a list to a GPU in every batch would make the host wait for it.
    mean_, std_ = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
    return (1 / (255 * std_)).float().to(device), (-mean_ / std_).float().to(device)
