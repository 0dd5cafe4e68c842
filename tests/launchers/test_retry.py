"""Commands that change what happens to runs: cancel, retry, gc."""

import os
import signal
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from synthetic import make_run

from capsule_sweeps import load_runs
from capsule_sweeps.cli.retry import confirmed
from capsule_sweeps.runs import garbage
from capsule_sweeps.runs import lock as owner
from capsule_sweeps.runs.files import write_json

SWEEP = "sweep-12345678"


@pytest.fixture
def killed(monkeypatch) -> list[tuple[int, int]]:
    """What os.kill was asked for, and nothing is killed."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: asked.append((pid, signum)))
    return asked


# ── cancel ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_needs_a_selection(tiny_config, capsule_sweeps) -> None:
    make_run(tiny_config())
    ended = capsule_sweeps("cancel")
    assert ended.code == 1 and "state=running" in ended.err


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted"])
def test_cancel_of_what_does_not_run_changes_nothing(tiny_config, capsule_sweeps, state) -> None:
    run = make_run(tiny_config(), state)
    ended = capsule_sweeps("cancel", run.folder.name)
    assert ended.code == 0 and "nothing to cancel" in ended.out
    assert not (run.folder / "cancel").exists()


def test_cancelled_run_is_interrupted_and_resumes(hold, launch, capsule_sweeps, runs) -> None:
    held = hold("step", 3, "seed=1", "training.epochs=500", "training.compile=off")
    folder = runs.only()
    ended = capsule_sweeps("cancel", "state=running")
    assert ended.code == 0 and folder.name in ended.out
    assert held.release() != 0, "not finished"
    record = runs.record(folder)
    assert record["state"] == "interrupted" and len(runs.metrics(folder)) < 500
    assert not (folder / "cancel").exists() and (folder / "checkpoint.pt").exists()
    assert "Traceback" not in held.output.read_text()


def sweep_file(**changes: object) -> Path:
    path = Path("runs/.sweeps") / f"{SWEEP}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"sweep": SWEEP, "signatures": [], **owner.owner(), **changes})
    return path


def test_cancel_never_signals_a_process_of_another_machine(tiny_config, capsule_sweeps, killed) -> None:
    """The process number of a launcher on another host belongs to another process here."""
    make_run(tiny_config())
    sweep_file(host="elsewhere boot ns", pid=os.getppid(), start="1")
    ended = capsule_sweeps("cancel", SWEEP)
    assert killed == []
    assert ended.code in (0, 1) and "elsewhere" in ended.text, "say where its launcher is"


def test_cancel_never_signals_a_number_that_was_given_again(tiny_config, capsule_sweeps, killed) -> None:
    make_run(tiny_config())
    sweep_file(pid=os.getppid(), start="1")
    assert "nothing to cancel" in capsule_sweeps("cancel", SWEEP).out and killed == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"a": 1}', '{"host": 1, "pid": "x", "start": []}'])
def test_damaged_sweep_signals_no_process(tiny_config, capsule_sweeps, killed, content) -> None:
    make_run(tiny_config())
    sweep_file().write_text(content)
    ended = capsule_sweeps("cancel", SWEEP)
    assert ended.code in (0, 1) and killed == []


@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError])
def test_launcher_that_cannot_be_signaled_is_no_traceback(tiny_config, capsule_sweeps, monkeypatch, error) -> None:
    make_run(tiny_config())
    sweep_file(pid=os.getppid(), start=owner._process_start(os.getppid()))

    def fail(pid: int, signum: int) -> None:
        raise error

    monkeypatch.setattr(os, "kill", fail)
    assert capsule_sweeps("cancel", SWEEP).code in (0, 1)


# ── retry ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_retry_ends_with_the_numbers_of_an_untouched_run(launch, trained, capsule_sweeps, runs) -> None:
    launch("seed=0", signal_at=(signal.SIGTERM, 7))
    trained("seed=1")
    assert launch("seed=0", "runs_dir=untouched").code == 0
    before = {folder: (folder / "run.json").read_bytes() for folder in runs.folders()}
    ended = capsule_sweeps("retry", "--yes", "seed=0")
    assert ended.code == 0, ended.text
    (resumed,) = [folder for folder in runs.folders() if (folder / "run.json").read_bytes() != before[folder]]
    runs.assert_same(resumed, runs.only("untouched"))
    assert "nothing to retry" in capsule_sweeps("retry", "--yes", "all").err


def test_retry_asks_what_to_run(trained, capsule_sweeps, runs) -> None:
    trained(signal_at=(signal.SIGTERM, 3))
    before = (runs.only() / "run.json").read_bytes()
    ended = capsule_sweeps("retry")
    assert ended.code == 1 and "or all" in ended.err and (runs.only() / "run.json").read_bytes() == before


def test_retry_shows_what_it_would_do_and_runs_nothing_without_yes(trained, capsule_sweeps, runs, monkeypatch) -> None:
    trained(signal_at=(signal.SIGTERM, 3))
    folder = runs.only()
    before = (folder / "run.json").read_bytes()
    ended = capsule_sweeps("retry", "all")
    assert ended.code == 1 and folder.name in ended.out and "1 run: 1 to resume" in ended.out, ended.text
    assert "add --yes" in ended.err and (folder / "run.json").read_bytes() == before
    for answer, yes in {"n": False, "": False, "y": True, " YES ": True}.items():
        with monkeypatch.context() as patch:
            patch.setattr("builtins.input", lambda _, answer=answer: answer)
            assert confirmed() is yes, answer


def test_images_are_found_from_another_folder_and_after_a_move(launch, capsule_sweeps, runs, tmp_path, monkeypatch):
    """data_dir is recorded as an absolute path; an override says where the images are now."""
    here = Path.cwd()
    for seed in (0, 1):
        launch("data_dir=images", f"seed={seed}", signal_at=(signal.SIGTERM, 3))
    stored = [OmegaConf.load(folder / "config.yaml") for folder in runs.folders()]
    assert [config.data_dir for config in stored] == [str(here / "images")] * 2
    monkeypatch.chdir(tmp_path)
    assert capsule_sweeps("retry", "--yes", "seed=0", "--runs-dir", str(here / "runs")).code == 0
    assert load_runs("~/../place/runs").state.tolist() == ["finished", "interrupted"]
    evaluated = capsule_sweeps("evaluate", runs.folders(here / "runs")[0].name, "--runs-dir", str(here / "runs"))
    assert evaluated.code == 0, evaluated.text
    (here / "images").rename(tmp_path / "home" / "moved")
    ended = capsule_sweeps("retry", "--yes", "all", "data_dir=~/moved", "--runs-dir", str(here / "runs"))
    assert ended.code == 0, ended.text
    assert not (here / "images").exists() and not (tmp_path / "data").exists()


def test_retry_that_fails_again_is_reported(trained, capsule_sweeps, runs) -> None:
    trained("training.lr=1e30")
    ended = capsule_sweeps("retry", "--yes", runs.only().name[-8:])
    assert ended.code == 1 and "Traceback" not in ended.text
    assert len(runs.record(runs.only())["attempts"]) == 2


def test_retry_of_a_moved_folder_stays_in_it(trained, capsule_sweeps, runs) -> None:
    trained(signal_at=(signal.SIGTERM, 3))
    Path("runs").rename("moved")
    assert capsule_sweeps("retry", "--yes", "all", "--runs-dir", "moved").code == 0
    assert runs.record(runs.only("moved"))["state"] == "finished" and not Path("runs").exists()


@pytest.mark.parametrize("parallel", ["0", "many", "-1", "1.5", ""])
def test_retry_with_a_bad_number(tiny_config, capsule_sweeps, parallel) -> None:
    run = make_run(tiny_config(), "failed")
    (run.folder / "config.yaml").write_text(OmegaConf.to_yaml(tiny_config()))
    ended = capsule_sweeps("retry", "--yes", "all", f"--parallel={parallel}")
    assert ended.code == 1 and "parallel" in ended.err and "Error: " in ended.err


@pytest.mark.parametrize("content", [None, "seed: 1", "a: !!python/object/apply:os.getcwd []"])
def test_retry_of_a_garbled_config_names_it(tiny_config, capsule_sweeps, content) -> None:
    run = make_run(tiny_config(), "failed")
    if content is not None:
        (run.folder / "config.yaml").write_text(content)
    ended = capsule_sweeps("retry", "--yes", run.folder.name)
    assert ended.code == 1 and "config.yaml" in ended.err and ended.err.count("\n") == 1


def test_retry_of_another_config_in_the_folder_is_refused(trained, capsule_sweeps, runs) -> None:
    """config.yaml that was edited by hand is another run; it must not train under this signature, nor elsewhere."""
    trained(signal_at=(signal.SIGTERM, 3))
    folder = runs.only()
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 5"))
    ended = capsule_sweeps("retry", "--yes", folder.name)
    assert ended.code == 1 and "seed" in ended.err
    assert [other.name for other in runs.folders()] == [folder.name]


# ── gc ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def temporary(folder: Path, hours: float) -> Path:
    path = folder / ".checkpoint.pt.123.456.tmp"
    path.write_bytes(b"x" * 1000)
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))
    return path


def test_gc_lists_and_removes_only_with_yes(tiny_config, capsule_sweeps) -> None:
    run, other = make_run(tiny_config()), make_run(tiny_config("seed=1"), "failed")
    old, young = temporary(run.folder, 2), temporary(other.folder, 0)
    shelf = Path("runs/.superseded") / f"{run.folder.name}.1"
    shelf.mkdir(parents=True)
    (shelf / "checkpoint.pt").write_bytes(b"x" * 5000)
    for path in (run.folder / ".hidden", run.folder / "checkpoint.pt.tmp", Path("runs/notes.txt")):
        path.write_text("the user's")
    ended_on_a_full_disk, unfinished = (made.folder / "attempt-3.released" for made in (run, other))
    ended_on_a_full_disk.touch()
    unfinished.touch()
    before = {path for path in Path("runs").rglob("*")}
    listed = capsule_sweeps("gc").out
    assert str(old) in listed and str(shelf) in listed and "without --yes: 3 entries" in listed
    assert str(young) not in listed and ".hidden" not in listed
    assert {path for path in Path("runs").rglob("*")} == before
    ended = capsule_sweeps("gc", "--yes")
    assert ended.code == 0 and "Removed 3 entries" in ended.out and str(old) in ended.out
    assert before - {path for path in Path("runs").rglob("*")} == {
        old,
        shelf,
        shelf / "checkpoint.pt",
        ended_on_a_full_disk,
    }
    assert young.exists() and unfinished.exists(), "its number is still needed"
    assert capsule_sweeps("gc").out == capsule_sweeps("gc", "--yes").out == "Nothing to remove in runs.\n"


def test_gc_keeps_the_only_finished_run_of_a_signature(launch, trained, capsule_sweeps, runs, monkeypatch) -> None:
    """Rerun with force, but not finished yet: the finished folder is not superseded."""
    assert trained().code == 0
    launch("hydra.launcher.force=true", signal_at=(signal.SIGTERM, 3))
    (aside,) = Path("runs/.superseded").iterdir()
    assert runs.record(runs.only())["state"] == "interrupted"
    assert capsule_sweeps("gc", "--yes").code == 0
    assert (aside / "summary.json").exists(), "never a finished run"
    assert launch().code == 0
    capsule_sweeps("gc", "--yes")
    assert not aside.exists()


def test_gc_does_not_follow_links(tiny_config, capsule_sweeps, tmp_path) -> None:
    make_run(tiny_config())
    outside = tmp_path / "outside"
    outside.mkdir()
    kept = [temporary(outside, 5)]
    (outside / "precious").mkdir()
    (outside / "precious" / "file").touch()
    Path("runs/link-00000000").symlink_to(outside)
    Path("runs/.superseded").mkdir()
    Path("runs/.superseded/link-00000000.1").symlink_to(outside)
    assert capsule_sweeps("gc", "--yes").code == 0
    assert all(path.exists() for path in [*kept, outside / "precious" / "file"])


def test_gc_while_a_folder_disappears(tiny_config, monkeypatch) -> None:
    run = make_run(tiny_config())
    paths = []
    for path, _, _ in garbage.garbage(Path("runs")):
        paths.append(path)
    temporary(run.folder, 2)
    garbage.remove(run.folder / "not there", Path("runs"))
    assert len(list(garbage.garbage(Path("runs")))) == len(paths) + 1
