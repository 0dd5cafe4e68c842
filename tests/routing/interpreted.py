"""Runs the routed pass of gpu.py in Triton's interpreter, on a CPU, and prints how far each result is from autograd's.

A process of its own, because Triton reads TRITON_INTERPRET when it is first imported.
"""

import json

import torch
from test_passes import ODD_SHAPES, distance, gradients, make, reference

from capsule_sweeps.routing import gpu


def distances(shape):
    children, parents, weight, stride = make(shape)
    grad = torch.randn(parents.shape, dtype=parents.dtype)
    wanted = gradients(lambda c, p, w: reference(c, p, w, stride), children, parents, weight, cotangent=grad)
    children, parents, weight, grad = (tensor.float() for tensor in (children, parents, weight, grad))
    coefficients = torch.zeros(parents[:, :, :, :, 0].numel() * weight[..., 0, 0, 0].numel() + 1)
    sums = gpu.route(children, parents, weight, coefficients, stride)
    silent = gpu.route(children, parents, weight, coefficients[:0], stride)
    ours = sums, *gpu.route_backward(children, parents, weight, coefficients, grad, stride)
    assert torch.equal(sums, silent) and coefficients[-1] == 0
    assert all(a.shape == b.shape and a.is_contiguous() for a, b in zip(ours, wanted, strict=True))
    return [distance(a, b) if b.any() else a.abs().max().item() for a, b in zip(ours, wanted, strict=True)]


if __name__ == "__main__":
    gpu.try_out(torch.device("cpu"))
    many = {"more parents than a warp has threads": (3, 2, 70, 3, 3, (2, 2), 1, 2, 2, 2)}
    many |= {"two parents in a thread": (2, 2, 40, 3, 3, (3, 3), 2, 4, 4, 4)}
    many |= {"many parts": (1, 24, 3, 4, 4, (4, 4), 1, 4, 4, 4)}
    print(json.dumps({name: distances(shape) for name, shape in {**ODD_SHAPES, **many}.items()}))
