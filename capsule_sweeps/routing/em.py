"""EM routing: "Matrix Capsules with EM Routing", Hinton, Sabour, Frosst, ICLR 2018. Letters as in `routing`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from capsule_sweeps.routing.base import LEAST_ACTIVATION, Capsules, LayerShape, Routing, check_class_logits
from capsule_sweeps.routing.em_pass import Gaussians, gaussian_pass
from capsule_sweeps.routing.votes import Votes, over_children, places_first

MIN_VARIANCE = 1e-4  # added to every variance, so that a parent with identical votes is still a Gaussian


class EMState(NamedTuple):
    """Number of the iteration, variances (B, M, h, w, E) and logits of the activations (B, M, h, w)."""

    iteration: int
    variances: Tensor
    logits: Tensor


def _gaussians(parents: Capsules, density: str) -> Gaussians:
    _, variances, logits = parents.state
    share = 1 / variances.shape[-1] if density == "mean" else 1.0
    biases = nn.functional.logsigmoid(logits) - 0.5 * share * variances.log().sum(-1)
    return Gaussians(parents.poses, share / variances, biases)


class EM(Routing):
    """Each parent is a Gaussian over its votes, with an activation; the parents compete for each child (Procedure 1).

    A step is an E-step (not in the first iteration) and an M-step. Only the parents of the same place compete for a
    child. The inverse temperature of iteration t is λ_t = `inverse_temperature` · (1 − `rate`^t). Unless `per_share` is
    false, it is divided by the number of votes that a parent gets when coefficients are uniform, so that one value is
    right for layers of any size. Class activations are those of the class capsules. In a stack the votes are scaled so
    that their unweighted mean is as large as the children's poses, and β_u starts where such a mean has no cost (with
    `per_share: false` at 0).

    `density`: how the log densities of the E numbers of a pose are combined. "sum" is the paper's choice (eq. 2): a
    product of E independent densities. With random weights such sums differ by several units between parents, so that
    each child is assigned to a single parent before anything is learned, and with three iterations training does not
    converge. "mean" divides by E, which keeps the competition soft.

    Coefficients, variances and activations are computed in float32, from logarithms. Raises ValueError for a dropout
    above 0, which is not defined for means of votes, and for settings out of range.
    """

    uses_activations = True
    has_class_logits = True

    def __init__(
        self,
        shape: LayerShape,
        dropout: float,
        inverse_temperature: float,
        rate: float,
        density: str = "sum",
        per_share: bool = True,
        class_logits: str = "logit",
    ) -> None:
        super().__init__()
        if dropout:
            raise ValueError(
                f"capsules.dropout={dropout} is not supported by routing=em, whose parents are means: set it to 0"
            )
        if not 0 < inverse_temperature < math.inf:
            raise ValueError(f"routing.inverse_temperature={inverse_temperature} is out of range: it must be above 0")
        if not 0 <= rate < 1:
            raise ValueError(f"routing.rate={rate} is out of range: it must be at least 0 and below 1")
        if density not in ("mean", "sum"):
            raise ValueError(f"routing.density={density} is unknown: set it to mean or sum")
        self.inverse_temperature, self.rate, self.density = inverse_temperature, rate, density
        num_votes = shape.kernel[0] * shape.kernel[1] * shape.num_children
        self.vote_scale = num_votes / math.sqrt(shape.num_parents)
        self.fair_share = num_votes / shape.num_parents if per_share else 1.0
        self.logs = check_class_logits(class_logits) == "log"
        self.beta_u = nn.Parameter(torch.full((shape.num_parents,), -0.5 * math.log(num_votes) if per_share else 0.0))
        self.beta_a = nn.Parameter(torch.zeros(shape.num_parents))

    def forward(self, votes: Votes, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents (B, M, h, w, E) after one more iteration; the first has uniform coefficients."""
        assert children.activations is not None
        with torch.autocast(children.poses.device.type, enabled=False):
            dtype = torch.promote_types(children.poses.dtype, torch.float32)
            poses, activations = children.poses.to(dtype), children.activations.to(dtype)
            gaussians = None if previous is None else _gaussians(previous, self.density)
            if votes.records:
                means, variances, amounts, r = explicit_step(votes, poses, activations, gaussians)
            else:
                means, variances, amounts, r = *gaussian_pass(votes, poses, activations, gaussians), None
            variances = variances + MIN_VARIANCE
            iteration = 1 if previous is None else previous.state.iteration + 1
            cost = (means.shape[-1] * self.beta_u[:, None, None] + 0.5 * variances.log().sum(-1)) * amounts
            heat = self.inverse_temperature * (1 - self.rate**iteration) / self.fair_share
            logits = heat * (self.beta_a[:, None, None] - cost)
            return Capsules(means, logits.sigmoid(), EMState(iteration, variances, logits), r)

    def class_logits(self, classes: Capsules) -> Tensor:
        """λ (β_a − cost) (B, classes), the sigmoid of which is the activation; or the logarithm of the activation."""
        logits: Tensor = classes.state.logits.flatten(1)
        return nn.functional.logsigmoid(logits) if self.logs else logits

    def multiply_adds(self, shape: LayerShape, first: bool) -> int:
        """Means and variances, and after the first step the distances to the centers."""
        return shape.num_votes * shape.parent_size * (2 if first else 3)


def explicit_step(
    votes: Votes, poses: Tensor, activations: Tensor, gaussians: Gaussians | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`gaussian_pass` from explicit votes: slow, but also returns the coefficients r (B, h, w, k, l, N, M)."""
    every = votes.explicit(poses)
    if gaussians is None:
        log_r = torch.full_like(every[..., 0], -math.log(every.shape[6]))
    else:
        centres, precisions, biases = (places_first(value) for value in gaussians)
        log_r = (biases - 0.5 * ((every - centres).square() * precisions).sum(-1)).log_softmax(-1)
    a = votes.windows(activations).unsqueeze(-1)
    shares = over_children(log_r + a.clamp_min(LEAST_ACTIVATION).log())
    means = torch.einsum("bhwklnm,bhwklnme->bmhwe", shares, every)
    variances = torch.einsum("bhwklnm,bhwklnme->bmhwe", shares, (every - places_first(means)).square())
    r = log_r.exp()
    return means, variances, (r * a).sum((3, 4, 5)).movedim(3, 1), r
