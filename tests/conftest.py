"""Shared by the tests: a tiny run; launch.py in this process, in its own, and in one that waits at a given place."""

from __future__ import annotations

import io
import json
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

os.environ.setdefault("CXX", "no-compiler")  # training.compile=auto means off, but for the tests of compiling

# Before torch is imported: where others use the cores too, threads that wait for each other take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
TINY = [  # five batches an epoch, 600 weights
    "dataset=digits",
    "dataset.train_size=40",
    "backbone.channels=4",
    "capsules.primary.num_capsules=2",
    "capsules.primary.pose_size=4",
    "capsules.layers=[{type: conv, num_capsules: 2, pose_size: 4, kernel_size: 3, stride: 4}]",
    "capsules.classes.pose_size=4",
    "training=quick",
    "training.epochs=2",
    "training.batch_size=8",
    "training.compile=off",  # compiling takes longer than all tests here together
    "tracking=none",
]

# Starts launch.py; at the n-th call of one function it makes a file and waits there to be killed, for a signal,
# or for a second file.
HOLDING = """
import os, runpy, sys, time
import torch
from capsule_sweeps.runs import signals
launch, where, count, marker, *arguments = sys.argv[1:]
owner, name = {"step": (torch.optim.SGD, "step"), "save": (torch, "save"), "replace": (os, "replace")}[where]
original, calls, stops = getattr(owner, name), 0, []
class Stop(signals.Stop):
    def __init__(self):
        stops.append(self)
signals.Stop = Stop
def held(*args, **kwargs):
    global calls
    calls += where != "replace" or str(args[1]).endswith("checkpoint.pt")
    if calls == int(count) and not os.path.exists(marker):
        open(marker, "w").close()
        while not os.path.exists(marker + ".go") and not any(stop.signum for stop in stops):
            time.sleep(0.01)
    return original(*args, **kwargs)
setattr(owner, name, held)
sys.argv = [launch, *arguments]
sys.path.insert(0, os.path.dirname(launch))
runpy.run_path(launch, run_name="__main__")
"""


PATIENCE = 300  # seconds that a process may take for what takes one alone: others may also use the cores
PROCESSES = {
    "cluster",
    "compiler",
    "disk",
    "hold",
    "installed",
    "python",
    "wandb_server",
}  # fixtures whose tests start processes: seconds each


GROUPS = ["slurm", "cores", "notebooks", ""]  # of tests that share a worker: the longest first, so that none ends alone


