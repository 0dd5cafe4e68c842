"""Self-routing against the equations of its paper, and what must hold for any votes."""

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routed_layers import DIGITS, SHAPES, check_gradients, make_layer, randomize, shapes

from capsule_sweeps import load_runs
from capsule_sweeps.routing.self_routing import SelfRouting
from capsule_sweeps.routing.votes import FastVotes


def make_self_routing(layer, norm="none") -> SelfRouting:
    return randomize(SelfRouting(layer.shape, dropout=0.0, norm=norm))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equations(shape) -> None:
    layer = make_layer(shape)
    routing = make_self_routing(layer)
    parents, weight = layer.step(routing, 1), list(routing.weight.detach().flatten(0, 2))
    for image, row, column, votes, poses, a in layer.places():
        means, activations, c = naive.self_routing(votes, poses, a, weight)
        torch.testing.assert_close(parents.poses[image, :, row, column], torch.stack(means))
        wanted = torch.tensor(activations, dtype=torch.float64)
        torch.testing.assert_close(parents.activations[image, :, row, column], wanted)
        found = parents.coefficients[image, row, column].flatten(0, 2)
        torch.testing.assert_close(found, torch.tensor(c, dtype=torch.float64))


def test_the_norm_comes_last() -> None:
    layer = make_layer(SHAPES["conv, matrix"])
    routing = make_self_routing(layer)
    normed = make_self_routing(layer, "squash")
    torch.testing.assert_close(normed.weight, routing.weight)
    longer = layer.shape.parent_size**0.5 * layer.step(routing, 1).poses
    torch.testing.assert_close(layer.step(normed, 1).poses, naive.squash(longer))


def test_dropout_comes_before_the_norm() -> None:
    layer = make_layer((4, 3, 4, 5, 5, (3, 3), 1, 4, 4, 4), torch.float32)
    routing = SelfRouting(layer.shape, dropout=0.5, norm="layer")
    parents = layer.step(routing, 1).poses
    torch.testing.assert_close(parents.mean(-1), torch.zeros_like(parents[..., 0]), atol=1e-5, rtol=0)
    assert not torch.equal(parents, layer.step(routing, 1).poses)
    bare = SelfRouting(layer.shape, dropout=0.5, norm="none")
    assert 0.4 < (layer.step(bare, 1).poses == 0).float().mean() < 0.6


def test_further_iterations_change_nothing() -> None:
    layer = make_layer(SHAPES["fc, matrix"])
    routing = make_self_routing(layer)
    assert torch.equal(layer.step(routing, 3).poses, layer.step(routing, 1).poses)


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**16))
def test_order_of_children_does_not_matter(shape, seed) -> None:
    layer = make_layer(shape, seed=seed)
    routing = make_self_routing(layer)
    order = torch.randperm(layer.shape.num_children, generator=torch.Generator().manual_seed(seed))
    wanted = layer.step(routing, 1)
    routing.weight.data = routing.weight.data[:, :, order]
    ours = layer.permuted(order).step(routing, 1)
    torch.testing.assert_close(ours.poses, wanted.poses)
    torch.testing.assert_close(ours.activations, wanted.activations)


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**16), size=st.sampled_from([0.0, 1.0, 1e4]))
def test_coefficients_of_a_child_and_activations_of_a_place_sum_to_one(shape, seed, size) -> None:
    layer = make_layer(shape, seed=seed, size=size)
    parents = layer.step(make_self_routing(layer), 1)
    torch.testing.assert_close(parents.coefficients.sum(-1), torch.ones_like(parents.coefficients[..., 0]))
    torch.testing.assert_close(parents.activations.sum(1), torch.ones_like(parents.activations[:, 0]))
    votes, own = layer.votes.explicit(layer.children.poses).flatten(3, 5), parents.poses.movedim(1, 3)
    slack = 1e-9 * size
    assert (own <= votes.amax(3) + slack).all() and (own >= votes.amin(3) - slack).all()


@pytest.mark.parametrize("size", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_children_that_are_all_but_inactive_and_large_poses_stay_finite(size, dtype) -> None:
    layer = make_layer((2, 4, 5, 3, 3, (2, 2), 1, 4, 4, 4), dtype, size=size)
    routing = make_self_routing(layer).float()
    weight = layer.votes.weight.float().requires_grad_()
    for activations in (layer.children.activations, torch.zeros_like(layer.children.activations)):
        children = layer.children._replace(activations=activations)
        parents = layer._replace(votes=FastVotes(weight, layer.votes.stride), children=children).step(routing, 1)
        (parents.poses.sum() + parents.activations.sum()).backward()
        assert parents.poses.isfinite().all() and parents.activations.isfinite().all()
        assert weight.grad.isfinite().all() and routing.weight.grad.isfinite().all()


@pytest.mark.parametrize("logit", [-30.0, -80.0, -200.0])  # activations of 1e-13, 2e-35 and 0
def test_children_of_which_none_is_active_get_a_finite_gradient(logit) -> None:
    layer = make_layer((2, 4, 5, 3, 3, (2, 2), 1, 4, 4, 4), torch.float32)
    logits = torch.full_like(layer.children.activations, logit).requires_grad_()
    children = layer.children._replace(activations=logits.sigmoid())
    parents = layer._replace(children=children).step(make_self_routing(layer).float(), 1)
    ((1e4 * parents.poses).square().sum() + 1e4 * parents.activations.sum()).backward()
    assert parents.poses.isfinite().all() and logits.grad.isfinite().all()


def test_gradients() -> None:
    check_gradients(make_self_routing, 1)


@pytest.mark.nightly
def test_digits(launch, data_dir) -> None:
    assert launch("routing=self_routing", base=[*DIGITS, f"data_dir={data_dir}"]).code == 0
    assert load_runs("runs").accuracy_last[0] >= 0.93
