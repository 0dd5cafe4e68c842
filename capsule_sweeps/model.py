"""The capsule network, and the published code's weights in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from capsule_sweeps.capsules import CapsuleLayer, Capsules, CapsuleStack, Step
from capsule_sweeps.config.build import build
from capsule_sweeps.routing.compiled import CompiledForward, decide


class Intermediates(NamedTuple):
    """What a network computed on the way: backbone's features (B, C, H, W), primary capsules (B, N, H, W, D), and for
    each capsule layer, class capsules last, its iterations in order: poses, coefficients, agreement (see Step).

    With the concurrent schedule the lower layers have fewer iterations than num_routing: updates that can no longer
    reach the class capsules are not computed.
    """

    features: Tensor
    primary: Tensor
    layers: list[list[Step]]


class OwnHeads(nn.Module):
    """A linear classifier of its own for each class capsule: poses (B, C, 1, 1, D) → (B, C, 1, 1, 1)."""

    def __init__(self, num_classes: int, pose_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, 1, 1, pose_size))
        self.bias = nn.Parameter(torch.empty(num_classes, 1, 1, 1))
        for parameter in (self.weight, self.bias):  # as nn.Linear begins
            nn.init.uniform_(parameter, -(pose_size**-0.5), pose_size**-0.5)

    def forward(self, poses: Tensor) -> Tensor:
        return (poses * self.weight).sum(-1, keepdim=True) + self.bias


HEADS = {"shared": lambda num_classes, pose_size: nn.Linear(pose_size, 1), "own": OwnHeads}


class CapsNet(nn.Module):
    """Images (B, C, H, W) → logits (B, num_classes): backbone, capsule stack, linear head.

    `backbone`, `capsules` and `routing` are the config groups of these names; `head` is `shared` by all class capsules,
    or each has its `own`; a routing may have logits of its own instead. ValueError names a key that cannot be.

    `model(images, intermediates=True)` returns logits and Intermediates. It computes them from explicit votes, an image
    at a time and never compiled; in evaluation mode the logits are those of the fast way but for rounding.
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
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"model.head={head} is unknown: it must be one of {', '.join(HEADS)}")
        self.backbone = build(backbone, image_shape=image_shape)
        self.capsules = CapsuleStack(capsules, routing, num_routing, self.backbone.out_shape, num_classes)
        own = self.capsules.class_routing.has_class_logits
        if own and head != "shared":
            raise ValueError(
                f"model.head={head} has no meaning for routing={routing['name']}, "
                "which reads the classes from its own parents: leave it out"
            )
        self.head = None if own else HEADS[head](num_classes, self.capsules.out_shape[-1])

    def forward(self, images: Tensor, intermediates: bool = False) -> Tensor | tuple[Tensor, Intermediates]:
        features = self.backbone(images)
        if intermediates:
            capsules, steps = self.capsules.watch(features)
            return self._logits(capsules[-1]), Intermediates(features, capsules[0].poses, steps)
        return self._logits(self.capsules(features)[-1])

    def _logits(self, classes: Capsules) -> Tensor:
        logits: Tensor
        if self.head is None:
            logits = self.capsules.class_routing.class_logits(classes)
        else:
            logits = self.head(classes.poses).flatten(1)
        return logits


def build_model(config: DictConfig) -> nn.Module:
    """The model of a composed configuration, with fresh weights: images (B, C, H, W) → logits (B, num_classes).

    It runs compiled or not as `training.compile` says; parameters and state dict are the same either way.

    Under `with torch.device("meta")` it checks a stack without making its weights. Raises ValueError naming the key
    that makes a model impossible.
    """
    dataset = config.dataset
    model: nn.Module = build(
        config.model,
        image_shape=(dataset.channels, dataset.image_size, dataset.image_size),
        num_classes=dataset.num_classes,
    )
    if "training" in config and decide(config, _expected_device(config.device)):
        for module in model.modules():
            if isinstance(module, CapsuleLayer):
                module.fused = True
        model.forward = CompiledForward(model)
    return model


def _expected_device(asked: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked)


PUBLISHED_NAMES = (  # our names → the published code's
    (r"^backbone\.layers\.", "pre_caps.pre_caps."),
    (r"^capsules\.primary\.conv\.", "pc_layer."),
    (r"^capsules\.primary\.norm\.", "nonlinear_act."),
    (r"^capsules\.layers\.(\d+)\.weight$", r"capsule_layers.\1.w"),
    (r"^capsules\.layers\.(\d+)\.routing\.norm\.", r"capsule_layers.\1.nonlinear_act."),
    (r"^head\.", "final_fc."),
)


def load_published_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Puts the published code's weights into a CapsNet; keys may carry the `module.` that DataParallel adds.

    Raises ValueError naming a key that is missing, unknown or of another shape; the model is then unchanged.
    """
    published = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, CapsuleLayer)}
    converted: dict[str, Tensor] = {}
    for name, own in model.state_dict().items():
        key = _published_name(name)
        if key not in published:
            raise ValueError(f"{key} is missing from the published weights: they belong to another model")
        tensor = published.pop(key)
        shape = _published_shape(layers[name]) if name in layers else tuple(own.shape)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{key} of the published weights has shape {tuple(tensor.shape)}, but {shape} is needed")
        converted[name] = _from_published(tensor, layers[name]) if name in layers else tensor
    if published:
        raise ValueError(f"{next(iter(published))} of the published weights is unknown: this model has no place for it")
    model.load_state_dict(converted)


def _published_name(name: str) -> str:
    for ours, theirs in PUBLISHED_NAMES:
        name = re.sub(ours, theirs, name)
    return name


def _published_shape(layer: CapsuleLayer) -> tuple[int, ...]:
    """(k, l, N), or (N·k·l) if fully connected, and then (x, d, M), or (x, M, d) for vector poses."""
    k, l, num_children, x, num_parents, d = layer.weight.shape  # noqa: E741
    children = (num_children * k * l,) if layer.fully_connected else (k, l, num_children)
    return (*children, x, d, num_parents) if layer.matrix else (*children, x, num_parents, d)


def _from_published(weight: Tensor, layer: CapsuleLayer) -> Tensor:
    """A capsule layer's weight in our order (k, l, N, x, M, d)."""
    if layer.matrix:
        weight = weight.transpose(-1, -2)
    if layer.fully_connected:
        k, l, num_children = layer.weight.shape[:3]  # noqa: E741
        weight = weight.unflatten(0, (num_children, k, l)).permute(1, 2, 0, 3, 4, 5)
    return weight
