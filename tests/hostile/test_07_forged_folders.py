"""A run folder whose files do not agree with each other is reported, and no number of it is believed."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from capsule_sweeps import load_runs
from capsule_sweeps.runs.folders import find_runs


def change(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("forged", ["another setting", "another signature", "no configuration"])
def test_a_configuration_that_does_not_hash_to_the_signature(make_run, capsule_sweeps, caplog, forged) -> None:
    genuine, folder = make_run(0, accuracy=0.5), make_run(1, accuracy=0.9738)
    record = json.loads((folder / "run.json").read_text())
    if forged == "another setting":
        change(folder / "run.json", signed_config={**record["signed_config"], "training.epochs": 777})
    elif forged == "another signature":
        change(folder / "run.json", signature="01234567")
    else:
        change(folder / "run.json", signed_config=None)
    runs = load_runs("runs")
    assert list(runs.run) == [genuine.name] and list(runs.accuracy_last) == [0.5]
    assert [line for line in caplog.messages if line.startswith(f"{folder.name}: damaged (")]
    for command in (["status"], ["results"], ["runs"]):
        assert "97.38" not in capsule_sweeps(*command).text, command


def test_a_second_folder_with_the_signature_does_not_hide_the_genuine_one(make_run, caplog) -> None:
    genuine = make_run(0, accuracy=0.5)
    for name in ("a", "zzz"):  # sorted before and behind it
        forged = genuine.with_name(f"{name}-{genuine.name[-8:]}")
        shutil.copytree(genuine, forged)
        change(forged / "run.json", accuracy_last=0.9738)
    assert [run.folder.name for run in find_runs(Path("runs")).values()] == [genuine.name]
    assert list(load_runs("runs").accuracy_last) == [0.5]
    assert sum("it has the signature of" in line for line in caplog.messages) == 2


@pytest.mark.parametrize("epoch", [-3, 10**6, True])
def test_a_checkpoint_of_an_epoch_that_the_run_does_not_have(launch, trained, runs, epoch) -> None:
    trained(signal_at=(signal.SIGTERM, 8))
    path = runs.only() / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "epoch": epoch}, path)
    rows = runs.metrics(runs.only())
    ended = launch()
    assert ended.code == 1 and "checkpoint.pt is damaged (epoch=" in " ".join(ended.text.split())
    assert runs.metrics(runs.only()) == rows


def test_the_groups_of_a_stored_optimizer_do_not_override_the_configuration(launch, trained, runs) -> None:
    trained("runs_dir=others")
    trained(signal_at=(signal.SIGTERM, 8))
    path = runs.only() / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    for group in content["optimizer"]["param_groups"]:
        group.update(lr=100.0, weight_decay=9.0, momentum=0.0, maximize=True, nesterov=False)
    torch.save(content, path)
    assert launch().code == 0
    runs.assert_same(runs.only(), runs.only("others"))
