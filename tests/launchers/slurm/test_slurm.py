"""Sweeps on a real SLURM: packed, killed, preempted, out of time; what should finish does, with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from slurm_cluster import MAX_ARRAY_SIZE, Cluster, missing

from capsule_sweeps import load_runs
from capsule_sweeps.launchers.slurm import queue as slurm
from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.run import Run

ROOT = Path(__file__).resolve().parents[3]
NEEDED = missing("slurmctld", "slurmd", "sbatch", "srun")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(NEEDED), reason=f"no SLURM here: {NEEDED} missing (Debian: slurmctld slurmd slurm-client)"),
]
LONG = ["training.epochs=120", "training.checkpoint_epochs=10"]  # some ten seconds of training
SHORT = ["training.epochs=30"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cluster")) as booted:
        yield booted


@pytest.fixture
def submit(launch, cluster):
    """launch.py -m hydra/launcher=slurm with a sweep of TINY runs, CPU only, one thread each."""

    def run(*arguments):
        slurm.forget()
        return launch("-m", "hydra/launcher=slurm", "hydra.launcher.gpus=null", "hydra.launcher.cpus=1", *arguments)

    yield run
    for path in Path("runs").glob("*/queued.json"):  # so that jobs which are killed are not started again
        path.unlink()
    subprocess.run(["scancel", "--me", "--full"], capture_output=True)
    cluster.until(lambda: not cluster.ask("squeue", "-h").strip())


@pytest.fixture
def undisturbed(launch, runs):
    """Compares finished runs with the same runs made here, in this process, without SLURM."""

    def compare(*arguments):
        made = launch("-m", "runs_dir=undisturbed", *arguments)
        assert made.code == 0, made.text
        for folder in runs.folders("undisturbed"):
            runs.assert_same(folder, Path("runs") / folder.name)

    return compare


def states():
    slurm.forget()
    return dict(zip(load_runs("runs").run, load_runs("runs").state, strict=True))


def submission():
    """The newest one and its job.json."""
    path = max(Path("runs/.jobs").glob("*/job.json"), key=lambda path: path.stat().st_mtime)
    return path.parent.name, json.loads(path.read_text())


def log():
    return "".join(path.read_text() for path in sorted(Path("runs/.jobs").glob("*/*_log.out")))


def epochs(folder):
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def in_training(cluster, runs, at_least=15):
    """The one run, once it has trained so many epochs."""
    return cluster.until(lambda: next((f for f in runs.folders() if epochs(f) >= at_least), None))


def worker_of(folder):
    (path,) = [path for path in folder.glob("attempt-*.json") if "released" not in path.read_text()]
    return json.loads(path.read_text())["pid"]


def gpus_of_workers():
    """CUDA_VISIBLE_DEVICES of each process that trains a run now."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"capsule_sweeps.launchers.worker" in (process / "cmdline").read_bytes():
                environment = (process / "environ").read_bytes().decode().split("\0")
                yield from (text.partition("=")[2] for text in environment if text.startswith("CUDA_VISIBLE_DEVICES="))


def listing(folder):
    """All that is in a folder of runs but `.code`, which gc looks after."""
    return sorted(str(path) for path in Path(folder).rglob("*") if ".code" not in path.parts)


