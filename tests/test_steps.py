import copy
from pathlib import Path

import pytest
import torch
from test_compile import SMALL

from capsule_sweeps import steps
from capsule_sweeps.config import compose_config
from capsule_sweeps.steps import Apart, make_model, make_step, memory, timed


def config(*overrides):
    return compose_config([*SMALL, "training.batch_size=4", *overrides])


@pytest.mark.parametrize("name", ["backbone", "eager"])
def test_a_step_trains_all_of_its_model(name, monkeypatch):
    made = []
    monkeypatch.setattr(steps, "make_model", lambda *which: made.append(make_model(*which)) or made[0])
    step = timed(make_step(config(), name, 2, None), torch.device("cpu"))
    before = copy.deepcopy(made[0].state_dict())
    assert step() > 0
    assert not [name for name, tensor in made[0].state_dict().items() if torch.equal(tensor, before[name])]


def test_steps_in_a_process_of_its_own_take_their_time_there():
    with Apart(config(), "eager", 2, None) as step:
        first, second, third = step(), step(), step()
    assert first > max(second, third) > 0, "the first one makes the model"
    assert step.process.returncode is not None, "the process was left behind"


def test_what_others_print_is_no_answer(tmp_path):
    """A published program that prints when its model is made."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "src").mkdir()
    (tmp_path / "configs" / "resnet_backbone_digits.json").write_text("{}")
    (tmp_path / "src" / "capsule_model.py").write_text(
        "import torch\n"
        "class CapsModel(torch.nn.Sequential):\n"
        "    def __init__(self, *arguments, **more):\n"
        "        print('made')\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.LazyLinear(10))\n"
    )
    with Apart(config(), "published", 1, tmp_path) as step:
        assert 0 < step() < 60


def test_a_process_that_ends_early_is_an_error_that_says_so(tmp_path):
    said = "measuring a step of published failed: exit code 1"
    with Apart(config(), "published", 1, tmp_path) as step, pytest.raises(RuntimeError, match=said):
        step()  # the folder is empty


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of resident memory")
def test_memory_is_that_of_the_activations():
    large = config("dataset.image_size=32", "backbone.channels=64", "training.batch_size=64")
    activations = 64 * 64 * 16 * 16 * 4 / 1e6  # MB of one copy of the backbone's features: 4.2
    used = memory(large, "backbone", 0, None)
    assert activations <= used <= 12 * activations
