"""`doctor`: is everything ready for a run? Each line ok, or what to do."""

import json
import os
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

CHECKS = ["runs_dir", "lock", "disk space", "device", "stack", "data", "training step", "packages", "tracking"]


@pytest.fixture
def doctor(tiny, capsule_sweeps):
    """check → (ok, text), and the exit code."""

    def run(*overrides: str) -> tuple[dict[str, tuple[bool, str]], int]:
        ended = capsule_sweeps("doctor", *tiny, *overrides, "--format", "json")
        found = json.loads(ended.out)
        return {check["check"]: (check["ok"], check["text"]) for check in found}, ended.code

    return run


@pytest.fixture(autouse=True)
def room(monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**39, 2**39))


def test_all_is_well_and_nothing_is_left(doctor, place) -> None:
    found, code = doctor()
    assert list(found) == CHECKS and code == 0
    assert all(ok for ok, _ in found.values()), found
    assert "1,437" in found["data"][1] or "40" in found["data"][1]
    assert list(place.iterdir()) == []


def test_every_line_of_the_table_is_ok_or_what_to_do(capsule_sweeps, tiny) -> None:
    ended = capsule_sweeps("doctor", *tiny, "device=cuda:7")
    lines = ended.out.splitlines()
    assert ended.code == 1 and len(lines) == len(CHECKS)
    assert {line.split()[0] for line in lines} == {"ok", "FAIL"}
    assert any(line.startswith("FAIL") and "cuda:7" in line and "device=auto" in line for line in lines)


def test_no_room(doctor, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**20))
    found, code = doctor()
    assert code == 1 and not found["disk space"][0] and "runs_dir" in found["disk space"][1]


def test_runs_dir_below_a_file(doctor, place) -> None:
    Path("file").touch()
    found, code = doctor("runs_dir=file/runs")
    assert code == 1 and not found["runs_dir"][0] and "runs_dir=" in found["runs_dir"][1]
    assert [name for name, (ok, _) in found.items() if not ok and name not in ("runs_dir", "lock", "disk space")] == []


def test_file_system_without_exclusive_creation(doctor, monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0))
    found, code = doctor()
    assert code == 1 and not found["lock"][0] and "runs_dir" in found["lock"][1]


def test_data_that_are_not_there(doctor) -> None:
    found, code = doctor("dataset.source=folder", "data_dir=nowhere")
    assert code == 1 and not found["data"][0] and "nowhere" in found["data"][1]


def test_impossible_stack(doctor) -> None:
    found, code = doctor("capsules.classes.pose_size=9")
    assert code == 1 and not found["training step"][0] and "capsules.classes.pose_size" in found["training step"][1]


@pytest.mark.parametrize(
    ("overrides", "environment", "word"),
    [
        (["tracking=none"], {}, "off"),
        (["tracking=wandb"], {}, "offline"),
        (["tracking=wandb", "tracking.mode=disabled"], {}, "off"),
        (["tracking=wandb", "tracking.mode=online"], {"WANDB_MODE": "offline"}, "offline"),
    ],
)
def test_wandb_as_configured(doctor, monkeypatch, overrides, environment, word) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found, _ = doctor(*overrides)
    ok, text = found["tracking"]
    assert ok and word in text


def test_wandb_that_does_not_answer(doctor, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", 40 * "1")
    found, code = doctor("tracking=wandb", "tracking.mode=online")
    assert code == 1 and not found["tracking"][0]
    assert "127.0.0.1:9" in found["tracking"][1] and "tracking.mode=offline" in found["tracking"][1]


def test_wrong_override_is_one_sentence(capsule_sweeps, tiny, place) -> None:
    ended = capsule_sweeps("doctor", *tiny, "training.lr=-1")
    assert ended.code == 1 and ended.err.startswith("Error: ") and "training.lr" in ended.err and not ended.out


@pytest.mark.parametrize("form", ["md", "csv"])
def test_other_formats_are_what_they_say(capsule_sweeps, tiny, form) -> None:
    lines = capsule_sweeps("doctor", *tiny, "--format", form).out.splitlines()
    assert len(lines) >= len(CHECKS) + 1, "with a header"
    mark = {"md": "|", "csv": ","}[form]
    assert lines[0].count(mark) == lines[-1].count(mark) >= 2 and lines[0].strip("| ").startswith("check")


def test_lock_test_leaves_no_file_when_it_is_interrupted(doctor, place, monkeypatch) -> None:
    def broken(*_, **__):
        raise OSError("no process")

    monkeypatch.setattr(subprocess, "run", broken)
    found, _ = doctor()
    assert not found["lock"][0] and os.listdir(place) == []


def test_runs_dir_may_have_any_letters(capsule_sweeps, tiny, place) -> None:
    name = "a,b=c#d O'Brien (José)"
    ended = capsule_sweeps("doctor", "--runs-dir", name, *tiny)
    assert f"{name} can be written" in ended.out, ended.text