@pytest.mark.slow
def test_an_array_cut_in_pieces_finishes_with_the_same_bits(submit, cluster, runs, undisturbed, capsule_sweeps) -> None:
    sweep = ["num_routing=1,2", "seed=0,1,2"]
    said = submit(*sweep)
    assert said.code == 0 and "6 runs queued in 6 jobs" in said.out
    name, job = submission()
    assert len(job["job_ids"]) == 2 and job["job_ids"][0] in said.out  # MaxArraySize is 4
    assert set(cluster.jobs(name)) == {f"{job['job_ids'][0]}_{task}" for task in range(MAX_ARRAY_SIZE)} | {
        f"{job['job_ids'][1]}_{task}" for task in range(2)
    }
    again = submit(*sweep)
    assert again.code == 0 and "6 to leave" in again.out and len(list(Path("runs/.jobs").iterdir())) == 1
    assert set(states().values()) <= {"queued", "running", "finished"}
    frame = load_runs("runs")
    assert sorted(frame.num_routing) == [1, 1, 1, 2, 2, 2] and not frame.accuracy_last.gt(1).any()
    cluster.drained()
    assert set(states().values()) == {"finished"} and set(cluster.jobs(name).values()) == {"COMPLETED"}
    assert all(len(runs.record(folder)["attempts"]) == 1 for folder in runs.folders())
    assert not list(Path("runs").glob("*/queued.json"))
    undisturbed(*sweep)
    finished = submit(*sweep)
    assert finished.code == 0 and "6 to skip" in finished.out and "Results" in finished.out


def test_what_is_set_is_what_the_job_has(submit, cluster, runs) -> None:
    settings = ["account=a", "qos=q", "constraint=c", "gpus=1", "mem_gb=1.5", 'time="0:20:00"', "max_parallel=2"]
    settings += ["sbatch={mail_type: FAIL, hold: true}", 'setup=["export FROM_SETUP=1"]']
    refused = submit(*[f"hydra.launcher.{setting}" for setting in settings])
    assert refused.code == 1 and "feature" in refused.err.lower(), refused.err
    assert refused.err.count("\n") == 1 and listing("runs") == []
    accepted = [setting for setting in settings if not setting.startswith(("account", "qos", "constraint"))]
    assert submit("seed=range(5)", *[f"hydra.launcher.{setting}" for setting in accepted]).code == 0
    name, job = submission()
    assert len(cluster.jobs(name)) == 2  # max_parallel: two jobs take all five runs
    told = cluster.detail(job["job_ids"][0] + "_0")
    assert told["JobState"] == "PENDING" and told["TimeLimit"] == "00:20:00" and told["MinMemoryNode"] == "1.50G"
    assert told["TresPerNode"].endswith("gpu:1")


def test_cancel_takes_runs_out_of_the_queue(submit, cluster, capsule_sweeps, runs) -> None:
    assert submit("num_routing=1,2", "hydra.launcher.sbatch={hold: true}").code == 0
    name, _ = submission()
    first, second = runs.folders()
    assert "taken out" in capsule_sweeps("cancel", first.name).out
    assert not first.exists() and states() == {second.name: "queued"}
    assert len(cluster.jobs(name)) == 2  # they do what is left
    said = capsule_sweeps("cancel", second.name[-8:]).out
    assert name in said
    cluster.until(lambda: set(cluster.jobs(name).values()) == {"CANCELLED"})
    assert states() == {} and not runs.folders()


@pytest.mark.slow
def test_cancelling_a_running_run_leaves_the_others(submit, cluster, capsule_sweeps, runs) -> None:
    assert submit("num_routing=1,2", *LONG, "hydra.launcher.runs_per_job=2").code == 0
    name, _ = submission()
    folder = in_training(cluster, runs)
    cluster.until(lambda: list(states().values()) == ["running"] * 2)
    assert "stopping after the current batch" in capsule_sweeps("cancel", folder.name).out
    cluster.drained()
    other = next(other for other in runs.folders() if other != folder)
    assert states() == {folder.name: "interrupted", other.name: "finished"}
    assert set(cluster.jobs(name).values()) == {"COMPLETED"} and not (folder / "queued.json").exists()


