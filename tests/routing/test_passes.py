from itertools import product
from pathlib import Path

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routed_layers import SHAPES, make_layer
from torch.autograd import gradcheck
from torch.nn.functional import layer_norm

from capsule_sweeps.routing import kernels
from capsule_sweeps.routing import passes as routing
from capsule_sweeps.routing.attention import Attention
from capsule_sweeps.routing.base import Capsules, LayerShape, Squash
from capsule_sweeps.routing.inverted_attention import InvertedAttention
from capsule_sweeps.routing.passes import routed_pass, uniform_pass
from capsule_sweeps.routing.uniform import Uniform
from capsule_sweeps.routing.votes import FastVotes, RecordingVotes

GOLDEN = {path.stem: path for path in sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))}
LAYERS = [name for name in GOLDEN if name.startswith(("fc_", "conv_"))]

ODD_SHAPES = {
    "1x1": (2, 3, 2, 3, 2, (1, 1), 1, 2, 2, 2),
    "1x1 stride 2": (1, 2, 3, 4, 5, (1, 1), 2, 2, 2, 2),
    "2x2 over a grid it does not divide": (2, 2, 3, 5, 5, (2, 2), 2, 2, 2, 2),
    "3x3 stride 1": (1, 2, 2, 4, 5, (3, 3), 1, 2, 2, 2),
    "3x3 stride 2 over an even grid": (2, 1, 2, 6, 6, (3, 3), 2, 4, 4, 4),
    "5x5": (1, 1, 2, 6, 5, (5, 5), 1, 2, 2, 2),
    "kernel smaller than stride": (1, 2, 2, 7, 7, (2, 2), 3, 2, 2, 2),
    "whole grid, not square": (2, 2, 3, 2, 3, (2, 3), 1, 2, 2, 2),
    "36 numbers": (1, 1, 2, 3, 3, (2, 2), 1, 6, 6, 6),
    "64 numbers": (1, 1, 2, 2, 2, (1, 2), 1, 8, 8, 8),
    "vectors of different size": SHAPES["conv, vector"],
    "one parent": SHAPES["one parent"],
}


def make(shape, dtype=torch.float64, seed=0):
    """children, parents, weight, stride of a shape as in ODD_SHAPES."""
    votes, children, _ = make_layer(shape, dtype, seed)
    sums = uniform_pass(children.poses, votes.weight, votes.stride)
    generator = torch.Generator().manual_seed(seed + 1)
    parents = torch.randn(sums.shape, generator=generator, dtype=torch.float64).to(dtype)
    return children.poses, parents, votes.weight, votes.stride


