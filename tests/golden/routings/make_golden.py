# ruff: noqa
"""Runs SR-CapsNet's layers on the numbers of formulas.py: python make_golden.py CHECKOUT → golden.npz (needs torch).

CHECKOUT: https://github.com/coder3000/SR-CapsNet at 7622d38aab6305fec9f81e97a830a1a8b6ccf63e.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
import modules  # noqa: E402  (SR-CapsNet's)

from formulas import B, C, D, LAYERS, M, N, S, positive, signed  # noqa: E402

torch.set_default_dtype(torch.float64)
out = {}


def tensor(array):
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def record_softmax(call):
    """What call() returns, and the results of every torch.softmax in it: the coefficients of routing."""
    seen, plain = [], torch.softmax

    def softmax(*args, **kwargs):
        seen.append(plain(*args, **kwargs))
        return seen[-1]

    torch.softmax = softmax
    try:
        return call(), seen
    finally:
        torch.softmax = plain


def keep(key, results, leaves, coefficients):
    """results and leaves: name → tensor. Gradients of L = Σ_results Σ result · g, g = signed(shape, 50, 51, …)."""
    weights = [torch.tensor(signed(tuple(value.shape), 50 + i)) for i, value in enumerate(results.values())]
    total = sum((value * weight).sum() for value, weight in zip(results.values(), weights))
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    for name, value in results.items():
        out[f"{key}/{name}"] = value.detach().numpy()
    for name, grad in zip(leaves, grads):
        if grad is not None:
            out[f"{key}/grad_{name}"] = grad.numpy()
    if coefficients is not None and ("/t3" in key or "/poses_" in key):
        out[f"{key}/coefficients"] = coefficients.detach().numpy()


def with_even_start(layer, call):
    """EM whose first responsibilities are 1/M, as the paper has them, instead of 1."""
    plain = torch.Tensor.new_ones
    torch.Tensor.new_ones = lambda self, *sizes, **kwargs: plain(self, *sizes, **kwargs) / layer.B
    try:
        return call()
    finally:
        torch.Tensor.new_ones = plain


for name, (side, k, stride, padding) in LAYERS.items():
    kkn = k * k * N
    for iterations in (1, 2, 3):
        layer = modules.DynamicRouting2d(N, M, C, D, kernel_size=k, stride=stride, padding=padding, iters=iterations)
        layer.W = torch.nn.Parameter(tensor(signed((kkn, M * D, C), 1, 0.5)))
        poses = tensor(signed((B, N * C, side, side), 2))
        result, seen = record_softmax(lambda: layer(poses))
        keep(f"dynamic/{name}/t{iterations}", {"poses": result}, {"W": layer.W, "x": poses}, seen[-1].squeeze(-1))

        for start, final_lambda in (("ones", 0.01), ("even", 1.0))[name == "conv_k1s1p0" :]:
            layer = modules.EmRouting2d(
                N, M, S * S, kernel_size=k, stride=stride, padding=padding, iters=iterations, final_lambda=final_lambda
            )
            layer.W = torch.nn.Parameter(tensor(signed((kkn, M, S, S), 3, 0.7)))
            layer.beta_u = torch.nn.Parameter(tensor(signed((1, 1, M, 1), 4, 0.5)))
            layer.beta_a = torch.nn.Parameter(tensor(signed((1, 1, M), 5)))
            poses = tensor(signed((B, N * S * S, side, side), 6))
            activations = tensor(positive((B, N, side, side), 7))
            call = lambda: layer(activations, poses)  # noqa: E731
            (a, mu), seen = record_softmax(call if start == "ones" else lambda: with_even_start(layer, call))
            key = f"em/{name}/t{iterations}/{start}_lambda{final_lambda}"
            leaves = {"W": layer.W, "beta_u": layer.beta_u, "beta_a": layer.beta_a, "x": poses, "a": activations}
            keep(key, {"activations": a, "poses": mu}, leaves, seen[-1].squeeze(-1) if seen else None)

    for bias in ("zero", "given"):
        for with_poses in (True, False) if (name, bias) == ("class_k3", "given") else (True,):
            layer = modules.SelfRouting2d(
                N, M, C, D, kernel_size=k, stride=stride, padding=padding, pose_out=with_poses
            )
            if with_poses:
                layer.W1 = torch.nn.Parameter(tensor(signed((kkn, M * D, C), 8, 0.5)))
            layer.W2 = torch.nn.Parameter(tensor(signed((kkn, M, C), 9)))
            layer.b2 = torch.nn.Parameter(tensor(signed((1, 1, kkn, M), 10, 0.5 if bias == "given" else 0.0)))
            poses = tensor(signed((B, N * C, side, side), 11))
            activations = tensor(positive((B, N, side, side), 12))
            (a, mu), seen = record_softmax(lambda: layer(activations, poses))
            leaves = {"W1": layer.W1} if with_poses else {}
            leaves |= {"W2": layer.W2, "b2": layer.b2, "x": poses, "a": activations}
            results = {"activations": a, "poses": mu} if with_poses else {"activations": a}
            key = f"self/{name}/{'poses' if with_poses else 'no_poses'}_bias_{bias}"
            keep(key, results, leaves, seen[-1])

# gradients would fill the file: of those with over 120 numbers every 31st stays
for key in [key for key in out if "/grad_" in key and out[key].size > 120]:
    out[key.replace("/grad_", "/every31_grad_")] = out.pop(key).ravel()[::31].copy()
np.savez_compressed(Path(__file__).parent / "golden.npz", **out)
print(len(out), "arrays", sum(v.size for v in out.values()), "numbers")
