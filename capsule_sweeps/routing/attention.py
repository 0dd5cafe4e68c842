"""The usual direction of attention: children compete for each parent."""

import torch
from torch import Tensor

from capsule_sweeps.routing.base import Capsules, NormedRouting
from capsule_sweeps.routing.by_place import place_step
from capsule_sweeps.routing.votes import Votes


class Attention(NormedRouting):
    """The usual direction of attention: the children compete for each parent.

    The coefficients of a parent are a softmax over all children under its kernel, so they sum to 1.
    """

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents (B, M, h, w, E) after one more iteration; in the first all children have the same weight."""
        if previous is None:
            sums = votes.average(children.poses)
        else:
            (attended,) = votes.by_place("attend", children.poses, previous.poses.movedim(1, 3))
            sums = attended.movedim(3, 1).to(children.poses.dtype)
        return self.parents(sums)


@place_step
def attend(votes: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_i r V (p, M, E) and r (p, i, M), the softmax over i of ⟨V, parents⟩ / √E."""
    agreement = torch.einsum("pime,pme->pim", votes, parents) * parents.shape[-1] ** -0.5
    r = agreement.softmax(1)
    return torch.einsum("pim,pime->pme", r, votes), r
