"""The votes of a layer's children, and the sums of them that routings need. Letters: see passes.py.

`Votes` is the interface for routings. FastVotes computes the sums without ever storing all votes; RecordingVotes
computes them in plain torch and keeps the coefficients, for recording, exporting and describing.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from capsule_sweeps.routing.by_place import by_place, run_step
from capsule_sweeps.routing.passes import routed_pass, uniform_pass


class Votes:
    """The votes V = P W of the children of one layer.

    `weight` (k, l, N, x, M, d), `stride` of the kernel. children (B, N, H, W, D) and parents (B, M, h, w, E) are poses;
    sums have the shape of the parents.
    """

    records = False  # True: a routing that computes coefficients itself returns them in its Capsules
    coefficients: Tensor | None = None  # (B, h, w, k, l, N, M) of the last sum, if they are recorded

    def __init__(self, weight: Tensor, stride: int) -> None:
        self.weight = weight
        self.stride = stride

    def uniform(self, children: Tensor) -> Tensor:
        """Σ_i V / M (B, M, h, w, E): see `uniform_pass`."""
        return uniform_pass(children, self.weight, self.stride)

    def average(self, children: Tensor) -> Tensor:
        """Σ_i V / (k·l·N) (B, M, h, w, E): the mean vote."""
        k, l, num_children, _, num_parents, _ = self.weight.shape  # noqa: E741
        return self.uniform(children) * (num_parents / (k * l * num_children))

    def routed(self, children: Tensor, parents: Tensor) -> Tensor:
        """Σ_i r V (B, M, h, w, E) with r = softmax over m of ⟨V, parents⟩ / √E: see `routed_pass`."""
        raise NotImplementedError

    def by_place(self, name: str, children: Tensor, *values: Tensor) -> list[Tensor]:
        """The results of the step `name` (see `place_step`) for all votes, without its coefficients.

        values (B, h, w, …) → results (B, h, w, …), at least in float32, also under autocast.
        """
        with torch.autocast(children.device.type, enabled=False):
            dtype = torch.promote_types(torch.promote_types(children.dtype, self.weight.dtype), torch.float32)
            patches = self.windows(children.to(dtype).unflatten(4, (-1, self.weight.shape[3]))).flatten(3, 5)
            weight, grid = self.weight.to(dtype).flatten(0, 2), patches.shape[1:3]
            flat = [value.to(dtype).flatten(0, 2) for value in values]
            results = self._at_places(name, patches.flatten(0, 2), weight, flat, grid)
            return [result.unflatten(0, (-1, *grid)) for result in results]

    def _at_places(
        self, name: str, patches: Tensor, weight: Tensor, values: list[Tensor], grid: Sequence[int]
    ) -> Sequence[Tensor]:
        """`by_place` for patches (p, i, a, x), weight (i, x, M, d) and values (p, …), with p = (B, *grid)."""
        raise NotImplementedError

    def windows(self, values: Tensor) -> Tensor:
        """The children's values under the kernel at each place: (B, N, H, W, …) → (B, h, w, k, l, N, …)."""
        k, l = self.weight.shape[:2]  # noqa: E741
        windows = values.unfold(2, k, self.stride).unfold(3, l, self.stride)
        return windows.movedim((2, 3, -2, -1, 1), (1, 2, 3, 4, 5))

    def explicit(self, children: Tensor) -> Tensor:
        """All votes (B, h, w, k, l, N, M, E). They need E times the memory of the coefficients."""
        k, l, _, x, _, _ = self.weight.shape  # noqa: E741
        windows = children.unfold(2, k, self.stride).unfold(3, l, self.stride).unflatten(4, (-1, x))  # B N h w a x k l
        return torch.einsum("bnhwaxkl,klnxmd->bhwklnmad", windows, self.weight).flatten(7)


