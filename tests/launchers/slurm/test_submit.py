"""What SLURM receives, by commands on the PATH that answer as a cluster does: no SLURM is needed."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capsule_sweeps import compose_config, load_runs
from capsule_sweeps.launchers import submit as submitting
from capsule_sweeps.launchers.launch import launch
from capsule_sweeps.launchers.slurm import queue as slurm
from capsule_sweeps.launchers.slurm.check import examine_cluster
from capsule_sweeps.launchers.slurm.launcher import Launcher
from capsule_sweeps.launchers.slurm.settings import Settings
from capsule_sweeps.launchers.snapshot import check_others
from capsule_sweeps.runs.files import read_json, write_json
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.queue import SUBMISSION, Entry
from capsule_sweeps.runs.run import Run

# Appends its arguments and environment to calls.jsonl. The n-th call of sbatch is refused where refuse.<n> says why;
# the others are jobs in the queue, 100, 101, …
COMMAND = """#!{python}
import json, os, sys
from pathlib import Path
here, name, arguments = Path({here!r}), Path(sys.argv[0]).name, sys.argv[1:]
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps({{"command": name, "arguments": arguments, "environment": dict(os.environ)}}) + "\\n")
queue, calls = here / "queue", here / "calls"
if name == "scontrol":
    print("ClusterName             = test\\nMaxArraySize            = " + (here / "max_array_size").read_text())
elif name == "squeue":
    print(queue.read_text() if queue.exists() else "")
elif name == "sinfo":
    print((here / "nodes").read_text())
elif name == "scancel":
    queue.unlink(missing_ok=True)
elif name == "sbatch":
    number = int(calls.read_text()) if calls.exists() else 0
    calls.write_text(str(number + 1))
    refusal = here / f"refuse.{{number}}"
    if refusal.exists():
        sys.exit("sbatch: error: Batch job submission failed: " + refusal.read_text())
    job = next(word.partition("=")[2] for word in arguments if word.startswith("--job-name="))
    tasks = next((int(word.rpartition("-")[2]) + 1 for word in arguments if word.startswith("--array=")), 0)
    names = [f"{{100 + number}}_{{task}}" for task in range(tasks)] or [str(100 + number)]
    with open(queue, "a") as file:
        file.writelines(f"{{name}}|{{job}}|PENDING|Priority||UNLIMITED\\n" for name in names)
    print(100 + number)
