"""The E-step and M-step of EM routing, as one operator with a backward pass of its own. Letters as in `passes`.

`gaussian_pass` does an E-step and an M-step without storing all votes: it computes them for as many children at a
time as fit the cache, for log r (i, M, p), for the means, for the variances, and again in the backward pass. (Autograd
over slices takes 3 to 5 times as long.) Let s = r a / Σ_i r a be the share of a child in a parent; c, ρ and b the
parents' centers, precisions and log weights before the step; μ and σ² the means and variances after it; and g
gradients. The backward pass computes

    ∂log s = s Σ_e (gμ (V − μ) + gσ ((V − μ)² − σ²)),  ∂log r = ∂log s + g r a,  ∂z = ∂log r − r Σ_m ∂log r,
    ∂V = s (gμ + 2 gσ (V − μ)) − ∂z ρ (V − c),  ∂c = ρ Σ_i ∂z (V − c),  ∂ρ = −½ Σ_i ∂z (V − c)²,  ∂b = Σ_i ∂z
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from capsule_sweeps.routing.base import LEAST_ACTIVATION
from capsule_sweeps.routing.kernels import add_weighted, vote_slices
from capsule_sweeps.routing.passes import Layout, cache_slice
from capsule_sweeps.routing.votes import Votes


class Gaussians(NamedTuple):
    """The parents as Gaussians over votes: p(V) ∝ exp(bias − ½ Σ_e precision (V − center)²).

    centres and precisions (B, M, h, w, E), biases (B, M, h, w): log a − ½ Σ_e log σ², for the sum of log densities.
    """

    centres: Tensor
    precisions: Tensor
    biases: Tensor


def gaussian_pass(
    votes: Votes, poses: Tensor, activations: Tensor, gaussians: Gaussians | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Means and variances (B, M, h, w, E) of the votes that the parents get, and their amounts Σ_i r a (B, M, h, w).

    poses (B, N, H, W, D) and activations (B, N, H, W) of the children, float32 or float64. `gaussians`: the parents
    that compete for them; None for uniform coefficients. Differentiable once.
    """
    weight = votes.weight.to(poses.dtype)
    if gaussians is None:  # identical parents: uniform coefficients
        _, _, _, x, num_parents, d = weight.shape
        h, w = votes.windows(activations).shape[1:3]
        centres = poses.new_zeros(len(poses), num_parents, h, w, poses.shape[4] // x * d)
        gaussians = Gaussians(centres, torch.zeros_like(centres), torch.zeros_like(centres[..., 0]))
    means, variances, amounts, _ = _em(
        poses, activations, weight, *gaussians, votes.stride, cache_slice(gaussians.centres)
    )
    return means, variances, amounts


class _Slices:
    """The slices of a layer, with places p innermost."""

    def __init__(self, poses: Tensor, activations: Tensor, weight: Tensor, stride: int, num_images: int) -> None:
        self.layout = Layout(poses, weight, stride, num_images)
        self.activations = self.layout.filled(activations).transpose(0, 1)[:, None, None]  # N 1 1 B H W

    def activations_of(self, number: int) -> Tensor:
        """The activations (i, 1, p) under the kernels of a slice, at least LEAST_ACTIVATION."""
        return self.layout.patches(number, self.activations)[:, 0].clamp_min(LEAST_ACTIVATION)

    def places_last(self, values: Tensor) -> Tensor:
        """(B, M, h, w, E) → (slices, M, E, p), with poses transposed; (B, M, h, w) → (slices, M, p)."""
        if values.dim() == 5:
            return self.layout.places_last(values).flatten(2, 3)
        values = self.layout.filled(values).unflatten(0, (self.layout.num_slices, -1))
        return values.transpose(1, 2).flatten(3).flatten(2, 3).contiguous()

    def places_first(self, values: Tensor) -> Tensor:
        """The reverse of `places_last`."""
        layout = self.layout
        if values.dim() == 4:
            return layout.poses_last(values.unflatten(2, (layout.d, layout.a)))
        values = values.unflatten(2, (layout.num_images, layout.h, layout.w)).transpose(1, 2)
        return values.flatten(0, 1)[: layout.batch].contiguous()


@torch.library.custom_op("capsule_sweeps::em", mutates_args=())
def _em(
    poses: Tensor,
    activations: Tensor,
    weight: Tensor,
    centres: Tensor,
    precisions: Tensor,
    biases: Tensor,
    stride: int,
    num_images: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, variances, amounts, and log r a (slices, i, M, p) for the backward pass: 1/E of the votes."""
    slices = _Slices(poses, activations, weight, stride, num_images)
    layout = slices.layout
    c, rho, b = (slices.places_last(value) for value in (centres, precisions, biases))
    means, variances, log_amounts = torch.empty_like(c), torch.empty_like(c), torch.empty_like(b)
    logs = layout.new_coefficients()
    for number in range(layout.num_slices):
        patches, log_ra = layout.patches(number), logs[number]
        for part, votes, work in vote_slices(patches, layout.weight):
            away = votes.sub_(c[number])
            z = b[number] - 0.5 * torch.mul(away, away, out=work).mul_(rho[number]).sum(2)
            log_ra[part] = z.log_softmax(1)
        log_ra += slices.activations_of(number).log()
        log_amounts[number] = log_ra.logsumexp(0)
        shares = (log_ra - log_amounts[number]).exp_()
        mean, variance = torch.zeros_like(c[number]), torch.zeros_like(c[number])
        for part, votes, _ in vote_slices(patches, layout.weight):
            add_weighted(mean, shares[part], votes)
        for part, votes, _ in vote_slices(patches, layout.weight):  # around the new means, which loses no digits
            add_weighted(variance, shares[part], votes.sub_(mean).square_())
        means[number], variances[number] = mean, variance
    return slices.places_first(means), slices.places_first(variances), slices.places_first(log_amounts.exp_()), logs


@_em.register_fake
def _(poses: Tensor, _: Tensor, weight: Tensor, centres: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logs = Layout(poses, weight, *rest[2:]).new_coefficients()
    shape = centres.shape
    return poses.new_empty(shape), poses.new_empty(shape), poses.new_empty(shape[:4]), logs


@torch.library.custom_op("capsule_sweeps::em_backward", mutates_args=())
def _em_backward(
    poses: Tensor,
    activations: Tensor,
    weight: Tensor,
    centres: Tensor,
    precisions: Tensor,
    means: Tensor,
    variances: Tensor,
    logs: Tensor,
    grad_means: Tensor,
    grad_variances: Tensor,
    grad_amounts: Tensor,
    stride: int,
    num_images: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for poses, activations, weight, centres, precisions and biases. Recomputes the votes."""
    slices = _Slices(poses, activations, weight, stride, num_images)
    layout = slices.layout
    inputs = (centres, precisions, means, variances, grad_means, grad_variances, grad_amounts)
    c, rho, mu, var, g_mu, g_var, g_amounts = (slices.places_last(value) for value in inputs)
    grad_c, grad_rho, grad_b = torch.zeros_like(c), torch.zeros_like(c), torch.zeros_like(g_amounts)
    grad_children, grad_weight = torch.zeros_like(layout.children), torch.zeros_like(layout.weight)
    grad_activations = slices.activations.new_zeros(slices.activations.shape)
    for number in range(layout.num_slices):
        patches, a, log_ra = layout.patches(number), slices.activations_of(number), logs[number]
        log_amounts = log_ra.logsumexp(0)
        grad_patches, grad_a = torch.empty_like(patches), torch.empty_like(a)
        for part, votes, work in vote_slices(patches, layout.weight):
            r_a = log_ra[part].exp()
            r, shares = r_a / a[part], (log_ra[part] - log_amounts).exp()
            away = votes.sub_(mu[number])
            grad_s = torch.mul(away, away, out=work).sub_(var[number]).mul_(g_var[number]).sum(2)
            grad_log = grad_s.add_(torch.mul(away, g_mu[number], out=work).sum(2)).mul_(shares)
            grad_a[part] = (grad_log.sum(1, keepdim=True) / a[part]) + (r * g_amounts[number]).sum(1, keepdim=True)
            grad_log = grad_log.addcmul_(r_a, g_amounts[number])
            grad_z = grad_log.sub_(r * grad_log.sum(1, keepdim=True))
            grad_b[number] += grad_z.sum(0)
            grad_votes = torch.mul(away, 2 * g_var[number], out=work).add_(g_mu[number]).mul_(shares.unsqueeze(2))
            away = away.add_(mu[number] - c[number])
            pull = away * grad_z.unsqueeze(2)
            grad_votes.addcmul_(pull, rho[number], value=-1)
            grad_c[number] += pull[0] if len(pull) == 1 else pull.sum(0)
            add_weighted(grad_rho[number], grad_z, away.square_())
            flat = grad_votes.view(len(r), layout.num_parents * layout.d, -1)
            grad_weight[part] += (flat @ patches[part].flatten(2).transpose(1, 2)).view_as(grad_weight[part])
            torch.bmm(layout.weight[part].flatten(1, 2).transpose(1, 2), flat, out=grad_patches[part].flatten(2))
        layout.add_patches(grad_children, grad_patches, number)
        layout.add_patches(grad_activations, grad_a.unsqueeze(1), number)
    return (
        layout.children_first(grad_children),
        grad_activations[:, 0, 0].transpose(0, 1)[: layout.batch].contiguous(),
        layout.kernel_first(grad_weight),
        slices.places_first(grad_c.mul_(rho)),
        slices.places_first(grad_rho.mul_(-0.5)),
        slices.places_first(grad_b),
    )


@_em_backward.register_fake
def _(
    poses: Tensor, activations: Tensor, weight: Tensor, centres: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (poses, activations, weight, centres, centres, centres[..., 0])
    return tuple(tensor.new_empty(tensor.shape) for tensor in like)  # type: ignore[return-value]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    poses, activations, weight, centres, precisions, _, *ctx.settings = inputs
    means, variances, _, logs = output
    ctx.save_for_backward(poses, activations, weight, centres, precisions, means, variances, logs)
    ctx.mark_non_differentiable(logs)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return *_em_backward(*ctx.saved_tensors, *(grad.contiguous() for grad in grads[:3]), *ctx.settings), None, None


_em.register_autograd(_backward, setup_context=_keep_for_backward)
