"""The average of the weights, against a loop by hand, in the folder of a run, and beside a run without it."""

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from capsule_sweeps import build_model, load_runs
from capsule_sweeps.data.load import load_data
from capsule_sweeps.training.ema import Average
from capsule_sweeps.training.evaluation import evaluate
from capsule_sweeps.training.outcome import check_evaluation

BATCHES = 5  # of an epoch of the tiny run


def averaged(states: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """Of the states before the first step and after each."""
    average = {name: tensor.double() for name, tensor in states[0].items()}
    for n, state in enumerate(states[1:]):
        keep = min(decay, (1 + n) / (10 + n))
        for name, tensor in state.items():
            average[name] = keep * average[name] + (1 - keep) * tensor.double()
            if not tensor.is_floating_point():
                average[name] = tensor
    return average


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("decay", [0.5, 0.9])  # reached in step 8; not reached
def test_by_hand_with_the_buffers_of_batchnorm(decay) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    average, states = Average(model, decay), [copied(model)]
    for step in range(20):
        optimizer.zero_grad()
        model(torch.randn(6, 3) + 1).square().sum().backward()
        optimizer.step()
        average.update(step)
        states.append(copied(model))
    found, wanted = average.model.state_dict(), averaged(states, decay)
    assert found.keys() == wanted.keys() and int(found["1.num_batches_tracked"]) == 20
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].double(), tensor.double(), rtol=1e-5, atol=1e-6)
    assert not torch.equal(found["1.running_mean"], states[-1]["1.running_mean"]), "copied"
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_a_run_keeps_and_tests_it_beside_weights_that_it_leaves_alone(launch, runs, monkeypatch, tiny_config) -> None:
    states, step = [], torch.optim.SGD.step

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        weights = self.param_groups[0]["params"]
        states.extend([] if states else [{str(i): w.detach().clone() for i, w in enumerate(weights)}])
        result = step(self, *args, **kwargs)
        states.append({str(i): w.detach().clone() for i, w in enumerate(weights)})
        return result

    more = ["training.ema=0.4", "dataset.val_size=20"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", noted)
        assert launch(*more).code == 0
    folder = runs.only()
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert len(states) == 2 * BATCHES + 1 and checkpoint["ema"].keys() == checkpoint["model"].keys()
    for found, wanted in zip(checkpoint["ema"].values(), averaged(states, 0.4).values(), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)

    config, row = tiny_config(*more), runs.metrics(folder)[-1]
    data = load_data(config.dataset, config.data_dir, torch.device("cpu"))
    model = build_model(config)
    for prefix, key in (("", "model"), ("ema_", "ema")):
        model.load_state_dict(checkpoint[key])
        for name, split in (("test", data.test), ("val", data.val)):
            found = row[f"{prefix}{name}_loss"], row[f"{prefix}{name}_accuracy"]
            assert found == pytest.approx(evaluate(model, data, split, config), rel=1e-6)  # another layout of weights
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy_ema_last"] == load_runs("runs").accuracy_ema_last[0] == row["ema_test_accuracy"]
    assert summary["accuracy_last"] == row["test_accuracy"]

    assert launch("dataset.val_size=20", "runs_dir=without").code == 0
    without = torch.load(runs.only("without") / "checkpoint.pt", weights_only=True)
    assert "ema" not in without
    assert all(torch.equal(without["model"][name], tensor) for name, tensor in checkpoint["model"].items())
    plain = [{key: value for key, value in line.items() if "ema" not in key} for line in runs.timeless(folder)]
    assert plain == runs.timeless(runs.only("without"))


def test_selected_and_shown(launch, capsule_sweeps, runs) -> None:
    ended = launch("training.ema=0.9", "selection_rule=ema_last")
    assert ended.code == 0 and "ema_last" in ended.out.split("Results")[1]
    accuracy = runs.metrics(runs.only())[-1]["ema_test_accuracy"]
    assert f"ema {accuracy:.1%}" in ended.out
    assert launch("seed=1").code == 0
    told = capsule_sweeps("results", "--rule", "ema_last", "--format", "md").out
    assert f"| 1 | {100 * accuracy:.2f}† |" in told and "averaged weights" in told


def test_a_loss_of_the_average_that_is_not_finite_fails() -> None:
    with pytest.raises(FloatingPointError, match="ema_test_loss is nan after step 5"):
        check_evaluation({"epoch": 1, "test_loss": 1.0, "ema_test_loss": math.nan}, 5)
