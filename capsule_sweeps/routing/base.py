"""The capsules of a layer, and what a routing is: one step for one layer. Letters of shapes: see passes.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from capsule_sweeps.routing.votes import Votes

LEAST_ACTIVATION = 1e-20  # lower bound of activations that are divided by: gradients of 1e20 still fit in float32


class Capsules(NamedTuple):
    """The capsules of one layer: poses (B, N, H, W, D), and activations (B, N, H, W) where the routing has them.

    `state` is whatever else the routing needs in its next step; no other code reads it. `coefficients`
    (B, h, w, k, l, N, M) are those of the step that made the capsules, for recording: a routing that computes them
    itself from `votes.explicit` returns them here; for all other sums RecordingVotes records them.
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

    Initial weights are scaled for children of length √E, which is what a LayerNorm returns. Squashed children are √E
    times shorter, and squash shrinks a short pose quadratically: without the √E, the poses and gradients of a deep
    stack vanish.
    """

    def __init__(self, pose_size: int) -> None:
        super().__init__()
        self.scale = pose_size**0.5

    def forward(self, sums: Tensor) -> Tensor:
        """Summed votes (…, D) → poses (…, D), each shorter than 1."""
        return squash(sums * self.scale)


NORMS: dict[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm, "squash": Squash, "none": nn.Identity}


def make_norm(name: str, pose_size: int) -> nn.Module:
    """The norm of the summed votes, `routing.norm`. Raises ValueError for an unknown name."""
    if name not in NORMS:
        raise ValueError(f"routing.norm={name} is unknown: it must be one of {', '.join(NORMS)}")
    return NORMS[name](pose_size)


class LayerShape(NamedTuple):
    """The sizes of a layer: kernel (k, l), N children with poses of D numbers, M parents with poses of E numbers."""

    kernel: tuple[int, int]
    num_children: int
    child_size: int
    num_parents: int
    parent_size: int

    @property
    def num_votes(self) -> int:
        """Number of votes for the parents of one place, k·l·N·M."""
        return self.kernel[0] * self.kernel[1] * self.num_children * self.num_parents


class Routing(nn.Module):
    """One step of routing for one layer, with its parameters. Every layer of a stack has an instance of its own.

    The constructor of a subclass takes `shape` (LayerShape), `dropout` (the rate at which numbers of the parents are
    dropped in training) and the keys of `conf/routing/<name>.yaml`, except for `schedule` and `num_routing`, which
    belong to the stack. It raises ValueError for invalid values.
    """

    iterates = True  # False: the routing has exactly one step, and its YAML sets num_routing: 1
    uses_activations = False  # True: primary capsules have activations
    has_class_logits = False  # True: `class_logits` takes the place of the model's head
    allows_no_poses = False  # True: class capsules may have activations and no poses
    vote_scale = 1.0  # factor of a layer's weights, whose initial values are right for Σ_i V / M and a LayerNorm

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents (B, M, h, w, E) after one more iteration.

        children: poses (B, N, H, W, D); previous: the parents of the last iteration, None in the first.
        """
        raise NotImplementedError

    def class_logits(self, classes: Capsules) -> Tensor:
        """Class logits (B, classes) from the parents of the last layer; their sigmoids are the class activations.

        With `routing.class_logits=log` the logits are the logarithms of the activations, and the cross-entropy is the
        negative log-likelihood of the activations divided by their sum.
        """
        raise NotImplementedError

    def multiply_adds(self, shape: LayerShape, first: bool) -> int:
        """Multiply-adds of one step for one place of the parents, without making the votes: one for each number of a
        vote in the sums, and after the first step one more in the agreement."""
        return shape.num_votes * shape.parent_size * (1 if first else 2)


class NormedRouting(Routing):
    """A routing whose parents are normed sums of votes.

    `dropout` is applied to the sums, before `norm`: one of NORMS, whose weights all parents share.
    """

    def __init__(self, shape: LayerShape, dropout: float, norm: str = "layer") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm, shape.parent_size)

    def parents(self, sums: Tensor) -> Capsules:
        return Capsules(self.norm(self.dropout(sums)))


def check_class_logits(value: str) -> str:
    """`routing.class_logits`, unchanged. Raises ValueError unless it is logit or log."""
    if value not in ("logit", "log"):
        raise ValueError(f"routing.class_logits={value} is unknown: it must be logit or log")
    return value
