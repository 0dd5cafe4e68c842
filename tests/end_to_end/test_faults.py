"""Full and read-only disks, damaged files, moved clocks, vanished folders: no traceback, nothing finished lost, and the
message names the file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE

from capsule_sweeps import load_runs
from capsule_sweeps.runs import run as store
from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.folders import find_runs
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns
from capsule_sweeps.training import train

pytestmark = [pytest.mark.slow, pytest.mark.sample(2)]

ROOT = Path(__file__).resolve().parents[2]
EAGER = "training.compile=off"  # nothing here depends on it, and compiling takes its time


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[..., None]]:
    """A small file system at place/runs; disk("ro") makes it read-only."""
    where = tmp_path / "place" / "runs"

    def mount(*options: str) -> None:
        where.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", ",".join(["size=2m", *options]), "tmpfs", str(where)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    yield mount
    while os.path.ismount(where):
        subprocess.run(["umount", "-l", str(where)], check=True)


def fill(folder: Path = Path("runs")) -> Path:
    """Leave no byte free."""
    path = folder / "filler"
    with open(path, "ab", buffering=0) as file:
        for size in (4096, 512, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


@pytest.fixture
def untouched(trained, runs) -> Path:
    """The run folder of an undisturbed run."""
    assert trained(EAGER, "training.epochs=3", "runs_dir=untouched").code == 0
    return runs.only("untouched")


# ── disks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["checkpoint.pt", "metrics.jsonl", "summary.json"])
def test_disk_that_fills_up_while_a_run_writes(
    launch, python, tiny, runs, disk, place, untouched, monkeypatch, where
) -> None:
    disk()
    assert launch(EAGER, "seed=1").code == 0
    finished = runs.only()
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    owner, name = {
        "checkpoint.pt": (train.torch, "save"),
        "metrics.jsonl": (train, "evaluate"),
        "summary.json": (train, "summarize"),
    }[where]
    original, calls = getattr(owner, name), 0

    def filling(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == (1 if where == "summary.json" else 2):
            fill()
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, filling)
        ended = launch(EAGER, "training.epochs=3")
    assert ended.code == 1 and "Traceback" not in ended.text
    assert "No space left" in ended.text
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before

    Path("runs/filler").unlink()
    again = python(ROOT / "launch.py", *tiny, EAGER, "training.epochs=3")  # a process of its own, as a user has it
    assert again.code == 0, again.text
    (folder,) = [folder for folder in runs.folders() if folder != finished]
    runs.assert_same(folder, untouched)
    assert not list(folder.glob(".*.tmp"))
    files = ("checkpoint.pt", "metrics.jsonl", "run.json", "summary.json")  # a short line may still fit into its block
    assert any(name in ended.text for name in files), "the message names the file"


def test_claim_also_ends_on_a_full_disk(disk, place) -> None:
    """A sweeper that asks again in this process, or a notebook, would find its own dead claim alive."""
    disk()
    run = Run(Path("runs/x-00000000"))
    with run.claim():
        fill()
    Path("runs/filler").unlink()
    assert run.state() == "interrupted"


@pytest.mark.parametrize("many", [["seed=5"], ["-m", "seed=1,5,6"]])
def test_disk_that_is_full_before_a_run_starts(launch, runs, disk, place, many) -> None:
    disk()
    assert launch(EAGER, "seed=1").code == 0
    filler = fill()
    ended = launch(EAGER, *many)
    assert ended.code == 1 and "Traceback" not in ended.text
    assert "No space left" in ended.text and "runs/" in ended.text.partition("No space left")[2]
    assert launch(EAGER, "seed=1").code == 0, "what is finished needs no room"
    filler.unlink()
    assert launch(EAGER, *many).code == 0


@pytest.mark.nightly
def test_full_disk_in_a_pool(launch, disk, place) -> None:
    disk()
    Path("runs").mkdir(exist_ok=True)
    filler = fill()
    ended = launch("-m", EAGER, "seed=0,1", "hydra.launcher.parallel=2")
    assert ended.code == 1 and "Traceback" not in ended.text and "No space left" in ended.text
    filler.unlink()
    assert launch("-m", EAGER, "seed=0,1", "hydra.launcher.parallel=2").code == 0


@pytest.fixture
def read_only(launch, disk, place) -> None:
    """A read-only runs with a finished, a failed and an interrupted run, rubbish, and a superseded folder."""
    disk()
    assert launch(EAGER).code == 0
    launch(EAGER, "hydra.launcher.force=true")
    launch(EAGER, "seed=1", signal_at=(signal.SIGTERM, 3))
    launch(EAGER, "training.lr=1e30")
    subprocess.run(["mount", "-o", "remount,ro", "runs"], check=True)


def test_read_only_folder_shows_and_skips_what_is_finished(launch, capsule_sweeps, read_only) -> None:
    ended = launch(EAGER)
    assert ended.code == 0 and "skip" in ended.out, ended.text
    for command in (["status"], ["results"], ["gc"], ["cancel", "state=running"]):
        assert capsule_sweeps(*command).code == 0
    for name in load_runs("runs").run:
        assert capsule_sweeps("show", name).code == 0 and capsule_sweeps("why", name).code == 0


@pytest.mark.parametrize("many", [[], ["-m"]])
@pytest.mark.parametrize("override", ["seed=7", "seed=1", "training.lr=1e30", "hydra.launcher.force=true"])
def test_read_only_folder_is_named_before_a_run_starts(launch, read_only, many, override) -> None:
    ended = launch(*many, EAGER, override)
    assert ended.code == 1 and "Traceback" not in ended.text
    assert "runs_dir=runs" in ended.err and "Read-only" in ended.err and ended.err.count("\n") == 1


@pytest.mark.parametrize("command", [["gc", "--yes"], ["retry", "--yes", "all"], ["doctor"]])
def test_commands_in_a_read_only_folder(capsule_sweeps, tiny, read_only, command) -> None:
    ended = capsule_sweeps(*command, *(tiny if command == ["doctor"] else []))
    assert ended.code == 1 and "Traceback" not in ended.text and "Read-only" in ended.text


def test_cancel_in_a_read_only_folder(hold, capsule_sweeps, disk, place) -> None:
    """Another machine may have mounted it so."""
    disk()
    hold("step", 3, EAGER)
    subprocess.run(["mount", "-o", "remount,ro,force", "runs"], check=False, capture_output=True)
    run = next(iter(find_runs(Path("runs")).values()))
    try:
        (Path("runs") / "test").touch()
    except OSError:
        ended = capsule_sweeps("cancel", run.folder.name)
        assert ended.code == 1 and ended.err.startswith("Error: ") and "runs" in ended.err
    else:
        pytest.skip("a file system that is written cannot be made read-only here")


# ── damaged files ────────────────────────────────────────────────────────────────────────────────────────────────────

GARBLED = [b"", b"{", b"\x00" * 64, b"\xff\xfe", b"[]", b"5", b"null", b'"x"']


@pytest.mark.parametrize("content", GARBLED)
def test_damaged_summary_is_named_and_costs_nothing(launch, trained, capsule_sweeps, runs, content) -> None:
    assert trained(EAGER).code == 0
    folder = runs.only()
    before = (folder / "checkpoint.pt").read_bytes()
    (folder / "summary.json").write_bytes(content)
    ended = launch(EAGER)
    assert "Traceback" not in ended.text and "summary.json" in ended.text
    assert (folder / "checkpoint.pt").read_bytes() == before and len(runs.metrics(folder)) == 2
    assert capsule_sweeps("status").code == 0


@pytest.mark.parametrize("content", GARBLED)
def test_damaged_record_of_a_sweep_is_written_again(launch, runs, content) -> None:
    launch("-m", EAGER, "seed=0,1", signal_at=(signal.SIGTERM, 3))
    (path,) = Path("runs/.sweeps").iterdir()
    path.write_bytes(content)
    assert launch("-m", EAGER, "seed=0,1").code == 0
    assert len(json.loads(path.read_text())["signatures"]) == 2


@pytest.mark.parametrize("name", ["run.json", "attempt-9.json", "metrics.jsonl", "checkpoint.pt", "log.txt"])
def test_folder_in_the_place_of_a_file(launch, trained, capsule_sweeps, runs, name) -> None:
    trained(EAGER, signal_at=(signal.SIGTERM, 7))
    folder = runs.only()
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    os.utime(folder / name, (1, 1))
    ended = launch(EAGER)
    assert "Traceback" not in ended.text and (ended.code == 0 or name in ended.text)
    for command in ("status", "results"):
        assert capsule_sweeps(command).code == 0
    shown = capsule_sweeps("show", folder.name)
    assert shown.code == 0 or name in shown.err


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seconds", [-3600, -86400 * 365, 3600])
def test_clock_that_was_set(launch, trained, capsule_sweeps, runs, untouched, monkeypatch, seconds) -> None:
    trained(EAGER, "training.epochs=3", signal_at=(signal.SIGTERM, 7))
    original = time.time
    monkeypatch.setattr(time, "time", lambda: original() + seconds)
    ended = launch(EAGER, "training.epochs=3")
    assert ended.code == 0 and "resume" in ended.out
    runs.assert_same(runs.only(), untouched)
    assert all(row["seconds"] > 0 for row in runs.metrics(runs.only()))
    assert "skip" in launch(EAGER, "training.epochs=3").out
    assert capsule_sweeps("show", runs.only().name).code == 0


@pytest.mark.parametrize("seconds", [-3600, -86400 / 2])
def test_living_claim_of_another_host_holds_when_the_clock_is_set_back(tmp_path, monkeypatch, seconds) -> None:
    """Its heartbeat is then in the future, which is not old."""
    run = Run(tmp_path / "x-00000000")
    run.folder.mkdir()
    write_json(run.folder / "attempt-1.json", {"host": "elsewhere", "pid": 1, "start": "1", "time": time.time()})
    original = time.time
    monkeypatch.setattr(time, "time", lambda: original() + seconds)
    os.utime(run.folder / "attempt-1.json")
    assert run.state() == "running"
    with pytest.raises(store.Busy), run.claim():
        pytest.fail("two owners")


def test_living_process_of_this_host_holds_whatever_the_clock_says(hold, launch, runs, monkeypatch) -> None:
    hold("step", 3, EAGER)
    path = runs.only() / "attempt-1.json"
    for then in (1, time.time() + 10**6):
        os.utime(path, (then, then))
        assert Run(runs.only()).state() == "running"
    assert launch(EAGER).code == 1
    assert len(runs.record(runs.only())["attempts"]) == 1


# ── folders that vanish, twins, links, names ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("step", [2, 5, 8])
@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_folder_that_vanishes_under_a_run(launch, runs, monkeypatch, step, how) -> None:
    """It ends and says so, does not come back, and the next run of the sweep is trained."""
    original, calls, gone = torch.optim.SGD.step, 0, []

    def stepping(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == step:
            gone.append(runs.only())
            shutil.rmtree(gone[0]) if how == "deleted" else gone[0].rename("moved")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", stepping)
        ended = launch("-m", EAGER, "seed=0,1")
    assert ended.code == 1 and "Traceback" not in ended.text
    assert gone[0].name in ended.text and "removed" in ended.text
    assert not gone[0].exists() and runs.record(runs.only())["state"] == "finished"
    assert launch("-m", EAGER, "seed=0,1").code == 0


def test_runs_dir_that_vanishes_under_a_run(launch, monkeypatch) -> None:
    original, calls = torch.optim.SGD.step, 0

    def stepping(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 3:
            shutil.rmtree("runs")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", stepping)
        ended = launch(EAGER)
    assert ended.code == 1 and "Traceback" not in ended.text
    assert launch(EAGER).code == 0


def test_pool_started_twice_at_the_same_moment_trains_nothing_twice(tiny, place, runs) -> None:
    command = [sys.executable, ROOT / "launch.py", "-m", *tiny, EAGER, "seed=0,1,2,3", "hydra.launcher.parallel=2"]
    with open("output", "w+") as output:
        both = [subprocess.Popen(command, stdout=output, stderr=output) for _ in range(2)]
        codes = [process.wait(PATIENCE) for process in both]
        output.seek(0)
        text = output.read()
    assert load_runs("runs").state.tolist() == ["finished"] * 4, text
    assert all(len(runs.record(folder)["attempts"]) == 1 for folder in runs.folders()), text
    assert all([row["epoch"] for row in runs.metrics(folder)] == [1, 2] for folder in runs.folders())
    assert "Traceback" not in text and set(codes) <= {0, 1}


@pytest.mark.parametrize("target", ["nothing", "itself", "another run", "a file", "a foreign folder"])
def test_link_in_the_place_of_a_run_folder(launch, trained, capsule_sweeps, runs, tiny_config, place, target) -> None:
    """Nothing of what it points to is changed."""
    assert trained(EAGER, "seed=1").code == 0
    other = runs.only()
    link = Path("runs") / columns(tiny_config())["run"]
    foreign = place / "foreign"
    foreign.mkdir()
    (foreign / "run.json").write_text('{"signed_config": {"not": "ours"}}')
    (place / "file").write_text("a file")
    targets = {"nothing": "nowhere", "itself": link.name, "another run": other.name, "a file": place / "file"}
    link.symlink_to(targets.get(target, foreign))
    before = {path: path.read_bytes() for folder in (other, foreign) for path in folder.iterdir()}
    ended = launch("-m", EAGER, "seed=0")
    assert ended.code == 1 and "Traceback" not in ended.text and link.name in ended.text
    assert {path: path.read_bytes() for folder in (other, foreign) for path in folder.iterdir()} == before
    assert (place / "file").read_text() == "a file"
    for command in (["status"], ["results"], ["gc", "--yes"]):
        assert capsule_sweeps(*command).code == 0
    assert launch(EAGER, "seed=1").code == 0


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@pytest.mark.parametrize("name", ["../../evil", "a\nb", "\x1b[2J", "[red]x[/red]", "ü" * 200])
def test_run_with_a_hostile_name_is_trained_listed_and_found(
    launch, capsule_sweeps, runs, place, tmp_path, name
) -> None:
    ended = launch(EAGER, f"model.name={quoted(name)}")
    assert ended.code == 0, ended.text
    assert runs.only().parent == Path("runs") and os.listdir(place) == ["runs"]
    assert not list(tmp_path.rglob("*evil"))
    for command in (["status"], ["results"], ["show", runs.only().name], ["why", runs.only().name]):
        listed = capsule_sweeps(*command)
        assert listed.code == 0 and "\x1b" not in listed.out
    assert launch(EAGER, f"model.name={quoted(name)}").out.count("skip")


@pytest.mark.parametrize("name", ["../../evil", "../evil", "/tmp", "a/b"])
def test_hostile_name_of_a_data_set_writes_nothing_outside_data_dir(launch, place, tmp_path, name) -> None:
    images = place / "data" / "images"
    images.mkdir(parents=True)
    before = {path for path in tmp_path.rglob("*")}
    ended = launch(f"dataset.name={quoted(name)}", "dataset.source=folder", f"data_dir={images}")
    assert ended.code == 1 and "Traceback" not in ended.text
    assert {path for path in tmp_path.rglob("*") if "data" not in path.parts[-1]} <= before
