"""Uniform coefficients: every child votes equally for all parents."""

from __future__ import annotations

from torch import nn

from capsule_sweeps.routing.base import Capsules, LayerShape, Routing, make_norm
from capsule_sweeps.routing.votes import Votes


class Uniform(Routing):
    """No routing: all coefficients are 1/M. Takes the arguments of InvertedAttention."""

    iterates = False

    def __init__(self, shape: LayerShape, dropout: float, norm: str = "layer") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm, shape.parent_size)

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents (B, M, h, w, E)."""
        return Capsules(self.norm(self.dropout(votes.uniform(children.poses))))