@pytest.mark.slow
def test_packing_side_by_side_with_gpus(submit, cluster, runs, undisturbed) -> None:
    sweep = ["num_routing=1,2", "seed=0,1", *SHORT]
    said = submit(
        *sweep, "device=cpu", "hydra.launcher.gpus=2", "hydra.launcher.cpus=4", "hydra.launcher.runs_per_job=4"
    )
    assert "4 runs queued in 1 job " in said.out
    name, job = submission()
    seen = set()
    cluster.until(lambda: seen.update(gpus_of_workers()) or len(seen) == 2)
    cluster.drained()
    assert set(states().values()) == {"finished"} and list(cluster.jobs(name).values()) == ["COMPLETED"]
    assert seen == {"0", "1"}
    attempts = [runs.record(folder)["attempts"][0] for folder in runs.folders()]
    assert {attempt["job"] for attempt in attempts} == {f"{job['job_ids'][0]}_0"}
    assert len({attempt["pid"] for attempt in attempts}) == 4
    starts = [attempt["started"] for attempt in attempts]
    assert max(starts) < min(runs.record(folder)["ended"] for folder in runs.folders())  # side by side
    assert {attempt["execution"]["threads"] for attempt in attempts} == {1}
    undisturbed(*sweep)


@pytest.mark.nightly
def test_packing_one_after_the_other(submit, cluster, runs) -> None:
    packing = ["hydra.launcher.runs_per_job=3", "hydra.launcher.packing=sequential"]
    assert "3 runs queued in 1 job " in submit("seed=0,1,2", *packing).out
    cluster.drained()
    records = sorted((runs.record(folder) for folder in runs.folders()), key=lambda r: r["attempts"][0]["started"])
    assert len(records) == 3 and {record["state"] for record in records} == {"finished"}
    for one, next_one in pairwise(records):
        assert one["ended"] <= next_one["attempts"][0]["started"]


@pytest.mark.slow
def test_a_failing_run_fails_its_job_and_leaves_the_others(submit, cluster, runs, capsule_sweeps) -> None:
    said = submit("training.lr=0.1,1e30", "seed=0,1", "hydra.launcher.runs_per_job=4", "hydra.launcher.cpus=4")
    assert said.code == 0
    name, job = submission()
    cluster.drained()
    frame = load_runs("runs")
    rates = [signed_config["training.lr"] for signed_config in frame.signed_config]
    assert [state == "failed" for state in frame.state] == [rate > 1 for rate in rates]
    assert sorted(frame.state) == ["failed", "failed", "finished", "finished"]
    assert list(cluster.jobs(name).values()) == ["FAILED"] and cluster.detail(job["job_ids"][0])["ExitCode"] != "0:0"
    failed = frame.run[frame.state == "failed"].iloc[0]
    error = (Path("runs") / failed / "error.txt").read_text()
    assert "Traceback" in error and "FloatingPointError" in error
    assert error.strip() in log() and "these runs did not finish" in log()
    shown = capsule_sweeps("show", failed).out
    assert "_log.out, last lines" in shown and "FloatingPointError" in shown
    retried = capsule_sweeps("retry", "--yes", "state=failed")
    assert retried.code == 0 and "2 runs queued in 1 job " in retried.out, retried.text
    cluster.drained()
    assert [len(runs.record(Path("runs") / run)["attempts"]) for run in frame.run[frame.state == "failed"]] == [2, 2]


def test_a_run_that_fails_before_its_claim_says_why(submit, cluster, runs, data_dir, tmp_path, capsule_sweeps) -> None:
    """Data that the login node has and the node does not: here they vanish before the job starts."""
    shutil.copytree(data_dir, tmp_path / "here")
    assert submit(f"data_dir={tmp_path / 'here'}", "hydra.launcher.sbatch={hold: true}", "device=cuda").code == 0
    name, job = submission()
    subprocess.run(["scontrol", "release", job["job_ids"][0]], check=True)
    cluster.drained()
    (folder,) = runs.folders()
    assert states() == {folder.name: "failed"} and cluster.jobs(name) == {f"{job['job_ids'][0]}_0": "FAILED"}
    assert "device=cuda is not" in (folder / "error.txt").read_text()
    assert "device=cuda is not" in runs.record(folder)["error"]
    assert "device=cuda is not" in capsule_sweeps("show", folder.name).out


