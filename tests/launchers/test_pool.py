"""A pool of processes: what each gets, what ends one leaves the others alone, and signals to any of them."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PATIENCE
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper

import hydra_plugins
from capsule_sweeps import load_runs
from capsule_sweeps.console import SweepProgress
from capsule_sweeps.launchers import launch as launching
from capsule_sweeps.launchers import local, pool
from capsule_sweeps.launchers.pool import Slot, make_slots
from capsule_sweeps.runs import files, machine
from capsule_sweeps.runs import lock as owner
from capsule_sweeps.runs import run as store
from capsule_sweeps.runs.folders import find_runs
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.signals import Stop
from capsule_sweeps.runs.signature import signature, signed_config

ROOT = Path(__file__).resolve().parents[2]
FOREVER = "training.epochs=1000000"

# ── who gets what ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def cores(monkeypatch) -> Callable[[int], None]:
    def there_are(number: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(number)), raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: number)

    monkeypatch.setattr(machine, "OWN_GROUPS", Path("none"))
    there_are(8)
    return there_are


@pytest.fixture
def gpus(cores, monkeypatch) -> Callable[[int], None]:
    """So many GPUs in this machine."""
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def there_are(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    there_are(0)
    return there_are


def test_without_a_gpu_cpu_threads_are_shared_out(gpus) -> None:
    assert make_slots(2, 1, {"auto"}) == [Slot(None, 4)] * 2
    assert make_slots(3, 1, {"auto"}) == [Slot(None, 2)] * 3
    assert make_slots("auto", 1, {"auto"}) == [Slot(None, 1)] * 8
    assert make_slots(20, 1, {"cpu"}) == [Slot(None, 1)] * 20


def test_one_at_a_time_needs_no_pool(gpus) -> None:
    gpus(4)
    assert len(make_slots(1, 1, {"auto"})) == 1 and make_slots(1, 1, {"auto"})[0].gpu is None


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_has_a_gpu_of_its_own(gpus, device) -> None:
    gpus(4)
    for parallel, number in (("auto", 4), (4, 4), (3, 3), (2, 2)):
        slots = make_slots(parallel, 1, {device})
        assert len(slots) == number
        assert len({slot.gpu for slot in slots}) == number, "never two on one"
        assert {slot.gpu for slot in slots} <= {"0", "1", "2", "3"}
        assert sum(slot.threads for slot in slots) <= 8


def test_runs_per_gpu_share_one(gpus) -> None:
    gpus(2)
    slots = make_slots("auto", 3, {"auto"})
    assert sorted(slot.gpu for slot in slots) == ["0", "0", "0", "1", "1", "1"]
    assert sorted(slot.gpu for slot in make_slots(2, 3, {"auto"})) == ["0", "1"], "an empty one first"


@pytest.mark.parametrize(("number", "parallel", "runs_per_gpu"), [(1, 2, 1), (2, 5, 2), (4, 5, 1)])
def test_more_than_the_gpus_hold_is_an_error_that_says_how_many(gpus, number, parallel, runs_per_gpu) -> None:
    gpus(number)
    with pytest.raises(ValueError, match=rf"{parallel}.*{number * runs_per_gpu}.*runs_per_gpu"):
        make_slots(parallel, runs_per_gpu, {"auto"})


@pytest.mark.parametrize("devices", [{"cpu"}, {"mps"}, {"cpu", "mps"}])
def test_runs_that_want_no_gpu_get_none(gpus, devices) -> None:
    gpus(2)
    assert make_slots(4, 1, devices) == [Slot(None, 2)] * 4


def test_only_visible_gpus_are_shared_out(gpus, monkeypatch) -> None:
    gpus(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert {slot.gpu for slot in make_slots("auto", 1, {"auto"})} == {"2", "5"}
    gpus(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-4a5b")
    assert make_slots(2, 2, {"auto"}) == [Slot("GPU-4a5b", 4)] * 2


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles", "0"])
def test_no_gpu_that_cannot_be_seen_is_shared_out(gpus, monkeypatch, hidden) -> None:
    """-1 hides them all; a number on a machine without a GPU means nothing."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert make_slots(4, 1, {"auto"}) == [Slot(None, 2)] * 4


def test_a_gpu_named_for_all_runs_is_not_shared_out_with_others(gpus) -> None:
    """With CUDA_VISIBLE_DEVICES=0 a worker has no cuda:1: every run would fail."""
    gpus(2)
    with pytest.raises(ValueError, match="cuda:1"):
        make_slots(2, 1, {"cuda:1"})


# ── a worker and its events ──────────────────────────────────────────────────────────────────────────────────────────


