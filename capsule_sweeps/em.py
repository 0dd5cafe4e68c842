"""EM routing: "Matrix Capsules with EM Routing", Hinton, Sabour, Frosst, ICLR 2018. Letters as in `routing`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from capsule_sweeps.routing import Capsules, LayerShape, Routing, VoteMap, over_children, places_first

MIN_VARIANCE = 1e-4  # added to every variance: a parent whose votes are all the same is still a Gaussian


class EMState(NamedTuple):
    """Number of the iteration, variances (B, M, h, w, E) and logits of the activations (B, M, h, w)."""

    iteration: int
    variances: Tensor
    logits: Tensor


class EM(Routing):
    """Each parent is a Gaussian over its votes, with an activation; the parents compete for each child (Procedure 1).

    A step is an E-step, unless it is the first, and an M-step. The parents of a place compete for a child, not those of
    different places. The inverse temperature of iteration t is λ_t = `inverse_temperature` · (1 − `rate`^t), divided by
    the votes that a parent would get if all were shared out evenly, so that it suits layers of any size. Class
    activations are those of the class capsules. In a stack the votes are scaled so that their even mean is as large as
    the children's poses, and β_u begins where such a mean costs nothing.

    Coefficients, variances and activations are computed in float32, from logarithms. All votes are stored. Raises
    ValueError for a dropout, which means of votes have no place for, and for settings out of range.
    """

    uses_activations = True
    has_class_logits = True

    def __init__(self, shape: LayerShape, dropout: float, inverse_temperature: float, rate: float) -> None:
        super().__init__()
        if dropout:
            raise ValueError(
                f"capsules.dropout={dropout} has no place in routing=em, whose parents are means: set it to 0"
            )
        if not 0 < inverse_temperature < math.inf:
            raise ValueError(f"routing.inverse_temperature={inverse_temperature} is out of range: it must be above 0")
        if not 0 <= rate < 1:
            raise ValueError(f"routing.rate={rate} is out of range: it must be at least 0 and below 1")
        self.inverse_temperature, self.rate = inverse_temperature, rate
        num_votes = shape.kernel[0] * shape.kernel[1] * shape.num_children
        self.vote_scale = num_votes / math.sqrt(shape.num_parents)
        self.fair_share = num_votes / shape.num_parents
        self.beta_u = nn.Parameter(torch.full((shape.num_parents,), -0.5 * math.log(num_votes)))
        self.beta_a = nn.Parameter(torch.zeros(shape.num_parents))

    def forward(self, votes: VoteMap, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents after one more iteration; in the first every child spreads evenly."""
        assert children.activations is not None
        with torch.autocast(children.poses.device.type, enabled=False):
            dtype = torch.promote_types(children.poses.dtype, torch.float32)
            every = votes.explicit(children.poses.to(dtype))
            activations = votes.windows(children.activations.to(dtype)).unsqueeze(-1)
            log_r = self._coefficients(every, previous)
            iteration = 1 if previous is None else previous.state.iteration + 1
            return self._parents(every, activations, log_r, iteration)

    def _coefficients(self, every: Tensor, previous: Capsules | None) -> Tensor:
        """E-step: log r (B, h, w, k, l, N, M), r[i,·] = softmax over m of log(a[m] p[i,m])."""
        if previous is None:
            return torch.full_like(every[..., 0], -math.log(every.shape[6]))
        means, (_, variances, logits) = previous.poses, previous.state
        squares = (every - places_first(means)).square() / places_first(variances)
        log_p = -0.5 * (
            squares.sum(-1) + places_first(variances.log().sum(-1))
        )  # but for (2π)^(−E/2), the same for all
        return (nn.functional.logsigmoid(places_first(logits)) + log_p).log_softmax(-1)

    def _parents(self, every: Tensor, activations: Tensor, log_r: Tensor, iteration: int) -> Capsules:
        """M-step: means, variances and activations of the parents."""
        shares = over_children(log_r + activations.clamp_min(torch.finfo(every.dtype).tiny).log())
        means = torch.einsum("bhwklnm,bhwklnme->bmhwe", shares, every)
        squares = (every - places_first(means)).square()
        variances = torch.einsum("bhwklnm,bhwklnme->bmhwe", shares, squares) + MIN_VARIANCE
        r = log_r.exp()
        amounts = (r * activations).sum((3, 4, 5)).movedim(3, 1)
        size = every.shape[-1]
        cost = (size * self.beta_u[:, None, None] + 0.5 * variances.log().sum(-1)) * amounts
        heat = self.inverse_temperature * (1 - self.rate**iteration) / self.fair_share
        logits = heat * (self.beta_a[:, None, None] - cost)
        return Capsules(means, logits.sigmoid(), EMState(iteration, variances, logits), r)

    def class_logits(self, classes: Capsules) -> Tensor:
        """λ (β_a − cost) (B, classes), the sigmoid of which is the activation."""
        logits: Tensor = classes.state.logits.flatten(1)
        return logits
