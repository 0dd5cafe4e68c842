"""Uniform coefficients: every child votes equally for all parents."""

from capsule_sweeps.routing.base import Capsules, NormedRouting
from capsule_sweeps.routing.votes import Votes


class Uniform(NormedRouting):
    """No routing: all coefficients are 1/M."""

    iterates = False

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents (B, M, h, w, E)."""
        return self.parents(votes.uniform(children.poses))
