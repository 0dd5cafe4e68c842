"""training.eval_every and dataset.test_size: less evaluation for quick studies, signed because numbers change."""

import json
import signal

import pytest
import torch

from capsule_sweeps import compose_config, load_runs
from capsule_sweeps.data.load import load_data
from capsule_sweeps.runs.signature import signature, signed_config


@pytest.mark.slow
def test_evaluations_are_left_out_and_nothing_else_changes(launch, runs, capsule_sweeps) -> None:
    more = ["training.epochs=5", "training.ema=0.9", "dataset.val_size=10"]
    assert launch(*more, "runs_dir=every").code == 0
    ended = launch(*more, "training.eval_every=2", "selection_rule=best_test")
    assert ended.code == 0, ended.text
    every, some = runs.timeless(runs.only("every")), runs.timeless(runs.only())
    assert [("test_accuracy" in row, "ema_test_loss" in row, "val_loss" in row) for row in some] == [
        (evaluated,) * 3 for evaluated in (False, True, False, True, True)
    ]
    assert all(row.items() <= full.items() for row, full in zip(some, every, strict=True))
    assert runs.weights(runs.only()) == runs.weights(runs.only("every"))
    summary = json.loads((runs.only() / "summary.json").read_text())
    assert summary["accuracy_best_test"] == max(every[epoch]["test_accuracy"] for epoch in (1, 3, 4))
    assert torch.load(runs.only() / "best.pt", weights_only=True)["epoch"] == summary["epoch_best_test"]
    for command in (["status"], ["results"], ["show", runs.only().name], ["report"]):
        assert capsule_sweeps(*command).code == 0, command


@pytest.mark.slow
def test_an_interruption_changes_nothing(launch, runs) -> None:
    more = ["training.epochs=4", "training.eval_every=3"]
    assert launch(*more, signal_at=(signal.SIGTERM, 7)).code == 143
    assert launch(*more).code == 0
    assert launch(*more, "runs_dir=untouched").code == 0
    runs.assert_same(runs.only(), runs.only("untouched"))
    assert load_runs("runs").state[0] == "finished"


def test_test_images_are_a_balanced_part_and_a_larger_part_contains_it(tiny_config, data_dir) -> None:
    def test_images(size: object) -> torch.Tensor:
        config = tiny_config(f"dataset.test_size={size}")
        return load_data(config.dataset, data_dir, "cpu").test

    small, large, whole = test_images(20), test_images(100), test_images("null")
    assert small.labels.bincount().tolist() == [2] * 10 and len(whole) == 397
    images = {tuple(image.flatten().tolist()) for image in large.images}
    assert len(large) == 100 and {tuple(image.flatten().tolist()) for image in small.images} <= images
    with pytest.raises(ValueError, match=r"dataset\.test_size=1000 .* 397"):
        test_images(1000)


@pytest.mark.parametrize("override", ["training.eval_every=2", "dataset.test_size=20"])
def test_signed_only_when_set(tiny, override) -> None:
    plain, asked = (signed_config(compose_config([*tiny, *more])) for more in ([], [override]))
    key, _, value = override.partition("=")
    assert {name: value for name, value in asked.items() if name not in plain} == {key: int(value)}
    neutral = {"training.eval_every": 1, "dataset.test_size": "null"}[key]
    assert signature(signed_config(compose_config([*tiny, f"{key}={neutral}"]))) == signature(plain)