def layer_shape(children, weight):
    k, l, num_children, x, num_parents, d = weight.shape  # noqa: E741
    return LayerShape((k, l), num_children, children.shape[4], num_parents, children.shape[4] // x * d)


def reference(children, parents, weight, stride):
    """The routed pass over explicit votes, for autograd."""
    votes = FastVotes(weight, stride).explicit(children)
    r = torch.einsum("bhwklnme,bmhwe->bhwklnm", votes, parents).mul(parents.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("bhwklnm,bhwklnme->bmhwe", r, votes)


def gradients(function, *inputs, cotangent):
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*inputs)
    return out.detach(), *torch.autograd.grad((out * cotangent).sum(), inputs)


def distance(ours, theirs):
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.fixture(params=[2**19, 40], ids=["one slice", "many slices"])
def slices(request, monkeypatch):
    monkeypatch.setattr(kernels, "VOTES_PER_SLICE", request.param)


@pytest.fixture
def only_compiled(monkeypatch, compiler):
    """Compiled kernels, and no falling back."""
    monkeypatch.setattr(kernels, "sliced_route", None)
    monkeypatch.setattr(kernels, "sliced_route_backward", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_golden_layers(name, dtype, slices):
    check_golden(name, dtype, fused=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fc_matrix", "conv_matrix_k3s2", "conv_matrix_k3s1_d36"])
def test_golden_layers_by_compiled_kernels(name, only_compiled):
    check_golden(name, torch.float32, fused=True)


def test_weights_too_large_to_be_written_out_are_not_compiled(monkeypatch):
    monkeypatch.setattr(kernels, "fused_route", None)
    check_golden("fc_vector", torch.float32, fused=True)  # 12x10


def check_golden(name, dtype, fused):
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN[name]).items()}
    matrix, stride = "matrix" in name, 2 if "s2" in name else 1
    weight, child, parent, cotangent = (golden[key].to(dtype) for key in ("weight", "child", "parent", "cotangent"))
    if matrix:
        weight = weight.transpose(-1, -2)
    if name.startswith("fc_"):
        weight = weight[None, None]
        child, parent, cotangent = (t[:, :, None, None] for t in (child, parent, cotangent))

    def norm(sums):
        return layer_norm(sums, sums.shape[-1:], golden["norm_weight"].to(dtype), golden["norm_bias"].to(dtype))

    first = gradients(lambda c, w: norm(uniform_pass(c, w, stride)), child, weight, cotangent=cotangent)
    inputs = child, parent, weight
    routed = gradients(lambda c, p, w: norm(routed_pass(c, p, w, stride, fused)), *inputs, cotangent=cotangent)
    ours = dict(zip(("first", "first_grad_child", "first_grad_weight"), first, strict=True))
    keys = ("routed", "routed_grad_child", "routed_grad_parent", "routed_grad_weight")
    ours |= dict(zip(keys, routed, strict=True))
    for key, value in ours.items():
        assert value.dtype == dtype
        if key.endswith("weight") and matrix:
            value = value.transpose(-1, -2)
        assert distance(value.reshape(golden[key].shape), golden[key]) <= 1e-5, key


@st.composite
def shapes(draw):
    k, l = draw(st.integers(1, 3)), draw(st.integers(1, 3))  # noqa: E741
    a, x, d = draw(st.sampled_from([(2, 2, 2), (3, 3, 3), (1, 2, 3), (1, 4, 2)]))
    small = st.integers(1, 3)
    height, width = k + draw(st.integers(0, 3)), l + draw(st.integers(0, 3))
    return draw(small), draw(small), draw(small), height, width, (k, l), draw(st.integers(1, 3)), a, x, d


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**16), votes_per_slice=st.integers(1, 300))
def test_naive_loop_agrees_on_random_shapes(shape, seed, votes_per_slice):
    children, parents, weight, stride = make(shape, seed=seed)
    torch.testing.assert_close(uniform_pass(children, weight, stride), naive.route(children, None, weight, stride))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "VOTES_PER_SLICE", votes_per_slice)
        ours = routed_pass(children, parents, weight, stride)
    torch.testing.assert_close(ours, naive.route(children, parents, weight, stride))


@pytest.mark.parametrize("shape", ODD_SHAPES.values(), ids=ODD_SHAPES)
def test_gradients_by_hand_are_the_numerical_ones(shape, slices):
    children, parents, weight, stride = make(shape)
    inputs = tuple(t.requires_grad_() for t in (children, parents, weight))
    assert gradcheck(lambda c, p, w: routed_pass(c, p, w, stride), inputs, fast_mode=children.numel() > 60)
    assert gradcheck(lambda c, w: uniform_pass(c, w, stride), (children, weight), fast_mode=True)


def check_close(function, exact_function, inputs, tolerance, dtype=torch.float32):
    """Result and gradients in `dtype` are close to those of float64 by autograd."""
    cotangent = torch.randn_like(exact_function(*inputs))
    exact = gradients(exact_function, *inputs, cotangent=cotangent)
    ours = gradients(function, *(t.to(dtype) for t in inputs), cotangent=cotangent.to(dtype))
    scale = max(t.norm() for t in exact)  # one parent: the gradient for it is 0
    for value, wanted in zip(ours, exact, strict=True):
        assert value.dtype == dtype
        assert (value - wanted).norm() <= tolerance * max(wanted.norm(), 1e-3 * scale)
    return ours