class FastVotes(Votes):
    """Votes that are never stored all at once. `fused`: routed passes use compiled kernels where these are faster."""

    def __init__(self, weight: Tensor, stride: int, fused: bool = False) -> None:
        super().__init__(weight, stride)
        self.fused = fused

    def routed(self, children: Tensor, parents: Tensor) -> Tensor:
        return routed_pass(children, parents, self.weight, self.stride, self.fused)

    def _at_places(
        self, name: str, patches: Tensor, weight: Tensor, values: list[Tensor], grid: Sequence[int]
    ) -> Sequence[Tensor]:
        return by_place(name, patches, weight, values)


class RecordingVotes(Votes):
    """Votes in plain torch, for batches of any size. `coefficients` are those of the last sum."""

    records = True

    def uniform(self, children: Tensor) -> Tensor:
        return self._even(super().uniform(children), self.weight.shape[4])

    def average(self, children: Tensor) -> Tensor:
        return self._even(super().average(children), self.weight[..., 0, 0, 0].numel())

    def routed(self, children: Tensor, parents: Tensor) -> Tensor:
        at_places, found, total = parents.movedim(1, 3), [], torch.zeros(())
        for votes in self._by_kernel_place(children):
            r = _agreement(votes, at_places).softmax(4)
            total = total.to(votes) + torch.einsum("bhwnm,bhwnme->bhwme", r, votes)
            found.append(r)
        self.coefficients = self._over_kernel(found)
        return total.movedim(3, 1)

    def _at_places(
        self, name: str, patches: Tensor, weight: Tensor, values: list[Tensor], grid: Sequence[int]
    ) -> Sequence[Tensor]:
        *results, r = run_step(name, patches, weight, values)
        self.coefficients = r.unflatten(1, self.weight.shape[:3]).unflatten(0, (-1, *grid))
        return results

    def agreement(self, children: Tensor, parents: Tensor) -> Tensor:
        """⟨V, parents⟩ / √E (B, h, w, k, l, N, M)."""
        at_places = parents.movedim(1, 3)
        return self._over_kernel([_agreement(votes, at_places) for votes in self._by_kernel_place(children)])

    def _by_kernel_place(self, children: Tensor) -> Iterator[Tensor]:
        """Votes (B, h, w, N, M, E) of the children at each place (k, l) under the kernel, one place after the other."""
        windows = self.windows(children.unflatten(4, (-1, self.weight.shape[3])))  # B h w k l N a x
        for k, row in enumerate(self.weight):
            for l, weight in enumerate(row):  # noqa: E741
                yield torch.einsum("bhwnax,nxmd->bhwnmad", windows[:, :, :, k, l], weight).flatten(5)

    def _over_kernel(self, values: list[Tensor]) -> Tensor:
        """(B, h, w, N, M) of each place under the kernel → (B, h, w, k, l, N, M)."""
        return torch.stack(values, 3).unflatten(3, self.weight.shape[:2])

    def _even(self, sums: Tensor, number: int) -> Tensor:
        k, l, num_children, _, num_parents, _ = self.weight.shape  # noqa: E741
        batch, _, h, w, _ = sums.shape
        self.coefficients = sums.new_full((batch, h, w, k, l, num_children, num_parents), 1 / number)
        return sums


MakeVotes = Callable[[Tensor, int], Votes]  # weight, stride → the votes of one layer


def _agreement(votes: Tensor, parents: Tensor) -> Tensor:
    """⟨V, parents⟩ / √E (B, h, w, N, M): votes (B, h, w, N, M, E), parents (B, h, w, M, E)."""
    return (votes * parents.unsqueeze(3)).sum(-1) * max(1, parents.shape[-1]) ** -0.5


def places_first(parents: Tensor) -> Tensor:
    """Values of the parents (B, M, h, w, …) → in the order of the votes (B, h, w, 1, 1, 1, M, …)."""
    return parents.movedim(1, 3)[:, :, :, None, None, None]


def over_children(logits: Tensor) -> Tensor:
    """Softmax of (B, h, w, k, l, N, M) over the children (k, l, N) of a parent."""
    return logits.flatten(3, 5).softmax(3).view_as(logits)