class Process:
    """A worker's process that is over and has said some lines."""

    def __init__(self, *lines: bytes, code: int = 0) -> None:
        self.stdout, self.returncode = list(lines), code

    def wait(self) -> int:
        return self.returncode


@pytest.mark.parametrize("line", [b'{"event": "ba', b"{oops}\n", b"\xff{\n", b"{}\n", b"warning: noise\n", b"[1]\n"])
def test_whatever_a_worker_prints_its_end_is_heard(line) -> None:
    """A killed one may leave half a line, a library may print; without the last event the pool waits for ever."""
    worker = pool.Worker.__new__(pool.Worker)
    worker.process = Process(b'{"event": "start"}\n', line, code=-9)
    events: queue.Queue[Any] = queue.Queue()
    worker._listen(events)
    heard = [events.get_nowait()[1] for _ in range(events.qsize())]
    assert heard[0] == {"event": "start"} and heard[-1] is None
    assert all(event is None or "event" in event for event in heard)


@pytest.mark.parametrize(("signum", "codes", "ended"), [(signal.SIGINT, (0, 130), 1), (0, (0, 1), 2)])
def test_a_stopped_run_is_not_counted_as_ended(monkeypatch, signum, codes, ended) -> None:
    """A failed one is."""
    stop, codes = Stop(), iter(codes)

    class Worker(pool.Worker):
        def __init__(self, planned: Any, sweep: str, slot: Slot, events: queue.Queue[Any]) -> None:
            self.planned, self.slot, self.process = planned, slot, Process(code=next(codes))
            self.process.send_signal = lambda signum: None
            self.errors = self.process.stdin = None
            events.put((self, None))
            if self.process.returncode:
                stop.signum = signum

        errors_text = close = lambda self: ""

    monkeypatch.setattr(pool, "Worker", Worker)
    monkeypatch.setattr(pool, "accuracy", lambda planned: 0.5)
    runs = [types.SimpleNamespace(run=types.SimpleNamespace(folder=Path(name))) for name in "ab"]
    progress = SweepProgress(2, 2)
    pool.run_pool(lambda: runs.pop() if runs else None, progress, "sweep", [Slot(None, 1)] * 2, stop)
    assert progress.num_ended == ended


@pytest.mark.slow
def test_folder_that_another_process_takes_meanwhile_ends_no_other_run(tiny_config, runs, monkeypatch, capsys) -> None:
    """Between the plan and its turn: with force the old folder cannot be put aside then."""
    configs = [tiny_config(f"seed={seed}") for seed in range(2)]
    two = {"parallel": 2}
    assert None not in launching.launch(configs, [["0"], ["1"]], Policy(), local.Launcher(**two))
    taken = find_runs(Path("runs"))[signature(signed_config(configs[0]))]
    original = local.record_sweep
    with monkeypatch.context() as patch, taken.claim() as claim:
        (taken.folder / "summary.json").rename(taken.folder / "kept")
        claim.stop()

        def and_take(plan: Any, launcher: Any) -> str:
            files.write_json(claim._path, owner.owner())
            return original(plan, launcher)

        patch.setattr(local, "record_sweep", and_take)
        launching.launch(configs, [["0"], ["1"]], Policy(force=True), local.Launcher(**two))
    (other,) = [folder for folder in runs.folders() if folder != taken.folder]
    assert len(list(Path("runs/.superseded").iterdir())) == 1
    assert runs.record(other)["state"] == "finished"


# ── whole sweeps ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_pool_ends_with_the_numbers_of_one_after_the_other(launch, runs) -> None:
    """Given equal threads; one failing run leaves the others alone."""
    import torch

    swept = ["-m", "training.lr=0.1,1e30", "seed=0,1", "device=cpu", "training.compile=off"]
    ended = launch(*swept, "hydra.launcher.parallel=2", "runs_dir=pool")
    assert ended.code == 1 and "Traceback" not in ended.text
    assert sorted(load_runs("pool").state) == ["failed", "failed", "finished", "finished"]
    assert "FloatingPointError" in ended.text and "Left out: 2 of 4 runs" in " ".join(ended.out.split())
    for folder in runs.folders("pool"):
        if runs.record(folder)["state"] == "failed":
            assert (
                runs.record(folder)["failure"] == "nan" and "FloatingPointError" in (folder / "error.txt").read_text()
            )

    (threads,) = {slot.threads for slot in make_slots(2, 1, {"cpu"})}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert launch(*swept, "runs_dir=single").code == 1
    finally:
        torch.set_num_threads(before)
    for one, other in zip(runs.folders("single"), runs.folders("pool"), strict=True):
        assert one.name == other.name
        assert runs.record(one)["execution"] == runs.record(other)["execution"]
        assert runs.record(one)["execution"]["threads"] == threads
        if runs.record(one)["state"] == "finished":
            runs.assert_same(one, other)
            assert runs.record(one)["accuracy_last"] == runs.record(other)["accuracy_last"]

    again = launch(*swept, "hydra.launcher.parallel=2", "hydra.launcher.retry=oom", "runs_dir=pool")
    assert again.code == 1
    assert all(len(runs.record(folder)["attempts"]) == 1 for folder in runs.folders("pool"))


