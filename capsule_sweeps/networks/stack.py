"""The capsule stack: primary capsules, capsule layers, class capsules, and the schedule of their routing.

The configuration of a layer describes its parents only; grid, number and pose size of its children follow from the
layer below. Letters as in routing/passes.py: poses (B, N, H, W, D), weight (k, l, N, x, M, d).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isqrt
from typing import Any

from torch import Tensor, nn

from capsule_sweeps.config.build import build
from capsule_sweeps.networks.layers import CapsuleLayer, PrimaryCapsules, Shape, Step
from capsule_sweeps.routing.base import Capsules, LayerShape, Routing
from capsule_sweeps.routing.votes import FastVotes, MakeVotes

Layers = Sequence[Callable[..., Capsules]]


def concurrent(layers: Layers, primary: Capsules, num_routing: int) -> list[Capsules]:
    """All layers update together, each from the values of its neighbors in the last iteration (algorithm 2).

    An update climbs one layer per iteration. Updates that can no longer reach the class capsules are not computed: the
    last iteration updates the class capsules only, the one before also the layer below them, and so on; lower layers
    keep older values, which are not read.
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
    """Each layer does all its iterations before the next layer begins."""
    values = [primary]
    for layer in layers:
        parents = layer(values[-1])
        for _ in range(num_routing - 1):
            parents = layer(values[-1], parents)
        values.append(parents)
    return values


OF_THE_STACK = ("schedule", "num_routing")  # keys of a routing that its class does not get
SCHEDULES = {"concurrent": concurrent, "sequential": sequential}


class CapsuleStack(nn.Module):
    """Features (B, C, H, W) → a list of the capsules of all layers: primary, capsule layers in order, classes.

    `capsules` and `routing` are the config groups of these names; `votes` makes the Votes of the layers. `out_shape` is
    (classes, 1, 1, D). Raises ValueError naming the key for a stack that cannot be built.
    """

    def __init__(
        self,
        capsules: Mapping[str, Any],
        routing: Mapping[str, Any],
        num_routing: int,
        feature_shape: tuple[int, int, int],
        num_classes: int,
        votes: MakeVotes = FastVotes,
    ) -> None:
        super().__init__()
        _check_schedule(routing)
        self.schedule = SCHEDULES[routing.get("schedule") or "sequential"]
        own = {key: value for key, value in routing.items() if key not in OF_THE_STACK}
        classes = {"type": "fc", "num_capsules": num_classes, **capsules["classes"]}
        nodes = [(f"capsules.layers[{j}]", node) for j, node in enumerate(capsules["layers"])]
        self.primary = _primary(capsules, feature_shape)
        self.layers = nn.ModuleList()
        self.out_shape = self.primary.out_shape
        for key, node in [*nodes, ("capsules.classes", classes)]:
            layer = _layer(key, node, self.out_shape, capsules, own, votes, first=not len(self.layers))
            self.layers.append(layer)
            self.out_shape = layer.out_shape
        self.num_routing = num_routing if self.class_routing.iterates else 1
        if not self.out_shape[-1] and not self.class_routing.allows_no_poses:
            raise ValueError(
                f"capsules.classes.pose_size=0 is not possible with routing={routing['name']}, whose class logits come "
                "from poses: set it to the pose size of the layers below"
            )
        if self.class_routing.uses_activations and capsules.get("interleaved"):
            raise ValueError(
                f"capsules.interleaved=true has no effect with routing={routing['name']}, which the published code "
                "does not have: remove it"
            )
        if self.class_routing.uses_activations:
            self.primary.add_activations()

    @property
    def class_routing(self) -> Routing:
        """The routing that makes the class capsules."""
        layer = self.layers[-1]
        assert isinstance(layer, CapsuleLayer)
        return layer.routing

    def forward(self, features: Tensor, votes: MakeVotes | None = None) -> list[Capsules]:
        """Features (B, C, H, W) → the capsules of all layers, primary ones first.

        `votes` replaces those of the layers for this call.
        """
        layers = [partial(layer, votes=votes) for layer in self.layers]
        return self.schedule(layers, self.primary(features), self.num_routing)

    def watch(self, features: Tensor) -> tuple[list[Capsules], list[list[Step]]]:
        """Features (B, C, H, W) → the result of `forward`, from recorded votes, and the Steps of each layer, first
        iteration first."""
        steps: list[list[Step]] = [[] for _ in self.layers]

        def watched(number: int, children: Capsules, previous: Capsules | None = None) -> Capsules:
            layer = self.layers[number]
            assert isinstance(layer, CapsuleLayer)
            parents, step = layer.watch(children, previous)
            steps[number].append(step)
            return parents

        layers = [partial(watched, number) for number in range(len(self.layers))]
        return self.schedule(layers, self.primary(features), self.num_routing), steps


