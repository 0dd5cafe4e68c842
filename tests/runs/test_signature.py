"""Runs made by earlier code are still found, skipped, shown and resumed: signatures never change by accident."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.runs.signature import signature, signed_config

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SIGNATURES = json.loads((GOLDEN / "signatures.json").read_text())
PHOTOS = [
    "dataset.root=photos",
    "dataset.name=photos",
    "dataset.num_classes=3",
    "dataset.channels=3",
    "dataset.image_size=32",
    "dataset.val_size=0",
]


@pytest.mark.parametrize("overrides", SIGNATURES)
def test_signature_is_pinned(overrides) -> None:
    """Every option of every config group and some composed sweeps, as the last flat commit signed them."""
    words = overrides.split()
    config = compose_config([*words, *(PHOTOS if {"dataset=folder", "dataset=npz"} & {*words} else [])])
    assert signature(signed_config(config)) == SIGNATURES[overrides]


MILESTONES = "training.milestones=[8,11]"  # those of training=quick then, in a run of any length


@pytest.fixture
def flat(place) -> Path:
    """Run folders that the last flat commit made: one finished, one stopped in the middle of its second epoch."""
    shutil.copytree(GOLDEN / "flat", place / "flat")
    return place / "flat"


def test_run_of_the_flat_layout_is_skipped_and_shown(launch, capsule_sweeps, runs, flat) -> None:
    ended = launch("num_routing=2", MILESTONES, f"runs_dir={flat}/finished")
    assert ended.code == 0 and "1 to skip" in ended.text and "stale" not in ended.text, ended.text
    shown = capsule_sweeps("show", "97164d0f", "--runs-dir", str(flat / "finished"))
    assert shown.code == 0 and "finished" in shown.out


def test_run_of_the_flat_layout_is_resumed_bitwise(launch, runs, flat) -> None:
    before = runs.only(flat / "finished")
    ended = launch("num_routing=2", MILESTONES, f"runs_dir={flat}/interrupted")
    assert ended.code == 0 and "1 to resume" in ended.text, ended.text
    after = runs.only(flat / "interrupted")
    assert len(runs.record(after)["attempts"]) == 2
    machine = [[run[key] for key in ("processor", "versions", "python")] for run in runs.record(after)["attempts"]]
    if machine[0] == machine[1]:
        runs.assert_same(before, after)
    for row, expected in zip(runs.metrics(after), runs.metrics(before), strict=True):  # other processors: last bits
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