def check_bfloat16(inputs, stride, fused):
    """Within 2e-2 of float64, with weights as large as a layer has them at first: bfloat16 itself is off by 2e-3."""
    children, parents, weight = inputs
    k, l, num_children, x, num_parents, _ = weight.shape  # noqa: E741
    weight = weight * (num_parents / (k * l * num_children * x)) ** 0.5
    inputs = children, parents, weight

    def routed(c, p, w):
        return routed_pass(c, p, w, stride, fused)

    def first(c, w):
        return uniform_pass(c, w, stride)

    def exact(c, p, w):
        return reference(c, p, w, stride)

    check_close(routed, exact, inputs, 2e-2, torch.bfloat16)
    check_close(first, first, (children, weight), 2e-2, torch.bfloat16)
    with torch.autocast(children.device.type, torch.bfloat16):
        check_close(routed, exact, inputs, 2e-5)
        check_close(lambda c, w: first(c, w).float(), first, (children, weight), 2e-2)


@pytest.mark.parametrize("shape", ODD_SHAPES.values(), ids=ODD_SHAPES)
def test_float32_is_close_to_autograd_in_float64(shape):
    *inputs, stride = make(shape)
    check_close(lambda c, p, w: routed_pass(c, p, w, stride), lambda c, p, w: reference(c, p, w, stride), inputs, 2e-5)

    def evenly(children, weight):
        return FastVotes(weight, stride).explicit(children).sum((3, 4, 5)).permute(0, 3, 1, 2, 4) / weight.shape[4]

    check_close(lambda c, w: uniform_pass(c, w, stride), evenly, inputs[::2], 2e-5)


@pytest.mark.parametrize("shape", ODD_SHAPES.values(), ids=ODD_SHAPES)
def test_bfloat16_is_close_to_autograd_in_float64(shape):
    *inputs, stride = make(shape)
    check_bfloat16(inputs, stride, fused=False)


FUSED_SHAPES = ["2x2 over a grid it does not divide", "vectors of different size", "one parent", "3x3 stride 1"]
FUSED_SLOW = [name for name in ODD_SHAPES if name not in FUSED_SHAPES]


@pytest.mark.parametrize(
    ("name", "places"), [*((name, 4) for name in ODD_SHAPES), *((name, 64) for name in FUSED_SHAPES)]
)
def test_the_kernels_as_written_for_the_compiler_are_right(name, places, monkeypatch):
    # Without compiling, which takes seconds per shape; a compiler that miscompiles is caught by the tests below.
    for kernel in ("_AGREEMENT", "_WEIGHTED_SUM", "_GRAD_S", "_GRAD_PATCHES", "_GRAD_WEIGHT"):
        monkeypatch.setattr(kernels, kernel, getattr(kernels, kernel).function)
    monkeypatch.setattr(routing, "PLACES_PER_SLICE", places)
    monkeypatch.setattr(kernels, "sliced_route", None)
    children, parents, weight, stride = make(ODD_SHAPES[name])
    inputs = tuple(t.requires_grad_() for t in (children, parents, weight))
    assert gradcheck(lambda c, p, w: routed_pass(c, p, w, stride, True), inputs, fast_mode=children.numel() > 60)


@pytest.mark.parametrize(
    "shape",
    [pytest.param(ODD_SHAPES[name], id=name, marks=[pytest.mark.slow] * (name in FUSED_SLOW)) for name in ODD_SHAPES],
)
def test_compiled_kernels_are_close_to_autograd_in_float64(shape, only_compiled):
    *inputs, stride = make(shape)

    def routed(c, p, w):
        return routed_pass(c, p, w, stride, True)

    check_exact_twice(routed, inputs, stride)
    check_bfloat16(inputs, stride, fused=True)
    check_finite(inputs, stride, fused=True)


def check_exact_twice(routed, inputs, stride):
    """Close to autograd in float64, and the same bits when it is done again."""
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(check_close(routed, lambda c, p, w: reference(c, p, w, stride), inputs, 2e-5))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [True, False], ids=["compiled", "eager"])
@pytest.mark.parametrize("shape", ODD_SHAPES.values(), ids=ODD_SHAPES)
def test_passes_on_a_gpu_are_close_to_autograd_in_float64(shape, fused, monkeypatch):
    *inputs, stride = make(shape)
    inputs = [t.detach().cuda() for t in inputs]
    if fused:
        if kernels.gpu_kernels(inputs[0].float(), inputs[2]) is None:
            pytest.skip("its poses are too large for registers")
        monkeypatch.setattr(kernels, "sliced_route", None)
        monkeypatch.setattr(kernels, "sliced_route_backward", None)
    check_exact_twice(lambda c, p, w: routed_pass(c, p, w, stride, fused), inputs, stride)
    check_bfloat16(inputs, stride, fused)
    check_finite(inputs, stride, fused)


