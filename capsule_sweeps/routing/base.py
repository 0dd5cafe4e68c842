"""The capsules of a layer, and what a routing is: one step for one layer. Letters of shapes: see passes.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from capsule_sweeps.routing.votes import Votes

LEAST_ACTIVATION = 1e-20  # children share from here on: gradients, as large as its reciprocal, still fit in float32


class Capsules(NamedTuple):
    """The capsules of one layer: poses (B, N, H, W, D), and activations (B, N, H, W) where the routing has them.

    `state` is what else the routing that made them wants to see again in its next step; nobody else reads it.
    `coefficients` (B, h, w, k, l, N, M) of the step that made them, for those who watch: a routing that computes them
    itself from `votes.explicit` returns them; those of other sums are recorded by RecordingVotes.
    """

    poses: Tensor
    activations: Tensor | None = None
    state: Any = None
    coefficients: Tensor | None = None


def squash(sums: Tensor) -> Tensor:
    """s → s · |s| / (1 + |s|²): keeps the direction, bounds the length by 1 (Sabour et al. 2017, equation 1)."""
    squared = sums.square().sum(-1, keepdim=True)
    return sums * squared / ((1 + squared) * (squared + 1e-12).sqrt())


class Squash(nn.Module):
    """squash(√E s), in place of a LayerNorm.

    Initial weights suit children of length √E, as a LayerNorm makes them. Those that squash made are √E times shorter,
    and squash shrinks a short pose by its square: without the √E, poses and gradients of a deep stack vanish.
    """

    def __init__(self, pose_size: int) -> None:
        super().__init__()
        self.scale = pose_size**0.5

    def forward(self, sums: Tensor) -> Tensor:
        return squash(sums * self.scale)


NORMS: dict[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm, "squash": Squash, "none": nn.Identity}


def make_norm(name: str, pose_size: int) -> nn.Module:
    """What becomes of the summed votes, `routing.norm`. Raises ValueError for a name that there is not."""
    if name not in NORMS:
        raise ValueError(f"routing.norm={name} is unknown: it must be one of {', '.join(NORMS)}")
    return NORMS[name](pose_size)


class LayerShape(NamedTuple):
    """What a routing may want to know of its layer: kernel (k, l), children N of D numbers, parents M of E numbers."""

    kernel: tuple[int, int]
    num_children: int
    child_size: int
    num_parents: int
    parent_size: int

    @property
    def num_votes(self) -> int:
        """Votes for the parents of one place."""
        return self.kernel[0] * self.kernel[1] * self.num_children * self.num_parents


class Routing(nn.Module):
    """One step of routing for one layer, with the parameters that it needs; made for every layer of a stack.

    A subclass is made with `shape` (LayerShape), `dropout` (the rate at which numbers of the parents are dropped in
    training) and its own keys of `conf/routing/<name>.yaml`, but for `schedule` and `num_routing`, which are the
    stack's. It raises ValueError for what it cannot do.
    """

    iterates = True  # False: one step is all, whatever num_routing says; its YAML then sets num_routing: 1
    uses_activations = False  # True: primary capsules have activations
    has_class_logits = False  # True: `class_logits` takes the place of the model's head
    allows_no_poses = False  # True: class capsules may have activations only
    vote_scale = 1.0  # a layer's weights are multiplied by it; they begin as they should for Σ_i V / M and a LayerNorm

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents after one more iteration; `previous` are those that the last one made, None in the first."""
        raise NotImplementedError

    def class_logits(self, classes: Capsules) -> Tensor:
        """(B, classes) of the last layer's parents; their sigmoids are the activations of the classes.

        With `routing.class_logits=log` these are the logarithms of the activations, so that the cross-entropy is the
        negative log-likelihood of the activations divided by their sum.
        """
        raise NotImplementedError

    def multiply_adds(self, shape: LayerShape, first: bool) -> int:
        """Of one step, for one place of the parents and without making the votes: each number of a vote once for the
        sums, and after the first step once more for the agreement."""
        return shape.num_votes * shape.parent_size * (1 if first else 2)


def check_class_logits(value: str) -> str:
    if value not in ("logit", "log"):
        raise ValueError(f"routing.class_logits={value} is unknown: it must be logit or log")
    return value
