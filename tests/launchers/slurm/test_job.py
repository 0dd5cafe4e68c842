"""What a SLURM job does about runs that get nowhere, and with GPUs that it asked for; no cluster is needed."""

from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from capsule_sweeps import load_runs
from capsule_sweeps.launchers.pool import Slot
from capsule_sweeps.launchers.slurm import job as jobs
from capsule_sweeps.launchers.slurm import queue as slurm
from capsule_sweeps.launchers.slurm.job import SlurmJob
from capsule_sweeps.launchers.slurm.settings import Settings
from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns, signed_config
from capsule_sweeps.runs.stored import digest


@pytest.fixture
def job(tiny_config, monkeypatch):
    """A job with one queued run, and a function that starts it and lets its process be killed."""
    config = tiny_config()
    run = Run(Path(config.runs_dir) / columns(config)["run"])
    entry = {"queue": "slurm", "submission": "sweep-1", "user": "me", "config": OmegaConf.to_container(config)}
    run.enqueue({**entry, "columns": columns(config), "signed_config": signed_config(config), "attempts": 0})
    made = SlurmJob("nowhere")
    made.job = {"submission": "sweep-1", "runs": [str(run.folder)]}
    made.settings = {"max_attempts": 50, "runs_per_job": 1, "packing": "parallel"}
    made.starts, made.begun, made.given_up, made.workers = Counter(), {}, [], set()
    return made, run


def start(run: Run, steps_done: int = 0) -> None:
    """An attempt that began with so many steps and was killed."""
    record = run.record()
    attempts = [*record.get("attempts", []), {"steps_done": steps_done}]
    write_json(run.folder / "run.json", {**record, "attempts": attempts, "state": "running", "steps_done": steps_done})


def test_run_that_is_killed_each_time_is_given_up_after_three(job) -> None:
    made, run = job
    for _ in range(3):
        assert made.take() is not None
        start(run)
    assert made.take() is None and made.given_up == [run.folder.name]
    record = run.record()
    assert (record["state"], record["failure"]) == ("failed", "oom") and "memory" in record["error"]
    assert run.state() == "failed" and not run.queue_entry() and load_runs("runs").state[0] == "failed"
    assert Policy(retry="oom").action("failed", record["failure"]) == "retry"


def test_run_that_is_killed_before_it_claims_its_folder_is_given_up_as_well(job) -> None:
    made, run = job
    assert [made.take() is not None for _ in range(4)] == [True, True, True, False]
    assert run.record()["failure"] == "oom" and run.state() == "failed"


def test_run_that_makes_progress_is_started_again(job) -> None:
    made, run = job
    for number in range(10):
        assert made.take() is not None
        start(run, 5 * number)
    assert made.given_up == []


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, True),
        ({"gpus": None}, False),
        ({"gpus": 0}, False),
        ({"gpus": "a100:2"}, True),
        ({"gpus": None, "sbatch": {"gres": "gpu:1"}}, True),
        ({"gpus": None, "sbatch": {"gres": "lustre"}}, False),
        ({"gpus": None, "sbatch": {"gpus_per_task": 1}}, True),
    ],
)
def test_gpus_are_asked_for(settings, asked) -> None:
    assert Settings(**settings).asks_for_gpus() == asked


@pytest.mark.parametrize(("told", "grace"), [("30 sec", 25), ("120 sec", 30), (None, 30), ("3 sec", 1)])
def test_slots_of_a_job(job, monkeypatch, told, grace) -> None:
    made, _ = job
    made.settings = {**Settings().__dict__}
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(slurm, "settings", lambda: None if told is None else {"KillWait": told})
    assert made._slots() == [Slot(None, 4, True, grace)]
    assert jobs.GRACE_SECONDS == 30


def test_run_does_not_train_on_a_cpu_where_a_gpu_was_asked_for(job, monkeypatch, capsys) -> None:
    import io
    import json
    import sys

    import torch

    from capsule_sweeps.launchers import worker

    _, run = job
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    task = {"config": run.queue_entry()["config"], "folder": str(run.folder), "sweep": "s", "threads": 1, "grace": 30}
    task |= {"code": str(worker.ROOT), "submission": "sweep-1", "gpu_asked": True}
    monkeypatch.setattr(worker, "stop_with_parent", lambda: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(task) + "\n"))
    assert worker.main() == 1
    assert "asked for a GPU" in capsys.readouterr().err and not (run.folder / "run.json").exists()
    task["config"]["device"] = "cpu"
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(task) + "\n"))
    assert worker.main() == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_dir", "${oc.env:HOME}"),
        ("data_dir", "/elsewhere"),
        ("tracking", {"_target_": "capsule_sweeps.tracking.wandb.WandbTracker", "name": "wandb", "entity": "stranger"}),
    ],
)
def test_an_entry_that_others_changed_after_the_submission_is_not_trained(job, caplog, key, value) -> None:
    """In a shared folder others write into run folders, but not into those of submissions."""
    made, run = job
    entry = run.queue_entry()
    made.job["configs"] = [digest(entry["config"])]
    assert made.take().config.data_dir == entry["config"]["data_dir"]
    entry["config"][key] = value
    write_json(run.folder / "queued.json", entry)
    assert made.take() is None and made.given_up == [run.folder.name]
    assert digest({2: 0.1, 10: 0.2}) == digest({"2": 0.1, "10": 0.2}), "keys that are numbers become text in a file"
    assert "changed after the submission" in run.record()["error"] and run.state() == "failed"


def test_an_entry_with_an_interpolation_costs_its_own_run_only(job) -> None:
    made, run = job
    entry = run.queue_entry()
    entry["config"]["data_dir"] = "${oc.env:HOME}"
    write_json(run.folder / "queued.json", entry)
    assert made.take() is None and "interpolation" in run.record()["error"]
