"""EM routing against Procedure 1 of its paper, and what must hold for any votes."""

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routed_layers import DIGITS, SHAPES, check_gradients, make_layer, randomize, shapes

from capsule_sweeps import load_runs
from capsule_sweeps.routing import em_pass
from capsule_sweeps.routing.base import Capsules
from capsule_sweeps.routing.em import EM, MIN_VARIANCE, explicit_step
from capsule_sweeps.routing.em_pass import Gaussians, gaussian_pass
from capsule_sweeps.routing.votes import FastVotes, RecordingVotes


def make_em(layer, inverse_temperature=0.5, rate=0.7, **settings) -> EM:
    routing = randomize(EM(layer.shape, 0.0, inverse_temperature, rate, **settings))
    return routing.to(layer.votes.weight.dtype)


def explicit(layer):
    """The same layer, computed from its votes one by one."""
    return layer._replace(votes=RecordingVotes(layer.votes.weight, layer.votes.stride))


@pytest.mark.parametrize(("num_routing", "density"), [(1, "sum"), (2, "mean"), (5, "sum")])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_procedure_1(shape, num_routing, density) -> None:
    layer = make_layer(shape)
    routing = make_em(layer, density=density)
    parents, watched = layer.step(routing, num_routing), explicit(layer).step(routing, num_routing)
    torch.testing.assert_close(watched[:2], parents[:2])
    torch.testing.assert_close(watched.state, parents.state)
    k, l = layer.shape.kernel  # noqa: E741
    share = k * l * layer.shape.num_children / layer.shape.num_parents
    heat = [0.5 * (1 - 0.7**t) / share for t in range(1, num_routing + 1)]
    betas = routing.beta_u.tolist(), routing.beta_a.tolist()
    for image, row, column, votes, _, a in layer.places():
        means, variances, activations, r = naive.em(votes, a, *betas, heat, MIN_VARIANCE, density)
        at = (image, slice(None), row, column)
        torch.testing.assert_close(parents.poses[at], torch.stack(means))
        torch.testing.assert_close(parents.state.variances[at], torch.stack(variances))
        torch.testing.assert_close(parents.activations[at], torch.tensor(activations, dtype=torch.float64))
        found = watched.coefficients[image, row, column].flatten(0, 2)
        torch.testing.assert_close(found, torch.tensor(r, dtype=torch.float64))
    torch.testing.assert_close(routing.class_logits(parents).sigmoid(), parents.activations.flatten(1))


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**16), num_routing=st.integers(1, 4))
def test_order_of_children_does_not_matter(shape, seed, num_routing) -> None:
    layer = make_layer(shape, seed=seed)
    routing = make_em(layer)
    order = torch.randperm(layer.shape.num_children, generator=torch.Generator().manual_seed(seed))
    ours, wanted = layer.permuted(order).step(routing, num_routing), layer.step(routing, num_routing)
    torch.testing.assert_close(ours.poses, wanted.poses)
    torch.testing.assert_close(ours.activations, wanted.activations)


@settings(max_examples=25, deadline=None)
@given(
    shape=shapes(), seed=st.integers(0, 2**16), num_routing=st.integers(1, 4), size=st.sampled_from([1e-4, 1.0, 1e4])
)
def test_coefficients_sum_to_one_and_parents_lie_in_the_hull_of_their_votes(shape, seed, num_routing, size) -> None:
    layer = make_layer(shape, seed=seed, size=size)
    parents, r = layer.step(make_em(layer), num_routing), explicit(layer).step(make_em(layer), num_routing).coefficients
    assert (r >= 0).all()
    torch.testing.assert_close(r.sum(-1), torch.ones_like(r[..., 0]))
    votes = layer.votes.explicit(layer.children.poses).flatten(3, 5)  # B h w i M E
    # In the hull is what goes, in no direction, further than the farthest vote does.
    directions = torch.randn(votes.shape[-1], 50, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    reach, own = votes @ directions, parents.poses.movedim(1, 3) @ directions
    slack = 1e-9 * size
    assert (own <= reach.amax(3) + slack).all() and (own >= reach.amin(3) - slack).all()


@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [FastVotes, RecordingVotes], ids=["fast", "recording"])
def test_float32_is_stable_for_votes_of_any_size(size, dtype, kind) -> None:
    layer = make_layer((3, 4, 5, 3, 3, (2, 2), 1, 4, 4, 4), dtype, size=size)
    routing = EM(layer.shape, 0.0, 8.0, 0.95)
    children = Capsules(layer.children.poses, (100 * layer.children.activations - 80).sigmoid())  # some are all but 0
    weight = layer.votes.weight.float().requires_grad_()
    parents = layer._replace(votes=kind(weight, layer.votes.stride), children=children).step(routing, 4)
    assert parents.poses.dtype == torch.float32
    assert all(t.isfinite().all() for t in (*parents[:2], parents.state.variances))
    (parents.activations.sum() + (parents.poses / max(size, 1e-4)).sum()).backward()
    assert weight.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in routing.parameters())


