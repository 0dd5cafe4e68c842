"""Training steps of each variant, to be timed: the backbone alone and ours, eager and compiled, the published code.

A step is forward, loss, backward and an SGD step on random images. Memory is what one step needs beyond what stays
between steps (weights, gradients, momentum): the peak on a GPU, an estimate elsewhere (training/memory.py).
"""

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn import functional as F

from capsule_sweeps.config.build import build
from capsule_sweeps.networks.build import build_model
from capsule_sweeps.routing.compiled import CompiledForward
from capsule_sweeps.training.execution import choose_device
from capsule_sweeps.training.memory import peak_of_step


def as_in_training() -> None:
    """The settings that `train` makes for its process."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def make_step(config: DictConfig, name: str, num_routing: int, against: Path | None) -> Callable[[], None]:
    device, recipe, dataset = device_of(config), config.training, config.dataset
    ours = recipe.channels_last and name != "published"  # which has a layout of its own
    layout = torch.channels_last if ours else torch.contiguous_format
    torch.manual_seed(0)
    model = make_model(config, name, num_routing, against).to(device)
    torch.nn.utils.convert_conv2d_weight_memory_format(model, layout)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, recipe.momentum, weight_decay=recipe.weight_decay)
    shape = (recipe.batch_size, dataset.channels, dataset.image_size, dataset.image_size)
    images = torch.randn(shape, device=device).to(memory_format=layout)
    labels = torch.randint(dataset.num_classes, shape[:1], device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.amp == "bf16"):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def published_step() -> None:  # its program lets cuDNN choose the fastest
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            step()

    return published_step if name == "published" else step


def make_model(config: DictConfig, name: str, num_routing: int, against: Path | None) -> nn.Module:
    """The backbone (eager or compiled) with a mean over places and one linear layer; our model; the published one."""
    dataset = config.dataset
    if name == "published":
        assert against is not None
        return _published(config, num_routing, against)
    if name.startswith("backbone"):
        backbone = build(config.backbone, image_shape=(dataset.channels, dataset.image_size, dataset.image_size))
        head = nn.Linear(backbone.out_shape[0], dataset.num_classes)
        model = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        if name == "backbone compiled":
            model.forward = CompiledForward(model, config.training.batch_size)  # type: ignore[method-assign]
        return model
    compiled = {"training": {"compile": "on" if name == "compiled" else "off"}}
    iterations = {"model": {"num_routing": num_routing}} if num_routing else {}
    return build_model(OmegaConf.merge(config, compiled, iterations))  # type: ignore[arg-type]


def published_stack(config: DictConfig, checkout: Path) -> Path:
    """The file of this dataset's stack in a checkout of the published code. Raises ValueError for other folders."""
    stack = checkout / "configs" / f"resnet_backbone_{config.dataset.name}.json"
    for path in (checkout / "src" / "capsule_model.py", stack):
        if not path.is_file():
            raise ValueError(
                f"--against={checkout} has no {path.name}: it must be a checkout of the published code, and one with a "
                f"stack for dataset={config.dataset.name}"
            )
    return stack


def _published(config: DictConfig, num_routing: int, checkout: Path) -> nn.Module:
    from importlib import import_module

    sys.path.insert(0, str(checkout))
    try:
        module = import_module("src.capsule_model")
    finally:
        sys.path.remove(str(checkout))
    sequential = config.routing.get("schedule") == "sequential"
    stack = json.loads(published_stack(config, checkout).read_text())
    settings = config.dataset.image_size, stack, "resnet", 0.0, num_routing
    model: nn.Module = module.CapsModel(*settings, sequential_routing=sequential)
    return model


def memory(config: DictConfig, name: str, num_routing: int, against: Path | None) -> float | None:
    """MB that a step needs beyond what stays between steps: on a GPU infinity where it has less than that, elsewhere an
    estimate, None for steps without one: compiled ones, and those of a class of the user that needs numbers."""
    if device_of(config).type != "cuda":
        if name.endswith("compiled"):
            return None
        try:
            make = partial(make_model, config, name, num_routing, against)
            more, _ = peak_of_step(make, config, config.training.batch_size)
        except Exception:
            return None
        return round(more / 1e6, 1)
    try:
        step = make_step(config, name, num_routing, against)
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
    except torch.OutOfMemoryError:
        return math.inf
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)


def device_of(config: DictConfig) -> torch.device:
    return choose_device(config.device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
