"""The structure of a model, without training it: layers, grids, capsules, parameters, multiply-adds, memory of a step.

Multiply-adds are those of convolutions, matrix products and routing for one image, forward, as the method asks for
them: a layer's votes are counted once as long as its children stay the same, however often our kernels compute them.
What is done to each number for itself is not counted: norms, activations, softmax.
"""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from capsule_sweeps.config.build import in_words, user_code
from capsule_sweeps.config.compose import CONF_DIR, compose_config
from capsule_sweeps.config.match_width import nearest_width
from capsule_sweeps.networks.backbones import BasicBlock
from capsule_sweeps.networks.build import build_model
from capsule_sweeps.networks.capsnet import OwnHeads
from capsule_sweeps.networks.layers import CapsuleLayer, PrimaryCapsules
from capsule_sweeps.networks.multiply_adds import Steps, note_step, of_capsule_layer, torch_counts
from capsule_sweeps.results.render import render
from capsule_sweeps.runs.machine import free_memory
from capsule_sweeps.training.execution import choose_device
from capsule_sweeps.training.memory import step_memory

WHOLE = (BasicBlock, PrimaryCapsules, CapsuleLayer)  # layers, although they have parts
Seen = dict[str, tuple[dict[str, Any], dict[str, Any]]]  # name of a layer → what goes in, what comes out
COLUMNS = ["layer", "kind", "grid", "channels", "capsules", "pose_size", "parameters", "multiply_adds"]


def describe(overrides: list[str], form: str = "table") -> str:
    """The output of the command. Raises ValueError for invalid overrides."""
    config = compose_config(overrides)
    frame = layer_table(config)
    dataset, model = config.dataset, config.model
    title = f"{model.name} for {dataset.name}: {dataset.channels} x {dataset.image_size} x {dataset.image_size} pixels"
    return render(frame if form in ("csv", "json") else for_people(frame), form, title, note(config, frame))


def for_people(frame: pd.DataFrame) -> pd.DataFrame:
    """A `layer_table` with one column for what comes out: rows x columns x channels, or rows x columns x capsules x
    pose_size."""
    sizes = frame[["grid", "channels", "capsules", "pose_size"]]
    output = ["x".join(str(size) for size in row if pd.notna(size)) or None for row in sizes.itertuples(index=False)]
    counts = {key: frame[key].map("{:,}".format) for key in ("parameters", "multiply_adds")}
    return frame[["layer", "kind"]].assign(output=output, **counts)


def layer_table(config: DictConfig) -> pd.DataFrame:
    """A row for each layer in the order of the images' way, and a total: COLUMNS.

    `grid` (rows x columns) and `channels`, or `capsules` and `pose_size`, are those of what comes out; multiply-adds of
    one image, all routing iterations together. Raises ValueError for an invalid model.
    """
    eager = config.copy()
    eager.training.compile = "off"
    try:
        with FakeTensorMode():  # shapes without numbers, on a CPU: the meta device has no autocast
            model, layers, seen, steps, counter = _followed(eager)
    except Exception:  # a class of the user may need numbers
        with user_code(str(config.model.name)):
            model, layers, seen, steps, counter = _followed(eager)

    def multiply_adds(name: str) -> int:
        layer = layers[name]
        if isinstance(layer, CapsuleLayer):
            return of_capsule_layer(layer, steps[name])
        if isinstance(layer, OwnHeads):  # products of numbers, which the counter does not see
            return int(layer.weight.numel())
        return torch_counts(counter, model, name)

    rows = []
    for name, (before, after) in seen.items():
        row = {"layer": name, "kind": type(layers[name]).__name__, **after}
        row |= {"parameters": _num_parameters(layers[name]), "multiply_adds": multiply_adds(name)}
        if row["parameters"] or row["multiply_adds"] or before != after:  # an activation alone is no layer
            rows.append(row)
    total = sum(row["multiply_adds"] for row in rows)
    rows.append({"layer": "total", "parameters": _num_parameters(model), "multiply_adds": total})
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(("channels", "capsules", "pose_size"), "Int64"))


def _followed(config: DictConfig) -> tuple[nn.Module, dict[str, nn.Module], Seen, dict[str, Steps], FlopCounterMode]:
    """The model after one image: its layers, what went in and came out, steps of capsule layers, and what torch
    counted."""
    seen: Seen = {}
    steps: dict[str, Steps] = {}
    counter = FlopCounterMode(display=False)
    model = build_model(config).eval()
    layers = dict(_layers(model))
    for name, layer in layers.items():
        layer.register_forward_hook(partial(_look, seen, name))
        if isinstance(layer, CapsuleLayer):
            layer.register_forward_pre_hook(partial(note_step, steps.setdefault(name, [])), with_kwargs=True)
    with counter, torch.no_grad():
        model(torch.zeros(1, config.dataset.channels, config.dataset.image_size, config.dataset.image_size))
    return model, layers, seen, steps, counter


def note(config: DictConfig, frame: pd.DataFrame) -> str:
    """The note under the table: what was counted, widths of equal size, the memory of a training step."""
    iterations = config.model.get("num_routing")
    counted = "Multiply-adds of one image, forward" + (f", num_routing={iterations}" if iterations else "")
    size, kept = config.training.batch_size, 3 * 4 * int(frame.parameters.iloc[-1]) / 1e6
    free = free_memory() / 1e6
    try:
        need = step_memory(config, size) / 1e6
    except ValueError:
        raise
    except Exception as error:
        return f"{counted}. The memory of a training step is unknown ({in_words(error)})."
    said = (
        f"Estimated peak memory of a training step with batch size {size}, not compiled: {need:,.1f} MB, {kept:,.1f} "
        "of them for weights, gradients, momentum. An evaluation takes no more images at once and needs less."
    )
    if need > free and choose_device(config.device).type == "cpu":
        said += f" Only {free:,.1f} MB are free here; set a smaller training.batch_size."
    return " ".join([f"{counted}.", *([like_capsnet(config)] if "width" in config.model else []), said])


def like_capsnet(config: DictConfig) -> str:
    """Which `model.width` gives a CNN as many parameters, or multiply-adds, as a capsule network like this one."""
    rival = config.copy()
    rival.model = OmegaConf.load(CONF_DIR / "model" / "capsnet.yaml")
    OmegaConf.resolve(rival)
    rival_words = f"model=capsnet routing={rival.routing.name} num_routing={rival.model.num_routing}"
    try:
        wanted = layer_table(rival).iloc[-1]
    except ValueError as error:
        return f"Its capsule network is not possible ({error})."

    @cache
    def costs(width: int) -> pd.Series:
        return layer_table(OmegaConf.merge(config, {"model": {"width": width}})).iloc[-1]  # type: ignore[arg-type]

    def cost(key: str, width: int) -> int:
        return int(costs(width)[key])

    words = []
    for key in ("parameters", "multiply_adds"):
        name, goal = key.replace("_", "-"), int(wanted[key])
        fits = f"model.width={nearest_width(partial(cost, key), goal)} has about the {name}"
        fits = f"no model.width has as few {name} as those" if cost(key, 1) > goal else fits
        words.append(f"{fits} of {rival_words}, {goal:,}")
    return f"With this backbone {', and '.join(words)}."


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
