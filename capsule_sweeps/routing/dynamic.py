"""Dynamic routing: "Dynamic Routing Between Capsules", Sabour, Frosst, Hinton, 2017. Letters as in `routing`."""

from typing import NamedTuple

from torch import Tensor, nn

from capsule_sweeps.routing.base import Capsules, LayerShape, Routing, check_class_logits, squash
from capsule_sweeps.routing.votes import Votes

SMALLEST = 1e-12  # lower bound of squared lengths: the logarithm of 0 has no gradient


class DynamicState(NamedTuple):
    """The sum of the parents of all iterations so far, and the summed votes of the last one, before the squash."""

    total: Tensor
    sums: Tensor


class Dynamic(Routing):
    """Routing by agreement (Procedure 1): parents are squashed sums of votes, and compete for each child.

    The logits of an iteration are b[i,m] = Σ_t ⟨V[i,m], U_t[m]⟩ = ⟨V[i,m], Σ_t U_t[m]⟩ over the parents U_t of all
    earlier iterations, so only the sum of the parents is kept, and no vote is stored. With the concurrent schedule V
    are the votes of this iteration. The length of a class capsule is the activation of its class (section 3). In a
    stack the votes are scaled so that their uniform sum is initially as long as a child; otherwise lengths would shrink
    from layer to layer. `dropout` is applied to the summed votes.
    """

    has_class_logits = True

    def __init__(self, shape: LayerShape, dropout: float, class_logits: str = "logit") -> None:
        super().__init__()
        self.logs = check_class_logits(class_logits) == "log"
        self.dropout = nn.Dropout(dropout)
        self.vote_scale = shape.num_parents**0.5
        self.root = shape.parent_size**0.5  # undoes the division of the agreement in `routed`, which the paper omits

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents (B, M, h, w, E) after one more iteration; the first has uniform coefficients."""
        if previous is None:
            sums = self.dropout(votes.uniform(children.poses))
            parents = squash(sums)
            return Capsules(parents, state=DynamicState(parents, sums))
        sums = self.dropout(votes.routed(children.poses, previous.state.total * self.root))
        parents = squash(sums)
        return Capsules(parents, state=DynamicState(previous.state.total + parents, sums))

    def class_logits(self, classes: Capsules) -> Tensor:
        """log |s|² (B, classes), whose sigmoid |s|² / (1 + |s|²) is the length of the capsule; or log of the length."""
        squared: Tensor = classes.state.sums.float().square().sum(-1)
        logits = squared.clamp_min(SMALLEST).log().flatten(1)
        return nn.functional.logsigmoid(logits) if self.logs else logits
