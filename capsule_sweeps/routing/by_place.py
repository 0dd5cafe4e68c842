"""Steps of other routings than the paper's: plain torch over the votes of a few places at a time, recomputed in the
backward pass. Letters as in `passes`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from capsule_sweeps.routing import kernels

Step = Callable[..., tuple[Tensor, ...]]
STEPS: dict[str, Step] = {}


def place_step(function: Step) -> Step:
    """Registers a step for `Votes.by_place` under its name.

    The step takes votes (p, i, M, E) and the values (p, …) of some places, and returns results (p, …), the last of
    which are the coefficients (p, i, M). Places must not depend on each other.
    """
    STEPS[function.__name__] = function
    return function


def run_step(name: str, patches: Tensor, weight: Tensor, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All results of the step for patches (p, i, a, x), weight (i, x, M, d) and values (p, …)."""
    return STEPS[name](torch.einsum("piax,ixmd->pimad", patches, weight).flatten(3), *values)


@torch.library.custom_op("capsule_sweeps::by_place", mutates_args=())
def by_place(name: str, patches: Tensor, weight: Tensor, values: list[Tensor]) -> list[Tensor]:
    """Results of a step for patches (p, i, a, x), weight (i, x, M, d) and values (p, …): see `place_step`."""
    parts = [_results(name, weight, *some) for some in _some_places(patches, weight, values)]
    return [torch.cat(part) for part in zip(*parts, strict=True)]


@by_place.register_fake
def _(name: str, patches: Tensor, weight: Tensor, values: list[Tensor]) -> list[Tensor]:
    return [result.new_empty(result.shape) for result in _results(name, weight, patches, *values)]


@torch.library.custom_op("capsule_sweeps::by_place_backward", mutates_args=())
def _by_place_backward(
    name: str, patches: Tensor, weight: Tensor, values: list[Tensor], grads: list[Tensor]
) -> list[Tensor]:
    """Gradients for patches, weight and values. Recomputes the votes."""
    parts, grad_weight = [], torch.zeros_like(weight)
    for some in _some_places(patches, weight, [*values, *grads]):
        inputs, grad = some[: 1 + len(values)], some[1 + len(values) :]
        backward: Any = torch.func.vjp(partial(_results, name), weight, *inputs)[1]  # autograd.grad does not work here
        grad_some, *own = backward(tuple(grad))
        grad_weight += grad_some
        parts.append(own)
    grad_patches, *grad_values = (torch.cat(part) for part in zip(*parts, strict=True))
    return [grad_patches, grad_weight, *grad_values]


@_by_place_backward.register_fake
def _(name: str, patches: Tensor, weight: Tensor, values: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (patches, weight, *values)]


def _results(name: str, weight: Tensor, patches: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The results of the step without its coefficients."""
    return run_step(name, patches, weight, values)[:-1]


def _some_places(patches: Tensor, weight: Tensor, values: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Patches and values cut into slices of places whose votes fit the cache, with at least one place each."""
    num_i, _, num_parents, d = weight.shape
    votes_of_a_place = num_i * num_parents * d * patches.shape[2]
    places = max(1, kernels.votes_per_slice(patches.device) // votes_of_a_place)
    return list(zip(patches.split(places), *(value.split(places) for value in values), strict=True))


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.name, patches, weight, values = inputs
    ctx.save_for_backward(patches, weight, *values)


def _backward_by_place(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    patches, weight, *values = ctx.saved_tensors
    found = _by_place_backward(ctx.name, patches, weight, values, [grad.contiguous() for grad in grads])
    return None, found[0], found[1], found[2:]


by_place.register_autograd(_backward_by_place, setup_context=_keep_inputs)
