"""The capsule network, and the published code's weights in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from capsule_sweeps.capsules import CapsuleLayer, CapsuleStack
from capsule_sweeps.compile import CompiledForward, decide
from capsule_sweeps.config import build


class CapsNet(nn.Module):
    """Images (B, C, H, W) → logits (B, num_classes): backbone, capsule stack, one linear head for all classes.

    `backbone`, `capsules` and `routing` are the config groups of these names. ValueError names a key that cannot be.
    """

    def __init__(
        self,
        num_routing: int,
        backbone: Mapping[str, Any],
        capsules: Mapping[str, Any],
        routing: Mapping[str, Any],
        image_shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.backbone = build(backbone, image_shape=image_shape)
        self.capsules = CapsuleStack(capsules, routing, num_routing, self.backbone.out_shape, num_classes)
        self.head = nn.Linear(self.capsules.out_shape[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        capsules = self.capsules(features)
        logits: Tensor = self.head(capsules[-1].poses).flatten(1)
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
