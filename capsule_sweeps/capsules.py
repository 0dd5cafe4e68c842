"""The capsule stack: primary capsules, capsule layers, class capsules, and the schedule of their routing.

A layer says only what is its own; grid, number and size of its children come from what stands below it. Letters as in
`routing`: poses (B, N, H, W, D), weight (k, l, N, x, M, d).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isqrt, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from capsule_sweeps.config.build import build
from capsule_sweeps.routing.base import Capsules, LayerShape, Routing
from capsule_sweeps.routing.votes import ExplicitVotes, VoteMap

Shape = tuple[int, int, int, int]  # N, H, W, D


class PrimaryCapsules(nn.Module):
    """Features (B, C, H, W) → the first capsules: a convolution without bias, cut into poses, and a LayerNorm.

    Channel n·D + j of the convolution is number j of capsule n.
    """

    def __init__(
        self, feature_shape: tuple[int, int, int], num_capsules: int, pose_size: int, kernel_size: int, stride: int
    ) -> None:
        super().__init__()
        channels, height, width = feature_shape
        self.conv = nn.Conv2d(channels, num_capsules * pose_size, kernel_size, stride=stride, bias=False)
        self.norm = nn.LayerNorm(pose_size)
        self.activation: nn.Conv2d | None = None
        grid = [(size - kernel_size) // stride + 1 for size in (height, width)]
        self.out_shape: Shape = (num_capsules, grid[0], grid[1], pose_size)

    def add_activations(self) -> None:
        """From now on the capsules have activations: the sigmoid of a convolution with bias, of one channel each."""
        kernel_size, stride = self.conv.kernel_size[0], self.conv.stride[0]
        self.activation = nn.Conv2d(self.conv.in_channels, self.out_shape[0], kernel_size, stride)

    def forward(self, features: Tensor) -> Capsules:
        features = features.contiguous(memory_format=torch.channels_last)  # so that poses lie last in memory as well
        num_capsules, _, _, pose_size = self.out_shape
        poses = self.norm(self.conv(features).movedim(1, 3).unflatten(3, (num_capsules, pose_size))).movedim(3, 1)
        return Capsules(poses) if self.activation is None else Capsules(poses, self.activation(features).sigmoid())


class CapsuleLayer(nn.Module):
    """One layer of parents: its weight and its routing. A fully connected one is a kernel as large as the grid.

    `child_shape` (N, H, W, D); `kernel_size` is None for a fully connected layer; `matrix`: poses are square matrices,
    else vectors. `routing` does one step: see `routing`. Initial weights are normal with standard deviation
    √(M / (x·N·k·l)).
    """

    def __init__(
        self,
        child_shape: Shape,
        num_capsules: int,
        pose_size: int,
        kernel_size: int | None,
        stride: int,
        matrix: bool,
        routing: Routing,
    ) -> None:
        super().__init__()
        num_children, height, width, child_size = child_shape
        x, d = (isqrt(child_size), isqrt(pose_size)) if matrix else (child_size, pose_size)
        k, l = (kernel_size, kernel_size) if kernel_size else (height, width)  # noqa: E741
        self.stride = stride
        self.matrix = matrix
        self.fully_connected = kernel_size is None
        self.weight = nn.Parameter(torch.empty(k, l, num_children, x, num_capsules, d))
        nn.init.normal_(self.weight, std=sqrt(num_capsules / (x * num_children * k * l)))
        self.routing = routing
        self.fused = False  # set by build_model: whether routed passes are compiled
        self.interleaved = False  # set by the stack: see `interleave`
        self.out_shape: Shape = (num_capsules, (height - k) // stride + 1, (width - l) // stride + 1, pose_size)

    def votes(self) -> VoteMap:
        """What the children, as `seen`, vote for the parents."""
        scale, stride = self.routing.vote_scale, self.weight.shape[0] if self.interleaved else self.stride
        return VoteMap(self.weight if scale == 1 else self.weight * scale, stride, self.fused)

    def seen(self, children: Capsules) -> Capsules:
        """The children as the votes take them."""
        if not self.interleaved:
            return children
        return Capsules(interleave(children.poses, self.weight.shape[0], self.stride))

    def forward(self, children: Capsules, previous: Capsules | None = None) -> Capsules:
        """The parents after one more iteration, or after the first where there is no `previous`."""
        parents: Capsules = self.routing(self.votes(), self.seen(children), previous)
        return parents


def interleave(poses: Tensor, kernel_size: int, stride: int) -> Tensor:
    """What the published code has under the kernels of a convolutional layer; forks of it have mended this.

    poses (B, N, H, W, D) → (B, N, h·k, w·k, D): window beside window, to be read with stride k. For each child under
    the kernel, its numbers at all places of the grid, D·h·w, are taken in the order (D, h, w) and read in the order
    (h, w, D), so that what a parent sees are numbers of other places, too. Weights that were trained so work only so.
    """
    windows = poses.unfold(2, kernel_size, stride).unfold(3, kernel_size, stride)  # B N h w D k l
    h, w, size = windows.shape[2:5]
    mixed = windows.permute(0, 1, 5, 6, 4, 2, 3).flatten(4).unflatten(4, (h, w, size))  # B N k l h w D
    return mixed.permute(0, 1, 4, 2, 5, 3, 6).flatten(4, 5).flatten(2, 3)


class Step(NamedTuple):
    """One iteration of one layer: parents, coefficients, and how much the votes agree with these parents.

    poses (B, M, h, w, E); coefficients and agreement ⟨V, poses⟩ / √E: (B, h, w, k, l, N, M), where (h, w) is the
    parent's place and (k, l, N) the child under its kernel.
    """

    poses: Tensor
    coefficients: Tensor
    agreement: Tensor


class Watched:
    """A layer that computes from explicit votes and keeps every iteration's Step."""

    def __init__(self, layer: CapsuleLayer) -> None:
        self.layer = layer
        self.steps: list[Step] = []

    def __call__(self, children: Capsules, previous: Capsules | None = None) -> Capsules:
        votes, children = ExplicitVotes(self.layer.votes()), self.layer.seen(children)
        parents: Capsules = self.layer.routing(votes, children, previous)
        found = parents.coefficients if votes.coefficients is None else votes.coefficients
        coefficients = self.steps[-1].coefficients if found is None else found
        self.steps.append(Step(parents.poses, coefficients, votes.agreement(children.poses, parents.poses)))
        return parents