def test_the_votes_are_never_all_in_memory(monkeypatch):
    children, parents, weight, stride = make((2, 4, 4, 6, 6, (3, 3), 1, 4, 4, 4))
    monkeypatch.setattr(kernels, "VOTES_PER_SLICE", 2000)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    inputs = [t.requires_grad_() for t in (children, parents, weight)]
    with Watch():
        routed_pass(*inputs, stride).sum().backward()
    assert max(largest) <= FastVotes(weight, stride).explicit(children).numel() / 8


def test_autocast_keeps_the_sums_in_float32():
    *inputs, stride = make((2, 3, 4, 5, 5, (3, 3), 1, 4, 4, 4), torch.float32)
    cotangent = torch.randn_like(inputs[1])
    plain = gradients(lambda c, p, w: routed_pass(c, p, w, stride), *inputs, cotangent=cotangent)
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradients(lambda c, p, w: routed_pass(c, p, w, stride), *inputs, cotangent=cotangent)
        first = uniform_pass(inputs[0], inputs[2], stride)
    for ours, wanted in zip(cast, plain, strict=True):
        assert torch.equal(ours, wanted)
    assert distance(first, uniform_pass(inputs[0], inputs[2], stride)) <= 2e-2


def test_bfloat16_inputs_are_summed_in_float32():
    *inputs, stride = make((2, 3, 4, 5, 5, (3, 3), 1, 4, 4, 4), torch.float32)
    ours = routed_pass(*(t.bfloat16() for t in inputs), stride)
    assert ours.dtype == torch.bfloat16
    assert distance(ours, routed_pass(*(t.bfloat16().float() for t in inputs), stride)) <= 1e-2


def check_finite(inputs, stride, fused):
    """Two iterations and their gradients, with LayerNorm as in a layer: nothing overflows, in no type."""
    children, parents, weight = inputs
    for size, dtype in product((1e3, 1e4), (torch.float32, torch.bfloat16)):
        attention = InvertedAttention(layer_shape(children, weight), dropout=0.0).to(children.device, dtype)

        def iterate(c, p, w, attention=attention):
            votes = FastVotes(w, stride, fused)
            return attention(votes, Capsules(c), attention(votes, Capsules(c), Capsules(p))).poses

        large = [t.to(dtype) for t in (size * children, size * parents, 10 * weight)]
        assert all(t.isfinite().all() for t in gradients(iterate, *large, cotangent=parents.to(dtype)))
        with torch.autocast(children.device.type, torch.bfloat16):
            assert all(t.isfinite().all() for t in gradients(iterate, *large, cotangent=parents.to(dtype)))


@pytest.mark.parametrize("shape", ODD_SHAPES.values(), ids=ODD_SHAPES)
def test_large_poses_and_weights_stay_finite(shape):
    *inputs, stride = make(shape)
    check_finite(inputs, stride, fused=False)


def test_without_gradients_the_numbers_are_the_same():
    *inputs, stride = make(ODD_SHAPES["3x3 stride 1"], torch.float32)
    with torch.no_grad():
        silent = routed_pass(*inputs, stride)
    assert torch.equal(silent, routed_pass(*(t.requires_grad_() for t in inputs), stride))


def test_repeating_gives_the_same_bits():
    *inputs, stride = make((4, 8, 8, 9, 9, (3, 3), 2, 4, 4, 4), torch.float32)
    runs = [gradients(lambda c, p, w: routed_pass(c, p, w, stride), *inputs, cotangent=inputs[1]) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@settings(max_examples=15, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**16))
