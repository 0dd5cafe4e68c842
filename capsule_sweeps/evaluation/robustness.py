"""Test images made harder: adversarial attacks, and the corrupted images of CIFAR-10-C.

Shapes: B images, C channels, H rows, W columns. An attack changes each pixel by at most `epsilon`, in units of an image
whose black is 0 and whose white is 1, and keeps it in this range. It sees the model as it is evaluated: gradients go
through all routing iterations. The loss is the cross-entropy of the logits whatever the model was trained with, so that
attacks on different models are alike.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from capsule_sweeps.data.augment import normalize
from capsule_sweeps.data.load import Data
from capsule_sweeps.data.split import Normalization, Split
from capsule_sweeps.training.losses import cross_entropy

PGD_STEPS = 10
CORRUPTIONS = (  # of Hendrycks and Dietterich, ICLR 2019
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow"),
    *("frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, normalization: Normalization) -> Tensor:
    """One step of size epsilon along the sign of the gradient (Goodfellow, Shlens, Szegedy, ICLR 2015).

    images (B, C, H, W) float in 0..1 → the same shape and range. `model` is in evaluation mode.
    """
    return _step(model, images, images, labels, epsilon, epsilon, normalization)


def pgd(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, normalization: Normalization) -> Tensor:
    """PGD_STEPS steps of size 2.5 · epsilon / PGD_STEPS from the image itself, each followed by a projection onto the
    allowed range (Madry et al., ICLR 2018; without a random start, so that a repetition gives the same number)."""
    attacked = images
    for _ in range(PGD_STEPS):
        size = 2.5 * epsilon / PGD_STEPS
        attacked = _step(model, images, attacked, labels, size, epsilon, normalization)
    return attacked


ATTACKS = {"fgsm": fgsm, "pgd": pgd}


def _step(
    model: nn.Module,
    images: Tensor,
    attacked: Tensor,
    labels: Tensor,
    size: float,
    epsilon: float,
    normalization: Normalization,
) -> Tensor:
    with torch.enable_grad():
        attacked = attacked.detach().requires_grad_()
        loss = cross_entropy(model(normalize(255 * attacked, *normalization)).float(), labels, 1.0, "sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
    moved = attacked.detach() + size * gradient.sign()
    return torch.clamp(moved, images - epsilon, images + epsilon).clamp(0, 1)


def corrupted(data: Data, data_dir: Path, corruption: str, severity: int) -> Data:
    """The data with the corrupted test images of CIFAR-10-C in place of the test images.

    They are read from `<data_dir>/CIFAR-10-C/<corruption>.npy`, 10,000 images for each severity from 1 to 5. Raises
    ValueError for files that are missing or do not fit.
    """
    folder = data_dir / "CIFAR-10-C"
    try:
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in (corruption, "labels")]
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"--corruption {corruption} needs {folder}/{corruption}.npy and labels.npy of CIFAR-10-C ({error}): copy "
            "the official files there"
        ) from error
    images, labels = arrays
    number = len(labels) // 5
    if images.shape != (5 * number, 32, 32, 3) or images.dtype != np.uint8 or data.test.images.shape[1:] != (3, 32, 32):
        raise ValueError(
            f"{folder}/{corruption}.npy has {images.dtype} of shape {images.shape}: it does not fit the test images "
            f"{tuple(data.test.images.shape)} of this run"
        )
    part = slice((severity - 1) * number, severity * number)
    device = data.test.labels.device
    shown = torch.from_numpy(np.ascontiguousarray(images[part].transpose(0, 3, 1, 2))).to(device)
    return replace(data, test=Split(shown, torch.from_numpy(labels[part].astype(np.int64)).to(device)))