def test_a_killed_run_is_resumed_by_its_job(submit, cluster, runs, undisturbed) -> None:
    assert submit(*LONG).code == 0
    name, _ = submission()
    folder = in_training(cluster, runs)
    os.kill(worker_of(folder), signal.SIGKILL)
    cluster.drained()
    assert states() == {folder.name: "finished"} and set(cluster.jobs(name).values()) == {"COMPLETED"}
    assert len(runs.record(folder)["attempts"]) == 2 and "SIGKILL" in log()
    undisturbed(*LONG)


@pytest.mark.nightly
def test_a_run_that_dies_each_time_is_given_up(submit, cluster, runs) -> None:
    many = ["training.epochs=3000", "training.checkpoint_epochs=10", "hydra.launcher.max_attempts=2"]
    assert submit(*many).code == 0
    name, _ = submission()
    folder = in_training(cluster, runs)
    os.kill(worker_of(folder), signal.SIGKILL)
    cluster.until(lambda: len(runs.record(folder)["attempts"]) == 2)
    os.kill(worker_of(folder), signal.SIGKILL)
    cluster.until(lambda: set(cluster.jobs(name).values()) == {"FAILED"})
    assert states() == {folder.name: "failed"} and "not finished after 2 attempts" in log()


@pytest.mark.nightly
def test_out_of_time_resumes_until_it_is_finished(submit, cluster, runs, undisturbed) -> None:
    assert submit(*LONG, "hydra.launcher.time=1", "hydra.launcher.sbatch={signal: USR2@5}").code == 0
    name, job = submission()
    folder = in_training(cluster, runs)
    os.kill(worker_of(folder), signal.SIGSTOP)  # until SLURM's signal wakes it: no machine is fast enough to be done
    cluster.drained()
    attempts = runs.record(folder)["attempts"]
    assert states() == {folder.name: "finished"} and set(cluster.jobs(name).values()) == {"COMPLETED"}, log()
    assert len(attempts) >= 2 and [attempt["restart"] for attempt in attempts] == list(range(len(attempts)))
    assert {attempt["job"] for attempt in attempts} == {f"{job['job_ids'][0]}_0"}
    undisturbed(*LONG)


def preempt(cluster):
    """A job with priority that wants both nodes for a moment."""
    command = ["sbatch", "-p", "high", "-N2", "--exclusive", "-J", "important", "--wrap", "sleep 3", "-o", "/dev/null"]
    subprocess.run(command, check=True, capture_output=True)
    cluster.until(lambda: "COMPLETED" in cluster.jobs("important").values())


@pytest.mark.nightly
def test_preempted_with_sigterm(submit, cluster, runs, undisturbed) -> None:
    assert submit(*LONG).code == 0
    name, _ = submission()
    folder = in_training(cluster, runs)
    preempt(cluster)
    assert states() == {folder.name: "queued"}
    cluster.drained()
    assert states() == {folder.name: "finished"} and set(cluster.jobs(name).values()) == {"COMPLETED"}
    assert [attempt["restart"] for attempt in runs.record(folder)["attempts"]] == [0, 1]
    undisturbed(*LONG)


@pytest.mark.slow
def test_requeued_by_hand(submit, cluster, runs, undisturbed) -> None:
    """With W&B: the run resumes in the same W&B run, without repeated epochs."""
    tracking = ["tracking=wandb", "tracking.mode=offline"]
    assert submit("num_routing=1,2", *LONG, "hydra.launcher.runs_per_job=2", *tracking).code == 0
    name, job = submission()
    in_training(cluster, runs)
    subprocess.run(["scontrol", "requeue", job["job_ids"][0] + "_0"], check=True)
    cluster.until(lambda: "PENDING" in cluster.jobs(name).values())
    assert set(states().values()) <= {"queued", "finished"}
    cluster.drained()
    assert set(states().values()) == {"finished"} and set(cluster.jobs(name).values()) == {"COMPLETED"}
    for folder in runs.folders():
        assert runs.record(folder)["wandb_id"] == folder.name[-8:] and list(folder.glob("wandb/offline-run-*"))
    undisturbed("num_routing=1,2", *LONG)