"""


class Cluster:
    def __init__(self, here: Path) -> None:
        self.here = here
        (here / "max_array_size").write_text("4")
        (here / "nodes").write_text("idle")
        for name in ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo"):
            (here / name).write_text(COMMAND.format(python=sys.executable, here=str(here)))
            (here / name).chmod(0o755)

    def calls(self, command: str) -> list[dict]:
        lines = (self.here / "calls.jsonl").read_text().splitlines() if (self.here / "calls.jsonl").exists() else []
        return [call for line in lines if (call := json.loads(line))["command"] == command]


@pytest.fixture
def cluster(tmp_path, monkeypatch, place):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")

    def take_snapshot(runs_dir: Path, include: object) -> Path:
        (runs_dir / ".code" / "0123").mkdir(parents=True, exist_ok=True, mode=0o755)
        return runs_dir / ".code" / "0123"

    monkeypatch.setattr(submitting, "take_snapshot", take_snapshot)
    slurm.forget()
    yield Cluster(tmp_path / "bin")
    slurm.forget()


@pytest.fixture
def submit(tiny, cluster, capsys):
    def run(num_runs=1, **settings):
        points = [[f"seed={seed}"] for seed in range(num_runs)]
        launch([compose_config([*tiny, *point]) for point in points], points, Policy(), Launcher(**settings))
        return " ".join(capsys.readouterr().out.split())

    return run


def states():
    slurm.forget()
    return list(load_runs("runs").state)


def script():
    (path,) = Path("runs/.jobs").glob("*/*_submission.sh")
    return path.read_text()


def test_an_array_is_cut_in_pieces(submit, cluster) -> None:
    assert "6 runs queued in 6 jobs (100, 101)" in submit(6)
    arrays = [next(word for word in call["arguments"] if "array" in word) for call in cluster.calls("sbatch")]
    assert arrays == ["--array=0-3", "--array=0-1"] and states() == ["queued"] * 6


@pytest.mark.parametrize("accepted", [1, 2])
def test_a_later_piece_that_is_refused_leaves_the_accepted_ones(submit, cluster, accepted) -> None:
    (cluster.here / f"refuse.{accepted}").write_text("Job violates accounting/QOS policy (job submit limit)")
    assert f"10 runs queued in {4 * accepted} jobs" in submit(10)
    assert len(slurm.jobs()) == 4 * accepted, "what is said is what squeue shows"
    assert states() == ["queued"] * 10 and not cluster.calls("scancel")


def test_the_first_refusal_is_slurms_sentence_and_what_solves_it(submit, cluster) -> None:
    (cluster.here / "refuse.0").write_text("Job violates accounting/QOS policy (job submit limit, user's size)")
    with pytest.raises(ValueError, match=r"SLURM refused the jobs: Job violates .*max_parallel=N.* gpus=1"):
        submit()
    assert states() == [] and not Path("runs/.jobs").exists() and cluster.calls("scancel")


def test_class_beside_launch_that_jobs_would_not_find_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine_beside").mkdir()
    (tmp_path / "mine_beside" / "topk.py").write_text("class K: ...")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CAPSULE_SWEEPS_TRUST_PACKAGES", "mine_beside")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    flats, snapshot = [{"model.routing._target_": "mine_beside.topk.K"}], tmp_path / "snapshot"
    check_others(snapshot, flats)  # not in the checkout: the user's own path, which jobs inherit
    monkeypatch.setattr("capsule_sweeps.launchers.snapshot.ROOT", tmp_path)
    with pytest.raises(ValueError, match=r'snapshot_include=\["mine_beside/\*.py"\]'):
        check_others(snapshot, flats)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        check_others(snapshot, flats)
    shutil.copytree(tmp_path / "mine_beside", snapshot / "mine_beside")
    check_others(snapshot, flats)


def test_where_arrays_are_off_jobs_are_single(submit, cluster) -> None:
    (cluster.here / "max_array_size").write_text("0")
    assert "2 runs queued in 2 jobs (100, 101)" in submit(2)
    for call in cluster.calls("sbatch"):
        assert not [word for word in call["arguments"] if word.startswith("--array")]
        assert next(word for word in call["arguments"] if word.startswith("--output=")).endswith("/%j_0_log.out")
    (answers, *_) = examine_cluster(compose_config(["dataset=digits"]), Settings(), False)
    assert answers[1] and "no arrays: each job is submitted by itself" in answers[2]


def test_a_surrounding_job_and_redirecting_variables_do_not_reach_a_submission(submit, cluster, monkeypatch) -> None:
    leaking = ["SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_MEM_PER_CPU", "SLURMD_NODENAME"]
    leaking += ["SLURM_EXPORT_ENV", "SRUN_CPUS_PER_TASK", "SBATCH_ARRAY_INX", "SBATCH_OUTPUT", "SBATCH_JOB_NAME"]
    leaking += ["SBATCH_EXPORT", "SBATCH_REQUEUE", "SBATCH_SIGNAL", "PMIX_RANK"]
    kept = ["SLURM_CONF", "SBATCH_ACCOUNT", "SBATCH_PARTITION"]
    for name in [*leaking, *kept]:
        monkeypatch.setenv(name, "1")
    submit()
    (call,) = cluster.calls("sbatch")
    assert call["environment"].keys() & {*leaking, *kept} == set(kept)
    assert "--export=ALL" in call["arguments"] and "SLURM_EXPORT_ENV=ALL" in script()
    (answers, *_) = examine_cluster(compose_config(["dataset=digits"]), Settings(), False)
    assert "inside of job 1" in answers[2]


def test_what_is_set_is_sent_and_nothing_else(submit, cluster) -> None:
    submit(2, partition="p", gpus=None, mem_gb=1.5, time="0:20:00", max_parallel=1, sbatch={"mail_type": "FAIL"})
    (call,) = cluster.calls("sbatch")
    *sent, path = call["arguments"]
    names = [word.partition("=")[0].removeprefix("--") for word in sent]
    ours = ["array", "export", "job-name", "nodes", "open-mode", "output", "requeue", "signal"]
    assert sorted(names) == sorted(["parsable", *ours, "partition", "mem", "time", "mail-type"])
    assert {"--mem=1536M", "--time=0:20:00", "--mail-type=FAIL", "--signal=USR2@120"} <= set(sent)
    assert [line.removeprefix("#SBATCH ") for line in script().splitlines() if line.startswith("#SBATCH")] == sent[1:]
    assert Path(path).read_text() == script()


def test_the_script_is_valid_shell_and_every_start_executes_what_was_submitted(submit, cluster, monkeypatch) -> None:
    submit(setup=["export FROM_SETUP=1"], cpus=2)
    assert "export FROM_SETUP=1\n" in script() and "SRUN_CPUS_PER_TASK" in script()
    (path,) = Path("runs/.jobs").glob("*/*_submission.sh")
    for job, environment in [("7", {}), ("8_3", {"SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"})]:
        pickle = path.with_name(f"{job}_submitted.pkl")
        subprocess.run(
            ["bash", path], check=True, env={"PATH": f"{cluster.here}:/usr/bin:/bin", "SLURM_JOB_ID": "7"} | environment
        )
        assert pickle.read_bytes() == path.with_name("job.pkl").read_bytes()
        pickle.write_text("of somebody else")
        subprocess.run(
            ["bash", path], check=True, env={"PATH": f"{cluster.here}:/usr/bin:/bin", "SLURM_JOB_ID": "7"} | environment
        )
        assert pickle.read_bytes() == path.with_name("job.pkl").read_bytes()
    assert cluster.calls("srun")[0]["arguments"][-3:-1] == ["-m", "submitit.core._submit"]


def test_status_of_a_queued_run_is_that_of_a_job_that_may_take_it(cluster, monkeypatch) -> None:
    entry = Entry("slurm", Path("runs/.jobs/sweep-1"))
    rows = ["7_0|sweep-1|COMPLETING|None|n1|1:00", "7_1|sweep-1|RUNNING|None|n1|58:56", "8|other|PENDING|x||1"]
    (cluster.here / "queue").write_text("\n".join(rows))
    assert slurm.QUEUE.where(entry) == "waits for one of 2 jobs at work"
    assert slurm.QUEUE.where(Entry("slurm", entry.folder, job="7_1")) == "n1, 58:56 left"
    (cluster.here / "queue").write_text("\n".join([*rows, "7_2|sweep-1|PENDING|Resources||1:00:00"]))
    slurm.forget()
    assert slurm.QUEUE.where(entry) == "pending (Resources)"
    (cluster.here / "queue").write_text("")
    slurm.forget()
    assert slurm.QUEUE.where(entry) == "" and not slurm.QUEUE.is_active(entry)


def test_without_an_answer_runs_count_as_queued(monkeypatch, place) -> None:
    monkeypatch.setenv("PATH", "")
    slurm.forget()
    entry = Entry("slurm", Path("runs/.jobs/sweep-1"))
    assert slurm.QUEUE.is_active(entry) and slurm.QUEUE.where(entry) == "SLURM does not answer"
    assert not slurm.QUEUE.cancel(entry)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("theirs", "ours", "value"),
    [
        ("timeout_min", "time", 60),
        ("gpus_per_node", "gpus", 2),
        ("gpus_per_node", "gpus", "a100:2"),
        ("cpus_per_task", "cpus", 8),
        ("array_parallelism", "max_parallel", 3),
    ],
)
def test_submitits_names_mean_the_same(theirs, ours, value) -> None:
    assert Settings(**{theirs: value}) == Settings(**{ours: value}) == Settings(**{theirs: value, ours: value})
    with pytest.raises(ValueError, match=rf"hydra\.launcher\.{ours}=7 and hydra\.launcher\.{theirs}={value} differ"):
        Settings(**{theirs: value, ours: 7})


def test_submitits_names_on_the_command_line(launch, cluster) -> None:
    names = ["timeout_min=60", "gpus_per_node=2", "cpus_per_task=8", "array_parallelism=1"]
    ended = launch("-m", "hydra/launcher=slurm", *[f"hydra.launcher.{name}" for name in names], "seed=0,1")
    assert ended.code == 0, ended.text
    (call,) = cluster.calls("sbatch")
    assert {"--time=60", "--gpus-per-node=2", "--cpus-per-task=8", "--array=0-0"} <= set(call["arguments"])


def test_one_gpu_and_two_gpus_per_node_contradict_each_other() -> None:
    with pytest.raises(ValueError, match=r"hydra\.launcher\.gpus=1 and hydra\.launcher\.gpus_per_node=2 differ"):
        Settings(gpus=1, gpus_per_node=2)
    assert Settings() == Settings(gpus=1) and Settings().parameters()["gpus-per-node"] == 1


@pytest.mark.parametrize("signal", ["B:USR2@60", "TERM@60", "USR2@soon"])
def test_a_signal_that_does_not_reach_runs_is_refused(launch, cluster, signal) -> None:
    said = launch("-m", "hydra/launcher=slurm", f"hydra.launcher.sbatch={{signal:'{signal}'}}")
    assert said.code == 1 and f"signal={signal} does not reach runs" in said.err and "USR2@120" in said.err
    assert not cluster.calls("sbatch")


def test_names_of_jobs_begin_with_what_is_trained_on() -> None:
    """squeue shows 8 letters."""
    name = submitting.submission_name(["CIFAR10", "CIFAR100", "CIFAR10"], "sweep-01234567")
    assert name.startswith("CIFAR10+CIFAR100-01234567-") and SUBMISSION.fullmatch(name)
    odd = submitting.submission_name([".été, " + 99 * "x"], "sweep-01234567")
    assert SUBMISSION.fullmatch(odd) and len(odd) <= 40


def test_setup_runs_in_a_login_shell(submit, cluster) -> None:
    """Where `module` is defined; nothing else needs one."""
    submit(setup=["module load cuda"])
    assert script().startswith("#!/bin/bash -l\n")


def test_gpu_types_and_requests_of_ones_own() -> None:
    assert Settings(gpus="a100:2").parameters()["gpus-per-node"] == "a100:2"
    own = Settings(sbatch={"gres": "gpu:a100:2"}).parameters()
    assert own["gres"] == "gpu:a100:2" and "gpus-per-node" not in own, "two requests would contradict each other"
    with pytest.raises(ValueError, match=r"hydra\.launcher\.gpus=a100 .* a100:2"):
        Settings(gpus="a100")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("runs_per_job", "4", "a number"),
        ("runs_per_job", None, "a number"),
        ("mem_gb", "64", "a number"),
        ("cpus", True, "a number"),
        ("wait", "no", "true or false"),
        ("sbatch", [1], "sbatch options by name"),
        ("setup", "module load cuda", "shell lines"),
        ("setup", [{"echo start": "now"}], "shell lines"),  # - echo start: now, without quotes
        ("snapshot_include", [[1]], "patterns"),
    ],
)
def test_types_that_hydra_does_not_check(name, value, words) -> None:
    with pytest.raises(ValueError, match=rf"hydra\.launcher\.{name}=.* must be .*{words}"):
        Settings(**{name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        "packing=both",
        "time=1",
        "sbatch={wrap: a}",
        "runs_per_job=0",
        "max_attempts=0",
        "wait=perhaps",
        "sbatch={array: 0-3}",
    ],
)
def test_settings_out_of_range(launch, wrong) -> None:
    said = launch("-m", "hydra/launcher=slurm", f"hydra.launcher.{wrong}")
    assert said.code == 1 and f"hydra.launcher.{wrong.split('=')[0]}" in said.err and not Path("runs").exists()


def test_one_run_needs_m(launch) -> None:
    said = launch("hydra/launcher=slurm")
    assert said.code == 1 and "-m" in said.err and not Path("runs").exists()


def test_without_slurm(launch, monkeypatch, place) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    said = launch("-m", "hydra/launcher=slurm")
    assert said.code == 1 and "SLURM is not available" in said.err and not Path("runs").exists()


def test_a_percent_sign_in_runs_dir_is_refused(launch, cluster) -> None:
    refused = launch("-m", "hydra/launcher=slurm", "runs_dir='100%'")
    assert refused.code == 1 and "%" in refused.err and not Path("100%").exists()


def test_claims_of_an_earlier_start_of_the_same_job_are_void(tmp_path, monkeypatch) -> None:
    run = Run(tmp_path / "name-00000000")
    run.folder.mkdir()
    claim = {"host": "elsewhere boot ns", "pid": 1, "start": "1", "time": 0, "job": "7_1", "restart": 0, "cluster": "a"}
    write_json(run.folder / "attempt-1.json", claim)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "a")
    assert run.state() == "running" and read_json(run.folder / "attempt-1.json")["job"] == "7_1"
    for job, task, restart, state in [
        ("7", "1", "1", "interrupted"),
        ("7", "1", "0", "running"),
        ("7", "2", "1", "running"),
    ]:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", job)
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        assert run.state() == state
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "b")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run.state() == "running", "a job of the same number on another cluster"


@pytest.mark.parametrize(
    ("queue", "nodes", "silent", "cluster_name", "state"),
    [
        ("7_1|x|RUNNING|None|n1|1:00", "mixed", 60, "test", "running"),
        ("7_1|x|RUNNING|None|n1|1:00", "down*\ndown*", 60, "test", "interrupted"),
        ("7_1|x|COMPLETING|NodeDown|n1|0:00", "down", 60, "test", "interrupted"),
        ("7_1|x|RUNNING|None|n1|1:00", "mixed*", 60, "test", "interrupted"),  # does not respond, and no heartbeat
        ("7_1|x|PENDING|BeginTime||1:00", "idle", 60, "test", "interrupted"),  # started again after NODE_FAIL
        ("7_1|x|NODE_FAIL|None|n1|0:00", "idle", 60, "test", "interrupted"),
        ("7_1+0|x|RUNNING|None|n1|1:00", "mixed", 60, "test", "running"),  # a heterogeneous job
        ("", "idle", 60, "test", "interrupted"),
        ("", "idle", 20, "test", "running"),  # a heartbeat of a moment ago counts for more than any queue
        ("", "idle", 60, "elsewhere", "running"),  # a job of another cluster
        ("", "idle", 60, None, "running"),
    ],
)
def test_a_silent_claim_is_void_where_the_queue_knows_that_its_job_is_over(
    cluster, tmp_path, queue, nodes, silent, cluster_name, state
) -> None:
    run = Run(tmp_path / "name-00000000")
    run.folder.mkdir()
    claim = {"host": "elsewhere boot ns", "pid": 1, "start": "1", "queue": "slurm", "job": "7_1", "restart": 0}
    write_json(run.folder / "attempt-1.json", {**claim, "cluster": cluster_name})
    os.utime(run.folder / "attempt-1.json", (time.time() - silent,) * 2)
    (cluster.here / "queue").write_text(queue)
    (cluster.here / "nodes").write_text(nodes)
    assert run.state() == state


@pytest.mark.parametrize("job", [["7"], "7; touch x", None, 7, {"x": 1}])
def test_what_a_claim_says_of_its_job_is_not_trusted(cluster, tmp_path, job) -> None:
    run = Run(tmp_path / "name-00000000")
    run.folder.mkdir()
    claim = {"host": "x", "pid": 1, "start": "1", "queue": "slurm", "job": job, "restart": 0, "cluster": "test"}
    write_json(run.folder / "attempt-1.json", claim)
    os.utime(run.folder / "attempt-1.json", (time.time() - 60,) * 2)
    assert run.state() in ("running", "interrupted")
    assert all("touch" not in word for call in cluster.calls("squeue") for word in call["arguments"])


def test_no_remembered_answer_takes_a_run_over(cluster, monkeypatch) -> None:
    (cluster.here / "queue").write_text("7_1|x|PENDING|Resources||1:00")
    assert slurm.jobs() and slurm.settings()
    (cluster.here / "queue").write_text("7_1|x|RUNNING|None|n1|1:00")
    later = time.monotonic() + 10
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not slurm.QUEUE.is_over("7_1", "test", getpass.getuser())


def test_answers_of_the_cluster_are_remembered_for_30_seconds(cluster) -> None:
    for _ in range(3):
        slurm.jobs()
        slurm.settings()
    assert len(cluster.calls("squeue")) == len(cluster.calls("scontrol")) == 1


def test_doctor_trains_nothing_on_a_login_node(cluster, tiny, capsule_sweeps, monkeypatch) -> None:
    def lines(*words: str) -> dict[str, str]:
        return {line[6:20].strip(): line[20:] for line in capsule_sweeps("doctor", *tiny, *words).out.splitlines()}

    (cluster.here / "nodes").write_text("debug*|infinite|infinite")
    found = lines("hydra/launcher=slurm", "device=cuda")
    assert "left out on a login node" in found["training step"] and "left out on a login node" in found["device"]
    assert "srun python -m capsule_sweeps doctor dataset=digits" in found["training step"]
    local = lines()
    assert "left out" in local["training step"]
    assert "left out" not in local["device"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert "one step of" in lines("hydra/launcher=slurm", "device=cpu")["training step"], "inside of a job"
