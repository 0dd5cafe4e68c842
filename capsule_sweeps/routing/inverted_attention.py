"""Inverted dot-product attention: parents compete for each child (equations 1 to 3 of the paper)."""

from capsule_sweeps.routing.base import Capsules, NormedRouting
from capsule_sweeps.routing.votes import Votes


class InvertedAttention(NormedRouting):
    """Inverted dot-product attention: the parents compete for each child (paper, section 3 and algorithm 1)."""

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents (B, M, h, w, E) after one more iteration; the first, with `previous` None, is uniform."""
        sums = votes.uniform(children.poses) if previous is None else votes.routed(children.poses, previous.poses)
        return self.parents(sums)