def _check_schedule(routing: Mapping[str, Any]) -> None:
    if (routing.get("schedule") or "sequential") not in SCHEDULES:
        raise ValueError(f"routing.schedule={routing['schedule']} is unknown: it must be one of {', '.join(SCHEDULES)}")
    if "num_routing" in routing and routing.get("schedule") is not None:
        raise ValueError(
            f"routing.schedule={routing['schedule']} has no effect with routing={routing['name']}, "
            "which does not iterate: remove it"
        )


def _primary(capsules: Mapping[str, Any], feature_shape: tuple[int, int, int]) -> PrimaryCapsules:
    node = capsules["primary"]
    _check_pose_size("capsules.primary", node["pose_size"], capsules["pose"] == "matrix")
    _check_kernel("capsules.primary", node, feature_shape[1:])
    return PrimaryCapsules(feature_shape, **node)


def _layer(
    key: str,
    node: Mapping[str, Any],
    child_shape: Shape,
    capsules: Mapping[str, Any],
    routing: Mapping[str, Any],
    votes: MakeVotes,
    first: bool,
) -> CapsuleLayer:
    """The layer of the config node `key`, above children of this shape."""
    matrix = capsules["pose"] == "matrix"
    _, height, width, child_size = child_shape
    num_capsules, pose_size = node["num_capsules"], node["pose_size"]
    if pose_size or key != "capsules.classes":  # class capsules without poses: the routing checks that it can
        _check_pose_size(key, pose_size, matrix)
    if matrix and pose_size not in (child_size, 0):
        raise ValueError(
            f"{key}.pose_size={pose_size} differs from the {child_size} of the capsules below it: "
            "matrix poses have one size throughout the stack"
        )
    if node["type"] == "conv":
        for name in ("kernel_size", "stride"):
            if node.get(name) is None:
                raise ValueError(f"{key}.{name} is missing: a conv layer needs it")
        _check_kernel(key, node, (height, width))
        kernel_size, stride, padding = node["kernel_size"], node["stride"], node.get("padding") or 0
    else:
        for name in ("kernel_size", "stride", "padding"):
            if node.get(name):
                raise ValueError(f"{key}.{name}={node[name]} has no effect in an fc layer: remove it or use type conv")
        kernel_size, stride, padding = None, 1, 0
    kernel = (kernel_size, kernel_size) if kernel_size else (height, width)
    shape = LayerShape(kernel, child_shape[0], child_size, num_capsules, pose_size)
    own = build(routing, shape=shape, dropout=capsules["dropout"])
    if not isinstance(own, Routing):
        raise ValueError(
            f"routing._target_={type(own).__module__}.{type(own).__name__} is not a routing: derive it from "
            "capsule_sweeps.routing.base.Routing"
        )
    options = {
        "interleaved": bool(capsules.get("interleaved")) and kernel_size is not None,
        "padding": padding,
        "between": "none" if first else capsules.get("between", "none"),
        "init": capsules.get("init", "normal"),
    }
    return CapsuleLayer(child_shape, num_capsules, pose_size, kernel_size, stride, matrix, own, votes, **options)


def _check_pose_size(key: str, size: int, matrix: bool) -> None:
    if size < 2:
        raise ValueError(f"{key}.pose_size={size} is out of range: it must be at least 2, for a LayerNorm over it")
    if matrix and isqrt(size) ** 2 != size:
        near = isqrt(size) ** 2
        raise ValueError(
            f"{key}.pose_size={size} is not a square number, which matrix poses need: "
            f"set it to {max(near, 4)} or {(isqrt(size) + 1) ** 2}, or set capsules.pose=vector"
        )


def _check_kernel(key: str, node: Mapping[str, Any], grid: tuple[int, ...]) -> None:
    kernel_size, padding = node["kernel_size"], node.get("padding") or 0
    if not 0 <= padding < kernel_size:
        raise ValueError(
            f"{key}.padding={padding} is out of range: it must be at least 0 and below {key}.kernel_size={kernel_size}"
        )
    if kernel_size > min(grid) + 2 * padding:
        raise ValueError(
            f"{key}.kernel_size={kernel_size} does not fit the {grid[0]}x{grid[1]} grid below it: "
            f"it must be at most {min(grid) + 2 * padding}"
        )
