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
