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

`uniform_pass` and `routed_pass` are the functions that cost time; neither stores all votes. A `Routing` does one step
for one layer, which it owns the parameters of; the schedule over layers and iterations is the business of `capsules`.
`ExplicitVotes` stands in for the fast functions to show what they do. Routings with more to them have their own files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capsule_sweeps import kernels

PLACES_PER_SLICE = 128  # of the compiled kernels on a CPU: children and parents of a slice stay in the cache
PLACES_PER_SLICE_GPU = 2**16  # not measured yet
LEAST_ACTIVATION = 1e-20  # children share from here on: gradients, as large as its reciprocal, still fit in float32


def uniform_pass(children: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Σ_i V[i,m] / M: the first iteration, in which every child spreads evenly over all parents.

    children (B, N, H, W, D), weight (k, l, N, x, M, d) → (B, M, h, w, E). With even coefficients the sum over the
    children is a convolution: pose rows go into the batch, pose columns into the channels, which stand last in memory
    (a third faster on a CPU). Where the kernel covers the grid it is one matrix product, in half the time.
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

    children (B, N, H, W, D), parents (B, M, h, w, E), weight (k, l, N, x, M, d) → (B, M, h, w, E) in the children's
    type. Computes in float32, or float64 if that comes in, under autocast too. Differentiable once. `fused`: by
    compiled kernels, where they pay and can be made.
    """
    fused = fused and weight.shape[3] * weight.shape[5] <= kernels.MAX_PRODUCTS
    # Given to the operator, because compiled models on disk know it only by its arguments.
    num_images = _fused_slice(parents) if fused else cache_slice(parents)
    return _pass(children, parents, weight, stride, num_images, fused, children_compete=False)


def attended_pass(children: Tensor, parents: Tensor, weight: Tensor, stride: int, fused: bool = False) -> Tensor:
    """`routed_pass` with the softmax over the children i that a parent sees, instead of over the parents m."""
    fused = fused and weight.shape[3] * weight.shape[5] <= kernels.MAX_PRODUCTS
    num_images = _fused_slice(parents) if fused else _column_slice(children, parents, weight)
    return _pass(children, parents, weight, stride, num_images, fused, children_compete=True)


def _pass(
    children: Tensor,
    parents: Tensor,
    weight: Tensor,
    stride: int,
    num_images: int,
    fused: bool,
    children_compete: bool,
) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(children.dtype, weight.dtype), torch.float32)
    inputs = children.to(dtype), parents.to(dtype), weight.to(dtype)
    sums: Tensor = _routed(*inputs, stride, num_images, fused, children_compete, torch.is_grad_enabled())[0]
    return sums.to(children.dtype)


def _fused_slice(parents: Tensor) -> int:
    """Images of a slice: a power of two, so that few shapes are ever compiled, whatever the size of the batch."""
    batch, _, h, w, _ = parents.shape
    places = PLACES_PER_SLICE if parents.device.type == "cpu" else PLACES_PER_SLICE_GPU
    most = max(1, places // (h * w))
    return int(min(1 << (most.bit_length() - 1), 1 << (batch - 1).bit_length()))


def cache_slice(parents: Tensor) -> int:
    """Images of a slice: as many as fit the cache with the votes of one child, all slices about equal."""
    batch = len(parents)
    most = min(batch, max(1, kernels.votes_per_slice(parents.device) // parents[0].numel()))
    return int(-(-batch // -(-batch // most)))


def _column_slice(children: Tensor, parents: Tensor, weight: Tensor) -> int:
    """Images of a slice: as many as fit the cache with one column of the votes of all children, but at least one."""
    column = weight[..., 0, 0, 0].numel() * parents[0].numel() // weight.shape[5]
    return int(min(len(parents), max(1, kernels.votes_per_slice(parents.device) // column)))


class Layout:
    """One layer's children and weight as the kernels read them: places p innermost, contiguous in memory.

    The batch is cut into `num_slices` of equal size, which the kernels see one at a time; it is filled up with zeros
    if need be, which give and take no gradient.
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
        """(B, …) with the batch filled up to whole slices."""
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
        return slice(number * self.num_images, (number + 1) * self.num_images)

    def patches(self, number: int, values: Tensor | None = None) -> Tensor:
        """The children, or values (N, x, a, B, H, W) of theirs, that the kernel sees at every place: (i, x, a, p)."""
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


# Operators, so that torch.compile takes a routed pass inside of a model for what it is, instead of unrolling its slices


@torch.library.custom_op("capsule_sweeps::routed", mutates_args=())
def _routed(
    children: Tensor,
    parents: Tensor,
    weight: Tensor,
    stride: int,
    num_images: int,
    fused: bool,
    children_compete: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Σ_i r V (B, M, h, w, E), and all r (slices, i, M, p) if the backward pass will want them: 1/E of the votes."""
    layout = Layout(children, weight, stride, num_images)
    places = layout.places_last(parents)
    sums = torch.empty_like(places)
    coefficients = _empty_coefficients(layout, children, keep)
    route = kernels.attend if children_compete else kernels.route
    for number, poses in enumerate(places):
        sums[number], r = route(layout.patches(number), layout.weight, poses, fused)
        if keep:
            coefficients[number] = r
    return layout.poses_last(sums), coefficients


@_routed.register_fake
def _(
    children: Tensor,
    parents: Tensor,
    weight: Tensor,
    stride: int,
    num_images: int,
    fused: bool,
    children_compete: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    coefficients = _empty_coefficients(Layout(children, weight, stride, num_images), children, keep)
    return parents.new_empty(parents.shape), coefficients


def _empty_coefficients(layout: Layout, children: Tensor, keep: bool) -> Tensor:
    places = layout.num_images * layout.h * layout.w
    return children.new_empty(layout.num_slices if keep else 0, layout.num_i, layout.num_parents, places)


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
    children_compete: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for children, parents and weight. Computes the votes again."""
    layout = Layout(children, weight, stride, num_images)
    places, grad = layout.places_last(parents), layout.places_last(grad)
    grad_places, grad_children = torch.empty_like(places), torch.zeros_like(layout.children)
    grad_weight = torch.zeros_like(layout.weight)
    route_backward = kernels.attend_backward if children_compete else kernels.route_backward
    for number, poses in enumerate(places):
        grad_patches, grad_some, grad_places[number] = route_backward(
            layout.patches(number), layout.weight, poses, coefficients[number], grad[number], fused
        )
        grad_weight += grad_some
        layout.add_patches(grad_children, grad_patches, number)
    shape = (layout.k, layout.l, layout.num_children, layout.num_parents, layout.d, layout.x)
    return (
        grad_children.permute(3, 0, 4, 5, 2, 1).flatten(4)[: layout.batch].contiguous(),
        layout.poses_last(grad_places),
        grad_weight.view(shape).permute(0, 1, 2, 5, 3, 4).contiguous(),
    )


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
    return *grads, None, None, None, None, None


_routed.register_autograd(_backward, setup_context=_keep_for_backward)


class Capsules(NamedTuple):
    """The capsules of one layer: poses (B, N, H, W, D), and activations (B, N, H, W) where the routing has them.

    `state` is what else the routing that made them wants to see again in its next step; nobody else reads it.
    `coefficients` (B, h, w, k, l, N, M) of the step that made them, for those who watch: a routing that computes them
    itself returns them; those of VoteMap's sums are known to ExplicitVotes.
    """

    poses: Tensor
    activations: Tensor | None = None
    state: Any = None
    coefficients: Tensor | None = None


class VoteMap(NamedTuple):
    """What a layer's children vote for its parents: V = P W, in the forms that a routing can afford.

    `weight` (k, l, N, x, M, d), `stride` of the kernel, `fused`: by compiled kernels. Results are as long as the
    parents' grid, poses last.
    """

    weight: Tensor
    stride: int
    fused: bool = False

    def uniform(self, children: Tensor) -> Tensor:
        """Σ_i V / M (B, M, h, w, E): see `uniform_pass`."""
        return uniform_pass(children, self.weight, self.stride)

    def average(self, children: Tensor) -> Tensor:
        """Σ_i V / (k·l·N) (B, M, h, w, E): the mean vote."""
        k, l, num_children, _, num_parents, _ = self.weight.shape  # noqa: E741
        return self.uniform(children) * (num_parents / (k * l * num_children))

    def routed(self, children: Tensor, parents: Tensor) -> Tensor:
        """Σ_i r V (B, M, h, w, E): see `routed_pass`."""
        return routed_pass(children, parents, self.weight, self.stride, self.fused)

    def attended(self, children: Tensor, parents: Tensor) -> Tensor:
        """Σ_i r V (B, M, h, w, E): see `attended_pass`."""
        return attended_pass(children, parents, self.weight, self.stride, self.fused)

    def windows(self, values: Tensor) -> Tensor:
        """What the kernel sees at each place of the parents: values (B, N, H, W, …) → (B, h, w, k, l, N, …)."""
        k, l = self.weight.shape[:2]  # noqa: E741
        windows = values.unfold(2, k, self.stride).unfold(3, l, self.stride)
        return windows.movedim((2, 3, -2, -1, 1), (1, 2, 3, 4, 5))

    def explicit(self, children: Tensor) -> Tensor:
        """All votes (B, h, w, k, l, N, M, E), which is large: E times the coefficients."""
        k, l, _, x, _, _ = self.weight.shape  # noqa: E741
        windows = children.unfold(2, k, self.stride).unfold(3, l, self.stride).unflatten(4, (-1, x))  # B N h w a x k l
        return torch.einsum("bnhwaxkl,klnxmd->bhwklnmad", windows, self.weight).flatten(7)


class ExplicitVotes:
    """What VoteMap does, from the votes themselves, an image at a time: slow, but it shows its coefficients.

    `coefficients` (B, h, w, k, l, N, M) are those of the last sum; None before one was asked for.
    """

    def __init__(self, votes: VoteMap) -> None:
        self.votes = votes
        self.coefficients: Tensor | None = None

    def uniform(self, children: Tensor) -> Tensor:
        return self._sum(children, lambda votes, _: torch.full_like(votes[..., 0], 1 / votes.shape[5]))

    def average(self, children: Tensor) -> Tensor:
        return self._sum(children, lambda votes, _: torch.full_like(votes[..., 0], 1 / votes[0, 0, ..., 0, 0].numel()))

    def routed(self, children: Tensor, parents: Tensor) -> Tensor:
        return self._sum(children, lambda votes, image: _agreement(votes, parents[image]).softmax(5))

    def attended(self, children: Tensor, parents: Tensor) -> Tensor:
        def coefficients(votes: Tensor, image: int) -> Tensor:
            agreement = _agreement(votes, parents[image])
            return agreement.flatten(2, 4).softmax(2).view_as(agreement)

        return self._sum(children, coefficients)

    def windows(self, values: Tensor) -> Tensor:
        return self.votes.windows(values)

    def explicit(self, children: Tensor) -> Tensor:
        return self.votes.explicit(children)

    def agreement(self, children: Tensor, parents: Tensor) -> Tensor:
        """⟨V, parents⟩ / √E (B, h, w, k, l, N, M)."""
        return torch.stack([_agreement(votes, parents[i]) for i, votes in enumerate(self._images(children))])

    def _images(self, children: Tensor) -> Iterator[Tensor]:
        """The votes (h, w, k, l, N, M, E) of one image after the other."""
        for image in children.split(1):
            yield self.votes.explicit(image)[0]

    def _sum(self, children: Tensor, coefficients: Callable[[Tensor, int], Tensor]) -> Tensor:
        sums, kept = [], []
        for image, votes in enumerate(self._images(children)):
            kept.append(coefficients(votes, image))
            sums.append(torch.einsum("hwklnm,hwklnme->mhwe", kept[-1], votes))
        self.coefficients = torch.stack(kept)
        return torch.stack(sums)


def _agreement(votes: Tensor, parents: Tensor) -> Tensor:
    """⟨V, parents⟩ / √E (h, w, k, l, N, M) of one image: votes (h, w, k, l, N, M, E), parents (M, h, w, E)."""
    return torch.einsum("hwklnme,mhwe->hwklnm", votes, parents) * parents.shape[-1] ** -0.5


def places_first(parents: Tensor) -> Tensor:
    """Parents' values (B, M, h, w, …) in the order of the votes: (B, h, w, 1, 1, 1, M, …)."""
    return parents.movedim(1, 3)[:, :, :, None, None, None]


def over_children(logits: Tensor) -> Tensor:
    """A softmax of (B, h, w, k, l, N, M) over the children (k, l, N) of a parent."""
    return logits.flatten(3, 5).softmax(3).view_as(logits)


def squash(sums: Tensor) -> Tensor:
    """s → s · |s| / (1 + |s|²): keeps the direction, bounds the length by 1 (Sabour et al. 2017, equation 1)."""
    squared = sums.square().sum(-1, keepdim=True)
    return sums * squared / ((1 + squared) * (squared + 1e-12).sqrt())


class Squash(nn.Module):
    """squash(√E s), in place of a LayerNorm.

    Initial weights suit children of length √E, as a LayerNorm makes them. Those that squash made are √E times shorter,
    and squash shrinks a short pose by its square: without the √E, poses and gradients of a deep stack vanish.
    """

    def __init__(self, pose_size: int) -> None:
        super().__init__()
        self.scale = pose_size**0.5

    def forward(self, sums: Tensor) -> Tensor:
        return squash(sums * self.scale)


NORMS: dict[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm, "squash": Squash, "none": nn.Identity}


def make_norm(name: str, pose_size: int) -> nn.Module:
    """What becomes of the summed votes, `routing.norm`. Raises ValueError for a name that there is not."""
    if name not in NORMS:
        raise ValueError(f"routing.norm={name} is unknown: it must be one of {', '.join(NORMS)}")
    return NORMS[name](pose_size)


class LayerShape(NamedTuple):
    """What a routing may want to know of its layer: kernel (k, l), children N of D numbers, parents M of E numbers."""

    kernel: tuple[int, int]
    num_children: int
    child_size: int
    num_parents: int
    parent_size: int


class Routing(nn.Module):
    """One step of routing for one layer, with the parameters that it needs; made for every layer of a stack.

    A subclass is made with `shape` (LayerShape), `dropout` (the rate at which numbers of the parents are dropped in
    training) and its own keys of `conf/routing/<name>.yaml`, but for `schedule` and `num_routing`, which are the
    stack's. It raises ValueError for what it cannot do.
    """

    uses_activations = False  # True: primary capsules have activations, too
    has_class_logits = False  # True: `class_logits` takes the place of the model's head
    vote_scale = 1.0  # a layer's weights are multiplied by it; they begin as they should for Σ_i V / M and a LayerNorm

    def forward(self, votes: VoteMap, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents after one more iteration; `previous` are those that the last one made, None in the first."""
        raise NotImplementedError

    def class_logits(self, classes: Capsules) -> Tensor:
        """(B, classes) of the last layer's parents; their sigmoids are the activations of the classes."""
        raise NotImplementedError


class InvertedAttention(Routing):
    """Inverted dot-product attention: the parents compete for each child (paper, section 3 and algorithm 1).

    `dropout` is that of the summed votes, before the norm: a LayerNorm, whose weights all parents share, or see NORMS.
    """

    def __init__(self, shape: LayerShape, dropout: float, norm: str = "layer") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm, shape.parent_size)

    def forward(self, votes: VoteMap, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents after one more iteration; `previous` is None in the first, which spreads evenly."""
        sums = votes.uniform(children.poses) if previous is None else votes.routed(children.poses, previous.poses)
        return Capsules(self.norm(self.dropout(sums)))


class Uniform(Routing):
    """No routing: every child spreads evenly over all parents, in every iteration. Arguments as InvertedAttention's."""

    def __init__(self, shape: LayerShape, dropout: float, norm: str = "layer") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm, shape.parent_size)

    def forward(self, votes: VoteMap, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents; after the first iteration there is nothing new to learn from the children."""
        return Capsules(self.norm(self.dropout(votes.uniform(children.poses)))) if previous is None else previous


class Attention(Routing):
    """The usual direction of attention: the children compete for each parent. Arguments as InvertedAttention's.

    The coefficients of a parent are a softmax over all children under its kernel, so they sum to 1.
    """

    def __init__(self, shape: LayerShape, dropout: float, norm: str = "layer") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = make_norm(norm, shape.parent_size)

    def forward(self, votes: VoteMap, children: Capsules, previous: Capsules | None) -> Capsules:
        """The parents after one more iteration; in the first all children have the same weight."""
        sums = votes.average(children.poses) if previous is None else votes.attended(children.poses, previous.poses)
        return Capsules(self.norm(self.dropout(sums)))
