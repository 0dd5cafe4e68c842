"""Routing: how the votes of the children become the poses of the parents.

Letters, here and in the shapes below:

    B  batch                    k l  rows and columns of the kernel
    N  child capsules           H W  rows and columns of the children's grid
    M  parent capsules          h w  rows and columns of the parents' grid
    a  rows of a pose           x d  columns of a child's and of a parent's pose
    D  = a·x, a child's pose    E    = a·d, a parent's pose
    i  = (k, l, N), a child as a parent's kernel sees it
    p  = (B, h, w), a place of the parents

children (B, N, H, W, D), parents (B, M, h, w, E), weight (k, l, N, x, M, d). A vector pose is one row (a = 1). A fully
connected layer is one whose kernel covers the children's grid (h = w = 1).

The paper's routing spends its time in `uniform_pass` and `routed_pass`; `by_place` runs the steps of the routings that
it is compared with. None of them stores all votes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from capsule_sweeps.routing import kernels

PLACES_PER_SLICE = 128  # for compiled kernels on a CPU: children and parents of a slice stay in the cache


def uniform_pass(children: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Σ_i V[i,m] / M: the first iteration, in which every coefficient is 1/M.

    children (B, N, H, W, D), weight (k, l, N, x, M, d) → (B, M, h, w, E). With uniform coefficients the sum over the
    children is a convolution: pose rows become part of the batch, pose columns become channels, which are last in
    memory (a third faster on a CPU). If the kernel covers the grid, one matrix product takes half the time.
    """
    k, l, num_children, x, num_parents, d = weight.shape  # noqa: E741
    batch = children.shape[0]
    images = children.movedim(1, 3).unflatten(4, (-1, x)).movedim(4, 1).flatten(4).flatten(0, 1)  # (B a) H W (N x)
    if images.shape[1:3] == (k, l):
        sums = (images.flatten(1) @ weight.flatten(4).flatten(0, 3) / num_parents)[:, :, None, None]
    else:
        kernel = weight.permute(4, 5, 0, 1, 2, 3).reshape(num_parents * d, k, l, num_children * x) / num_parents
        sums = F.conv2d(images.movedim(3, 1), kernel.movedim(3, 1), stride=stride)
    return sums.unflatten(1, (num_parents, d)).unflatten(0, (batch, -1)).permute(0, 2, 4, 5, 1, 3).flatten(4, 5)


def routed_pass(children: Tensor, parents: Tensor, weight: Tensor, stride: int, fused: bool = False) -> Tensor:
    """Σ_i r[i,m] V[i,m] with r[i,·] = softmax over m of ⟨V[i,m], parents[m]⟩ / √E (equations 1 to 3 of the paper).

    children (B, N, H, W, D), parents (B, M, h, w, E), weight (k, l, N, x, M, d) → (B, M, h, w, E) in the dtype of the
    children. Computes in float32, also under autocast, or in float64 if the input is. Differentiable once. `fused`: use
    compiled kernels if they are faster and available.
    """
    fused = fused and weight.shape[3] * weight.shape[5] <= kernels.MAX_PRODUCTS
    # Passed to the operator as an argument, because models compiled to disk store nothing else about the operator.
    num_images = _fused_slice(parents) if fused else cache_slice(parents)
    dtype = torch.promote_types(torch.promote_types(children.dtype, weight.dtype), torch.float32)
    inputs = children.to(dtype), parents.to(dtype), weight.to(dtype)
    sums: Tensor = _routed(*inputs, stride, num_images, fused, torch.is_grad_enabled())[0]
    return sums.to(children.dtype)


