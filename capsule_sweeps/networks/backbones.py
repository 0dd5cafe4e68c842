"""Backbones: convolutions in front of the primary capsules.

A backbone is a module whose constructor takes `image_shape` = (C, H, W) and its own options. It maps images
(B, C, H, W) to features (B, C', H', W') and has the attribute `out_shape` = (C', H', W').
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from capsule_sweeps.config.build import build


def build_backbone(backbone: Mapping[str, Any], image_shape: tuple[int, int, int]) -> Any:
    """The backbone of a config node. Raises ValueError for one without a valid `out_shape`."""
    made = build(backbone, image_shape=image_shape)
    shape = getattr(made, "out_shape", None)
    if not (
        isinstance(shape, Sequence) and len(shape) == 3 and all(isinstance(n, Integral) and int(n) > 0 for n in shape)
    ):
        raise ValueError(
            f"the backbone {type(made).__name__} has out_shape={shape}: its constructor must set it to the channels, "
            "rows and columns of its features"
        )
    return made


def _halved(size: int) -> int:
    """Grid size after a 3x3 convolution with stride 2 and padding 1."""
    return (size + 1) // 2


class Simple(nn.Module):
    """One 3x3 convolution with stride 2 and a ReLU. Raises ValueError for `channels` < 1."""

    def __init__(self, image_shape: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"backbone.channels={channels} is out of range: it must be a whole number of at least 1")
        in_channels, height, width = image_shape
        self.layers = nn.Sequential(nn.Conv2d(in_channels, channels, 3, stride=2, padding=1), nn.ReLU())
        self.out_shape = (channels, _halved(height), _halved(width))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → features (B, channels, ⌈H/2⌉, ⌈W/2⌉)."""
        features: Tensor = self.layers(images)
        return features


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalization and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = self.make_shortcut(in_channels, channels, stride)

    def make_shortcut(self, in_channels: int, channels: int, stride: int) -> Callable[[Tensor], Tensor]:
        """The identity, or a 1x1 convolution with batch normalization where the shape changes."""
        if stride == 1 and in_channels == channels:
            return nn.Sequential()
        return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, in_channels, H, W) → (B, channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """The paper's backbone: a 3x3 convolution, three blocks of 64 channels and four of 128, the first with stride 2."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        in_channels, height, width = image_shape
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Sequential(*(BasicBlock(64, 64, stride=1) for _ in range(3))),
            nn.Sequential(BasicBlock(64, 128, stride=2), *(BasicBlock(128, 128, stride=1) for _ in range(3))),
        )
        self.out_shape = (128, _halved(height), _halved(width))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → features (B, 128, ⌈H/2⌉, ⌈W/2⌉)."""
        features: Tensor = self.layers(images)
        return features


class PlainBlock(BasicBlock):
    """A basic block whose shortcut has no weights: every second pixel, channels of zeros (He et al. 2016, option A)."""

    def make_shortcut(self, in_channels: int, channels: int, stride: int) -> Callable[[Tensor], Tensor]:
        """`pick_and_pad` with the settings of this block."""
        before, added = (channels - in_channels) // 2, channels - in_channels
        return partial(pick_and_pad, stride=stride, padding=(0, 0, 0, 0, before, added - before))


def pick_and_pad(x: Tensor, stride: int, padding: tuple[int, ...]) -> Tensor:
    """Every `stride`-th pixel of x (B, C, H, W), with zeros added as F.pad does."""
    return F.pad(x[:, :, ::stride, ::stride], padding)


class ResNet20(nn.Module):
    """ResNet-20 for small images (He et al. 2016, section 4.2): three stages of three blocks with `width`,
    2·`width` and 4·`width` channels; the second and third begin with stride 2.

    Raises ValueError for `width` < 1.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"backbone.width={width} is out of range: it must be a whole number of at least 1")
        in_channels, height, row = image_shape
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers += [nn.ReLU(), *(PlainBlock(width, width, stride=1) for _ in range(3))]
        for channels in (2 * width, 4 * width):
            layers += [PlainBlock(channels // 2, channels, stride=2)]
            layers += [PlainBlock(channels, channels, stride=1) for _ in range(2)]
        self.layers = nn.Sequential(*layers)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight)
        self.out_shape = (4 * width, _halved(_halved(height)), _halved(_halved(row)))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → features (B, 4·width, ⌈H/4⌉, ⌈W/4⌉)."""
        features: Tensor = self.layers(images)
        return features
