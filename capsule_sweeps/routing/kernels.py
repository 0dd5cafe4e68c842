"""The routed pass over a slice of the batch, as plain functions of tensors, in a compiled and an uncompiled version.

Letters as in `passes`, with the axes that are looped over first and places p innermost:

    patches (i, x, a, p), weight (i, M, d, x), parents and sums (M, d, a, p), coefficients (i, M, p)

Both versions have the same arguments and results; on a GPU gpu.py takes the place of the compiled version. `fused_*`
spell a vote out as a sum of x products, which the compiler fuses into the agreement and again into the sums, so no vote
is ever stored. `sliced_*` multiply matrices for as many children at a time as have votes that fit the cache. With g the
gradient of the sums, the backward passes compute

    ∂r = ⟨V, g⟩,  ∂s = r (∂r − Σ_m r ∂r) / √E,  ∂V = r g + ∂s U,  ∂U = Σ_i ∂s V,  ∂W = Σ_p P ∂V,  ∂P = Σ_m W ∂V
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from capsule_sweeps.routing.compiled import Compiled, CompileError, warn_once

VOTES_PER_SLICE = 2**19  # on a CPU: two buffers of 2 MiB stay in the cache (measured: 2**17 to 2**20 are within 1.5 x)
VOTES_PER_SLICE_GPU = 2**26  # a slice must fill the GPU; a buffer is 256 MiB
MAX_PRODUCTS = 64  # largest x·d that is spelled out as products: 8x8 weights. Matrix products are fast for larger ones.
MAX_PARENTS, MAX_POSE = 128, 36  # of a layer that the kernels for a GPU take; larger ones spill registers
OPTIONS = {  # recompute values that are used more than once instead of storing them
    "realize_opcount_threshold": 1_000_000,
    "realize_reads_threshold": 1_000_000,
    "realize_acc_reads_threshold": 1_000_000,
    "max_fusion_size": 1_000,
}


def route(patches: Tensor, weight: Tensor, parents: Tensor, fused: bool) -> tuple[Tensor, Tensor]:
    """Σ_i r V (M, d, a, p) and r (i, M, p). `fused`: use the compiled version if it is available."""
    if fused and not patches.is_cuda:
        with suppress(CompileError):
            return fused_route(patches, weight, parents)
    return sliced_route(patches, weight, parents)


def route_backward(
    patches: Tensor, weight: Tensor, parents: Tensor, coefficients: Tensor, grad: Tensor, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for patches, weight and parents, from `grad` (M, d, a, p) for the sums."""
    if fused and not patches.is_cuda:
        with suppress(CompileError):
            return fused_route_backward(patches, weight, parents, coefficients, grad)
    return sliced_route_backward(patches, weight, parents, coefficients, grad)


def gpu_kernels(children: Tensor, weight: Tensor) -> ModuleType | None:
    """The routed pass on a GPU (gpu.py), if the children are float32 on one, a thread's registers can hold the poses of
    this layer, and Triton compiles there."""
    if not children.is_cuda or children.dtype != torch.float32:
        return None
    x, num_parents, d = weight.shape[3:]
    fits = num_parents <= MAX_PARENTS and children.shape[4] // x * d <= MAX_POSE and d <= 3 * (d & -d)
    return _gpu(children.device) if fits else None


@cache
def _gpu(device: torch.device) -> ModuleType | None:
    try:
        from capsule_sweeps.routing import gpu

        with torch.cuda.device(device):
            gpu.try_out(device)
            torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # triton, its compiler and the C compiler that it calls each have errors of their own
        warn_once(error)
        return None
    return gpu


# Compiled, on a CPU: five kernels, in which a whole vote stays in registers. They are compiled one by one, so that the
# results between them are stored: within one kernel the compiler would recompute these for each of its outputs.


