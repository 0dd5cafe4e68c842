"""Dynamic routing against Procedure 1 of its paper, and what must hold for any votes."""

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routed_layers import DIGITS, SHAPES, check_gradients, make_layer, shapes

from capsule_sweeps import load_runs
from capsule_sweeps.networks.layers import CapsuleLayer
from capsule_sweeps.routing.base import Capsules
from capsule_sweeps.routing.dynamic import Dynamic
from capsule_sweeps.routing.votes import RecordingVotes


@pytest.mark.parametrize("num_routing", [1, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_procedure_1(shape, num_routing) -> None:
    layer = make_layer(shape, size=0.3)
    parents = layer.step(Dynamic(layer.shape, dropout=0.0), num_routing)
    for image, row, column, votes, _, _ in layer.places():
        wanted, _ = naive.dynamic(votes, num_routing)
        torch.testing.assert_close(parents.poses[image, :, row, column], torch.stack(wanted))


@pytest.mark.parametrize("num_routing", [1, 2, 4])
def test_the_coefficients_are_those_of_the_paper(num_routing) -> None:
    layer = make_layer(SHAPES["conv, matrix"], size=0.3)
    votes = RecordingVotes(layer.votes.weight, layer.votes.stride)
    layer._replace(votes=votes).step(Dynamic(layer.shape, dropout=0.0), num_routing)
    torch.testing.assert_close(votes.coefficients.sum(-1), torch.ones_like(votes.coefficients[..., 0]))
    for image, row, column, own, _, _ in layer.places():
        _, wanted = naive.dynamic(own, num_routing)
        found = votes.coefficients[image, row, column].flatten(0, 2)
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_the_logit_of_a_class_is_that_of_its_length() -> None:
    layer = make_layer(SHAPES["fc, matrix"])
    routing = Dynamic(layer.shape, dropout=0.0)
    for num_routing in (1, 3):
        classes = layer.step(routing, num_routing)
        lengths = classes.poses.norm(dim=-1).flatten(1)
        torch.testing.assert_close(routing.class_logits(classes).sigmoid().double(), lengths, atol=1e-6, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**16), num_routing=st.integers(1, 4))
def test_order_of_children_does_not_matter(shape, seed, num_routing) -> None:
    layer = make_layer(shape, seed=seed)
    routing = Dynamic(layer.shape, dropout=0.0)
    order = torch.randperm(layer.shape.num_children, generator=torch.Generator().manual_seed(seed))
    ours, wanted = layer.permuted(order).step(routing, num_routing), layer.step(routing, num_routing)
    torch.testing.assert_close(ours.poses, wanted.poses)
    assert (wanted.poses.norm(dim=-1) < 1).all()


def test_gradients() -> None:
    check_gradients(lambda layer: Dynamic(layer.shape, dropout=0.0), 3)


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e6])
def test_no_size_of_votes_is_too_small_or_too_large(size) -> None:
    layer = make_layer(SHAPES["fc, matrix"], torch.float32, size=size)
    routing = Dynamic(layer.shape, dropout=0.0)
    weight = layer.votes.weight.requires_grad_()
    logits = routing.class_logits(layer.step(routing, 3))
    logits.logsumexp(1).sum().backward()
    assert logits.isfinite().all() and weight.grad.isfinite().all()


def test_dropout_is_that_of_the_sums() -> None:
    layer = make_layer((8, 3, 4, 5, 5, (3, 3), 1, 4, 4, 4), torch.float32)
    routing = Dynamic(layer.shape, dropout=0.5)
    assert 0.4 < (layer.step(routing, 2).poses == 0).float().mean() < 0.6
    assert layer.step(routing.eval(), 2).poses.all()


def test_even_sums_begin_as_long_as_a_child() -> None:
    torch.manual_seed(0)
    shape = make_layer((1, 16, 12, 3, 3, (3, 3), 1, 4, 4, 4)).shape
    for matrix in (True, False):
        layer = CapsuleLayer((16, 3, 3, 16), 12, 16, None, 1, matrix, Dynamic(shape, dropout=0.0))
        poses = 0.7 * torch.nn.functional.normalize(torch.randn(32, 16, 3, 3, 16), dim=-1)
        sums = layer(Capsules(poses)).state.sums
        assert sums.square().sum(-1).mean().sqrt().item() == pytest.approx(0.7, rel=0.1)


def test_what_is_watched_are_the_scaled_votes() -> None:
    shape = make_layer((1, 2, 4, 3, 3, (3, 3), 1, 2, 2, 2)).shape
    layer = CapsuleLayer((2, 3, 3, 4), 4, 4, None, 1, True, Dynamic(shape, dropout=0.0))
    poses = torch.randn(2, 2, 3, 3, 4)
    _, step = layer.watch(Capsules(poses))
    votes = torch.einsum("bnhwax,hwnxmd->bhwnmad", poses.unflatten(4, (2, 2)), 2 * layer.weight).flatten(5)
    wanted = torch.einsum("bhwnme,bme->bhwnm", votes, step.poses[:, :, 0, 0]) / 2
    torch.testing.assert_close(step.agreement[:, 0, 0], wanted)


@pytest.mark.nightly
def test_digits(launch, data_dir) -> None:
    assert launch("routing=dynamic", "num_routing=3", base=[*DIGITS, f"data_dir={data_dir}"]).code == 0
    assert load_runs("runs").accuracy_last[0] >= 0.93
