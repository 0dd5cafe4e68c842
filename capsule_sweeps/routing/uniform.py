"""Uniform coefficients: every child spreads evenly over all parents."""

from __future__ import annotations

from torch import nn

from capsule_sweeps.routing.base import Capsules, LayerShape, Routing, make_norm
from capsule_sweeps.routing.votes import Votes


class Uniform(Routing):
    """No routing: every child spreads evenly over all parents. Arguments as InvertedAttention's."""

    iterates = False

    def __init__(self, shape: LayerShape, dropout: float, norm: str = "layer") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm, shape.parent_size)

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents."""
        return Capsules(self.norm(self.dropout(votes.uniform(children.poses))))
