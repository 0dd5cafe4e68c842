"""The layers of a capsule stack: primary capsules, and capsule layers with their routing."""

from math import isqrt, sqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capsule_sweeps.routing.base import Capsules, Routing, squash
from capsule_sweeps.routing.votes import FastVotes, MakeVotes, RecordingVotes

Shape = tuple[int, int, int, int]  # N, H, W, D


class Step(NamedTuple):
    """One iteration of one layer: parents, coefficients, and the agreement of the votes with these parents.

    poses (B, M, h, w, E); coefficients and agreement ⟨V, poses⟩ / √E, both (B, h, w, k, l, N, M), where (h, w) is the
    place of the parent and (k, l, N) the child under its kernel.
    """

    poses: Tensor
    coefficients: Tensor
    agreement: Tensor


class PoseBatchNorm(nn.Module):
    """BatchNorm of poses (B, N, H, W, D), with a mean and a variance for each of the N·D numbers."""

    def __init__(self, num_capsules: int, pose_size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_capsules * pose_size)

    def forward(self, poses: Tensor) -> Tensor:
        """Poses (B, N, H, W, D) → normalized poses of the same shape."""
        images = self.norm(poses.movedim(4, 2).flatten(1, 2))
        return images.unflatten(1, (poses.shape[1], poses.shape[4])).movedim(2, 4)