def _fused_slice(parents: Tensor) -> int:
    """Number of images of a slice: on a CPU a power of two, so that few shapes are compiled for all batch sizes."""
    batch, _, h, w, _ = parents.shape
    if parents.device.type not in ("cpu", "meta"):
        return int(batch)
    most = max(1, PLACES_PER_SLICE // (h * w))
    return int(min(1 << (most.bit_length() - 1), 1 << (batch - 1).bit_length()))


def cache_slice(parents: Tensor) -> int:
    """Number of images of a slice: as many as fit the cache with the votes of one child, about equal in all slices.

    parents (B, M, h, w, E).
    """
    batch = len(parents)
    most = min(batch, max(1, kernels.votes_per_slice(parents.device) // parents[0].numel()))
    return int(-(-batch // -(-batch // most)))


class Layout:
    """The children and the weight of a layer in the order of the kernels: places p innermost, contiguous in memory.

    The batch is cut into `num_slices` slices of equal size, which the kernels process one at a time. It is padded with
    zeros if necessary; these have no effect on gradients.
    """

    def __init__(self, children: Tensor, weight: Tensor, stride: int, num_images: int) -> None:
        self.k, self.l, self.num_children, self.x, self.num_parents, self.d = weight.shape
        self.batch, _, self.rows, self.columns, size = children.shape
        self.a = size // self.x
        self.stride = stride
        self.h = (self.rows - self.k) // stride + 1
        self.w = (self.columns - self.l) // stride + 1
        self.num_i = self.k * self.l * self.num_children
        self.num_images = num_images  # of a slice
        self.num_slices = -(-self.batch // num_images)
        self.weight = weight.flatten(0, 2).permute(0, 2, 3, 1).contiguous()  # i M d x
        children = self.filled(children).unflatten(4, (self.a, self.x)).permute(1, 5, 4, 0, 2, 3)
        self.children = children.contiguous()  # N x a B H W

    def filled(self, images: Tensor) -> Tensor:
        """(B, …) with the batch padded to whole slices."""
        missing = self.num_slices * self.num_images - self.batch
        return torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images

    def places_last(self, parents: Tensor) -> Tensor:
        """(B, M, h, w, E) → (slices, M, d, a, p)."""
        parents = self.filled(parents).unflatten(4, (self.a, self.d)).unflatten(0, (self.num_slices, -1))
        return parents.permute(0, 2, 6, 5, 1, 3, 4).flatten(4).contiguous()

    def poses_last(self, parents: Tensor) -> Tensor:
        """(slices, M, d, a, p) → (B, M, h, w, E)."""
        parents = parents.unflatten(4, (self.num_images, self.h, self.w))
        return parents.permute(0, 4, 1, 5, 6, 3, 2).flatten(5).flatten(0, 1)[: self.batch].contiguous()

    def images(self, number: int) -> slice:
        """The images of a slice."""
        return slice(number * self.num_images, (number + 1) * self.num_images)

    def patches(self, number: int, values: Tensor | None = None) -> Tensor:
        """The children, or `values` (N, x, a, B, H, W), under the kernel at every place: (i, x, a, p)."""
        some = (self.children if values is None else values)[:, :, :, self.images(number)]
        windows = some.unfold(4, self.k, self.stride).unfold(5, self.l, self.stride)
        return windows.permute(6, 7, 0, 1, 2, 3, 4, 5).flatten(5).flatten(0, 2)

    def add_patches(self, grad: Tensor, patches: Tensor, number: int) -> None:
        """The reverse of `patches`: adds (i, x, a, p) to the places of grad (N, x, a, B, H, W) that they came from."""
        kernel, grid = (self.k, self.l, self.num_children), (self.num_images, self.h, self.w)
        for row, line in enumerate(patches.unflatten(3, grid).unflatten(0, kernel)):
            for column, part in enumerate(line):
                rows = slice(row, row + self.stride * self.h, self.stride)
                columns = slice(column, column + self.stride * self.w, self.stride)
                grad[:, :, :, self.images(number), rows, columns] += part

    def children_first(self, grad: Tensor) -> Tensor:
        """A gradient (N, x, a, B, H, W) of the filled children in their order, (B, N, H, W, D)."""
        return grad.permute(3, 0, 4, 5, 2, 1).flatten(4)[: self.batch].contiguous()

    def kernel_first(self, grad: Tensor) -> Tensor:
        """A gradient (i, M, d, x) of the weight in its order, (k, l, N, x, M, d)."""
        shape = (self.k, self.l, self.num_children, self.num_parents, self.d, self.x)
        return grad.view(shape).permute(0, 1, 2, 5, 3, 4).contiguous()

    def new_coefficients(self) -> Tensor:
        """Room for a number for each child, parent and place (slices, i, M, p)."""
        places = self.num_images * self.h * self.w
        return self.children.new_empty(self.num_slices, self.num_i, self.num_parents, places)


def _new_coefficients(parents: Tensor, weight: Tensor, num_images: int, keep: bool) -> Tensor:
    """Room for a number for each child, parent and place (slices, i, M, p), or none."""
    batch, num_parents, h, w, _ = parents.shape
    num_slices = -(-batch // num_images) if keep else 0
    return parents.new_empty(num_slices, weight[..., 0, 0, 0].numel(), num_parents, num_images * h * w)


# Custom operators: torch.compile treats a routed pass in a model as one operation and does not unroll its slices


@torch.library.custom_op("capsule_sweeps::routed", mutates_args=())
def _routed(
    children: Tensor, parents: Tensor, weight: Tensor, stride: int, num_images: int, fused: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    """Σ_i r V (B, M, h, w, E) and, with `keep`, r (slices, i, M, p) for the backward pass: 1/E of the votes' memory."""
    coefficients = _new_coefficients(parents, weight, num_images, keep)
    if fused and (on_gpu := kernels.gpu_kernels(children, weight)):
        with torch.cuda.device_of(children):  # Triton launches on the current device
            return on_gpu.route(children, parents, weight, coefficients, stride), coefficients
    layout = Layout(children, weight, stride, num_images)
    places = layout.places_last(parents)
    sums = torch.empty_like(places)
    for number, poses in enumerate(places):
        sums[number], r = kernels.route(layout.patches(number), layout.weight, poses, fused)
        if keep:
            coefficients[number] = r
    return layout.poses_last(sums), coefficients


@_routed.register_fake
def _(children: Tensor, parents: Tensor, weight: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    _, num_images, _, keep = settings
    return parents.new_empty(parents.shape), _new_coefficients(parents, weight, num_images, keep)


@torch.library.custom_op("capsule_sweeps::routed_backward", mutates_args=())
def _routed_backward(
    children: Tensor,
    parents: Tensor,
    weight: Tensor,
    coefficients: Tensor,
    grad: Tensor,
    stride: int,
    num_images: int,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for children, parents and weight. Recomputes the votes."""
    if fused and (on_gpu := kernels.gpu_kernels(children, weight)):
        with torch.cuda.device_of(children):
            return on_gpu.route_backward(children, parents, weight, coefficients, grad, stride)
    layout = Layout(children, weight, stride, num_images)
    places, grad = layout.places_last(parents), layout.places_last(grad)
    grad_places, grad_children = torch.empty_like(places), torch.zeros_like(layout.children)
    grad_weight = torch.zeros_like(layout.weight)
    for number, poses in enumerate(places):
        grad_patches, grad_some, grad_places[number] = kernels.route_backward(
            layout.patches(number), layout.weight, poses, coefficients[number], grad[number], fused
        )
        grad_weight += grad_some
        layout.add_patches(grad_children, grad_patches, number)
    return layout.children_first(grad_children), layout.poses_last(grad_places), layout.kernel_first(grad_weight)


@_routed_backward.register_fake
def _(children: Tensor, parents: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return children.new_empty(children.shape), parents.new_empty(parents.shape), weight.new_empty(weight.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    children, parents, weight, *ctx.settings, _ = inputs
    ctx.save_for_backward(children, parents, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    children, parents, weight, coefficients = ctx.saved_tensors
    grads = _routed_backward(children, parents, weight, coefficients, grad.contiguous(), *ctx.settings)
    return *grads, None, None, None, None


_routed.register_autograd(_backward, setup_context=_keep_for_backward)
