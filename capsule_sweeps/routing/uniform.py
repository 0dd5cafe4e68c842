"""Uniform coefficients: every child spreads evenly over all parents."""

from __future__ import annotations

from torch import nn

from capsule_sweeps.routing.base import Capsules, LayerShape, Routing, make_norm
from capsule_sweeps.routing.votes import VoteMap


class Uniform(Routing):
    """No routing: every child spreads evenly over all parents, in every iteration. Arguments as InvertedAttention's."""

    def __init__(self, shape: LayerShape, dropout: float, norm: str = "layer") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm, shape.parent_size)

    def forward(self, votes: VoteMap, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents; after the first iteration there is nothing new to learn from the children."""
        return Capsules(self.norm(self.dropout(votes.uniform(children.poses)))) if previous is None else previous
