"""The usual direction of attention: children compete for each parent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from capsule_sweeps.routing.base import Capsules, LayerShape, Routing, make_norm
from capsule_sweeps.routing.by_place import place_step
from capsule_sweeps.routing.votes import Votes


class Attention(Routing):
    """The usual direction of attention: the children compete for each parent. Takes the arguments of InvertedAttention.

    The coefficients of a parent are a softmax over all children under its kernel, so they sum to 1.
    """

    def __init__(self, shape: LayerShape, dropout: float, norm: str = "layer") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm, shape.parent_size)

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents (B, M, h, w, E) after one more iteration; in the first all children have the same weight."""
        if previous is None:
            sums = votes.average(children.poses)
        else:
            (attended,) = votes.by_place("attend", children.poses, previous.poses.movedim(1, 3))
            sums = attended.movedim(3, 1).to(children.poses.dtype)
        return Capsules(self.norm(self.dropout(sums)))


@place_step
def attend(votes: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_i r V (p, M, E) and r (p, i, M), the softmax over i of ⟨V, parents⟩ / √E."""
    agreement = torch.einsum("pime,pme->pim", votes, parents) * parents.shape[-1] ** -0.5
    r = agreement.softmax(1)
    return torch.einsum("pim,pime->pme", r, votes), r
