"""Inverted dot-product attention: parents compete for each child (equations 1 to 3 of the paper)."""

from __future__ import annotations

from torch import nn

from capsule_sweeps.routing.base import Capsules, LayerShape, Routing, make_norm
from capsule_sweeps.routing.votes import Votes


class InvertedAttention(Routing):
    """Inverted dot-product attention: the parents compete for each child (paper, section 3 and algorithm 1).

    `dropout` is applied to the summed votes, before `norm`: one of NORMS, whose weights all parents share.
    """

    def __init__(self, shape: LayerShape, dropout: float, norm: str = "layer") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm, shape.parent_size)

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents (B, M, h, w, E) after one more iteration; the first, with `previous` None, is uniform."""
        sums = votes.uniform(children.poses) if previous is None else votes.routed(children.poses, previous.poses)
        return Capsules(self.norm(self.dropout(sums)))
