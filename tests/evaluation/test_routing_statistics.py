"""What is reported of the inside of a run: coefficients, entropy, agreement, and how poses follow the input."""

import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from capsule_sweeps import load_runs
from capsule_sweeps.data.load import load_data
from capsule_sweeps.data.split import Split
from capsule_sweeps.evaluation import routing_statistics as inside
from capsule_sweeps.evaluation.routing_figures import (
    class_feeds_figure,
    response_figure,
    routing_maps,
    routing_over_images,
)
from capsule_sweeps.evaluation.weights import load_trained
from capsule_sweeps.networks.capsnet import Intermediates
from capsule_sweeps.networks.layers import Step
from capsule_sweeps.results.figures import COLUMN_WIDTH


@pytest.fixture
def trained(trained, runs):
    """Folder, model, config and data of a tiny run with three iterations."""
    assert trained("num_routing=3").code == 0
    model, config = load_trained(runs.only())
    return runs.only(), model, config, load_data(config.dataset, config.data_dir, "cpu")


def test_the_weights_are_those_of_the_run(trained) -> None:
    folder, model, config, data = trained
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training
    probabilities = torch.cat([inside.watch(model, config, images)[0] for images in data.test.images.split(100)])
    accuracy = (probabilities.argmax(1) == data.test.labels).double().mean().item()
    assert accuracy == pytest.approx(load_runs("runs").accuracy_last[0], abs=0.003)


def test_without_a_checkpoint_it_is_one_sentence(tmp_path) -> None:
    with pytest.raises(ValueError, match="has no checkpoint"):
        load_trained(tmp_path)


def test_the_run_with_the_most_iterations(tmp_path) -> None:
    frame = pd.DataFrame(
        {"run": ["a", "b", "c", "d"], "state": ["finished"] * 3 + ["failed"], "num_routing": [1, 3, 3, 9]}
    )
    with pytest.raises(ValueError, match="none of 4 runs"):
        inside.most_routed(frame, tmp_path)  # no weights
    for name in "acd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.pt").touch()
    assert inside.most_routed(frame, tmp_path) == tmp_path / "c"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "checkpoint.pt").touch()
    assert inside.most_routed(frame, tmp_path) == tmp_path / "b"


def test_a_sample_is_evenly_spaced() -> None:
    split = Split(torch.arange(10, dtype=torch.uint8)[:, None, None, None], torch.arange(10))
    assert inside.sample(split, 4).labels.tolist() == [0, 3, 6, 9]
    assert len(inside.sample(split, 99)) == 10


def step(coefficients: list[list[float]], agreement: list[list[float]]) -> Step:
    """One image, a kernel of 1×1, children × parents."""
    r, s = (torch.tensor(values)[None, None, None, None, None] for values in (coefficients, agreement))
    return Step(torch.zeros(1, r.shape[-1], 1, 1, 4), r, s)


class Fixed(torch.nn.Module):
    """Tells the same of every image."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, images: torch.Tensor, intermediates: bool) -> tuple[torch.Tensor, Intermediates]:
        steps = [Step(*(part.expand(len(images), *part.shape[1:]) for part in step)) for step in self.steps]
        return torch.zeros(len(images), 2), Intermediates(images, images, [steps])


def test_entropy_and_agreement_by_hand(tiny_config) -> None:
    even, chosen = (
        step([[0.5, 0.5], [0.5, 0.5]], [[1.0, 3.0], [0.0, 4.0]]),
        step([[1.0, 0.0], [0.25, 0.75]], [[2.0, 9.0], [4.0, 8.0]]),
    )
    found = inside.routing_statistics(Fixed([even, chosen]), tiny_config(), torch.zeros(40, 1, 2, 2, dtype=torch.uint8))
    assert list(found.image.unique()) == list(range(40)) and len(found) == 80
    for _, rows in found.groupby("image"):
        first, second = rows.itertuples()
        assert first.entropy == pytest.approx(1) and first.agreement == pytest.approx(2)
        half = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
        assert second.entropy == pytest.approx(half / 2) and second.agreement == pytest.approx((2 + 7) / 2)


def test_maps_and_feeds_by_hand() -> None:
    seen = Intermediates(torch.zeros(1), torch.zeros(1), [[step([[1.0, 0.0], [0.25, 0.75]], [[2.0, 9.0], [4.0, 8.0]])]])
    assert inside.coefficient_maps(seen, 0)[0][0].tolist() == [[0.875]]
    assert inside.class_feeds(seen, 0, 1).tolist() == [[[0.0, 6.0]]]


def test_maps_lie_on_the_grid_and_begin_even(trained) -> None:
    _, model, config, data = trained
    _, seen = inside.watch(model, config, data.test.images[:2])
    maps = inside.coefficient_maps(seen, 1)
    assert [[values.ndim for values in of_layer] for of_layer in maps] == [[2] * len(steps) for steps in seen.layers]
    for of_layer, layer in zip(maps, model.capsules.layers, strict=True):
        grid = layer.out_shape[1:3] if layer.out_shape[1:3] != (1, 1) else tuple(layer.weight.shape[:2])
        assert all(values.shape == grid for values in of_layer)
        assert of_layer[0] == pytest.approx(1 / layer.out_shape[0])


def test_feeds_add_up_to_the_reach_of_the_sum(trained) -> None:
    _, model, config, data = trained
    _, seen = inside.watch(model, config, data.test.images[:1])
    last = seen.layers[-1][-1]
    wanted = (last.coefficients * last.agreement).sum((1, 2, 3, 4, 5))[0]
    assert [inside.class_feeds(seen, 0, c).sum() for c in range(10)] == pytest.approx(wanted.tolist(), abs=1e-5)


def test_response_begins_at_the_image_itself(trained) -> None:
    _, model, config, data = trained
    image, label = data.test.images[3], int(data.test.labels[3])
    found = inside.pose_response(model, config, image, label, [-1, 0, 1], [0.0, 30.0])
    probabilities, seen = inside.watch(model, config, image[None])
    for name, at in (("shift", 1), ("rotation", 0)):
        poses = seen.layers[-1][-1].poses[0, label, 0, 0].numpy()
        assert found[name]["poses"][at] == pytest.approx(poses, abs=1e-4)
        assert found[name]["probability"][at] == pytest.approx(float(probabilities[0, label]), abs=1e-5)
    assert found["shift"]["poses"].shape == (3, 4) and found["rotation"]["poses"].shape == (2, 4)
    assert np.ptp(found["shift"]["poses"], 0).max() > 1e-4


def test_figures_are_drawn_at_column_width(trained) -> None:
    _, model, config, data = trained
    image, label = data.test.images[0], int(data.test.labels[0])
    _, seen = inside.watch(model, config, image[None])
    figures = [
        routing_maps(image.numpy(), inside.coefficient_maps(seen, 0)),
        routing_over_images(inside.routing_statistics(model, config, data.train.images[:5])),
        class_feeds_figure(inside.class_feeds(seen, 0, label), "7"),
        response_figure(inside.pose_response(model, config, image, label, [-1, 0, 1], [-9, 0, 9]), "7"),
    ]
    before = dict(matplotlib.rcParams)
    for figure in figures:
        figure.draw_without_rendering()
        assert figure.get_figwidth() == COLUMN_WIDTH
        drawn = [axes for axes in figure.axes if axes.axison and axes.get_ylabel()]
        assert drawn
    assert dict(matplotlib.rcParams) == before
