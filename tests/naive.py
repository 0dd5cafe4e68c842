"""Inverted dot-product attention as the paper tells it, one vote at a time: slow, plain, the yardstick of the tests."""

from itertools import product

import torch
from torch import Tensor


def votes_at(children: Tensor, weight: Tensor, stride: int, image: int, row: int, column: int) -> list[list[Tensor]]:
    """[i][m]: what each child under the kernel at one place votes for each parent, as a matrix (a, d)."""
    k, l, num_children, x, num_parents, _ = weight.shape  # noqa: E741
    votes = []
    for i, j, n in product(range(k), range(l), range(num_children)):
        pose = children[image, n, stride * row + i, stride * column + j].reshape(-1, x)
        votes.append([pose @ weight[i, j, n, :, m] for m in range(num_parents)])
    return votes


def route(children: Tensor, parents: Tensor | None, weight: Tensor, stride: int) -> Tensor:
    """The summed votes; without parents every child spreads evenly over them.

    children (B, N, H, W, D), parents (B, M, h, w, E), weight (k, l, N, x, M, d) → (B, M, h, w, E).
    """
    batch, _, height, width, size = children.shape
    k, l, _, x, num_parents, d = weight.shape  # noqa: E741
    pose_size = size // x * d
    h, w = (height - k) // stride + 1, (width - l) // stride + 1
    sums = torch.zeros(batch, num_parents, h, w, pose_size, dtype=children.dtype)
    for image, row, column in product(range(batch), range(h), range(w)):
        for child_votes in votes_at(children, weight, stride, image, row, column):
            agreement = torch.zeros(num_parents, dtype=children.dtype)
            if parents is not None:
                for m, vote in enumerate(child_votes):
                    agreement[m] = vote.flatten() @ parents[image, m, row, column] / pose_size**0.5
            for m, (coefficient, vote) in enumerate(zip(agreement.softmax(0), child_votes, strict=True)):
                sums[image, m, row, column] += coefficient * vote.flatten()
    return sums


def attend(children: Tensor, parents: Tensor | None, weight: Tensor, stride: int) -> Tensor:
    """`route` with the children competing for each parent; without parents all children have the same weight."""
    batch, _, height, width, size = children.shape
    k, l, _, x, num_parents, d = weight.shape  # noqa: E741
    pose_size = size // x * d
    h, w = (height - k) // stride + 1, (width - l) // stride + 1
    sums = torch.zeros(batch, num_parents, h, w, pose_size, dtype=children.dtype)
    for image, row, column, m in product(range(batch), range(h), range(w), range(num_parents)):
        votes = [child[m].flatten() for child in votes_at(children, weight, stride, image, row, column)]
        agreement = torch.zeros(len(votes), dtype=children.dtype)
        if parents is not None:
            for i, vote in enumerate(votes):
                agreement[i] = vote @ parents[image, m, row, column] / pose_size**0.5
        for coefficient, vote in zip(agreement.softmax(0), votes, strict=True):
            sums[image, m, row, column] += coefficient * vote
    return sums


def squash(sums: Tensor) -> Tensor:
    """Every pose s (…, E) becomes |s|² / (1 + |s|²) · s / |s|."""
    poses = [pose * pose.norm() ** 2 / (1 + pose.norm() ** 2) / pose.norm() for pose in sums.flatten(0, -2)]
    return torch.stack(poses).view_as(sums)
