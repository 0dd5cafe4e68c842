"""Routings as their papers tell them, one vote at a time: slow, plain, the yardstick of the tests."""

import math
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


# The routings of other papers, for one place of one image: votes [i][m] as vectors (E,), one number at a time. They
# return parents and the coefficients [i][m] of the last iteration.


def dynamic(votes: list[list[Tensor]], num_routing: int) -> tuple[list[Tensor], list[list[float]]]:
    """Procedure 1 of Sabour et al. 2017; the logits are summed up over the iterations."""
    children, parents = range(len(votes)), range(len(votes[0]))
    b = [[0.0 for _ in parents] for _ in children]
    for _ in range(num_routing):
        c = [[math.exp(b[i][m]) / sum(math.exp(other) for other in b[i]) for m in parents] for i in children]
        v = []
        for m in parents:
            s = sum(c[i][m] * votes[i][m] for i in children)
            v.append(s.norm() ** 2 / (1 + s.norm() ** 2) * s / s.norm())
        for i, m in product(children, parents):
            b[i][m] += float(votes[i][m] @ v[m])
    return v, c


def em(
    votes: list[list[Tensor]],
    a: list[float],
    beta_u: list[float],
    beta_a: list[float],
    heat: list[float],
    min_variance: float,
    density_of: str = "sum",
) -> tuple[list[Tensor], list[Tensor], list[float], list[list[float]]]:
    """Procedure 1 of Hinton et al. 2018, not in the log domain: means, variances, activations, R.

    `heat`: λ of each iteration; `min_variance` is added to the variances. `density_of`: "mean" takes the geometric mean
    of the densities of a pose's numbers in place of their product.
    """
    children, parents = range(len(votes)), range(len(votes[0]))
    r = [[1 / len(parents) for _ in parents] for _ in children]
    means, variances, activations = [], [], []
    for step, inverse_temperature in enumerate(heat):
        if step:
            for i in children:
                p = []
                for m in parents:
                    density = 1.0
                    for h, vote in enumerate(votes[i][m]):
                        variance = float(variances[m][h])
                        distance = float((vote - means[m][h]) ** 2)
                        density *= math.exp(-distance / (2 * variance)) / math.sqrt(2 * math.pi * variance)
                    root = len(votes[i][m]) if density_of == "mean" else 1
                    p.append(activations[m] * density ** (1 / root))
                r[i] = [value / sum(p) for value in p]
        means, variances, activations = [], [], []
        for m in parents:
            weights = [r[i][m] * a[i] for i in children]
            mean = sum(w * votes[i][m] for i, w in enumerate(weights)) / sum(weights)
            variance = sum(w * (votes[i][m] - mean) ** 2 for i, w in enumerate(weights)) / sum(weights) + min_variance
            cost = sum((beta_u[m] + math.log(math.sqrt(sigma2))) * sum(weights) for sigma2 in variance)
            means.append(mean)
            variances.append(variance)
            activations.append(1 / (1 + math.exp(-inverse_temperature * (beta_a[m] - cost))))
    return means, variances, activations, r


def self_routing(
    votes: list[list[Tensor]], poses: list[Tensor], a: list[float], weight: list[Tensor]
) -> tuple[list[Tensor], list[float], list[list[float]]]:
    """Hahn et al. 2019: parents' poses and activations, c. weight[i] (D, M) maps the pose of child i."""
    children, parents = range(len(votes)), range(len(votes[0]))
    c = [[float(value) for value in (poses[i] @ weight[i]).softmax(0)] for i in children]
    means, activations = [], []
    for m in parents:
        amount = sum(c[i][m] * a[i] for i in children)
        means.append(sum(c[i][m] * a[i] * votes[i][m] for i in children) / amount)
        activations.append(amount / sum(a))
    return means, activations, c
