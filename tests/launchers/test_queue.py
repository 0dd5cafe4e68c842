"""Submission, status, cancel, retry and gc through a queue that is not SLURM: nothing but its own folder knows it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from pathlib import Path

import fake_queue
import pytest
from fake_queue import QUEUE, Launcher
from synthetic import composed

from capsule_sweeps import compose_config, load_runs
from capsule_sweeps.launchers import submit as submitting
from capsule_sweeps.launchers.launch import find_launcher, launch
from capsule_sweeps.runs import queue as queues
from capsule_sweeps.runs.files import read_json, write_json
from capsule_sweeps.runs.garbage import garbage
from capsule_sweeps.runs.lock import owner
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.provenance import SUBMISSION, code, provenance
from capsule_sweeps.runs.queue import Entry, Unknown, find_queue
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns, signed_config
from capsule_sweeps.runs.where import queue_log, where


@pytest.fixture(autouse=True)
def queue(monkeypatch, place):
    """launchers/fake/queue.py and launcher.py, as if they were there."""
    monkeypatch.setattr(queues, "queue_names", lambda: ("fake", "slurm"))
    monkeypatch.setattr("capsule_sweeps.launchers.launch.queue_names", lambda: ("fake", "slurm"))
    for name in ("", ".queue", ".launcher"):
        module = types.ModuleType(f"capsule_sweeps.launchers.fake{name}")
        module.QUEUE, module.Launcher = QUEUE, Launcher
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(submitting, "take_snapshot", lambda runs_dir, include: runs_dir / ".code" / "0123")
    QUEUE.jobs.clear()
    QUEUE.refusals.clear()
    return QUEUE


@pytest.fixture
def submit(tiny, capsys):
    """What is printed when runs with these seeds are given to the fake queue."""

    def run(*seeds, policy=None, launcher=None):
        points = [[f"seed={seed}"] for seed in seeds]
        configs = [composed([*tiny, *point]) for point in points]
        launch(configs, points, policy or Policy(), launcher or Launcher())
        return " ".join(capsys.readouterr().out.split())

    return run


def states():
    runs = load_runs("runs")
    return dict(zip(runs.seed, runs.state, strict=True))


def submission():
    (path,) = Path("runs/.jobs").glob("*/job.json")
    return path.parent.name, json.loads(path.read_text())


def end(seed, state="finished"):
    """A job works on a run and ends."""
    (path,) = [path for path in Path("runs").glob("*/queued.json") if read_json(path)["columns"]["seed"] == seed]
    run, entry = Run(path.parent, read_json(path)["submission"]), read_json(path)
    attempt = {"submission": entry["submission"], "job": "1", "code": code(entry["signed_config"])}
    with run.claim():
        record = {**entry["columns"], "signed_config": entry["signed_config"], "state": state, "attempts": [attempt]}
        write_json(run.folder / "run.json", record)
        (run.folder / "config.yaml").write_text(json.dumps(entry["config"]))
        if state == "finished":
            write_json(run.folder / "summary.json", {**entry["columns"], "accuracy_last": 0.5})
        run.dequeue()
    return run


def test_a_queue_is_found_by_the_name_of_its_folder(monkeypatch) -> None:
    assert find_queue("fake") is QUEUE and find_launcher("fake") is Launcher
    for name in ("gone", "../fake", "os", "fake.queue", ""):
        assert isinstance(find_queue(name), Unknown), "nothing is imported by a name out of a file"
    monkeypatch.undo()
    assert queues.queue_names() == ("slurm",) and type(find_queue("slurm")).__name__ == "SlurmQueue"


def test_an_entry_names_its_queue_and_older_ones_mean_slurm(submit) -> None:
    submit(0)
    (path,) = Path("runs").glob("*/queued.json")
    name, job = submission()
    assert read_json(path)["queue"] == job["queue"] == "fake"
    assert Run(path.parent).entry() == Entry("fake", Path("runs/.jobs") / name, read_json(path)["user"])
    old = {key: value for key, value in read_json(path).items() if key != "queue"}
    write_json(path, old)
    write_json(Path("runs/.jobs", name, "job.json"), {key: value for key, value in job.items() if key != "queue"})
    assert Run(path.parent).entry().queue == "slurm"


def test_a_queue_that_this_code_does_not_have_is_left_alone(submit) -> None:
    submit(0)
    (path,) = Path("runs").glob("*/queued.json")
    write_json(path, {**read_json(path), "queue": "later"})
    assert states() == {0: "queued"} and where(Path("runs"), load_runs("runs")) == ["unknown queue later"]


def test_what_is_missing_is_queued_once(submit) -> None:
    said = submit(0, 1, 2)
    name, job = submission()
    assert f"3 runs queued in 3 jobs (1, 2): {name}." in said and job["job_ids"] == ["1", "2"]  # in pieces of 2
    assert states() == {0: "queued", 1: "queued", 2: "queued"}
    assert not Path("runs/.jobs", name, "launching.json").exists()
    again = submit(0, 1, 2)
    assert "3 to leave" in again and "3 queued: left to the queue" in again and len(QUEUE.jobs) == 1
    sweep = read_json(next(Path("runs/.sweeps").iterdir()))
    assert len(sweep["signatures"]) == 3 and "pid" not in sweep, "no process launches these"
    end(1)
    submit(0, 1, 2)
    assert states() == {0: "queued", 1: "finished", 2: "queued"} and len(QUEUE.jobs) == 1


def test_entries_hold_all_that_a_job_needs(submit, tiny) -> None:
    submit(0)
    config = compose_config([*tiny, "seed=0"])
    entry = read_json(next(Path("runs").glob("*/queued.json")))
    assert (
        entry["columns"] == columns(config)
        and entry["signed_config"] == signed_config(config)
        and entry["attempts"] == 0
    )
    assert all(Path(entry["config"][key]).is_absolute() for key in ("runs_dir", "data_dir"))


def test_vanished_jobs_are_submitted_again(submit, queue) -> None:
    submit(0, 1)
    queue.jobs.clear()
    assert states() == {0: "new", 1: "new"}
    assert "2 runs queued" in submit(0, 1) and states() == {0: "queued", 1: "queued"}


def test_fewer_jobs_than_runs_do_all_of_them(submit) -> None:
    assert "5 runs queued in 2 jobs (1)" in submit(*range(5), launcher=Launcher(max_parallel=2))


def listing():
    return sorted(str(path) for path in Path("runs").rglob("*"))


def test_a_refused_submission_leaves_the_ledger_as_it_was(submit, queue) -> None:
    submit(0)
    end(0)
    shutil.rmtree("runs/.jobs")
    before = listing()
    queue.jobs.clear()
    queue.refusals = ["no such partition"]
    with pytest.raises(ValueError, match=r"FAKE refused the jobs: no such partition$"):
        submit(0, 1, policy=Policy(force=True))
    assert listing() == before and not queue.jobs


def test_a_refusal_for_a_limit_names_the_setting_that_helps(submit, queue) -> None:
    queue.refusals = ["Job violates accounting/QOS policy (job submit limit)"]
    with pytest.raises(ValueError, match=r"hydra\.launcher\.max_parallel=N"):
        submit(0)


def test_when_a_later_piece_is_refused_the_accepted_ones_do_all_runs(submit, queue) -> None:
    queue.refusals = ["", "job submit limit"]
    said = submit(0, 1, 2)
    name, job = submission()
    assert "3 runs queued in 2 jobs (1)" in said and job["job_ids"] == ["1"]
    assert queue.jobs == {name: "pending (Priority)"} and set(states().values()) == {"queued"}


def test_ctrl_c_while_the_queue_answers_leaves_no_job_behind(submit, queue, monkeypatch) -> None:
    def interrupted(self, job, folder, num_jobs):
        queue.jobs[folder.name] = "pending"
        raise KeyboardInterrupt

    monkeypatch.setattr(Launcher, "send", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit(0)
    assert not queue.jobs and states() == {} and not Path("runs/.jobs").exists()


def test_the_slower_of_two_launchers_takes_back_only_its_own(submit, queue, monkeypatch) -> None:
    original = submitting.take_snapshot

    def and_be_overtaken(runs_dir, include):
        monkeypatch.setattr(submitting, "take_snapshot", original)
        submit(0)
        return original(runs_dir, include)

    monkeypatch.setattr(submitting, "take_snapshot", and_be_overtaken)
    queue.refusals = ["", "no such partition"]
    with pytest.raises(ValueError, match="no such partition"):
        submit(0, 1)
    assert states() == {0: "queued"} and len(queue.jobs) == 1
    submission()


def test_runs_of_a_launcher_that_is_about_to_submit_are_queued(submit, queue) -> None:
    submit(0)
    name, _ = submission()
    queue.jobs.clear()
    write_json(Path("runs/.jobs", name, "launching.json"), owner())
    assert states() == {0: "queued"}


def test_dry_run_and_debug(submit, queue) -> None:
    submit(0, policy=Policy(dry_run=True))
    assert not Path("runs").exists()
    configs = [compose_config(["dataset=digits", "debug=true"])]
    with pytest.raises(ValueError, match="debug=true runs on this machine"):
        launch(configs, [[]], Policy(), Launcher())


def test_status_says_where_runs_are(submit, queue, capsule_sweeps) -> None:
    submit(0, 1)
    name, _ = submission()
    listed = json.loads(capsule_sweeps("status", "--format", "json").out)
    assert [(row["state"], row["slurm"]) for row in listed] == [("queued", "pending (Priority)")] * 2
    assert "queued" in capsule_sweeps("show", listed[0]["run"]).out
    queue.jobs.clear()
    Path("runs/.jobs", name, "1_0_log.out").write_text("no such module")
    assert (
        where(Path("runs"), load_runs("runs"))
        == [f"its job ended without finishing it, see runs/.jobs/{name}/1_0_log.out"] * 2
    )
    assert "no such module" in capsule_sweeps("show", listed[0]["run"]).out


def test_the_log_of_a_finished_run_is_found_by_its_attempt(submit) -> None:
    submit(0)
    name, _ = submission()
    log = Path("runs/.jobs", name, "1_0_log.out")
    log.write_text("done")
    run = end(0)
    assert queue_log(run) == log and run.entry().job == "1"


def test_cancel_takes_runs_out_of_the_queue(submit, queue, capsule_sweeps) -> None:
    submit(0, 1)
    name, _ = submission()
    assert "taken out of the queue" in capsule_sweeps("cancel", "seed=0").out
    assert states() == {1: "queued"} and name in queue.jobs, "its jobs do what is left"
    assert f"{name}: nothing is left to do" in capsule_sweeps("cancel", "seed=1").out
    assert not queue.jobs and states() == {}


def test_cancel_where_the_queue_does_not_answer(submit, queue, capsule_sweeps, monkeypatch) -> None:
    submit(0)
    monkeypatch.setattr(fake_queue.FakeQueue, "cancel", lambda *_: False)
    assert "FAKE does not answer here; its jobs find nothing to do" in capsule_sweeps("cancel", "seed=0").out


def test_cancel_of_a_run_that_a_job_works_on(submit, queue, capsule_sweeps) -> None:
    submit(0, 1)
    name, _ = submission()
    (path,) = [path for path in Path("runs").glob("*/queued.json") if read_json(path)["columns"]["seed"] == 0]
    with Run(path.parent, name).claim() as claim:
        assert "stopping after the current batch" in capsule_sweeps("cancel", path.parent.name).out
        assert (claim.folder / "cancel").exists() and not path.exists()
    assert states()[1] == "queued" and name in queue.jobs


def test_a_claim_needs_the_entry_of_its_submission(submit) -> None:
    submit(0)
    name, _ = submission()
    (path,) = Path("runs").glob("*/queued.json")
    assert Run(path.parent).waits_for(name) and not Run(path.parent).waits_for("another")
    path.unlink()
    with pytest.raises(Exception, match="taken out of the queue"), Run(path.parent, name).claim():
        pass
    assert not path.parent.exists()


def test_retry_gives_runs_to_their_queue_again(submit, queue, capsule_sweeps) -> None:
    submit(0, 1, launcher=Launcher(max_parallel=1))
    for seed in (0, 1):
        end(seed, "failed")
    queue.jobs.clear()
    ended = capsule_sweeps("retry", "--yes", "state=failed")
    assert ended.code == 0 and "2 runs queued in 1 job (1)" in ended.out, "with its settings of then"
    assert states() == {0: "queued", 1: "queued"}


def test_retry_takes_runs_whose_job_ended_without_them(submit, queue, capsule_sweeps) -> None:
    submit(0, 1)
    queue.jobs.clear()
    assert states() == {0: "new", 1: "new"}
    ended = capsule_sweeps("retry", "--yes", "all")
    assert ended.code == 0 and "2 runs queued" in ended.out and states() == {0: "queued", 1: "queued"}


def test_retry_runs_here_where_the_queue_is_not_available(submit, queue, capsule_sweeps, monkeypatch, runs) -> None:
    submit(0)
    end(0, "failed")
    queue.jobs.clear()
    monkeypatch.setattr(Launcher, "available", lambda self: False)
    assert capsule_sweeps("retry", "--yes", "seed=0").code == 0 and states() == {0: "finished"}


def test_gc_keeps_what_jobs_need(submit, queue, capsule_sweeps) -> None:
    submit(0)
    name, job = submission()
    snapshot = Path(job["snapshot"])
    snapshot.mkdir(parents=True)

    def listed():
        for folder in (Path("runs/.jobs", name), snapshot):
            if folder.exists():
                os.utime(folder, (0, 0))
        return {path.name for path, _, _ in garbage(Path("runs"))}

    assert listed() == set()
    end(0)
    assert listed() == set(), "a job is left"
    queue.jobs.clear()
    assert name in listed()
    os.utime(Path("runs/.jobs", name))
    assert name not in {path.name for path, _, _ in garbage(Path("runs"))}
    listed()
    assert capsule_sweeps("gc", "--yes").code == 0 and not Path("runs/.jobs", name).exists()


def test_wait_follows_to_the_end(submit, queue, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Launcher, "waits", True, raising=False)
    looks = iter(range(3))
    monkeypatch.setattr(submitting.time, "sleep", lambda _: end(0) if next(looks) == 0 else None)
    said = submit(0)
    assert ": queued" in said and ": finished" in said and "Results" in said


def test_the_submission_is_in_the_environment_of_provenance(monkeypatch) -> None:
    monkeypatch.setenv(SUBMISSION, "sweep-1")
    assert provenance()["submission"] == "sweep-1"
