"""Layers for the tests of routings: fully connected and convolutional, matrix and vector poses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from capsule_sweeps.routing.base import Capsules, LayerShape, Routing
from capsule_sweeps.routing.votes import FastVotes, Votes

# B, N, M, H, W, (k, l), stride, a, x, d
SHAPES = {
    "fc, matrix": (2, 3, 4, 2, 2, (2, 2), 1, 2, 2, 2),
    "fc, vector": (2, 3, 4, 2, 1, (2, 1), 1, 1, 3, 5),
    "conv, matrix": (2, 2, 3, 4, 5, (2, 2), 2, 2, 2, 2),
    "conv, vector": (1, 2, 3, 3, 3, (2, 2), 1, 1, 3, 2),
    "one parent": (2, 2, 1, 2, 2, (2, 2), 1, 2, 2, 2),
    "one child": (2, 1, 3, 2, 2, (1, 1), 1, 2, 2, 2),
}


# `launch.py dataset=digits training=quick` with a stack of a few seconds an epoch
DIGITS = [
    *("dataset=digits", "training=quick", "tracking=none", "backbone.channels=32"),
    *("capsules.primary.num_capsules=8", "capsules.primary.kernel_size=3", "capsules.primary.stride=2"),
    "capsules.layers=[{type: conv, num_capsules: 8, pose_size: 16, kernel_size: 3, stride: 2}]",
]

# A network that compiles in seconds
SMALL = [
    "dataset=digits",
    "dataset.image_size=8",
    "backbone.channels=4",
    "capsules.primary.num_capsules=2",
    "capsules.primary.pose_size=4",
    "capsules.layers=[{type: conv, num_capsules: 3, pose_size: 4, kernel_size: 3, stride: 1}]",
    "capsules.classes.pose_size=4",
    "routing.schedule=sequential",
    "num_routing=2",
]


class Layer(NamedTuple):
    votes: Votes
    children: Capsules
    shape: LayerShape

    def step(self, routing: Routing, num_routing: int) -> Capsules:
        """The parents after so many iterations, one layer alone."""
        parents = None
        for _ in range(num_routing):
            parents = routing(self.votes, self.children, parents)
        return parents

    def places(self) -> Any:
        """(image, row, column, votes [i][m] as vectors, poses [i], activations [i]) of each place of the parents."""
        every = self.votes.explicit(self.children.poses)
        poses, activations = self.votes.windows(self.children.poses), self.votes.windows(self.children.activations)
        for image, row, column in torch.ones(every.shape[:3]).nonzero().tolist():
            here = every[image, row, column].flatten(0, 2)
            yield (
                *(image, row, column, [list(child) for child in here]),
                list(poses[image, row, column].flatten(0, 2)),
                activations[image, row, column].flatten().tolist(),
            )

    def permuted(self, order: Tensor) -> "Layer":
        children = Capsules(self.children.poses[:, order], self.children.activations[:, order])
        return Layer(FastVotes(self.votes.weight[:, :, order], self.votes.stride), children, self.shape)


def make_layer(shape: Any, dtype: torch.dtype = torch.float64, seed: int = 0, size: float = 1.0) -> Layer:
    batch, num_children, num_parents, height, width, (k, l), stride, a, x, d = shape  # noqa: E741
    generator = torch.Generator().manual_seed(seed)

    def randn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    children = Capsules(
        size * randn(batch, num_children, height, width, a * x), randn(batch, num_children, height, width).sigmoid()
    )
    weight = randn(k, l, num_children, x, num_parents, d)
    return Layer(FastVotes(weight, stride), children, LayerShape((k, l), num_children, a * x, num_parents, a * d))


@st.composite
def shapes(draw: Any) -> Any:
    k, l = draw(st.integers(1, 3)), draw(st.integers(1, 3))  # noqa: E741
    a, x, d = draw(st.sampled_from([(2, 2, 2), (3, 3, 3), (1, 2, 3), (1, 4, 2)]))
    small = st.integers(1, 3)
    height, width = k + draw(st.integers(0, 2)), l + draw(st.integers(0, 2))
    return draw(small), draw(small), draw(small), height, width, (k, l), draw(st.integers(1, 3)), a, x, d


def randomize(routing: Routing, seed: int = 1) -> Routing:
    """Parameters far from where they begin, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in routing.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return routing


def check_gradients(make_routing: Callable[[Layer], Routing], num_routing: int) -> None:
    """Of the parents' poses, and activations where there are some, for poses, activations and weight of a layer."""
    layer = make_layer((1, 2, 2, 3, 2, (2, 2), 1, 2, 2, 2), size=0.5)
    routing = make_routing(layer)

    def route(poses: Tensor, activations: Tensor, weight: Tensor) -> Any:
        votes = FastVotes(weight, layer.votes.stride)
        parents = layer._replace(votes=votes, children=Capsules(poses, activations)).step(routing, num_routing)
        return parents.poses if parents.activations is None else parents[:2]

    inputs = [t.requires_grad_() for t in (*layer.children[:2], layer.votes.weight)]
    assert gradcheck(route, inputs, fast_mode=True)