def test_order_of_children_does_not_matter(shape, seed):
    children, parents, weight, stride = make(shape, seed=seed)
    order = torch.randperm(children.shape[1], generator=torch.Generator().manual_seed(seed))
    for function in (lambda c, w: uniform_pass(c, w, stride), lambda c, w: routed_pass(c, parents, w, stride)):
        torch.testing.assert_close(function(children[:, order], weight[:, :, order]), function(children, weight))


@settings(max_examples=15, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**16))
def test_coefficients_of_a_child_sum_to_one(shape, seed):
    # With the same vote for every parent the parents share it out: together they have all of it, however they compete.
    children, parents, weight, stride = make(shape, seed=seed)
    weight = weight[..., :1, :].expand_as(weight)
    together = routed_pass(children, parents, weight, stride).sum(1)
    torch.testing.assert_close(together, FastVotes(weight, stride).explicit(children)[..., 0, :].sum((3, 4, 5)))


def test_parents_win_the_votes_that_agree_with_them():
    children, parents, weight, stride = make((1, 1, 2, 1, 1, (1, 1), 1, 2, 2, 2))
    votes = FastVotes(weight, stride).explicit(children)[0, 0, 0, 0, 0, 0]  # M, E
    parents[0, :, 0, 0] = torch.stack([100 * votes[0], -100 * votes[1]])
    torch.testing.assert_close(routed_pass(children, parents, weight, stride)[0, 0, 0, 0], votes[0])


def test_dropout_comes_between_sum_and_norm():
    children, parents, weight, stride = make((8, 3, 4, 5, 5, (3, 3), 1, 4, 4, 4), torch.float32)
    attention, votes = InvertedAttention(layer_shape(children, weight), dropout=0.5), FastVotes(weight, stride)
    for previous in (None, Capsules(parents)):
        sums = votes.uniform(children) if previous is None else votes.routed(children, parents)
        torch.manual_seed(3)
        dropped = torch.nn.functional.dropout(sums, 0.5)
        assert 0.4 < (dropped == 0).float().mean() < 0.6
        torch.manual_seed(3)
        assert torch.equal(attention(votes, Capsules(children), previous).poses, layer_norm(dropped, (16,)))
    attention.eval()
    assert torch.equal(attention(votes, Capsules(children), previous).poses, layer_norm(sums, (16,)))


# Variants, for ablations


def attended(children, parents, weight, stride):
    """The attended pass over explicit votes, for autograd."""
    votes = FastVotes(weight, stride).explicit(children)
    agreement = torch.einsum("bhwklnme,bmhwe->bhwklnm", votes, parents).mul(parents.shape[-1] ** -0.5)
    r = agreement.flatten(3, 5).softmax(3).view_as(agreement)
    return torch.einsum("bhwklnm,bhwklnme->bmhwe", r, votes)


def attend_fast(children, parents, weight, stride):
    """What routing=attention sums up, with its votes a few places at a time."""
    return FastVotes(weight, stride).by_place("attend", children, parents.movedim(1, 3))[0].movedim(3, 1)


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**16), votes_per_slice=st.integers(1, 300))
def test_naive_loop_agrees_when_children_compete(shape, seed, votes_per_slice):
    children, parents, weight, stride = make(shape, seed=seed)
    before, kernels.VOTES_PER_SLICE = kernels.VOTES_PER_SLICE, votes_per_slice
    try:
        ours = attend_fast(children, parents, weight, stride)
    finally:
        kernels.VOTES_PER_SLICE = before
    torch.testing.assert_close(ours, naive.attend(children, parents, weight, stride))
    torch.testing.assert_close(
        FastVotes(weight, stride).average(children), naive.attend(children, None, weight, stride)
    )


