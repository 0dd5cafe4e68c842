import copy

import pytest
import torch
from routed_layers import SMALL

from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.profiling import steps
from capsule_sweeps.profiling.steps import make_model, make_step, memory


def config(*overrides):
    return compose_config([*SMALL, "training.batch_size=4", *overrides])


@pytest.mark.parametrize("name", ["backbone", "eager"])
def test_a_step_trains_all_of_its_model(name, monkeypatch):
    made = []
    monkeypatch.setattr(steps, "make_model", lambda *which: made.append(make_model(*which)) or made[0])
    step = make_step(config(), name, 2, None)
    before = copy.deepcopy(made[0].state_dict())
    step()
    assert not [name for name, tensor in made[0].state_dict().items() if torch.equal(tensor, before[name])]


def test_memory_is_that_of_the_activations():
    large = config("dataset.image_size=32", "backbone.channels=64", "training.batch_size=64")
    activations = 64 * 64 * 16 * 16 * 4 / 1e6  # MB of one copy of the backbone's features: 4.2
    used = memory(large, "backbone", 0, None)
    assert activations <= used <= 12 * activations
