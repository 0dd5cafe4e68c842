"""The model of a composed configuration."""

from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from capsule_sweeps.config.build import build
from capsule_sweeps.routing.compiled import CompiledForward, decide
from capsule_sweeps.routing.votes import FastVotes


def build_model(config: DictConfig) -> nn.Module:
    """The model of a composed configuration, newly initialized: images (B, C, H, W) → logits (B, num_classes).

    `training.compile` decides whether its forward is compiled; parameters and state dict are the same in both cases.

    Under `with torch.device("meta")` it checks a stack without allocating its weights. Raises ValueError naming the key
    if no such model can be built.
    """
    dataset = config.dataset
    compiled = "training" in config and decide(config, _expected_device(config.device))
    model: nn.Module = build(
        config.model,
        image_shape=(dataset.channels, dataset.image_size, dataset.image_size),
        num_classes=dataset.num_classes,
        **({"votes": partial(FastVotes, fused=compiled)} if "capsules" in config.model else {}),
    )
    model.register_forward_hook(partial(_check_logits, dataset.num_classes), with_kwargs=True)
    if compiled:
        model.forward = CompiledForward(model, config.training.batch_size)
    return model


def _check_logits(num_classes: int, model: nn.Module, _: Any, settings: dict[str, Any], logits: Any) -> None:
    """A forward hook that raises ValueError for a model that returns something else than logits (B, num_classes)."""
    if settings.get("intermediates") or (torch.is_tensor(logits) and logits.shape[1:] == (num_classes,)):
        return
    found = f"a tensor of shape {tuple(logits.shape)}" if torch.is_tensor(logits) else f"a {type(logits).__name__}"
    raise ValueError(
        f"{type(model).__module__}.{type(model).__name__} returned {found}: it must return logits of shape "
        f"(B, {num_classes}) for images (B, C, H, W)"
    )


def free_graphs(device: torch.device) -> None:
    """Free the memory of the CUDA graphs of compiled models, which torch would keep until the process ends."""
    if device.type == "cuda":
        from torch._inductor.cudagraph_trees import reset_cudagraph_trees  # public is only a reset of all compilation

        reset_cudagraph_trees()
        torch.cuda.empty_cache()


def num_parameters(config: DictConfig) -> int:
    """The number of weights of the model; it is built without memory for them."""
    with torch.device("meta"):
        return sum(weights.numel() for weights in build_model(config).parameters())


def _expected_device(asked: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked)
