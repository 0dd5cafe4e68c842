"""What a layer's children vote for its parents, in the forms that a routing can afford."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from capsule_sweeps.routing.passes import attended_pass, routed_pass, uniform_pass


class VoteMap(NamedTuple):
    """What a layer's children vote for its parents: V = P W, in the forms that a routing can afford.

    `weight` (k, l, N, x, M, d), `stride` of the kernel, `fused`: by compiled kernels. Results are as long as the
    parents' grid, poses last.
    """

    weight: Tensor
    stride: int
    fused: bool = False

    def uniform(self, children: Tensor) -> Tensor:
        """Σ_i V / M (B, M, h, w, E): see `uniform_pass`."""
        return uniform_pass(children, self.weight, self.stride)

    def average(self, children: Tensor) -> Tensor:
        """Σ_i V / (k·l·N) (B, M, h, w, E): the mean vote."""
        k, l, num_children, _, num_parents, _ = self.weight.shape  # noqa: E741
        return self.uniform(children) * (num_parents / (k * l * num_children))

    def routed(self, children: Tensor, parents: Tensor) -> Tensor:
        """Σ_i r V (B, M, h, w, E): see `routed_pass`."""
        return routed_pass(children, parents, self.weight, self.stride, self.fused)

    def attended(self, children: Tensor, parents: Tensor) -> Tensor:
        """Σ_i r V (B, M, h, w, E): see `attended_pass`."""
        return attended_pass(children, parents, self.weight, self.stride, self.fused)

    def windows(self, values: Tensor) -> Tensor:
        """What the kernel sees at each place of the parents: values (B, N, H, W, …) → (B, h, w, k, l, N, …)."""
        k, l = self.weight.shape[:2]  # noqa: E741
        windows = values.unfold(2, k, self.stride).unfold(3, l, self.stride)
        return windows.movedim((2, 3, -2, -1, 1), (1, 2, 3, 4, 5))

    def explicit(self, children: Tensor) -> Tensor:
        """All votes (B, h, w, k, l, N, M, E), which is large: E times the coefficients."""
        k, l, _, x, _, _ = self.weight.shape  # noqa: E741
        windows = children.unfold(2, k, self.stride).unfold(3, l, self.stride).unflatten(4, (-1, x))  # B N h w a x k l
        return torch.einsum("bnhwaxkl,klnxmd->bhwklnmad", windows, self.weight).flatten(7)


class ExplicitVotes:
    """What VoteMap does, from the votes themselves, an image at a time: slow, but it shows its coefficients.

    `coefficients` (B, h, w, k, l, N, M) are those of the last sum; None before one was asked for.
    """

    def __init__(self, votes: VoteMap) -> None:
        self.votes = votes
        self.coefficients: Tensor | None = None

    def uniform(self, children: Tensor) -> Tensor:
        return self._sum(children, lambda votes, _: torch.full_like(votes[..., 0], 1 / votes.shape[5]))

    def average(self, children: Tensor) -> Tensor:
        return self._sum(children, lambda votes, _: torch.full_like(votes[..., 0], 1 / votes[0, 0, ..., 0, 0].numel()))

    def routed(self, children: Tensor, parents: Tensor) -> Tensor:
        return self._sum(children, lambda votes, image: _agreement(votes, parents[image]).softmax(5))

    def attended(self, children: Tensor, parents: Tensor) -> Tensor:
        def coefficients(votes: Tensor, image: int) -> Tensor:
            agreement = _agreement(votes, parents[image])
            return agreement.flatten(2, 4).softmax(2).view_as(agreement)

        return self._sum(children, coefficients)

    def windows(self, values: Tensor) -> Tensor:
        return self.votes.windows(values)

    def explicit(self, children: Tensor) -> Tensor:
        return self.votes.explicit(children)

    def agreement(self, children: Tensor, parents: Tensor) -> Tensor:
        """⟨V, parents⟩ / √E (B, h, w, k, l, N, M)."""
        return torch.stack([_agreement(votes, parents[i]) for i, votes in enumerate(self._images(children))])

    def _images(self, children: Tensor) -> Iterator[Tensor]:
        """The votes (h, w, k, l, N, M, E) of one image after the other."""
        for image in children.split(1):
            yield self.votes.explicit(image)[0]

    def _sum(self, children: Tensor, coefficients: Callable[[Tensor, int], Tensor]) -> Tensor:
        sums, kept = [], []
        for image, votes in enumerate(self._images(children)):
            kept.append(coefficients(votes, image))
            sums.append(torch.einsum("hwklnm,hwklnme->mhwe", kept[-1], votes))
        self.coefficients = torch.stack(kept)
        return torch.stack(sums)


def _agreement(votes: Tensor, parents: Tensor) -> Tensor:
    """⟨V, parents⟩ / √E (h, w, k, l, N, M) of one image: votes (h, w, k, l, N, M, E), parents (M, h, w, E)."""
    return torch.einsum("hwklnme,mhwe->hwklnm", votes, parents) * parents.shape[-1] ** -0.5


def places_first(parents: Tensor) -> Tensor:
    """Parents' values (B, M, h, w, …) in the order of the votes: (B, h, w, 1, 1, 1, M, …)."""
    return parents.movedim(1, 3)[:, :, :, None, None, None]


def over_children(logits: Tensor) -> Tensor:
    """A softmax of (B, h, w, k, l, N, M) over the children (k, l, N) of a parent."""
    return logits.flatten(3, 5).softmax(3).view_as(logits)
