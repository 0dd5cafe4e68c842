"""What a model is made of, without training it: layers, grids, capsules, parameters, multiply-adds, memory of a step.

Multiply-adds are those of convolutions, matrix products and routing for one image, forward, as the method asks for
them: votes that our kernels compute again are counted once. Norms, activations and softmax are not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from capsule_sweeps.backbone import BasicBlock
from capsule_sweeps.bench import memory
from capsule_sweeps.capsules import CapsuleLayer, PrimaryCapsules
from capsule_sweeps.config import compose_config
from capsule_sweeps.model import build_model
from capsule_sweeps.results import render

WHOLE = (BasicBlock, PrimaryCapsules, CapsuleLayer)  # layers, although they have parts
COLUMNS = ["layer", "kind", "grid", "channels", "capsules", "pose_size", "parameters", "multiply_adds"]


def describe(arguments: argparse.Namespace) -> str:
    """The text that the command prints. Raises ValueError for overrides that cannot be."""
    config = compose_config(arguments.overrides)
    frame = layer_table(config)
    dataset, model = config.dataset, config.model
    title = f"{model.name} for {dataset.name}: {dataset.channels} x {dataset.image_size} x {dataset.image_size} pixels"
    shown = frame.assign(**{key: frame[key].map("{:,}".format) for key in ("parameters", "multiply_adds")})
    return render(frame if arguments.format in ("csv", "json") else shown, arguments.format, title, note(config, frame))


def layer_table(config: DictConfig) -> pd.DataFrame:
    """A row for each layer in the order of the images' way, and a total: COLUMNS.

    `grid` (rows x columns) and `channels`, or `capsules` and `pose_size`, are those of what comes out; multiply-adds of
    one image, all routing iterations together. Raises ValueError for a model that cannot be built.
    """
    eager = config.copy()
    eager.training.compile = "off"
    with torch.device("meta"):
        model = build_model(eager).eval()
        images = torch.empty(1, config.dataset.channels, config.dataset.image_size, config.dataset.image_size)
    layers = dict(_layers(model))
    seen: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}  # name → what goes in, what comes out
    for name, layer in layers.items():
        layer.register_forward_hook(partial(_look, seen, name))
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.capsule_sweeps.routed: _routed_flops})
    with torch.no_grad(), counter:
        model(images)
    counts = counter.get_flop_counts()

    def multiply_adds(name: str) -> int:
        return sum(counts.get(".".join(filter(None, (type(model).__name__, name))), {}).values()) // 2

    rows = []
    for name, (before, after) in seen.items():
        row = {"layer": name, "kind": type(layers[name]).__name__, **after}
        row |= {"parameters": _num_parameters(layers[name]), "multiply_adds": multiply_adds(name)}
        if row["parameters"] or row["multiply_adds"] or before != after:  # an activation alone is no layer
            rows.append(row)
    rows.append({"layer": "total", "parameters": _num_parameters(model), "multiply_adds": multiply_adds("")})
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(("channels", "capsules", "pose_size"), "Int64"))


def note(config: DictConfig, frame: pd.DataFrame) -> str:
    """What is said under the table: what was counted, and the memory of a training step."""
    iterations = config.model.get("num_routing")
    counted = "Multiply-adds of one image, forward" + (f", num_routing={iterations}" if iterations else "")
    need = memory(config, "eager", iterations or 0, None)
    if need is None:
        return f"{counted}. The memory of a step cannot be measured on this system."
    kept = 3 * 4 * int(frame.parameters.iloc[-1]) / 1e6
    return (
        f"{counted}. Peak memory of a training step with batch size {config.training.batch_size}, not compiled: "
        f"{need + kept:,.1f} MB, {kept:,.1f} of them for weights, gradients and momentum."
    )


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Dotted names and layers: modules without parts, and those of WHOLE."""
    parts = list(module.named_children())
    if isinstance(module, WHOLE) or not parts:
        yield name, module
        return
    for key, part in parts:
        yield from _layers(part, f"{name}.{key}" if name else key)


def _look(seen: dict[str, Any], name: str, _: nn.Module, given: Any, made: Any) -> None:
    seen[name] = _shape(given[0]), _shape(made)


def _shape(value: Any) -> dict[str, Any]:
    """Of poses (B, N, H, W, D), features (B, C, H, W), or numbers (B, C)."""
    shape = value.shape if isinstance(value, Tensor) else value.poses.shape
    if len(shape) == 5:
        return {"grid": f"{shape[2]}x{shape[3]}", "capsules": shape[1], "pose_size": shape[4]}
    return {"channels": shape[1], **({"grid": f"{shape[2]}x{shape[3]}"} if len(shape) == 4 else {})}


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _routed_flops(children: Any, parents: Any, weight: Any, stride: int, *settings: Any, out_shape: Any) -> int:
    """Of Σ_i r V: each vote once, its product with the parent, and its part of the sum. Letters as in `routing`."""
    k, l, num_children, x, num_parents, _ = weight  # noqa: E741
    batch, _, h, w, size = parents
    return 2 * batch * h * w * k * l * num_children * num_parents * (size * x + 2 * size)
