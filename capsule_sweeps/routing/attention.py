"""The usual direction of attention: children compete for each parent."""

from __future__ import annotations

from torch import nn

from capsule_sweeps.routing.base import Capsules, LayerShape, Routing, make_norm
from capsule_sweeps.routing.votes import VoteMap


class Attention(Routing):
    """The usual direction of attention: the children compete for each parent. Arguments as InvertedAttention's.

    The coefficients of a parent are a softmax over all children under its kernel, so they sum to 1.
    """

    def __init__(self, shape: LayerShape, dropout: float, norm: str = "layer") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm, shape.parent_size)

    def forward(self, votes: VoteMap, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents after one more iteration; in the first all children have the same weight."""
        sums = votes.average(children.poses) if previous is None else votes.attended(children.poses, previous.poses)
        return Capsules(self.norm(self.dropout(sums)))
