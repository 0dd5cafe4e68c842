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

`uniform_pass` and `routed_pass` are the two functions that cost time; neither stores all votes. A routing is a module
with `forward(votes, children, previous)`: one step for one layer, which it owns the parameters of. The schedule over
layers and iterations is the business of `capsules`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

VOTES_PER_SLICE = 2**19  # on a CPU: two buffers of 2 MiB stay in the cache (measured: 2**17 to 2**20 are within 1.5 x)
VOTES_PER_SLICE_GPU = 2**26  # there a slice must fill the device, and a buffer is 256 MiB


def uniform_pass(children: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Σ_i V[i,m] / M: the first iteration, in which every child spreads evenly over all parents.

    children (B, N, H, W, D), weight (k, l, N, x, M, d) → (B, M, h, w, E). With even coefficients the sum over the
    children is a convolution: pose rows go into the batch, pose columns into the channels.
    """
    k, l, num_children, x, num_parents, d = weight.shape  # noqa: E741
    batch = children.shape[0]
    images = children.unflatten(4, (-1, x)).permute(0, 4, 1, 5, 2, 3).flatten(2, 3).flatten(0, 1)  # (B a)(N x)HW
    kernel = weight.permute(4, 5, 2, 3, 0, 1).reshape(num_parents * d, num_children * x, k, l)
    sums = F.conv2d(images, kernel / num_parents, stride=stride)
    return sums.unflatten(1, (num_parents, d)).unflatten(0, (batch, -1)).permute(0, 2, 4, 5, 1, 3).flatten(4, 5)


def routed_pass(children: Tensor, parents: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Σ_i r[i,m] V[i,m] with r[i,·] = softmax over m of ⟨V[i,m], parents[m]⟩ / √E (equations 1 to 3 of the paper).

    children (B, N, H, W, D), parents (B, M, h, w, E), weight (k, l, N, x, M, d) → (B, M, h, w, E) in the children's
    type. Computes in float32, or float64 if that comes in, under autocast too. Differentiable once.
    """
    dtype = torch.promote_types(torch.promote_types(children.dtype, weight.dtype), torch.float32)
    inputs = children.to(dtype), parents.to(dtype), weight.to(dtype)
    if torch.is_grad_enabled():
        sums: Tensor = _RoutedPass.apply(*inputs, stride)
    else:
        sums = _Layout(inputs[0], inputs[2], stride).route(inputs[1], None)
    return sums.to(children.dtype)


class _Layout:
    """One layer's children and weight as the routed pass reads them: places p run innermost, contiguous in memory.

    Every operation on votes (i, M, d·a, p) is then a plain loop over neighbouring numbers, sums run over the axes in
    front of it, and the places of one image follow those of the one before.
    """

    def __init__(self, children: Tensor, weight: Tensor, stride: int) -> None:
        self.k, self.l, self.num_children, self.x, self.num_parents, self.d = weight.shape
        self.batch, _, self.rows, self.columns, size = children.shape
        self.a = size // self.x
        self.stride = stride
        self.h = (self.rows - self.k) // stride + 1
        self.w = (self.columns - self.l) // stride + 1
        self.scale = (self.a * self.d) ** -0.5
        self.children = children.unflatten(4, (self.a, self.x)).permute(1, 5, 4, 0, 2, 3).contiguous()  # N x a B H W
        self.weight = weight.flatten(4, 5).flatten(0, 2).transpose(1, 2).contiguous()  # i (M d) x

    def places_last(self, parents: Tensor) -> Tensor:
        """(B, M, h, w, E) → (M, d·a, p)."""
        return parents.unflatten(4, (self.a, self.d)).permute(1, 5, 4, 0, 2, 3).flatten(1, 2).flatten(2)

    def poses_last(self, parents: Tensor) -> Tensor:
        """(M, d·a, p) → (B, M, h, w, E)."""
        parents = parents.view(self.num_parents, self.d, self.a, self.batch, self.h, self.w)
        return parents.permute(3, 0, 4, 5, 2, 1).flatten(4, 5)

    def slices(self) -> tuple[list[slice], list[slice], Tensor]:
        """Slices of the batch and of i whose votes fit the cache, and two buffers for the votes of such a pair.

        Buffers are used again and again: fresh memory would fall out of the cache.
        """
        budget = VOTES_PER_SLICE if self.children.device.type == "cpu" else VOTES_PER_SLICE_GPU
        votes = self.num_parents * self.d * self.a * self.h * self.w  # of one child in one image
        num_i = self.weight.shape[0]
        num_images = min(self.batch, max(1, budget // votes))
        num_seen = min(num_i, max(1, budget // (votes * num_images)))
        images = [slice(b, min(b + num_images, self.batch)) for b in range(0, self.batch, num_images)]
        seen = [slice(i, min(i + num_seen, num_i)) for i in range(0, num_i, num_seen)]
        return images, seen, self.children.new_empty(2, votes * num_images * num_seen)

    def patches(self, images: slice) -> Tensor:
        """The children that the kernel sees at every place: (i, x, a·p)."""
        windows = self.children[:, :, :, images].unfold(4, self.k, self.stride).unfold(5, self.l, self.stride)
        return windows.permute(6, 7, 0, 1, 2, 3, 4, 5).flatten(4).flatten(0, 2)

    def add_patches(self, grad: Tensor, patches: Tensor, images: slice) -> None:
        """The reverse of `patches`: adds (i, x, a·p) to the places of grad (N, x, a, B, H, W) that they came from."""
        shape = (self.k, self.l, self.num_children, self.x, self.a, -1, self.h, self.w)
        for row, line in enumerate(patches.view(shape)):
            for column, part in enumerate(line):
                rows = slice(row, row + self.stride * self.h, self.stride)
                columns = slice(column, column + self.stride * self.w, self.stride)
                grad[:, :, :, images, rows, columns] += part

    def votes(self, patches: Tensor, seen: slice, buffer: Tensor) -> Tensor:
        """V = P W for some i: (i, M, d·a, p)."""
        shape = (seen.stop - seen.start, self.num_parents * self.d, patches.shape[2])
        votes = torch.bmm(self.weight[seen], patches[seen], out=_shaped(buffer, shape))
        return votes.view(shape[0], self.num_parents, self.d * self.a, -1)

    def route(self, parents: Tensor, coefficients: Tensor | None) -> Tensor:
        """Σ_i r V (B, M, h, w, E); keeps r in `coefficients` (i, M, p) if the backward pass will want it."""
        places = self.places_last(parents)
        sums = torch.zeros_like(places)
        images, all_seen, (first, second) = self.slices()
        for some in images:
            p = slice(some.start * self.h * self.w, some.stop * self.h * self.w)
            patches, parent, total = self.patches(some), places[..., p].contiguous(), sums[..., p].contiguous()
            for seen in all_seen:
                votes = self.votes(patches, seen, first)
                agreement = torch.mul(votes, parent, out=_shaped(second, votes.shape)).sum(2)
                r = torch.softmax(agreement.mul_(self.scale), 1)
                _add_weighted(total, r, votes)
                if coefficients is not None:
                    coefficients[seen, :, p] = r
            sums[..., p] = total
        return self.poses_last(sums)

    def route_backward(self, parents: Tensor, coefficients: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients for children, parents and weight. Computes the votes again, slice by slice.

        With g the gradient of the sums:  ∂r = ⟨V, g⟩,  ∂s = r (∂r - Σ_m r ∂r) / √E,  ∂V = r g + ∂s U,  ∂U = Σ_i ∂s V.
        """
        places, grad = self.places_last(parents), self.places_last(grad)
        grad_places, grad_children = torch.zeros_like(places), torch.zeros_like(self.children)
        grad_weight = torch.zeros_like(self.weight)
        images, all_seen, (first, second) = self.slices()
        for some in images:
            p = slice(some.start * self.h * self.w, some.stop * self.h * self.w)
            patches, parent, g = self.patches(some), places[..., p].contiguous(), grad[..., p].contiguous()
            grad_patches, grad_parent = torch.empty_like(patches), torch.zeros_like(parent)
            for seen in all_seen:
                votes = self.votes(patches, seen, first)
                work = _shaped(second, votes.shape)
                r = coefficients[seen, :, p]
                r_grad_r = torch.mul(votes, g, out=work).sum(2).mul_(r)
                grad_s = r_grad_r.sub_(r * r_grad_r.sum(1, keepdim=True)).mul_(self.scale)
                _add_weighted(grad_parent, grad_s, votes)
                grad_votes = torch.mul(r.unsqueeze(2), g, out=work).addcmul_(grad_s.unsqueeze(2), parent)
                grad_votes = grad_votes.view(len(r), self.num_parents * self.d, -1)
                grad_weight[seen].baddbmm_(grad_votes, patches[seen].transpose(1, 2))
                torch.bmm(self.weight[seen].transpose(1, 2), grad_votes, out=grad_patches[seen])
            grad_places[..., p] = grad_parent
            self.add_patches(grad_children, grad_patches, some)
        shape = (self.k, self.l, self.num_children, self.num_parents, self.d, self.x)
        return (
            grad_children.permute(3, 0, 4, 5, 2, 1).flatten(4, 5),
            self.poses_last(grad_places),
            grad_weight.view(shape).permute(0, 1, 2, 5, 3, 4),
        )


def _shaped(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The front of a flat buffer in this shape."""
    return buffer[: torch.Size(shape).numel()].view(shape)


def _add_weighted(total: Tensor, factors: Tensor, votes: Tensor) -> None:
    """total (M, E, p) += Σ_i factors (i, M, p) · votes (i, M, E, p). May overwrite the votes."""
    if len(votes) == 1:  # one pass over memory instead of two
        total.addcmul_(factors[0].unsqueeze(1), votes[0])
    else:
        total += votes.mul_(factors.unsqueeze(2)).sum(0)


class _RoutedPass(torch.autograd.Function):
    """`routed_pass` with gradients by hand: saves the coefficients (1/E of the votes) and no vote."""

    @staticmethod
    def forward(ctx: Any, children: Tensor, parents: Tensor, weight: Tensor, stride: int) -> Tensor:
        layout = _Layout(children, weight, stride)
        coefficients = children.new_empty(len(layout.weight), layout.num_parents, layout.batch * layout.h * layout.w)
        ctx.save_for_backward(children, parents, weight, coefficients)
        ctx.stride = stride
        return layout.route(parents, coefficients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        children, parents, weight, coefficients = ctx.saved_tensors
        return *_Layout(children, weight, ctx.stride).route_backward(parents, coefficients, grad), None


class Capsules(NamedTuple):
    """The capsules of one layer: poses (B, N, H, W, D), and activations (B, N, H, W) where the routing has them."""

    poses: Tensor
    activations: Tensor | None = None


class VoteMap(NamedTuple):
    """What a layer's children vote for its parents: V = P W, in the forms that a routing can afford.

    `weight` (k, l, N, x, M, d), `stride` of the kernel. Results are as long as the parents' grid, poses last.
    """

    weight: Tensor
    stride: int

    def uniform(self, children: Tensor) -> Tensor:
        """Σ_i V / M (B, M, h, w, E): see `uniform_pass`."""
        return uniform_pass(children, self.weight, self.stride)

    def routed(self, children: Tensor, parents: Tensor) -> Tensor:
        """Σ_i r V (B, M, h, w, E): see `routed_pass`."""
        return routed_pass(children, parents, self.weight, self.stride)

    def explicit(self, children: Tensor) -> Tensor:
        """All votes (B, h, w, k, l, N, M, E), which is large: E times the coefficients."""
        k, l, _, x, _, _ = self.weight.shape  # noqa: E741
        windows = children.unfold(2, k, self.stride).unfold(3, l, self.stride).unflatten(4, (-1, x))  # B N h w a x k l
        return torch.einsum("bnhwaxkl,klnxmd->bhwklnmad", windows, self.weight).flatten(7)


class InvertedAttention(nn.Module):
    """Inverted dot-product attention: the parents compete for each child (paper, section 3 and algorithm 1).

    A routing of one layer of `num_capsules` parents of `pose_size` numbers. `dropout` is the rate at which numbers of
    the summed votes are dropped, before the LayerNorm, whose weights all parents share.
    """

    def __init__(self, num_capsules: int, pose_size: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(pose_size)

    def forward(self, votes: VoteMap, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents after one more iteration; `previous` is None in the first, which spreads evenly."""
        sums = votes.uniform(children.poses) if previous is None else votes.routed(children.poses, previous.poses)
        return Capsules(self.norm(self.dropout(sums)))