@pytest.mark.parametrize("name", ODD_SHAPES)
def test_gradients_when_children_compete(name, slices):
    *inputs, stride = make(ODD_SHAPES[name])
    cotangent = torch.randn(inputs[1].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = gradients(lambda c, p, w: attend_fast(c, p, w, stride), *inputs, cotangent=cotangent)
    for mine, wanted in zip(
        ours, gradients(lambda c, p, w: attended(c, p, w, stride), *inputs, cotangent=cotangent), strict=True
    ):
        torch.testing.assert_close(mine, wanted)


def test_gradcheck_when_children_compete():
    *inputs, stride = make((1, 2, 2, 3, 3, (2, 2), 1, 2, 2, 2))
    assert gradcheck(lambda c, p, w: attend_fast(c, p, w, stride), [t.requires_grad_() for t in inputs])


def test_the_step_is_one_operator_for_the_compiler(compiler):
    *inputs, stride = make((3, 2, 3, 4, 4, (2, 2), 1, 2, 2, 2), torch.float32)
    compiled = torch.compile(lambda c, p, w: attend_fast(c, p, w, stride), fullgraph=True)
    plain = gradients(lambda c, p, w: attend_fast(c, p, w, stride), *inputs, cotangent=inputs[1])
    for mine, wanted in zip(gradients(compiled, *inputs, cotangent=inputs[1]), plain, strict=True):
        assert distance(mine, wanted) <= 1e-5


@settings(max_examples=15, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**16))
def test_coefficients_of_a_parent_sum_to_one_when_children_compete(shape, seed):
    children, parents, weight, stride = make(shape, seed=seed)
    votes = RecordingVotes(weight, stride)
    attended, average = votes.by_place("attend", children, parents.movedim(1, 3))[0].movedim(3, 1), votes.average
    for make_sums in (lambda: attended, lambda: average(children)):
        sums = make_sums()
        assert sums.shape == parents.shape
        total = votes.coefficients.sum((3, 4, 5))
        torch.testing.assert_close(total, torch.ones_like(total))


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**16))
def test_recording_votes_do_what_the_fast_functions_do(shape, seed):
    children, parents, weight, stride = make(shape, seed=seed)
    fast, slow = FastVotes(weight, stride), RecordingVotes(weight, stride)
    assert slow.coefficients is None
    for name, arguments in (("uniform", [children]), ("average", [children])):
        torch.testing.assert_close(getattr(slow, name)(*arguments), getattr(fast, name)(*arguments))
    values = children, parents.movedim(1, 3)
    torch.testing.assert_close(slow.by_place("attend", *values), fast.by_place("attend", *values))
    torch.testing.assert_close(slow.routed(children, parents), fast.routed(children, parents))
    torch.testing.assert_close(slow.coefficients, slow.agreement(children, parents).softmax(-1))


def test_squash_by_naive_loop_and_gradcheck():
    sums = torch.randn(2, 3, 1, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Squash(4)(sums), naive.squash(2 * sums))  # √E = 2
    assert (Squash(4)(1e6 * sums).norm(dim=-1) <= 1).all()
    zeros = torch.zeros(1, 4, requires_grad=True)
    Squash(4)(zeros).sum().backward()
    assert zeros.grad.isfinite().all()
    assert gradcheck(Squash(4), [sums.requires_grad_()])


@pytest.mark.parametrize("norm", ["layer", "squash", "none"])
@pytest.mark.parametrize("variant", [InvertedAttention, Attention, Uniform])
def test_variants_by_naive_loop(variant, norm):
    children, parents, weight, stride = make((2, 2, 3, 4, 4, (2, 2), 2, 2, 2, 2))
    routing, votes = variant(layer_shape(children, weight), dropout=0.0, norm=norm), FastVotes(weight, stride)
    route = naive.attend if variant is Attention else naive.route
    for previous in (None, *([] if variant is Uniform else [Capsules(parents)])):
        before = None if previous is None else previous.poses
        sums = route(children, before, weight, stride)
        wanted = {"layer": layer_norm(sums, (4,)), "squash": naive.squash(2 * sums), "none": sums}[norm]
        ours = routing.double()(votes, Capsules(children), previous)
        torch.testing.assert_close(ours.poses, wanted)


def test_an_unknown_norm_is_one_sentence():
    for variant in (InvertedAttention, Attention, Uniform):
        with pytest.raises(ValueError, match=r"routing\.norm=batch is unknown: it must be one of layer, squash, none"):
            variant(LayerShape((1, 1), 2, 4, 3, 4), dropout=0.0, norm="batch")
