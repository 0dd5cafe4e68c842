"""How many multiply-adds a network needs for one image, forward, as the method asks for them.

Those of convolutions, matrix products and routing. A layer's votes are counted once as long as its children stay the
same, however often our kernels compute them. What is done to each number for itself is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from capsule_sweeps.networks.build import build_model
from capsule_sweeps.networks.capsnet import OwnHeads
from capsule_sweeps.networks.layers import CapsuleLayer
from capsule_sweeps.routing.base import LayerShape

Steps = list[tuple[Tensor, bool]]  # of a capsule layer: the children's poses, and whether it is the first iteration
COUNTED: dict[type[nn.Module], Callable[[Any, Tensor], int]] = {  # of one image, by what comes out of it
    nn.Conv2d: lambda layer, made: made[0].numel() * math.prod(layer.weight.shape[1:]),
    nn.Linear: lambda layer, made: made[0].numel() * layer.in_features,
    OwnHeads: lambda layer, _: layer.weight.numel(),
}


def count_multiply_adds(config: DictConfig) -> int | None:
    """Multiply-adds of one image; None for a model with weights in layers of other kinds, which are not known here.

    Builds the model once more, on the CPU, and runs it on an empty image: draws random numbers.
    """
    eager, dataset, total, steps = config.copy(), config.dataset, [0], dict[str, Steps]()
    eager.training.compile, eager.device = "off", "cpu"
    model = build_model(eager).eval()
    inside: set[nn.Module] = set()  # parts of capsule layers, which count for themselves

    def add(count: Callable[[Any, Tensor], int], layer: nn.Module, _: Any, made: Tensor) -> None:
        total[0] += count(layer, made)

    for name, layer in model.named_modules():
        if isinstance(layer, CapsuleLayer):
            inside |= set(layer.modules())
            layer.register_forward_pre_hook(partial(note_step, steps.setdefault(name, [])), with_kwargs=True)
        elif layer not in inside and type(layer) in COUNTED:
            layer.register_forward_hook(partial(add, COUNTED[type(layer)]))
        elif layer not in inside and any(weight.dim() > 1 for weight in layer.parameters(recurse=False)):
            return None
    with torch.no_grad():
        model(torch.zeros(1, dataset.channels, dataset.image_size, dataset.image_size))
    layers = dict(model.named_modules())
    return total[0] + sum(of_capsule_layer(layers[name], seen) for name, seen in steps.items())


def note_step(steps: Steps, _: nn.Module, given: Any, named: Any) -> None:
    """A forward pre-hook of a capsule layer."""
    children, *previous = given
    steps.append((children.poses, not previous or previous[0] is None))


def of_capsule_layer(layer: nn.Module, steps: Steps) -> int:
    """The votes of each new set of children, and what the routing does with them in each step."""
    assert isinstance(layer, CapsuleLayer)
    k, l, num_children, x, _, _ = layer.weight.shape  # noqa: E741
    num_parents, h, w, parent_size = layer.out_shape
    shape = LayerShape((k, l), num_children, steps[0][0].shape[4], num_parents, parent_size)
    new = len({id(poses) for poses, _ in steps})
    each = [layer.routing.multiply_adds(shape, first) for _, first in steps]
    return h * w * (new * shape.num_votes * parent_size * x + sum(each))