def fused_route(patches: Tensor, weight: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
    """`route` by compiled kernels."""
    coefficients = torch.softmax(_AGREEMENT(patches, weight, parents), 1)
    return _WEIGHTED_SUM(patches, weight, coefficients), coefficients


def fused_route_backward(
    patches: Tensor, weight: Tensor, parents: Tensor, coefficients: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`route_backward` by compiled kernels."""
    grad_s = _GRAD_S(coefficients, _AGREEMENT(patches, weight, grad))
    return (
        _GRAD_PATCHES(weight, parents, coefficients, grad, grad_s),
        _GRAD_WEIGHT(patches, parents, coefficients, grad, grad_s),
        _WEIGHTED_SUM(patches, weight, grad_s),
    )


def agreement(patches: Tensor, weight: Tensor, poses: Tensor) -> Tensor:
    """⟨V, poses⟩ / √E (i, M, p)."""
    _, d, a, _ = poses.shape
    return _sum(_votes(patches, weight, j) * poses[:, j] for j in range(d)).sum(2) * (d * a) ** -0.5


def weighted_sum(patches: Tensor, weight: Tensor, factors: Tensor) -> Tensor:
    """Σ_i factors V (M, d, a, p)."""
    sums = [(_votes(patches, weight, j) * factors.unsqueeze(2)).sum(0) for j in range(weight.shape[2])]
    return torch.stack(sums, 1)


def grad_agreement(coefficients: Tensor, grad_r: Tensor) -> Tensor:
    """r (∂r − Σ_m r ∂r) (i, M, p); ∂r already contains the factor 1/√E."""
    r_grad_r = coefficients * grad_r
    return r_grad_r - coefficients * r_grad_r.sum(1, keepdim=True)


def grad_patches(weight: Tensor, parents: Tensor, coefficients: Tensor, grad: Tensor, grad_s: Tensor) -> Tensor:
    """The gradient of the patches: Σ_m W ∂V (i, x, a, p)."""
    _, _, d, x = weight.shape
    votes = [_grad_votes(parents, coefficients, grad, grad_s, j) for j in range(d)]
    sums = [_sum(votes[j] * weight[:, :, j, y, None, None] for j in range(d)).sum(1) for y in range(x)]
    return torch.stack(sums, 1)


def grad_weight(patches: Tensor, parents: Tensor, coefficients: Tensor, grad: Tensor, grad_s: Tensor) -> Tensor:
    """Σ_p P ∂V (i, M, d, x)."""
    d, x = grad.shape[1], patches.shape[1]
    votes = [_grad_votes(parents, coefficients, grad, grad_s, j) for j in range(d)]
    sums = [(votes[j] * patches[:, None, y]).sum((2, 3)) for j in range(d) for y in range(x)]
    return torch.stack(sums, 2).unflatten(2, (d, x))


def _sum(terms: Iterable[Tensor]) -> Tensor:
    total, *others = terms
    for term in others:
        total = total + term
    return total


def _votes(patches: Tensor, weight: Tensor, j: int) -> Tensor:
    """Column j of all votes (i, M, a, p), never stored."""
    return _sum(weight[:, :, j, y, None, None] * patches[:, None, y] for y in range(weight.shape[3]))


def _grad_votes(parents: Tensor, coefficients: Tensor, grad: Tensor, grad_s: Tensor, j: int) -> Tensor:
    """Column j of r g + ∂s U (i, M, a, p), never stored."""
    return coefficients.unsqueeze(2) * grad[:, j] + grad_s.unsqueeze(2) * parents[:, j]


_AGREEMENT = Compiled(agreement, OPTIONS)
_WEIGHTED_SUM = Compiled(weighted_sum, OPTIONS)
_GRAD_S = Compiled(grad_agreement)
_GRAD_PATCHES = Compiled(grad_patches, OPTIONS)
_GRAD_WEIGHT = Compiled(grad_weight, OPTIONS)


# Uncompiled: matrix products for a few children at a time


def sliced_route(patches: Tensor, weight: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
    """`route` by matrix products."""
    poses = parents.flatten(1, 2)
    sums = torch.zeros_like(poses)
    coefficients = patches.new_empty(len(weight), len(poses), poses.shape[2])
    for seen, votes, work in vote_slices(patches, weight):
        agreement = torch.mul(votes, poses, out=work).sum(2).mul_(poses.shape[1] ** -0.5)
        coefficients[seen] = torch.softmax(agreement, 1)
        add_weighted(sums, coefficients[seen], votes)
    return sums.view(parents.shape), coefficients


def sliced_route_backward(
    patches: Tensor, weight: Tensor, parents: Tensor, coefficients: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`route_backward` by matrix products, with the votes computed again."""
    poses, g = parents.flatten(1, 2), grad.flatten(1, 2)
    grad_patches, grad_weight = torch.empty_like(patches), torch.empty_like(weight)
    grad_poses = torch.zeros_like(poses)
    for seen, votes, work in vote_slices(patches, weight):
        r = coefficients[seen]
        r_grad_r = torch.mul(votes, g, out=work).sum(2).mul_(r)
        grad_s = r_grad_r.sub_(r * r_grad_r.sum(1, keepdim=True)).mul_(poses.shape[1] ** -0.5)
        add_weighted(grad_poses, grad_s, votes)
        grad_votes = torch.mul(r.unsqueeze(2), g, out=work).addcmul_(grad_s.unsqueeze(2), poses)
        grad_votes = grad_votes.view(len(r), weight.shape[1] * weight.shape[2], -1)
        torch.bmm(grad_votes, patches[seen].flatten(2).transpose(1, 2), out=grad_weight[seen].flatten(1, 2))
        torch.bmm(weight[seen].flatten(1, 2).transpose(1, 2), grad_votes, out=grad_patches[seen].flatten(2))
    return grad_patches, grad_weight, grad_poses.view(parents.shape)


def vote_slices(patches: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For a few children i at a time: their slice, their votes (i, M, E, p), and a buffer of that shape.

    Votes and buffer reuse their memory: newly allocated memory would not be in the cache.
    """
    num_i, num_parents, d, _ = weight.shape
    a, places = patches.shape[2:]
    each = num_parents * d * a * places
    num_seen = min(num_i, max(1, votes_per_slice(patches.device) // each))
    memory = patches.new_empty(2, num_seen, num_parents, d * a, places)
    for first in range(0, num_i, num_seen):
        seen = slice(first, min(first + num_seen, num_i))
        votes, work = memory[:, : seen.stop - seen.start]
        torch.bmm(weight[seen].flatten(1, 2), patches[seen].flatten(2), out=votes.view(len(votes), num_parents * d, -1))
        yield seen, votes, work


def votes_per_slice(device: torch.device) -> int:
    """Numbers of votes that one slice may have on a device."""
    return VOTES_PER_SLICE if device.type in ("cpu", "meta") else VOTES_PER_SLICE_GPU


def add_weighted(total: Tensor, factors: Tensor, votes: Tensor) -> None:
    """total (M, E, p) += Σ_i factors (i, M, p) · votes (i, M, E, p). May overwrite the votes."""
    if len(votes) == 1:  # needs one pass over memory instead of two
        total.addcmul_(factors[0].unsqueeze(1), votes[0])
    else:
        total += votes.mul_(factors.unsqueeze(2)).sum(0)