@pytest.mark.nightly
def test_a_dead_node(submit, cluster, runs, undisturbed) -> None:
    """All processes of the job are killed at once, so that none can save or release a claim; SLURM restarts the job."""
    assert submit(*LONG, "hydra.launcher.sbatch={nodelist: n1}").code == 0
    folder = in_training(cluster, runs)
    worker = worker_of(folder)
    subprocess.run(["scontrol", "update", "nodename=n1", "state=DOWN", "reason=test"], check=True)
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    subprocess.run(["scontrol", "update", "nodename=n1", "state=RESUME"])  # unless it has registered again
    cluster.drained()
    assert states() == {folder.name: "finished"}, log()
    assert len(runs.record(folder)["attempts"]) >= 2
    undisturbed(*LONG)


def test_claim_of_a_job_on_a_dead_node_is_void_before_its_heartbeat_is_old(cluster, tmp_path) -> None:
    wrapped = ["sbatch", "--parsable", "--nodelist=n1", f"--output={tmp_path}/log", "--wrap", "sleep 600"]
    job = cluster.ask(*wrapped).strip()
    cluster.until(lambda: cluster.jobs().get(job) == "RUNNING")
    run = Run(tmp_path / "runs" / "name-00000000")
    run.folder.mkdir(parents=True)
    claim = {"host": "elsewhere", "pid": 1, "start": "1", "queue": "slurm", "job": job, "restart": 0, "cluster": "test"}
    write_json(run.folder / "attempt-1.json", claim)

    def state() -> str:
        slurm.forget()
        os.utime(run.folder / "attempt-1.json", (time.time() - 60,) * 2)
        return run.state()

    assert state() == "running"
    subprocess.run(["scontrol", "update", "nodename=n1", "state=DOWN", "reason=test"], check=True)
    assert state() == "interrupted", "whether SLURM has put the job back into the queue already or not"
    subprocess.run(["scontrol", "update", "nodename=n1", "state=RESUME"])  # unless it has registered again
    cluster.until(lambda: cluster.jobs().get(job) == "PENDING")
    assert state() == "interrupted"
    subprocess.run(["scancel", job], check=True)
    cluster.until(lambda: cluster.jobs().get(job) == "CANCELLED")
    assert state() == "interrupted"


@pytest.mark.slow
def test_the_launcher_killed_right_after_sbatch(cluster, runs, python, tiny, tmp_path, submit, undisturbed) -> None:
    real = shutil.which("sbatch")
    deadly = tmp_path / "bin" / "sbatch"
    deadly.parent.mkdir()
    deadly.write_text(f'#!/bin/bash\n{real} "$@" > "{tmp_path}/said" || exit 1\nkill -9 $PPID\n')
    deadly.chmod(deadly.stat().st_mode | stat.S_IXUSR)
    arguments = ["hydra/launcher=slurm", "hydra.launcher.gpus=null", "hydra.launcher.cpus=1", "seed=0,1,2"]
    path = f"{deadly.parent}:{os.environ['PATH']}"
    ended = python(ROOT / "launch.py", "-m", *tiny, *arguments, PATH=path, PYTHONPATH=str(ROOT))
    assert ended.code == -signal.SIGKILL and (tmp_path / "said").read_text().strip().isdigit()
    assert set(states().values()) <= {"queued", "running", "finished"} and len(states()) == 3
    assert "0 runs" not in submit("seed=0,1,2").out and len(list(Path("runs/.jobs").iterdir())) == 1
    cluster.drained()
    assert set(states().values()) == {"finished"}
    assert all(len(runs.record(folder)["attempts"]) == 1 for folder in runs.folders())
    undisturbed("seed=0,1,2")


