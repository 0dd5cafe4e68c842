"""The learning rate of each step, against torch's schedulers, by hand, and as the optimizer gets it."""

import math
import signal
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from capsule_sweeps import compose_config
from capsule_sweeps.runs.signature import columns, signed_config
from capsule_sweeps.training.learning_rate import learning_rate

BATCHES = 5  # of an epoch of the tiny run


def rates(num_batches: int, **settings: Any) -> list[float]:
    recipe = {"lr": 1.0, "lr_schedule": "cosine", "warmup": 0.0, "milestones": [], "lr_decay": 0.1, **settings}
    return [learning_rate(SimpleNamespace(**recipe), n, num_batches) for n in range(recipe["epochs"] * num_batches)]


def test_cosine_is_torchs_at_the_middle_of_each_step() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler, wanted = CosineAnnealingLR(optimizer, T_max=2 * 12), []
    for _ in range(2 * 12):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(3, epochs=4, lr=0.3) == pytest.approx(wanted[1::2])


def test_steps_are_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler, wanted = MultiStepLR(optimizer, [2, 5], gamma=0.2), []
    for _ in range(6):
        wanted += 3 * [optimizer.param_groups[0]["lr"]]
        optimizer.step()
        scheduler.step()
    assert rates(3, epochs=6, lr=0.3, lr_schedule="steps", milestones=[2, 5], lr_decay=0.2) == pytest.approx(wanted)


def test_warmup_by_hand() -> None:
    falling = [(1 + math.cos(math.pi * x)) / 2 for x in (1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12)]
    assert rates(4, epochs=2, warmup=0.25) == pytest.approx([0.25, 0.75, *falling])
    stepped = [0.25, 0.75, 1, 1, 0.1, 0.1, 0.1, 0.1]
    assert rates(4, epochs=2, warmup=0.25, lr_schedule="steps", milestones=[1]) == pytest.approx(stepped)


@given(st.integers(1, 40), st.integers(1, 20), st.floats(0, 0.99))
def test_a_run_of_any_length_has_a_whole_cycle(epochs, num_batches, warmup) -> None:
    found = rates(num_batches, epochs=epochs, warmup=warmup)
    risen = round(warmup * len(found))
    assert all(0 < rate <= 1 for rate in found)
    assert all(a < b for a, b in pairwise(found[:risen])) and all(a > b for a, b in pairwise(found[risen + 1 :]))
    assert sum(found) / len(found) == pytest.approx(0.5, abs=0.5 / len(found))  # the area below it
    assert found == rates(1, epochs=epochs * num_batches, warmup=warmup), "only the step counts"


# As training uses it


@pytest.fixture
def stepped(launch, monkeypatch):
    """The rates at which the optimizer steps in a run."""
    found, step = [], torch.optim.SGD.step

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    def run(*overrides: str, **more: Any) -> list[float]:
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", noted)
            ended = launch(*overrides, **more)
        assert ended.code in (0, 143), ended.text
        return found

    return run


def test_the_optimizer_has_it_at_each_step_of_an_interrupted_run_and_metrics_have_the_last(stepped, runs) -> None:
    overrides = ["training=fast", "training.epochs=3"]
    assert len(stepped(*overrides, signal_at=(signal.SIGTERM, BATCHES + 2))) == BATCHES + 2
    found = stepped(*overrides)
    assert found == rates(BATCHES, epochs=3, lr=0.2, warmup=0.2)
    assert [row["lr"] for row in runs.metrics(runs.only())] == found[BATCHES - 1 :: BATCHES]


def test_fast_is_a_tenth_of_the_papers_epochs_and_a_run_of_its_own() -> None:
    fast, paper = compose_config(["training=fast"]), compose_config(["training=paper"])
    assert fast.training.epochs * 10 == paper.training.epochs
    assert (fast.training.lr_schedule, fast.training.amp, fast.training.label_smoothing) == ("cosine", "bf16", 0.1)
    neutral = [f"training.{text}" for text in ("lr_schedule=steps", "warmup=0", "nesterov=false", "label_smoothing=0")]
    assert columns(compose_config([*neutral, "training.ema=null"]))["signature"] == "1b45d41e"
    assert not {"training.lr_schedule", "training.warmup", "training.ema"} & signed_config(paper).keys()
    changed = ["lr_schedule=cosine", "warmup=0.1", "nesterov=true", "label_smoothing=0.1", "ema=0.99"]
    swept = [compose_config([f"training.{text}", "training.milestones=[]"]) for text in changed]
    assert len({columns(config)["signature"] for config in swept}) == len(changed)
