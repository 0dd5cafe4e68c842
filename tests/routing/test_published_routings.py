"""Dynamic, EM and self-routing against numbers of code that was published with a paper: tests/golden/routings."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from capsule_sweeps.routing import em
from capsule_sweeps.routing.base import Capsules, LayerShape
from capsule_sweeps.routing.dynamic import Dynamic
from capsule_sweeps.routing.self_routing import SelfRouting
from capsule_sweeps.routing.votes import FastVotes, RecordingVotes

GOLDEN = Path(__file__).parents[1] / "golden" / "routings"
sys.path.insert(0, str(GOLDEN))
from formulas import LAYERS, B, C, D, M, N, S, positive, signed  # noqa: E402

NUMBERS = np.load(GOLDEN / "golden.npz")
KEYS = sorted({key.rpartition("/")[0] for key in NUMBERS if "/even_" in key or not key.startswith("em/")})


def given(array) -> Tensor:
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def as_children(values: Tensor, size: int, padding: int) -> Tensor:
    """(B, N·size, H, W) → (B, N, H, W, size) with zeros around the grid."""
    padded = torch.nn.functional.pad(values, (padding,) * 4)
    return padded.unflatten(1, (N, size)).movedim(2, 4)


def as_image(poses: Tensor) -> Tensor:
    """(B, M, h, w, E) → (B, M·E, h, w)."""
    return poses.movedim(4, 2).flatten(1, 2)


def routed(key: str, kind):
    """results by name, leaves by name, coefficients (B, p, i, M) of one of the published layers, made by ours."""
    routing_name, layer, how, *_ = key.split("/")
    side, k, stride, padding = LAYERS[layer]
    kkn = k * k * N
    size, parent_size = (S * S, S * S) if routing_name == "em" else (C, D)
    shape = LayerShape((k, k), N, size, M, parent_size)
    seeds = {"dynamic": (2, 1, 0.5, None), "em": (6, 3, 0.7, 7), "self": (11, 8, 0.5, 12)}[routing_name]
    x = given(signed((B, N * size, side, side), seeds[0]))
    a = None if seeds[3] is None else given(positive((B, N, side, side), seeds[3]))
    if routing_name == "em":
        w = given(signed((kkn, M, S, S), seeds[1], seeds[2]))
        weight = w.reshape(k, k, N, M, S, S).permute(0, 1, 2, 4, 3, 5)
        routing = em.EM(shape, 0.0, 1.0 * kkn / M, 0.95).double()
        routing.beta_u.data, routing.beta_a.data = (torch.tensor(signed((M,), s, f)) for s, f in ((4, 0.5), (5, 1.0)))
        leaves = {"W": w, "beta_u": routing.beta_u, "beta_a": routing.beta_a}
    else:
        w = given(signed((kkn, M * D, C), seeds[1], seeds[2]))
        weight = w.reshape(k, k, N, M, D, C).permute(0, 1, 2, 5, 3, 4)
        routing, leaves = Dynamic(shape, dropout=0.0), {"W": w}
    if routing_name == "self":
        poses = "no_poses" not in key
        if not poses:
            weight, shape = weight[..., :0], shape._replace(parent_size=0)
        routing, w2 = SelfRouting(shape, 0.0, norm="none", bias=True).double(), signed((kkn, M, C), 9)
        routing.weight.data = torch.tensor(w2).reshape(k, k, N, M, C).transpose(3, 4)
        b2 = torch.tensor(signed((1, 1, kkn, M), 10, 0.5)) * how.endswith("given")
        routing.bias.data = b2.reshape(k, k, N, M)
        leaves = {**({"W1": w} if poses else {}), "W2": routing.weight, "b2": routing.bias}
    children = Capsules(as_children(x, size, padding), None if a is None else as_children(a, 1, padding)[..., 0])
    votes, parents = kind(weight, stride), None
    for _ in range(1 if routing_name == "self" else int(how[1:])):
        parents = routing(votes, children, parents)
    results = {} if a is None else {"activations": parents.activations}
    leaves |= {"x": x} if a is None else {"x": x, "a": a}
    coefficients = votes.coefficients if parents.coefficients is None else parents.coefficients
    results |= {"poses": as_image(parents.poses)} if parents.poses.shape[-1] else {}
    return results, leaves, coefficients


@pytest.mark.parametrize("kind", [FastVotes, RecordingVotes])
@pytest.mark.parametrize("key", KEYS)
def test_results_coefficients_and_gradients_are_those_of_the_published_code(key, kind, monkeypatch) -> None:
    monkeypatch.setattr(em, "MIN_VARIANCE", 1e-12)  # as there
    results, leaves, coefficients = routed(key, kind)
    exact = 1e-10 if not key.startswith("em/conv_k1s1p0") else 1e-6  # variances get small there, and differences large
    for name, value in results.items():
        torch.testing.assert_close(value, torch.from_numpy(NUMBERS[f"{key}/{name}"]), rtol=exact, atol=exact)
    if f"{key}/coefficients" in NUMBERS and coefficients is not None:
        found, wanted = coefficients.flatten(3, 5).flatten(1, 2), torch.from_numpy(NUMBERS[f"{key}/coefficients"])
        torch.testing.assert_close(found, wanted, rtol=exact, atol=exact)
    total = sum(
        (value * torch.tensor(signed(tuple(value.shape), 50 + i))).sum() for i, value in enumerate(results.values())
    )
    for (name, _), grad in zip(leaves.items(), torch.autograd.grad(total, list(leaves.values())), strict=True):
        if name == "W2":
            grad = grad.transpose(3, 4)
        flat = grad.flatten()
        every = f"{key}/every31_grad_{name}"
        wanted = NUMBERS[every] if every in NUMBERS else NUMBERS[f"{key}/grad_{name}"].ravel()
        found = flat[::31] if every in NUMBERS else flat
        torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=10 * exact, atol=10 * exact)