@pytest.mark.slow
def test_code_edited_after_submission(cluster, runs, tiny, tmp_path, submit, undisturbed, capsule_sweeps) -> None:
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("capsule_sweeps", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", copy)
    (copy / ".env").write_text("SECRET=1")
    (copy / "untracked.txt").write_text("x")
    (copy / "big.bin").write_bytes(bytes(10_000_001))
    for command in (["init", "-q"], ["add", "capsule_sweeps", "conf", "hydra_plugins", "launch.py"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", *who, "commit", "-qm", "all"], cwd=copy, check=True)
    with open(copy / "capsule_sweeps" / "console.py", "a") as file:
        file.write("\n# an edit that is not committed\n")
    arguments = [*tiny, "hydra/launcher=slurm", "hydra.launcher.gpus=null", "hydra.launcher.cpus=1"]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, "launch.py", "-m", *arguments, f"runs_dir={Path('runs').absolute()}"]
    command += ["hydra.launcher.sbatch={hold: true}"]
    subprocess.run(command, cwd=copy, env=environment, check=True, capture_output=True)
    name, job = submission()
    (copy / "capsule_sweeps" / "training" / "train.py").write_text("raise RuntimeError('edited')\n")
    shutil.rmtree(copy / "conf")
    subprocess.run(["scontrol", "release", job["job_ids"][0]], check=True)
    cluster.drained()
    (folder,) = runs.folders()
    assert states() == {folder.name: "finished"}, log()
    snapshot = Path(job["snapshot"])
    (attempt,) = runs.record(folder)["attempts"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=copy, capture_output=True, text=True).stdout.strip()
    assert attempt["snapshot"] == snapshot.name and attempt["commit"] == head and attempt["dirty"] is True
    manifest = json.loads((snapshot / "MANIFEST.json").read_text())
    assert "+# an edit that is not committed" in manifest["patch"] and "SECRET" not in json.dumps(manifest)
    assert not {".env", "untracked.txt", "big.bin"} & {path.name for path in snapshot.iterdir()}
    undisturbed()
    assert str(snapshot.name) not in capsule_sweeps("gc").out  # a run was made with it


@pytest.mark.nightly
def test_folders_with_links_and_spaces(submit, cluster, runs, place) -> None:
    (place / "real").mkdir()
    (place / "a link").symlink_to("real")
    assert submit("runs_dir='a link/my runs'").code == 0
    cluster.drained()
    (run,) = load_runs("real/my runs").itertuples()
    assert run.state == "finished"


@pytest.mark.slow
def test_two_launchers_at_once_queue_each_run_once(cluster, tiny, runs, submit) -> None:
    cluster_options = ["hydra/launcher=slurm", "hydra.launcher.gpus=null", "hydra.launcher.cpus=1"]
    arguments = [*tiny, *cluster_options, "seed=0,1,2"]
    command = [sys.executable, str(ROOT / "launch.py"), "-m", *arguments]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [launcher.communicate(timeout=600)[0] for launcher in both]
    assert [launcher.returncode for launcher in both] == [0, 0], said
    jobs = [json.loads(path.read_text())["runs"] for path in Path("runs/.jobs").glob("*/job.json")]
    assert sorted(run for names in jobs for run in names) == sorted(str(path.resolve()) for path in runs.folders())
    cluster.drained()
    assert [len(runs.record(folder)["attempts"]) for folder in runs.folders()] == [1, 1, 1]


def test_a_job_that_ends_before_its_run_starts_says_where_to_look(submit, cluster, capsule_sweeps, runs) -> None:
    said = submit("hydra.launcher.setup=['echo no such module; exit 3']", "hydra.launcher.wait=true")
    assert said.code == 1 and "its job ended without finishing it, see " in said.text
    (folder,) = runs.folders()
    assert states() == {folder.name: "new"} and "its job ended" in capsule_sweeps("status").out.replace("\n", "")
    assert "no such module" in capsule_sweeps("show", folder.name).out


def test_damaged_code_is_not_run(submit, cluster, runs) -> None:
    assert submit("hydra.launcher.sbatch={hold: true}").code == 0
    name, job = submission()
    (Path(job["snapshot"]) / "launch.py").write_text("changed\n")
    subprocess.run(["scontrol", "release", job["job_ids"][0]], check=True)
    cluster.drained()
    assert list(cluster.jobs(name).values()) == ["FAILED"]
    assert "is damaged (launch.py was changed)" in log() and "Traceback" in log()


@pytest.mark.slow
def test_ctrl_c_while_waiting_leaves_the_jobs_running(cluster, tiny, runs, submit, place) -> None:
    arguments = [
        "hydra/launcher=slurm",
        "hydra.launcher.gpus=null",
        "hydra.launcher.cpus=1",
        "hydra.launcher.wait=true",
    ]
    command = [sys.executable, str(ROOT / "launch.py"), "-m", *tiny, *LONG, *arguments]
    # A shell without job control starts what runs in the background, and so the tests and this, with SIGINT ignored
    listen = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launcher = subprocess.Popen(command, **pipes, preexec_fn=listen)
    cluster.until(lambda: cluster.jobs() and "running" in states().values())
    launcher.send_signal(signal.SIGINT)
    said, _ = launcher.communicate(timeout=600)
    assert launcher.returncode not in (0, None) and "The jobs keep running" in said and "Traceback" not in said
    cluster.drained()
    assert set(states().values()) == {"finished"}


def test_doctor_sends_a_probe(cluster, capsule_sweeps, tiny) -> None:
    arguments = [*tiny, "device=cpu", "hydra/launcher=slurm", "hydra.launcher.gpus=1", "hydra.launcher.time=30"]
    said = capsule_sweeps("doctor", "--submit", *arguments)
    assert said.code == 0, said.text
    assert "arrays of up to 4 " in said.out and "preemption (REQUEUE)" in said.out and "sees runs_dir" in said.out
    assert listing("runs") == []
    cluster.until(lambda: "doctor" not in cluster.ask("squeue", "-h", "-o", "%j"))
    wrong = capsule_sweeps("doctor", *arguments, "hydra.launcher.partition=gone")
    assert wrong.code == 1 and "FAIL  submission" in wrong.out and "invalid partition" in wrong.out


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        ("accounting", ["slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "sacct", "sacctmgr"]),
        ("munge", ["munged"]),
        ("usr2", []),
    ],
)
def test_other_clusters(kind, needed, launch, tmp_path, runs) -> None:
    """With accounting, with munge, and where preemption comes with USR2: a sweep, a failure, a preemption."""
    if missing(*needed):
        pytest.skip(f"{missing(*needed)} missing")
    extra = "SlurmctldParameters=preempt_send_user_signal" if kind == "usr2" else ""
    options = ["hydra/launcher=slurm", "hydra.launcher.gpus=1", "hydra.launcher.cpus=1", "hydra.launcher.time=60"]
    options += ["device=cpu"]  # there is no GPU behind what SLURM calls one
    with Cluster(tmp_path / "c", accounting=kind == "accounting", munge=kind == "munge", extra=extra) as cluster:
        slurm.forget()
        assert launch("-m", *options, *LONG, "training.lr=0.1,1e30").code == 0
        name, job = submission()
        folder = in_training(cluster, runs)
        preempt(cluster)
        cluster.drained()
        assert sorted(states().values()) == ["failed", "finished"], log()
        assert sorted(cluster.jobs(name).values()) == ["COMPLETED", "FAILED"]
        assert len(runs.record(folder)["attempts"]) >= 2  # a busy cluster may preempt it once more
        if kind == "accounting":
            ask = ("sacct", "-n", "-X", "-o", "State%20", "-j", job["job_ids"][0])  # hears of it a moment later
            cluster.until(lambda: sorted(cluster.ask(*ask).split()) == ["COMPLETED", "FAILED"])
        if kind == "usr2":
            assert "Caught signal SIGUSR2" in log()
    slurm.forget()