@pytest.mark.parametrize("kind", [FastVotes, RecordingVotes], ids=["fast", "recording"])
@pytest.mark.parametrize("logit", [-30.0, -80.0, -200.0])  # activations of 1e-13, 2e-35 and 0
def test_children_of_which_none_is_active_get_a_finite_gradient(logit, kind) -> None:
    layer = make_layer((2, 4, 5, 3, 3, (2, 2), 1, 4, 4, 4), torch.float32)
    logits = torch.full_like(layer.children.activations, logit).requires_grad_()
    children = layer.children._replace(activations=logits.sigmoid())
    parents = layer._replace(votes=kind(layer.votes.weight, layer.votes.stride), children=children).step(
        EM(layer.shape, 0.0, 8.0, 0.95), 3
    )
    (1e4 * parents.poses).square().sum().backward()
    assert parents.poses.isfinite().all() and logits.grad.isfinite().all()


def test_votes_that_are_all_the_same_make_a_parent_of_no_variance() -> None:
    layer = make_layer(SHAPES["fc, matrix"], torch.float32)
    same = layer.children._replace(poses=torch.ones_like(layer.children.poses) * 3)
    votes = FastVotes(layer.votes.weight[:1, :1, :1].expand_as(layer.votes.weight), layer.votes.stride)
    parents = layer._replace(children=same, votes=votes).step(make_em(layer), 5)
    torch.testing.assert_close(parents.state.variances, torch.full_like(parents.poses, MIN_VARIANCE), rtol=1e-4, atol=0)
    torch.testing.assert_close(parents.poses[:, :, 0, 0], votes.explicit(same.poses)[:, 0, 0, 0, 0, 0])


def test_two_clusters_are_separated() -> None:
    """Half of the children agree on parent 0, half on parent 1, and each goes where it agrees."""
    generator = torch.Generator().manual_seed(0)
    layer = make_layer((1, 20, 2, 1, 1, (1, 1), 1, 2, 2, 2))
    votes = torch.randn(20, 2, 4, generator=generator, dtype=torch.float64) * 3
    for child in range(20):
        votes[child, child % 2] = torch.tensor([1.0, -1, 2, 0]) + 0.01 * votes[child, child % 2]

    class Given(RecordingVotes):
        def explicit(self, _):
            return votes[None, None, None, None, None]

    parents = layer._replace(votes=Given(layer.votes.weight, 1)).step(EM(layer.shape, 0.0, 8.0, 0.95).double(), 5)
    r = parents.coefficients.flatten(0, 5)
    assert (r[0::2, 0] > 0.99).all() and (r[1::2, 1] > 0.99).all()
    torch.testing.assert_close(
        parents.poses[0, :, 0, 0], torch.tensor([[1.0, -1, 2, 0]] * 2).double(), atol=0.05, rtol=0
    )


def test_gradients() -> None:
    check_gradients(make_em, 3)


@pytest.mark.parametrize("evenly", [True, False])
@pytest.mark.parametrize("num_images", [2, 3])  # of a slice: the last one of two is not full
@pytest.mark.parametrize(
    "shape",
    [
        *SHAPES.values(),
        (3, 3, 2, 8, 6, (5, 5), 3, 1, 3, 2),  # a stride that leaves a rest
        (3, 2, 3, 7, 5, (1, 1), 2, 1, 2, 5),
        (3, 1, 2, 3, 3, (3, 3), 1, 2, 2, 2),
        (3, 1, 1, 1, 1, (1, 1), 1, 1, 4, 1),
        (3, 2, 4, 4, 5, (2, 3), 3, 2, 3, 4),
    ],
    ids=str,
)
def test_the_pass_and_its_gradients_are_autograds_over_slices_of_any_shape(
    shape, num_images, evenly, monkeypatch
) -> None:
    monkeypatch.setattr(em_pass, "cache_slice", lambda _: num_images)
    layer = make_layer((3, *shape[1:]))
    wide = layer.votes.average(layer.children.poses)
    generator = torch.Generator().manual_seed(2)
    places = [
        torch.randn(size, generator=generator, dtype=torch.float64) for size in 2 * [*2 * [wide.shape], wide.shape[:4]]
    ]
    gaussians = [] if evenly else [places[0], places[1].exp(), places[2]]
    found = []
    for function in (gaussian_pass, explicit_step):
        inputs = [t.detach().requires_grad_() for t in (layer.votes.weight, *layer.children[:2], *gaussians)]
        votes, parents = FastVotes(inputs[0], layer.votes.stride), Gaussians(*inputs[3:]) if gaussians else None
        results = function(votes, *inputs[1:3], parents)[:3]
        found.append([*results, *torch.autograd.grad(results, inputs, places[3:])])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        (r"capsules\.dropout=0\.1 is not supported by routing=em", {"dropout": 0.1}),
        (r"routing\.inverse_temperature=0\.0 is out of range", {"inverse_temperature": 0.0}),
        (r"routing\.density=product is unknown", {"density": "product"}),
        (r"routing\.rate=1 is out of range", {"rate": 1}),
    ],
)
def test_impossible_settings_are_one_sentence(message, settings) -> None:
    shape = make_layer(SHAPES["fc, matrix"]).shape
    with pytest.raises(ValueError, match=message):
        EM(shape, **{"dropout": 0.0, "inverse_temperature": 1.0, "rate": 0.9, **settings})


@pytest.mark.slow
def test_digits(launch, data_dir) -> None:
    few = "capsules.primary.num_capsules=4"
    assert launch("routing=em", "num_routing=2", few, base=[*DIGITS, f"data_dir={data_dir}"]).code == 0
    assert load_runs("runs").accuracy_last[0] >= 0.93
