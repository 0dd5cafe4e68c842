"""A sweep in a pool, of which a process is killed every second or two; then the command is repeated."""

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import PATIENCE

from capsule_sweeps import load_runs
from capsule_sweeps.runs.files import read_json

ROOT = Path(__file__).resolve().parents[2]
MARK = "CAPSULE_SWEEPS_CHAOS"
KILLING_SECONDS = 60
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def family(mark: str) -> list[psutil.Process]:
    """Every living process of this sweep, orphans too."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


class Typed:
    """The command, typed once."""

    def __init__(self, arguments: list[str], mark: str, output: Path) -> None:
        command = [sys.executable, ROOT / "launch.py", "-m", *arguments]
        environment = {**os.environ, MARK: mark}
        with open(output, "a") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float) -> int:
        return self.process.wait(seconds)


def training() -> list[int]:
    """Numbers of the processes that train now."""
    found = []
    for folder in Path("runs").glob("*-????????"):
        attempts = sorted(folder.glob("attempt-*.json"), key=lambda path: int(path.stem.partition("-")[2]))
        owner = read_json(attempts[-1]) if attempts else {}
        if owner and "released" not in owner and psutil.pid_exists(owner["pid"]):
            found.append(owner["pid"])
    return sorted(found)


def choose(rng: random.Random, launcher: int, mark: str) -> int | None:
    """Mostly one that trains, sometimes the launcher, sometimes any, as young as it may be."""
    kind = rng.choice(["training"] * 6 + ["launcher", "any"])
    if kind == "launcher":
        return launcher
    pids = training() if kind == "training" else sorted(process.pid for process in family(mark))
    return rng.choice(pids) if pids else None


@pytest.mark.slow
def test_killed_at_random_again_and_again_the_numbers_are_those_of_an_undisturbed_sweep(tiny, place, runs) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CHAOS_SEED={seed}")
    rng, mark, log = random.Random(seed), f"{os.getpid()}-{seed}", place / "log"
    settings = ["num_routing=1,2", "seed=range(3)", "training.epochs=120", "training.compile=off", "device=cpu"]
    base = [*tiny, *settings, "hydra.launcher.parallel=2"]
    undisturbed = Typed([*base, "runs_dir=undisturbed"], mark, place / "log-undisturbed")
    assert undisturbed.wait(2 * PATIENCE) == 0, (place / "log-undisturbed").read_text()

    typed, kills = Typed(base, mark, log), 0
    try:
        begin, signals = time.monotonic(), itertools.cycle(SIGNALS)
        while kills < 15 or time.monotonic() - begin < KILLING_SECONDS:
            time.sleep(rng.uniform(1, 2))
            if typed.ended():
                if load_runs("runs").state.tolist() == ["finished"] * 6:
                    break  # this machine is faster than chaos
                typed = Typed(base, mark, log)
            elif (victim := choose(rng, typed.process.pid, mark)) is not None:
                signum = next(signals)
                print(f"{signum.name} to {'the launcher' if victim == typed.process.pid else 'a worker'}")
                with suppress(ProcessLookupError):
                    os.kill(victim, signum)
                kills += 1
        with suppress(ProcessLookupError):
            typed.process.send_signal(signal.SIGTERM)
        typed.wait(PATIENCE)
        codes = [Typed(base, mark, log).wait(2 * PATIENCE)]
        while codes[-1] != 0 and len(codes) < 5:
            codes.append(Typed(base, mark, log).wait(2 * PATIENCE))
        print(f"{kills} kills; then typed {len(codes)} times: {codes}")
    finally:
        for process in family(mark):
            process.kill()
    text = log.read_text()
    assert load_runs("runs").state.tolist() == ["finished"] * 6, f"CHAOS_SEED={seed}\n{text}"
    traces = re.findall(r"^Traceback(?:.*\n)(?:[ \n].*\n)*(.*)$", text, re.MULTILINE)
    assert set(traces) <= {"KeyboardInterrupt"}, "at most of Python itself, before it has loaded the program"
    assert [folder.name for folder in runs.folders()] == [folder.name for folder in runs.folders("undisturbed")]
    assert sum(len(runs.record(folder)["attempts"]) for folder in runs.folders()) > 6, "some went on"
    for folder, reference in zip(runs.folders(), runs.folders("undisturbed"), strict=True):
        assert [row["epoch"] for row in runs.metrics(folder)] == list(range(1, 121)), f"CHAOS_SEED={seed}"
        assert runs.record(folder)["execution"] == runs.record(reference)["execution"]
        runs.assert_same(folder, reference)
        assert not [path for path in folder.iterdir() if path.name == "error.txt"]
