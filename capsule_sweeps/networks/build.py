"""The model of a composed configuration."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from torch import nn

from capsule_sweeps.config.build import build
from capsule_sweeps.networks.layers import CapsuleLayer
from capsule_sweeps.routing.compiled import CompiledForward, decide


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
