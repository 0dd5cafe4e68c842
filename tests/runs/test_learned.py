"""Runs that did not learn are marked, in their record, in the plan and under tables; those of before as well."""

import json
from math import sqrt

import pytest

from capsule_sweeps import load_runs
from capsule_sweeps.runs.learned import not_learned_note, why_not_learned

TEN = {"dataset.num_classes": 10, "training.loss": "cross_entropy"}


def rows(accuracy: float, *losses: float) -> list[dict]:
    return [{"test_accuracy": accuracy, "train_loss": loss} for loss in losses]


@pytest.mark.parametrize(
    ("signed", "epochs", "why"),
    [
        (TEN, rows(0.9, 2.3, 0.4), None),
        (TEN, rows(0.124, 2.3, 2.2), "chance"),
        (TEN, rows(0.135, 2.3, 2.2), None),
        (TEN, rows(0.4, 2.3, 32.0), "loss rose from 2.3 to 32"),
        (TEN, rows(0.4, 2.3), None),  # one epoch has no later one
        ({**TEN, "training.loss": "spread"}, rows(0.9, 0.2, 0.5), None),  # its margin grows
        ({**TEN, "training.loss": "spread"}, rows(0.1, 0.2, 0.1), "chance"),
        ({"dataset.num_classes": 10, "dataset.labels_per_image": 2}, rows(0.1, 2, 1), None),  # 45 pairs
        ({"dataset.num_classes": 10, "dataset.labels_per_image": 2}, rows(0.03, 2, 1), "chance, 2.2%"),
        ({"dataset.num_classes": 100}, rows(0.03, 4, 3), None),
        ({}, rows(0.1, 2, 1), None),
        (TEN, [], None),
    ],
)
def test_why_a_run_did_not_learn(signed, epochs, why) -> None:
    found = why_not_learned(signed, epochs)
    assert found is None if why is None else why in found


@pytest.mark.parametrize(("images", "learned"), [(100, False), (10_000, True)])
def test_noise_of_chance_is_three_standard_deviations_of_the_test_images(images, learned) -> None:
    """90 % of the images are of one class: a constant answer has 0.9."""
    accuracy = 0.9 + 2 * sqrt(0.9 * 0.1 / 1000)
    assert (why_not_learned(TEN, rows(accuracy, 2, 1), 0.9, images) is None) == learned


@pytest.fixture
def finished(trained, runs):
    """The folder of a run that learned nothing: its learning rate is next to nothing."""
    ended = trained("training.lr=1e-12")
    assert ended.code == 0, ended.text
    return runs.only(), ended


def test_run_that_did_not_learn_is_marked_everywhere(finished, launch, capsule_sweeps, runs) -> None:
    folder, ended = finished
    why = runs.record(folder)["not_learned"]
    assert "chance" in why and json.loads((folder / "summary.json").read_text())["not_learned"] == why
    assert runs.record(folder)["state"] == "finished" and load_runs("runs").not_learned[0] == why
    assert f"Not learned: {folder.name} ({why})" in " ".join(ended.out.split())
    assert "did not learn: " in launch("training.lr=1e-12", "hydra.launcher.dry_run=true").out
    for command in ("status", "results"):
        assert "Not learned: " in " ".join(capsule_sweeps(command).out.split())


def test_runs_of_before_are_marked_by_their_metrics(finished, runs) -> None:
    folder, _ = finished
    record = runs.record(folder)
    why = record.pop("not_learned")
    (folder / "run.json").write_text(json.dumps(record))
    assert "chance" in load_runs("runs").not_learned[0] and "chance" in why


def test_run_that_learned_is_not_marked(finished, runs, capsule_sweeps) -> None:
    folder, _ = finished
    (folder / "run.json").write_text(json.dumps({**runs.record(folder), "not_learned": None}))
    assert load_runs("runs").not_learned[0] is None and not_learned_note(load_runs("runs")) == ""
    assert "earned" not in capsule_sweeps("status").out
