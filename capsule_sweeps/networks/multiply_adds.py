"""How many multiply-adds a network needs for one image, forward, as the method asks for them.

Those of convolutions, matrix products and routing. A layer's votes are counted once as long as its children stay the
same, however often our kernels compute them. What is done to each number for itself is not counted.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from capsule_sweeps.config.build import in_words
from capsule_sweeps.networks.build import build_model
from capsule_sweeps.networks.capsnet import OwnHeads
from capsule_sweeps.networks.layers import CapsuleLayer
from capsule_sweeps.routing.base import LayerShape

log = logging.getLogger("capsule_sweeps")

Steps = list[tuple[Tensor, bool]]  # of a capsule layer: the children's poses, and whether it is the first iteration


def count_multiply_adds(config: DictConfig) -> int | None:
    """Multiply-adds of one image; None, and a line in the log, for a class of the user on which counting fails.

    Builds the model once more, on the CPU, and runs it on an empty image: draws random numbers.
    """
    try:
        return _count(config)
    except Exception as error:  # whatever a class of yours raises here, its training may work
        log.warning("Multiply-adds are unknown (%s).", in_words(error)[:300])
        return None


def _count(config: DictConfig) -> int:
    eager, dataset, steps = config.copy(), config.dataset, dict[str, Steps]()
    eager.training.compile, eager.device = "off", "cpu"
    model = build_model(eager).eval()
    layers = dict(model.named_modules())
    for name, layer in layers.items():
        if isinstance(layer, CapsuleLayer):
            layer.register_forward_pre_hook(partial(note_step, steps.setdefault(name, [])), with_kwargs=True)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, dataset.channels, dataset.image_size, dataset.image_size))
    outside = torch_counts(counter, model, "") - sum(torch_counts(counter, model, name) for name in steps)
    products = sum(layer.weight.numel() for layer in layers.values() if isinstance(layer, OwnHeads))
    return outside + products + sum(of_capsule_layer(layers[name], seen) for name, seen in steps.items())


def torch_counts(counter: FlopCounterMode, model: nn.Module, name: str) -> int:
    """The multiply-adds that torch counted in a part of a model, also of functions; not the products of OwnHeads."""
    counts = counter.get_flop_counts().get(".".join(filter(None, (type(model).__name__, name))), {})
    return int(sum(counts.values())) // 2


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
