"""Self-routing: "Self-Routing Capsule Networks", Hahn, Pyeon, Kim, NeurIPS 2019. Letters as in `routing`."""

from __future__ import annotations

import torch
from torch import nn

from capsule_sweeps.routing.base import LEAST_ACTIVATION, Capsules, LayerShape, Routing, make_norm
from capsule_sweeps.routing.votes import Votes, over_children


class SelfRouting(Routing):
    """Each child says itself, by a linear map of its pose, where its vote goes; there are no iterations (section 3).

    Coefficients c[i,·] = softmax over m of P[i] W_route[i]; parents are means of the votes, weighted by c[i,m] a[i]
    with the children's activations a; activations a[m] = Σ_i c[i,m] a[i] / Σ_i a[i]. `dropout` is that of the means,
    before the norm (see NORMS). The paper's classes have activations only, which are read; here class capsules have
    poses, which the model's head reads as it does for other routings. All votes are stored.
    """

    iterates = False
    uses_activations = True

    def __init__(self, shape: LayerShape, dropout: float, norm: str = "layer") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*shape.kernel, shape.num_children, shape.child_size, shape.num_parents))
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm, shape.parent_size)

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents."""
        assert children.activations is not None
        with torch.autocast(children.poses.device.type, enabled=False):
            dtype = torch.promote_types(children.poses.dtype, torch.float32)
            poses, activations = children.poses.to(dtype), children.activations.to(dtype)
            log_c = torch.einsum("bhwklnd,klndm->bhwklnm", votes.windows(poses), self.weight).log_softmax(-1)
            a = votes.windows(activations).unsqueeze(-1)
            shares = over_children(log_c + a.clamp_min(LEAST_ACTIVATION).log())
            means = torch.einsum("bhwklnm,bhwklnme->bmhwe", shares, votes.explicit(poses))
            c = log_c.exp()
            amounts = (c * a).sum((3, 4, 5)) / a.sum((3, 4, 5)).clamp_min(LEAST_ACTIVATION)
        return Capsules(self.norm(self.dropout(means)), amounts.movedim(3, 1), coefficients=c)
