"""Loads weights of the published code into our capsule network."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from capsule_sweeps.networks.layers import CapsuleLayer

PUBLISHED_NAMES = (  # our names → the published code's
    (r"^backbone\.layers\.", "pre_caps.pre_caps."),
    (r"^capsules\.primary\.conv\.", "pc_layer."),
    (r"^capsules\.primary\.norm\.", "nonlinear_act."),
    (r"^capsules\.layers\.(\d+)\.weight$", r"capsule_layers.\1.w"),
    (r"^capsules\.layers\.(\d+)\.routing\.norm\.", r"capsule_layers.\1.nonlinear_act."),
    (r"^head\.", "final_fc."),
)


def load_published_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights of the published code into a CapsNet; keys may have the prefix `module.` of DataParallel.

    Raises ValueError naming a key that is missing, unknown or has another shape; the model is then unchanged.
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
    """(k, l, N), or (N·k·l) if fully connected, followed by (x, d, M), or (x, M, d) for vector poses."""
    k, l, num_children, x, num_parents, d = layer.weight.shape  # noqa: E741
    children = (num_children * k * l,) if layer.fully_connected else (k, l, num_children)
    return (*children, x, d, num_parents) if layer.matrix else (*children, x, num_parents, d)


def _from_published(weight: Tensor, layer: CapsuleLayer) -> Tensor:
    """The weight of a capsule layer in our order (k, l, N, x, M, d)."""
    if layer.matrix:
        weight = weight.transpose(-1, -2)
    if layer.fully_connected:
        k, l, num_children = layer.weight.shape[:3]  # noqa: E741
        weight = weight.unflatten(0, (num_children, k, l)).permute(1, 2, 0, 3, 4, 5)
    return weight