Layers = Sequence[Callable[..., Capsules]]


def concurrent(layers: Layers, primary: Capsules, num_routing: int) -> list[Capsules]:
    """All layers update together, each from what its neighbours were in the iteration before (algorithm 2).

    News climbs one layer an iteration. What can no longer reach the class capsules is not computed: in the last
    iteration only these are updated, in the one before they and the layer below, and so on; the others keep older
    values, which nobody reads.
    """
    values = [primary]
    for layer in layers:
        values.append(layer(values[-1]))
    for iteration in range(2, num_routing + 1):
        first = max(0, len(layers) - 1 - (num_routing - iteration))
        updated = [layers[j](values[j], values[j + 1]) for j in range(first, len(layers))]
        values = values[: first + 1] + updated
    return values


def sequential(layers: Layers, primary: Capsules, num_routing: int) -> list[Capsules]:
    """Each layer does all its iterations before the next one begins."""
    values = [primary]
    for layer in layers:
        parents = layer(values[-1])
        for _ in range(num_routing - 1):
            parents = layer(values[-1], parents)
        values.append(parents)
    return values


SCHEDULES = {"concurrent": concurrent, "sequential": sequential}


class CapsuleStack(nn.Module):
    """Features (B, C, H, W) → the capsules of all layers: a list of primary, layers in order, class capsules.

    `capsules` and `routing` are the config groups of these names. `out_shape` is (classes, 1, 1, D).
    Raises ValueError for a stack that cannot be built, naming the key.
    """

    def __init__(
        self,
        capsules: Mapping[str, Any],
        routing: Mapping[str, Any],
        num_routing: int,
        feature_shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        _check_settings(capsules, routing, num_routing)
        self.num_routing = num_routing
        self.schedule = SCHEDULES[routing.get("schedule", "sequential")]
        self.primary = _primary(capsules, feature_shape)
        own = {key: value for key, value in routing.items() if key not in ("schedule", "num_routing")}
        classes = {"type": "fc", "num_capsules": num_classes, **capsules["classes"]}
        nodes = [(f"capsules.layers[{j}]", node) for j, node in enumerate(capsules["layers"])]
        self.layers = nn.ModuleList()
        self.out_shape = self.primary.out_shape
        for key, node in [*nodes, ("capsules.classes", classes)]:
            layer = _layer(key, node, self.out_shape, capsules["pose"] == "matrix", own, capsules["dropout"])
            layer.interleaved = bool(capsules.get("interleaved")) and not layer.fully_connected
            self.layers.append(layer)
            self.out_shape = layer.out_shape
        if self.class_routing.uses_activations and capsules.get("interleaved"):
            raise ValueError(
                f"capsules.interleaved=true has no meaning for routing={routing['name']}, which the published code "
                "does not have: leave it out"
            )
        if self.class_routing.uses_activations:
            self.primary.add_activations()

    @property
    def class_routing(self) -> Routing:
        """The routing that makes the class capsules."""
        layer = self.layers[-1]
        assert isinstance(layer, CapsuleLayer)
        return layer.routing

    def forward(self, features: Tensor) -> list[Capsules]:
        return self.schedule(list(self.layers), self.primary(features), self.num_routing)

    def watch(self, features: Tensor) -> tuple[list[Capsules], list[list[Step]]]:
        """What `forward` returns, computed from explicit votes, and the Steps of each layer, first iteration first."""
        layers = [Watched(layer) for layer in self.layers if isinstance(layer, CapsuleLayer)]
        values = self.schedule(layers, self.primary(features), self.num_routing)
        return values, [layer.steps for layer in layers]


def _check_settings(capsules: Mapping[str, Any], routing: Mapping[str, Any], num_routing: int) -> None:
    if num_routing < 1:
        raise ValueError(f"num_routing={num_routing} is out of range: it must be at least 1")
    if routing.get("schedule", "sequential") not in SCHEDULES:
        raise ValueError(f"routing.schedule={routing['schedule']} is unknown: it must be one of {', '.join(SCHEDULES)}")
    if "num_routing" in routing and "schedule" in routing:
        raise ValueError(
            f"routing.schedule={routing['schedule']} has no meaning for routing={routing['name']}, "
            "which does not iterate: leave it out"
        )
    if capsules["pose"] not in ("matrix", "vector"):
        raise ValueError(f"capsules.pose={capsules['pose']} is unknown: it must be matrix or vector")
    if not 0 <= capsules["dropout"] < 1:
        raise ValueError(f"capsules.dropout={capsules['dropout']} is out of range: it must be at least 0 and below 1")


def _primary(capsules: Mapping[str, Any], feature_shape: tuple[int, int, int]) -> PrimaryCapsules:
    node = capsules["primary"]
    _check_counts("capsules.primary", node, ("num_capsules", "kernel_size", "stride"))
    _check_pose_size("capsules.primary", node["pose_size"], capsules["pose"] == "matrix")
    _check_kernel("capsules.primary", node["kernel_size"], feature_shape[1:])
    sizes = {key: node[key] for key in ("num_capsules", "pose_size", "kernel_size", "stride")}
    return PrimaryCapsules(feature_shape, **sizes)


def _layer(
    key: str, node: Mapping[str, Any], child_shape: Shape, matrix: bool, routing: Mapping[str, Any], dropout: float
) -> CapsuleLayer:
    """The layer that the config node under `key` describes, above children of this shape."""
    _, height, width, child_size = child_shape
    num_capsules, pose_size = node["num_capsules"], node["pose_size"]
    _check_counts(key, node, ("num_capsules",))
    _check_pose_size(key, pose_size, matrix)
    if matrix and pose_size != child_size:
        raise ValueError(
            f"{key}.pose_size={pose_size} differs from the {child_size} of the capsules below it: "
            "matrix poses have one size throughout the stack"
        )
    if node["type"] == "conv":
        for name in ("kernel_size", "stride"):
            if node.get(name) is None:
                raise ValueError(f"{key}.{name} is missing: a conv layer needs it")
        _check_counts(key, node, ("kernel_size", "stride"))
        _check_kernel(key, node["kernel_size"], (height, width))
        kernel_size, stride = node["kernel_size"], node["stride"]
    elif node["type"] == "fc":
        for name in ("kernel_size", "stride"):
            if node.get(name) is not None:
                raise ValueError(f"{key}.{name}={node[name]} has no meaning in an fc layer: remove it or use type conv")
        kernel_size, stride = None, 1
    else:
        raise ValueError(f"{key}.type={node['type']} is unknown: it must be conv or fc")
    kernel = (kernel_size, kernel_size) if kernel_size else (height, width)
    shape = LayerShape(kernel, child_shape[0], child_size, num_capsules, pose_size)
    routing_of_layer = build(routing, shape=shape, dropout=dropout)
    return CapsuleLayer(child_shape, num_capsules, pose_size, kernel_size, stride, matrix, routing_of_layer)


def _check_counts(key: str, node: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if node[name] < 1:
            raise ValueError(f"{key}.{name}={node[name]} is out of range: it must be at least 1")


def _check_pose_size(key: str, size: int, matrix: bool) -> None:
    if size < 2:
        raise ValueError(f"{key}.pose_size={size} is out of range: it must be at least 2, for a LayerNorm over it")
    if matrix and isqrt(size) ** 2 != size:
        near = isqrt(size) ** 2
        raise ValueError(
            f"{key}.pose_size={size} is no square, which a matrix pose needs: "
            f"take {max(near, 4)} or {(isqrt(size) + 1) ** 2}, or capsules.pose=vector"
        )


def _check_kernel(key: str, kernel_size: int, grid: tuple[int, ...]) -> None:
    if kernel_size > min(grid):
        raise ValueError(
            f"{key}.kernel_size={kernel_size} does not fit the {grid[0]}x{grid[1]} grid below it: "
            f"it must be at most {min(grid)}"
        )