def group_of(item: pytest.Item) -> str:
    marker = item.get_closest_marker("xdist_group")
    return str(marker.args[0]) if marker else ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tiers, and which tests share a worker of pytest-xdist.

    Tests that start processes and those in end_to_end are slow, which means that they are not units. Of a test marked
    sample(n), n cases spread over all of them stay in the gate, and the others are nightly. SLURM boots one cluster;
    tests of pools and chaos need the cores.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        folder, file = item.path.parent.name, item.path.name
        if folder == "end_to_end" or PROCESSES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        if item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.xdist_group("slurm"))
        elif file in ("test_chaos.py", "test_pool.py"):
            item.add_marker(pytest.mark.xdist_group("cores"))
        elif file == "test_notebooks.py":
            item.add_marker(pytest.mark.xdist_group("notebooks"))
        if item.get_closest_marker("sample"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for same in cases.values():
        marker = same[0].get_closest_marker("sample")
        assert marker is not None
        kept = min(marker.args[0], len(same))
        stay = {round(index * (len(same) - 1) / max(1, kept - 1)) for index in range(kept)}
        for index, item in enumerate(same):
            if index not in stay:
                item.add_marker("nightly")
    items.sort(key=lambda item: (GROUPS.index(group_of(item)), item.get_closest_marker("slow") is None))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The C++ compiler, which the environment hides from all other tests."""
    import torch._inductor.config

    if not shutil.which("g++"):
        pytest.skip("needs g++")
    monkeypatch.setenv("CXX", "g++")
    with torch._inductor.config.patch({"cpp.cxx": (None, "g++")}):
        yield


@dataclass
class Ended:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, so that the digits are decoded once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; home and temporary folder lie beside it, and nothing is known of W&B."""
    here = tmp_path / "place"
    for folder in (here, tmp_path / "home", tmp_path / "tmp"):
        folder.mkdir()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def wandb_server(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in for the W&B server, with a key for it in the environment."""
    from wandb_server import WandbServer

    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "5ecre7" + 34 * "0")
        yield server


@pytest.fixture
def tiny(place: Path, data_dir: Path) -> list[str]:
    """Overrides of a run that takes a moment, in `place`/runs."""
    return [*TINY, f"data_dir={data_dir}"]


@pytest.fixture
def tiny_config(tiny: list[str]) -> Callable[..., DictConfig]:
    from synthetic import composed

    return lambda *overrides: composed([*tiny, *overrides])


def in_process(run: Callable[[], Any]) -> Ended:
    """What a program would print and return to its shell, without starting a process."""
    root, out, err, code = logging.getLogger(), io.StringIO(), io.StringIO(), 0
    handlers, level = list(root.handlers), root.level
    try:
        with redirect_stdout(out), redirect_stderr(err):
            run()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            err.write(leaving.code + "\n")
    finally:
        root.handlers[:], root.level = handlers, level
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def launch(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`python launch.py <base> <arguments>` in this process; `signal_at=(signal, n)` sends it one at the n-th step."""

    def run(*arguments: str, signal_at: tuple[signal.Signals, int] | None = None, base: list[str] = tiny) -> Ended:
        import torch

        from capsule_sweeps.runs import signals

        original, calls = torch.optim.SGD.step, 0
        stops: list[signals.Stop] = []

        class Stop(signals.Stop):
            def __init__(self) -> None:
                stops.append(self)

        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if signal_at and calls == signal_at[1]:
                os.kill(os.getpid(), signal_at[0])
                until = time.monotonic() + PATIENCE
                while not any(stop.signum for stop in stops):  # another thread takes the signal
                    assert time.monotonic() < until
                    time.sleep(0.001)
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", step)
            patch.setattr(signals, "Stop", Stop)
            flags = [text for text in arguments if text.startswith("-")]  # Hydra takes them only before the overrides
            patch.setattr(sys, "argv", ["launch.py", *flags, *base, *[text for text in arguments if text not in flags]])
            return in_process(lambda: runpy.run_path(str(ROOT / "launch.py"), run_name="__main__"))

    return run


TRAINED: dict[tuple[Any, ...], tuple[Path, Ended]] = {}  # by the arguments of `trained`, in this process


@pytest.fixture
def trained(
    launch: Callable[..., Ended], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """As `launch`, for runs that tests begin with: trained once per process in a folder of its own, and copied here."""

    import torch

    def run(*arguments: str, signal_at: tuple[signal.Signals, int] | None = None) -> Ended:
        key = (*arguments, signal_at, torch.get_num_threads())
        if key not in TRAINED:
            folder = tmp_path_factory.mktemp("trained")
            with monkeypatch.context() as patch:
                patch.chdir(folder)
                TRAINED[key] = folder, launch(*arguments, signal_at=signal_at)
        folder, ended = TRAINED[key]
        shutil.copytree(folder, Path(), dirs_exist_ok=True)
        return ended

    return run


@pytest.fixture
def capsule_sweeps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`python -m capsule_sweeps <arguments>` in this process."""
    from capsule_sweeps.__main__ import main

    def run(*arguments: str) -> Ended:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["capsule_sweeps", *arguments])
            return in_process(main)

    return run


@pytest.fixture
def python(place: Path) -> Callable[..., Ended]:
    """`python <arguments>` as a process of its own in `place`."""

    def run(*arguments: str | Path, **environment: str) -> Ended:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, **environment},
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


class Held:
    """A launch.py process that stands still inside a call, until it is killed or released."""

    def __init__(self, where: str, count: int, marker: Path, arguments: list[str]) -> None:
        self.marker, self.output = marker, marker.with_suffix(".log")
        command = [sys.executable, "-c", HOLDING, str(ROOT / "launch.py"), where, str(count), str(marker), *arguments]
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)
        until = time.monotonic() + PATIENCE
        while not marker.exists():
            assert self.process.poll() is None and time.monotonic() < until, self.output.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        assert self.process.wait(PATIENCE) == -signal.SIGKILL

    def send(self, signum: signal.Signals) -> int:
        """Sends a signal, with which the process resumes, and returns its exit code."""
        self.process.send_signal(signum)
        return self.process.wait(PATIENCE)

    def release(self) -> int:
        """Lets the process resume, and returns its exit code."""
        self.marker.with_name(self.marker.name + ".go").touch()
        return self.process.wait(PATIENCE)


@pytest.fixture
def hold(tiny: list[str], tmp_path: Path) -> Iterator[Callable[..., Held]]:
    """hold("step" | "save" | "replace", n, *overrides): a process that waits at its n-th optimizer step, torch.save or
    replacement of checkpoint.pt."""
    started: list[Held] = []

    def start(where: str, count: int, *overrides: str) -> Held:
        started.append(Held(where, count, tmp_path / f"held{len(started)}", [*tiny, *overrides]))
        return started[-1]

    yield start
    for held in started:
        held.process.kill()
        held.process.wait()


def run_folders(runs_dir: Path | str = "runs") -> list[Path]:
    return sorted(path for path in Path(runs_dir).glob("*") if path.is_dir() and path.name[0] != ".")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what may vary."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in metrics(folder)]


def weights(folder: Path) -> dict[str, bytes]:
    """Name → bits of each weight in a checkpoint, averaged ones as ema.<name>."""
    import torch

    checkpoint = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    state = {**checkpoint["model"], **{f"ema.{name}": tensor for name, tensor in checkpoint.get("ema", {}).items()}}
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in state.items()}


class Runs:
    """Looks into run folders."""

    folders = staticmethod(run_folders)
    metrics = staticmethod(metrics)
    timeless = staticmethod(timeless)
    weights = staticmethod(weights)

    @staticmethod
    def only(runs_dir: Path | str = "runs") -> Path:
        (folder,) = run_folders(runs_dir)
        return folder

    @staticmethod
    def record(folder: Path) -> dict[str, Any]:
        return json.loads((folder / "run.json").read_text())

    @staticmethod
    def change_record(folder: Path, **changes: Any) -> None:
        """Fields of run.json become these; None removes one."""
        record = {**json.loads((folder / "run.json").read_text()), **changes}
        (folder / "run.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))

    @staticmethod
    def assert_same(one: Path, other: Path) -> None:
        """Bitwise equal in everything but time."""
        assert timeless(one) == timeless(other)
        assert weights(one) == weights(other)


@pytest.fixture(scope="session")
def runs() -> type[Runs]:
    return Runs
