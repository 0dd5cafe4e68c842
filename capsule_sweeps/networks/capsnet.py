"""The capsule network: backbone, capsule stack, linear head."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from capsule_sweeps.networks.backbones import build_backbone
from capsule_sweeps.networks.layers import Step
from capsule_sweeps.networks.stack import Capsules, CapsuleStack
from capsule_sweeps.routing.votes import FastVotes, MakeVotes


class Intermediates(NamedTuple):
    """Intermediate results of a network: the features of the backbone (B, C, H, W), the primary capsules
    (B, N, H, W, D), and for each capsule layer, class capsules last, a Step for each iteration in order.

    With the concurrent schedule lower layers have fewer iterations than num_routing: updates that can no longer reach
    the class capsules are not computed.
    """

    features: Tensor
    primary: Tensor
    layers: list[list[Step]]


class OwnHeads(nn.Module):
    """A separate linear classifier for each class capsule: poses (B, C, 1, 1, D) → (B, C, 1, 1, 1)."""

    def __init__(self, num_classes: int, pose_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, 1, 1, pose_size))
        self.bias = nn.Parameter(torch.empty(num_classes, 1, 1, 1))
        for parameter in (self.weight, self.bias):  # the initialization of nn.Linear
            nn.init.uniform_(parameter, -(pose_size**-0.5), pose_size**-0.5)

    def forward(self, poses: Tensor) -> Tensor:
        """Poses of the class capsules (B, num_classes, 1, 1, D) → logits (B, num_classes, 1, 1, 1)."""
        return (poses * self.weight).sum(-1, keepdim=True) + self.bias


HEADS = {"shared": lambda num_classes, pose_size: nn.Linear(pose_size, 1), "own": OwnHeads}


class CapsNet(nn.Module):
    """Images (B, C, H, W) → logits (B, num_classes): backbone, capsule stack, linear head.

    `backbone`, `capsules` and `routing` are the config groups of these names. `head` is one linear classifier `shared`
    by all class capsules, or each has its `own`; some routings have class logits instead. Raises ValueError naming the
    key for invalid values.

    `votes` makes the Votes of the layers; `model(images, votes=…)` replaces it for one call.
    `model(images, intermediates=True)` returns logits and Intermediates. These are computed from recorded votes and
    never compiled; in evaluation mode the logits equal those of `model(images)` up to rounding.
    """

    def __init__(
        self,
        num_routing: int,
        backbone: Mapping[str, Any],
        capsules: Mapping[str, Any],
        routing: Mapping[str, Any],
        image_shape: tuple[int, int, int],
        num_classes: int,
        head: str = "shared",
        votes: MakeVotes = FastVotes,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"model.head={head} is unknown: it must be one of {', '.join(HEADS)}")
        self.backbone = build_backbone(backbone, image_shape)
        self.capsules = CapsuleStack(capsules, routing, num_routing, self.backbone.out_shape, num_classes, votes)
        own = self.capsules.class_routing.has_class_logits
        if own and head != "shared":
            raise ValueError(
                f"model.head={head} has no effect with routing={routing['name']}, "
                "which reads the classes from its own parents: remove it"
            )
        self.head = None if own else HEADS[head](num_classes, self.capsules.out_shape[-1])

    def forward(
        self, images: Tensor, intermediates: bool = False, votes: MakeVotes | None = None
    ) -> Tensor | tuple[Tensor, Intermediates]:
        """Images (B, C, H, W) → logits (B, num_classes), with `intermediates` also Intermediates."""
        features = self.backbone(images)
        if features.shape[1:] != (shape := tuple(self.backbone.out_shape)):
            raise ValueError(
                f"the backbone {type(self.backbone).__name__} returned features of shape {tuple(features.shape)}, but "
                f"its out_shape is {shape}: set it to the shape of the features of one image"
            )
        if intermediates:
            capsules, steps = self.capsules.watch(features)
            return self._logits(capsules[-1]), Intermediates(features, capsules[0].poses, steps)
        return self._logits(self.capsules(features, votes)[-1])

    def _logits(self, classes: Capsules) -> Tensor:
        logits: Tensor
        if self.head is None:
            logits = self.capsules.class_routing.class_logits(classes)
        else:
            logits = self.head(classes.poses).flatten(1)
        return logits
