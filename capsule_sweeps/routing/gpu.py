"""The routed pass on a GPU, by the Triton kernels of triton_kernels.py. Letters as in `passes`.

Sums over children, and over places for the gradient of the weight, are cut into parts that run in parallel; the parts
are added afterwards in a fixed order. Results are therefore the same at every call. All arithmetic is float32.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from capsule_sweeps.routing.triton_kernels import grad_weight_kernel, route_backward_kernel, route_kernel

NUM_WARPS = 4
NUM_PROGRAMS = 1024  # to aim at: a few for each multiprocessor of a large GPU


class Cut(NamedTuple):
    """How a routed pass is cut into programs, and the constants of its kernels."""

    constants: dict[str, Any]
    num_i: int
    num_places: int
    blocks: int  # of places
    part: int  # children in a part
    parts: int

    @staticmethod
    def of(children: Tensor, parents: Tensor, weight: Tensor, stride: int) -> "Cut":
        k, l, num_children, x, num_parents, d = weight.shape  # noqa: E741
        batch, _, rows, columns, size = children.shape
        h, w = parents.shape[2:4]
        num_i, num_places = k * l * num_children, batch * h * w
        M = triton.next_power_of_2(num_parents)
        G = 2 if M >= 32 and size // x * d <= 16 else 1  # of larger poses the registers hold one
        P = max(1, 32 * NUM_WARPS * G // M)
        blocks = triton.cdiv(num_places, P)
        part = triton.cdiv(num_i, max(1, min(NUM_PROGRAMS // blocks, num_i // 4)))
        shape = dict(A=size // x, X=x, D=d, N=num_children, L=l, NUM_M=num_parents, DB=d & -d, P=P, G=G, M=M // G)
        grid = dict(H=rows, W=columns, h=h, w=w, STRIDE=stride)
        constants = {**shape, **grid, "num_warps": NUM_WARPS}
        return Cut(constants, num_i, num_places, blocks, part, triton.cdiv(num_i, part))


def try_out(device: torch.device) -> None:
    """Raises whatever keeps Triton from compiling and running these kernels on this GPU."""
    pose, coefficients = torch.ones(1, 1, 1, 1, 1, device=device), torch.ones(1, device=device)
    route(pose, pose, pose[..., None], coefficients, 1)
    route_backward(pose, pose, pose[..., None], coefficients, pose, 1)


def route(children: Tensor, parents: Tensor, weight: Tensor, coefficients: Tensor, stride: int) -> Tensor:
    """Σ_i r V (B, M, h, w, E) of children (B, N, H, W, D), parents (B, M, h, w, E) and weight (k, l, N, x, M, d), which
    are float32 on one GPU. Writes r (i, p, M) to the beginning of `coefficients`, unless it is empty."""
    cut = Cut.of(children, parents, weight, stride)
    poses = _parents_last(parents)
    sums = children.new_empty(cut.parts, *poses.shape)
    route_kernel[cut.blocks, cut.parts](
        *(_poses_last(children), _parents_last(weight), poses, coefficients, sums),
        *(cut.num_i, cut.num_places, cut.part, parents.shape[4] ** -0.5, 1),
        **cut.constants,
        KEEP=coefficients.numel() > 0,
    )
    return sums.sum(0).movedim(4, 1).contiguous()


def route_backward(
    children: Tensor, parents: Tensor, weight: Tensor, coefficients: Tensor, grad: Tensor, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for children, parents and weight, from `grad` (B, M, h, w, E) for the sums and the r of `route`."""
    cut = Cut.of(children, parents, weight, stride)
    k, l, num_children, x, num_parents, d = weight.shape  # noqa: E741
    children, poses, grad = _poses_last(children), _parents_last(parents), _parents_last(grad)
    grad_s = children.new_empty(cut.num_i, cut.num_places, num_parents)
    grad_patches = children.new_empty(k, l, num_children, *poses.shape[:3], children.shape[4])
    grad_parents = children.new_empty(cut.parts, *poses.shape)
    route_backward_kernel[cut.blocks, cut.parts](
        *(children, _parents_last(weight), poses, coefficients, grad, grad_s, grad_patches, grad_parents),
        *(cut.num_i, cut.num_places, cut.part, parents.shape[4] ** -0.5, 1),
        **cut.constants,
    )

    together = max(1, 64 // (x * d * cut.constants["G"]))  # children whose gradients the registers of a thread can hold
    blocks, P = triton.cdiv(cut.num_i, together), cut.constants["P"]
    part = triton.cdiv(cut.num_places, P * max(1, min(NUM_PROGRAMS // blocks, cut.blocks // 4))) * P
    parts = triton.cdiv(cut.num_places, part)
    grad_weight = children.new_empty(parts, k, l, num_children, x, d, num_parents)
    grad_weight_kernel[blocks, parts](
        *(children, poses, coefficients, grad, grad_s, grad_weight, cut.num_i, cut.num_places, part, 1),
        **cut.constants,
        J=together,
    )
    return (
        _add_patches(grad_patches, children, stride).permute(0, 3, 1, 2, 4).contiguous(),
        grad_parents.sum(0).movedim(4, 1).contiguous(),
        grad_weight.sum(0).transpose(4, 5).contiguous(),
    )


def _parents_last(values: Tensor) -> Tensor:
    """(B, M, h, w, E) → (B, h, w, E, M); a weight (k, l, N, x, M, d) → (k, l, N, x, d, M)."""
    return values.movedim(1 if values.dim() == 5 else 4, -1).contiguous()


def _poses_last(children: Tensor) -> Tensor:
    """(B, N, H, W, D) → (B, H, W, N, D), which is the order in memory behind a convolution with channels last."""
    return children.permute(0, 2, 3, 1, 4).contiguous()


def _add_patches(patches: Tensor, children: Tensor, stride: int) -> Tensor:
    """Σ of patches (k, l, N, B, h, w, D) over the places (k, l) under which a child is: as children (B, H, W, N, D)."""
    h, w = patches.shape[4:6]
    parts = patches.permute(0, 1, 3, 4, 5, 2, 6)  # k l B h w N D
    if (h, w) == (1, 1) and children.shape[1:3] == patches.shape[:2]:
        return parts[:, :, :, 0, 0].permute(2, 0, 1, 3, 4).contiguous()
    grad = torch.zeros_like(children)
    for k, row in enumerate(parts):
        for l, part in enumerate(row):  # noqa: E741
            grad[:, k : k + stride * h : stride, l : l + stride * w : stride] += part
    return grad
