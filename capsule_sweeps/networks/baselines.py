"""Baselines: networks without capsules, trained, recorded and tabulated in the same way.

A baseline is a module whose constructor takes `image_shape` = (C, H, W), `num_classes` and its own options. It maps
images (B, C, H, W) to logits (B, num_classes).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from capsule_sweeps.networks.backbones import BasicBlock, build_backbone


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) in its usual form for CIFAR: a 3x3 stem with stride 1 and no max-pooling.

    Two blocks each of 64, 128, 256 and 512 channels, the last three pairs with stride 2; mean over places; linear.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            *(BasicBlock(64, 64, stride=1), BasicBlock(64, 64, stride=1)),
            *(BasicBlock(64, 128, stride=2), BasicBlock(128, 128, stride=1)),
            *(BasicBlock(128, 256, stride=2), BasicBlock(256, 256, stride=1)),
            *(BasicBlock(256, 512, stride=2), BasicBlock(512, 512, stride=1)),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        logits: Tensor = self.head(self.pool(self.blocks(self.stem(images))).flatten(1))
        return logits


class CNN(nn.Module):
    """A backbone with two convolutions, pooling and two fully connected layers in place of the capsules.

    Both convolutions are 3x3 with batch normalization and a ReLU, the first with stride 2, as in the paper's capsule
    layers; then a mean over places, a hidden layer and one for the classes. `width`: channels of the convolutions and
    units of the hidden layer. Raises ValueError for width < 1.
    """

    def __init__(
        self, backbone: Mapping[str, Any], width: int, image_shape: tuple[int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"model.width={width} is out of range: it must be a whole number of at least 1")
        self.backbone = build_backbone(backbone, image_shape)
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(self.backbone.out_shape[0], width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)),
            nn.ReLU(),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        logits: Tensor = self.head(self.pool(self.convolutions(self.backbone(images))).flatten(1))
        return logits


class AveragePool(nn.Module):
    """A backbone, the mean over places, and a linear layer."""

    def __init__(self, backbone: Mapping[str, Any], image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, image_shape)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = _he_linear(self.backbone.out_shape[0], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        logits: Tensor = self.head(self.pool(self.backbone(images)).flatten(1))
        return logits


class Convolution(nn.Module):
    """A backbone, one 3x3 convolution of `channels` with BatchNorm and a ReLU, and a linear layer over all places.

    Raises ValueError for channels < 1.
    """

    def __init__(
        self, backbone: Mapping[str, Any], channels: int, image_shape: tuple[int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"model.channels={channels} is out of range: it must be a whole number of at least 1")
        self.backbone = build_backbone(backbone, image_shape)
        in_channels, height, width = self.backbone.out_shape
        conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        nn.init.kaiming_uniform_(conv.weight)
        self.convolution = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())
        self.head = _he_linear(channels * height * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B, num_classes)."""
        logits: Tensor = self.head(self.convolution(self.backbone(images)).flatten(1))
        return logits


def _he_linear(num_features: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(num_features, num_classes)
    nn.init.kaiming_uniform_(head.weight)
    return head