class Pool:
    """A sweep in a pool of two, as a user starts it, and its processes."""

    def __init__(self, *arguments: str) -> None:
        settings = ["training.compile=off", "hydra.launcher.parallel=2"]
        command = [sys.executable, ROOT / "launch.py", "-m", *arguments, *settings]
        self.output = open("output", "w+")  # noqa: SIM115 - closed by `end`
        self.process = subprocess.Popen(command, stdout=self.output, stderr=self.output, start_new_session=True)
        self.workers: list[psutil.Process] = []

    def until(self, fulfilled: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE
        while not fulfilled():
            assert time.monotonic() < end, self.text()
            self.workers += [worker for worker in self._children() if worker not in self.workers]
            time.sleep(0.05)

    def _children(self) -> list[psutil.Process]:
        try:
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if "capsule_sweeps.launchers.worker" in child.cmdline()]
        except psutil.Error:
            return []

    def training(self, number: int = 2) -> None:
        """Waits until so many runs have measured an epoch."""
        self.until(lambda: len(list(Path("runs").glob("*/metrics.jsonl"))) >= number)

    def left(self) -> list[psutil.Process]:
        return psutil.wait_procs(self.workers, timeout=0)[1]

    def text(self) -> str:
        self.output.seek(0)
        return self.output.read()

    def end(self) -> None:
        for process in [self.process, *self.workers]:
            if process.is_running() if isinstance(process, psutil.Process) else process.poll() is None:
                process.kill()
        self.process.wait()
        self.output.close()


@pytest.fixture
def start(tiny) -> Iterator[Callable[..., Pool]]:
    started: list[Pool] = []

    def begin(*arguments: str) -> Pool:
        started.append(Pool(*tiny, *arguments))
        return started[-1]

    yield begin
    for sweep in started:
        sweep.end()


def worker_of(folder: Path) -> int:
    number = max(int(path.stem.partition("-")[2]) for path in folder.glob("attempt-*.json"))
    return files.read_json(folder / f"attempt-{number}.json")["pid"]


@pytest.mark.slow
def test_killed_worker_cancelled_run_and_cancelled_sweep(start, launch, capsule_sweeps, runs) -> None:
    """One after the other on one sweep: each leaves the rest alone, and the same command resumes."""
    swept = ["seed=0,1,2,3", FOREVER]
    sweep = start(*swept)
    sweep.training(2)
    first, second = runs.folders()

    os.kill(worker_of(first), signal.SIGKILL)
    sweep.training(3)
    assert store.Run(first).state() == "interrupted" and store.Run(second).state() == "running"
    assert "SIGKILL" in sweep.text()

    said = capsule_sweeps("cancel", second.name[-8:])
    assert said.code == 0 and second.name in said.out
    sweep.training(4)
    assert store.Run(second).state() == "interrupted"
    assert (second / "checkpoint.pt").exists() and "cancel" in sweep.text()

    (name,) = [path.stem for path in Path("runs/.sweeps").iterdir()]
    said = capsule_sweeps("cancel", name)
    assert said.code == 0 and name in said.out
    assert sweep.process.wait(PATIENCE) == 128 + signal.SIGTERM
    sweep.until(lambda: not sweep.left())
    assert load_runs("runs").state.tolist() == ["interrupted"] * 4
    assert "Traceback" not in sweep.text()
    assert capsule_sweeps("cancel", name).out.startswith("nothing to cancel")


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_saves_and_stops_all(start, launch, runs, signum) -> None:
    swept = ["seed=0,1,2", "training.epochs=120"]
    sweep = start(*swept)
    sweep.training(2)
    sweep.process.send_signal(signum)
    assert sweep.process.wait(PATIENCE) == 128 + signum
    assert not sweep.left()
    assert load_runs("runs").state.tolist() == ["interrupted"] * 2, "the third was not begun"
    assert all((folder / "checkpoint.pt").exists() for folder in runs.folders())
    text = sweep.text()
    assert "Traceback" not in text and signum.name in text and "rerun the command" in text
    if signum == signal.SIGINT:
        assert launch("-m", *swept, "hydra.launcher.parallel=2").code == 0
        assert load_runs("runs").state.tolist() == ["finished"] * 3
        assert all([row["epoch"] for row in runs.metrics(folder)] == list(range(1, 121)) for folder in runs.folders())