class PrimaryCapsules(nn.Module):
    """Features (B, C, H, W) → primary capsules (B, N, H, W, D): a convolution without bias, split into poses; a norm.

    Channel n·D + j of the convolution is number j of capsule n. `norm`: "layer" is a LayerNorm over each pose; "batch"
    is a BatchNorm of the convolution's channels, and of those of the activations as well; "batch_squash" squashes each
    pose after the BatchNorm. Convolutions in front of a BatchNorm are initialized as in He et al. (2015).
    """

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        num_capsules: int,
        pose_size: int,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        channels, height, width = feature_shape
        self.conv = nn.Conv2d(channels, num_capsules * pose_size, kernel_size, stride, padding, bias=False)
        self.norm = nn.LayerNorm(pose_size) if norm == "layer" else PoseBatchNorm(num_capsules, pose_size)
        self.squashes = norm == "batch_squash"
        if norm != "layer":
            nn.init.kaiming_uniform_(self.conv.weight)
        self.activation: nn.Module | None = None
        grid = [(size + 2 * padding - kernel_size) // stride + 1 for size in (height, width)]
        self.out_shape: Shape = (num_capsules, grid[0], grid[1], pose_size)

    def add_activations(self) -> None:
        """Give the capsules activations (B, N, H, W): the sigmoids of a second convolution with N channels.

        The convolution has a bias, or a BatchNorm if the poses have one.
        """
        num_capsules, conv, batch_norm = self.out_shape[0], self.conv, isinstance(self.norm, PoseBatchNorm)
        settings: Any = {key: getattr(conv, key)[0] for key in ("kernel_size", "stride", "padding")}
        self.activation = nn.Conv2d(conv.in_channels, num_capsules, **settings, bias=not batch_norm)
        if batch_norm:
            nn.init.kaiming_uniform_(self.activation.weight)
            self.activation = nn.Sequential(self.activation, nn.BatchNorm2d(num_capsules))

    def forward(self, features: Tensor) -> Capsules:
        """Features (B, C, H, W) → capsules with poses (B, N, H, W, D)."""
        features = features.contiguous(memory_format=torch.channels_last)  # so that poses are last in memory
        num_capsules, _, _, pose_size = self.out_shape
        images = self.conv(features).movedim(1, 3).unflatten(3, (num_capsules, pose_size))
        if isinstance(self.norm, nn.LayerNorm):
            poses = self.norm(images).movedim(3, 1)
        else:
            poses = self.norm(images.movedim(3, 1))
        if self.squashes:
            poses = squash(poses)
        return Capsules(poses) if self.activation is None else Capsules(poses, self.activation(features).sigmoid())


class CapsuleLayer(nn.Module):
    """One layer of parents: its weight and its routing. A fully connected layer has a kernel as large as the grid.

    `child_shape` (N, H, W, D); `kernel_size` is None for a fully connected layer; `matrix`: poses are square matrices
    instead of vectors. `routing` is one step, see `Routing`; `votes` makes its Votes. `interleaved`: see `interleave`.
    `padding` adds children with pose 0 and activation 0 around the grid. `between`: "batch" is a BatchNorm of the
    children's poses. `init`: initial weights are "normal" with standard deviation √(M / (x·N·k·l)), or "kaiming",
    uniform with standard deviation √(2 / (x·M·d)) and without the routing's `vote_scale`.
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
        votes: MakeVotes = FastVotes,
        interleaved: bool = False,
        padding: int = 0,
        between: str = "none",
        init: str = "normal",
    ) -> None:
        super().__init__()
        num_children, height, width, child_size = child_shape
        x, d = (isqrt(child_size), isqrt(pose_size)) if matrix else (child_size, pose_size)
        k, l = (kernel_size, kernel_size) if kernel_size else (height, width)  # noqa: E741
        self.stride = stride
        self.matrix = matrix
        self.fully_connected = kernel_size is None
        self.weight = nn.Parameter(torch.empty(k, l, num_children, x, num_capsules, d))
        if init == "normal":
            nn.init.normal_(self.weight, std=sqrt(num_capsules / (x * num_children * k * l)))
        elif pose_size:
            bound = sqrt(6 / (x * num_capsules * d))
            nn.init.uniform_(self.weight, -bound, bound)
        self.vote_scale = routing.vote_scale if init == "normal" else 1.0
        self.padding = padding
        self.norm = PoseBatchNorm(num_children, child_size) if between == "batch" else None
        self.routing = routing
        self.make_votes = votes
        self.interleaved = interleaved
        h, w = ((size + 2 * padding - side) // stride + 1 for size, side in ((height, k), (width, l)))
        self.out_shape: Shape = (num_capsules, h, w, pose_size)

    def forward(self, children: Capsules, previous: Capsules | None = None, votes: MakeVotes | None = None) -> Capsules:
        """The parents (B, M, h, w, E) after one more iteration, or after the first if `previous` is None.

        children: poses (B, N, H, W, D). `votes` replaces the layer's own for this call.
        """
        parents: Capsules = self.routing(
            (votes or self.make_votes)(*self._scaled()), self._children_for_votes(children), previous
        )
        self._check(parents)
        return parents

    def watch(self, children: Capsules, previous: Capsules | None = None) -> tuple[Capsules, Step]:
        """The result of `forward`, computed from recorded votes, and its Step."""
        votes, children = RecordingVotes(*self._scaled()), self._children_for_votes(children)
        parents: Capsules = self.routing(votes, children, previous)
        coefficients = votes.coefficients if parents.coefficients is None else parents.coefficients
        self._check(parents, coefficients, watched=True)
        assert coefficients is not None
        return parents, Step(parents.poses, coefficients, votes.agreement(children.poses, parents.poses))

    def _check(self, parents: Any, coefficients: Tensor | None = None, watched: bool = False) -> None:
        """Raises ValueError if a routing returned something else than the capsules of this layer and, where these are
        `watched`, their coefficients."""
        what = f"{type(self.routing).__module__}.{type(self.routing).__name__}"
        if not isinstance(parents, Capsules):
            raise ValueError(f"{what} returned no Capsules, which its forward must return")
        parts: list[tuple[str, Tensor | None, tuple[int, ...]]] = [("poses", parents.poses, self.out_shape)]
        if self.routing.uses_activations:
            parts.append(("activations", parents.activations, self.out_shape[:3]))
        if watched:
            k, l, num_children, _, num_parents, _ = self.weight.shape  # noqa: E741
            shape = (*self.out_shape[1:3], k, l, num_children, num_parents)
            parts.append(("coefficients", coefficients, shape))
        for name, found, expected in parts:
            if found is None or found.shape[1:] != expected:
                shown = f"no {name}" if found is None else f"{name} of shape {tuple(found.shape)}"
                wanted = ", ".join(map(str, expected))
                raise ValueError(f"{what} returned {shown}: Capsules.{name} must have the shape (B, {wanted})")

    def _scaled(self) -> tuple[Tensor, int]:
        """The weight of the votes (k, l, N, x, M, d), scaled, and their stride."""
        scale, stride = self.vote_scale, self.weight.shape[0] if self.interleaved else self.stride
        return self.weight if scale == 1 else self.weight * scale, stride

    def _children_for_votes(self, children: Capsules) -> Capsules:
        """The children as input of the votes: normalized, padded, interleaved."""
        poses, activations = children.poses, children.activations
        if self.norm is not None:
            poses = self.norm(poses)
        if self.padding:
            around = (self.padding,) * 4
            poses = F.pad(poses, (0, 0, *around))
            activations = None if activations is None else F.pad(activations, around)
        if self.interleaved:
            poses = interleave(poses, self.weight.shape[0], self.stride)
        return Capsules(poses, activations)


def interleave(poses: Tensor, kernel_size: int, stride: int) -> Tensor:
    """The children of a convolutional layer in the order of the first published code (apple/ml-capsules-…, 53899ae);
    the author's repository (yaohungt/Capsules-…) fixed the order in 95bcbc2.

    poses (B, N, H, W, D) → (B, N, h·k, w·k, D): windows side by side, to be read with stride k. For each child under
    the kernel, the D·h·w numbers at all places of the grid are written in the order (D, h, w) and read in the order
    (h, w, D), so that numbers of different places are mixed. Weights trained with interleaving need it at inference.
    """
    windows = poses.unfold(2, kernel_size, stride).unfold(3, kernel_size, stride)  # B N h w D k l
    h, w, size = windows.shape[2:5]
    mixed = windows.permute(0, 1, 5, 6, 4, 2, 3).flatten(4).unflatten(4, (h, w, size))  # B N k l h w D
    return mixed.permute(0, 1, 4, 2, 5, 3, 6).flatten(4, 5).flatten(2, 3)
