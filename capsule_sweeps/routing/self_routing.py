"""Self-routing: "Self-Routing Capsule Networks", Hahn, Pyeon, Kim, NeurIPS 2019. Letters as in `routing`."""

import torch
from torch import Tensor, nn

from capsule_sweeps.routing.base import LEAST_ACTIVATION, Capsules, LayerShape, Routing, check_class_logits, make_norm
from capsule_sweeps.routing.votes import Votes, over_children


class SelfRouting(Routing):
    """Each child's coefficients are a linear map of its own pose; there are no iterations (section 3).

    Coefficients c[i,·] = softmax over m of P[i] W_route[i]; parents are means of the votes, weighted by c[i,m] a[i]
    with the children's activations a; activations a[m] = Σ_i c[i,m] a[i] / Σ_i a[i]. `dropout` is applied to the means,
    before the norm (see NORMS); `bias` adds one to the logits of c for each child and parent. All votes are stored.

    Class capsules either have poses, which the head of the model reads; or, as in the paper, with `class_logits: log`
    and `capsules.classes.pose_size: 0`, only activations, whose logarithms are the class logits.
    """

    iterates = False
    uses_activations = True

    def __init__(
        self, shape: LayerShape, dropout: float, norm: str = "layer", bias: bool = False, class_logits: str = "logit"
    ) -> None:
        super().__init__()
        self.has_class_logits = self.allows_no_poses = check_class_logits(class_logits) == "log"
        self.bias = nn.Parameter(torch.zeros(*shape.kernel, shape.num_children, shape.num_parents)) if bias else None
        self.weight = nn.Parameter(torch.zeros(*shape.kernel, shape.num_children, shape.child_size, shape.num_parents))
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm if shape.parent_size else "none", shape.parent_size)

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents (B, M, h, w, E)."""
        assert children.activations is not None
        with torch.autocast(children.poses.device.type, enabled=False):
            dtype = torch.promote_types(children.poses.dtype, torch.float32)
            poses, activations = children.poses.to(dtype), children.activations.to(dtype)
            to_parents = torch.einsum("bhwklnd,klndm->bhwklnm", votes.windows(poses), self.weight)
            log_c = (to_parents if self.bias is None else to_parents + self.bias).log_softmax(-1)
            a = votes.windows(activations).unsqueeze(-1)
            shares = over_children(log_c + a.clamp_min(LEAST_ACTIVATION).log())
            means = torch.einsum("bhwklnm,bhwklnme->bmhwe", shares, votes.explicit(poses))
            c = log_c.exp()
            amounts = (c * a).sum((3, 4, 5)) / a.sum((3, 4, 5)).clamp_min(LEAST_ACTIVATION)
        return Capsules(self.norm(self.dropout(means)), amounts.movedim(3, 1), coefficients=c)

    def class_logits(self, classes: Capsules) -> Tensor:
        """log a (B, classes)."""
        assert classes.activations is not None
        return classes.activations.clamp_min(LEAST_ACTIVATION).log().flatten(1)

    def multiply_adds(self, shape: LayerShape, first: bool) -> int:
        """Coefficients from the poses, and the sums."""
        return shape.num_votes * (shape.child_size + shape.parent_size)