@pytest.mark.slow
def test_second_ctrl_c_ends_at_once(start, runs) -> None:
    """Even when a worker cannot save: here they stand still."""
    sweep = start("seed=0,1", FOREVER)
    sweep.training(2)
    for folder in runs.folders():
        os.kill(worker_of(folder), signal.SIGSTOP)
    sweep.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        sweep.process.wait(2)
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.process.wait(PATIENCE) in (130, -signal.SIGINT)
    assert not sweep.left()
    assert load_runs("runs").state.tolist() == ["interrupted"] * 2
    assert "Traceback" not in sweep.text()


@pytest.mark.slow
def test_workers_of_a_killed_launcher_save_and_stop_by_themselves(start, runs) -> None:
    sweep = start("seed=0,1,2", FOREVER)
    sweep.training(2)
    sweep.process.kill()
    sweep.process.wait()
    sweep.until(lambda: not sweep.left())
    assert [runs.record(folder)["state"] for folder in runs.folders()] == ["interrupted"] * 2
    for folder in runs.folders():
        assert (folder / "checkpoint.pt").exists()
        assert "released" in files.read_json(folder / "attempt-1.json")


def test_workers_run_the_code_of_their_launcher(tiny, python, tmp_path) -> None:
    """Not that of another checkout that happens to be installed."""
    for name in ("capsule_sweeps", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", tmp_path / "copy")
    path = tmp_path / "copy" / "capsule_sweeps" / "launchers" / "worker.py"
    path.write_text(path.read_text().replace("def main() -> int:", "def main() -> int:\n    sys.exit('copied')"))
    ended = python(tmp_path / "copy" / "launch.py", "-m", *tiny, "seed=0,1", "hydra.launcher.parallel=2")
    assert ended.code == 1 and "copied" in ended.text


# ── a sweeper that needs results ─────────────────────────────────────────────────────────────────────────────────────


class Climber(Sweeper):
    """Asks for one batch after the other, the next from the results of the last, as Optuna's sweeper does."""

    seen: list[Any] = []  # noqa: RUF012

    def __init__(self, **settings: Any) -> None:
        """The node whose `_target_` it replaces has the settings of hydra/sweeper=grid."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        rate = 0.1
        for first in (0, 2):
            batch = [[*arguments, f"training.lr={rate * factor}"] for factor in (1, 1e30)]
            jobs = self.launcher.launch(batch, initial_job_idx=first)
            self.seen += jobs
            rate = 0.05 if jobs[0].return_value > 0 else 0.01
        return jobs


@pytest.mark.slow
def test_sweeper_gets_the_accuracy_under_the_configured_rule(launch, runs, monkeypatch) -> None:
    monkeypatch.setattr(Climber, "seen", [])
    module = types.ModuleType("hydra_plugins.climber")  # Hydra takes plugins from there only
    monkeypatch.setattr(module, "Climber", Climber, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(hydra_plugins, "climber", module, raising=False)
    monkeypatch.setattr(Climber, "__module__", module.__name__)
    Plugins.instance().register(Climber)
    name = "hydra_plugins.climber.Climber"
    ended = launch("-m", f"hydra.sweeper._target_={name}", "selection_rule=best_test", "training.epochs=4")
    assert "Traceback" not in ended.text and Climber.seen, ended.text
    assert [job.status for job in Climber.seen] == [JobStatus.COMPLETED, JobStatus.FAILED] * 2
    for job in Climber.seen[::2]:
        (folder,) = [
            folder
            for folder in runs.folders()
            if runs.record(folder)["signed_config"]["training.lr"] == job.cfg.training.lr
        ]
        accuracies = [row["test_accuracy"] for row in runs.metrics(folder)]
        assert job.return_value == max(accuracies)
        assert f"training.lr={job.cfg.training.lr}" in job.overrides
    for job in Climber.seen[1::2]:
        with pytest.raises(Exception, match=r"finite|loss|not finished"):
            _ = job.return_value


@pytest.mark.slow
def test_a_worker_refuses_other_code_than_its_launchers(tmp_path, place) -> None:
    """A snapshot that vanished under a job would be replaced silently by the installed package."""
    task = {"config": {}, "folder": str(tmp_path / "x-00000000"), "sweep": "", "threads": 1, "submission": None}
    ended = subprocess.run(
        [sys.executable, "-m", "capsule_sweeps.launchers.worker"],
        input=json.dumps({**task, "code": str(tmp_path / "gone")}) + "\n",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode in (1, 143) and f"and not {tmp_path / 'gone'}" in ended.stderr
    assert not (tmp_path / "x-00000000").exists()
