"""What lies in a run folder never makes us write anything outside of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from capsule_sweeps.runs.files import make_folder, open_append, temporary, write_atomic
from capsule_sweeps.runs.folders import find_runs
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import columns
from capsule_sweeps.tracking.base import Shield
from capsule_sweeps.tracking.wandb_sync import mark_as_sent

pytestmark = pytest.mark.usefixtures("untouched")


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_run_whose_files_are_links_is_refused_in_a_sentence(launch, trained, runs, victim, name) -> None:
    trained(signal_at=(signal.SIGTERM, 8))
    folder = runs.only()
    (folder / name).unlink()
    (folder / name).symlink_to(victim / ".bashrc")
    ended = launch()
    assert ended.code == 1 and name in ended.text and "Traceback" not in ended.text


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "checkpoint.pt", "error.txt", "summary.json", "best.pt"])
def test_a_link_is_replaced_and_not_followed(tmp_path, victim, name) -> None:
    run = Run(tmp_path / "name-00000000")
    run.folder.mkdir()
    (run.folder / name).symlink_to(victim / ".bashrc")
    with run.claim() as claim:
        claim.write(name, b"new")
    assert not (run.folder / name).is_symlink() and (run.folder / name).read_bytes() == b"new"


@pytest.mark.parametrize("target", [".bashrc", "nothing yet"])
def test_metrics_and_the_request_to_stop_are_files_of_the_folder(tmp_path, victim, target) -> None:
    run = Run(tmp_path / "name-00000000")
    run.folder.mkdir()
    (run.folder / "metrics.jsonl").symlink_to(victim / target)
    (run.folder / "cancel").symlink_to(victim / target)
    with run.claim() as claim, claim.lines("metrics.jsonl", ["{}"]) as append:
        append('{"epoch": 1}')
        (run.folder / "cancel").unlink(missing_ok=True)
        (run.folder / "cancel").symlink_to(victim / target)
        assert run.request_cancel()
    assert (run.folder / "metrics.jsonl").read_text() == '{}\n{"epoch": 1}\n'
    assert not (victim / "nothing yet").exists()


@pytest.mark.parametrize("shelf", [".sweeps", ".superseded"])
def test_shelves_of_runs_dir_are_no_links(launch, trained, runs, victim, shelf) -> None:
    Path("runs").mkdir()
    Path("runs", shelf).symlink_to(victim)
    if shelf == ".superseded":
        trained("training.epochs=1")
        ended = launch("training.epochs=1", "hydra.launcher.force=true")
    else:
        ended = launch()
    assert shelf in ended.text and "is a link" in ended.text and "Traceback" not in ended.text


def test_a_run_folder_that_is_a_link_is_left_out(tiny_config, victim, caplog) -> None:
    name = columns(tiny_config())["run"]
    Path("runs").mkdir()
    Path("runs", name).symlink_to(victim)
    assert find_runs(Path("runs")) == {}
    assert caplog.messages == [f"{name}: damaged (it is a link)"]
    with pytest.raises(ValueError, match="is a link"), Run(Path("runs", name)).claim():
        pass


@pytest.mark.parametrize("name", ["digits-$(touch PWNED)-00000000", "a b-00000000", "x\ny-00000000", "-rf-00000000"])
def test_a_name_that_a_shell_could_read_is_no_run(place, caplog, name) -> None:
    Path("runs", name).mkdir(parents=True)
    assert find_runs(Path("runs")) == {}
    assert len(caplog.messages) == 1 and "damaged (its name" in caplog.messages[0] and "\n" not in caplog.messages[0]


def test_temporary_files_cannot_be_foreseen(tmp_path, monkeypatch, victim) -> None:
    path = tmp_path / "file"
    assert len({temporary(path).name for _ in range(100)}) == 100
    foreseen = temporary(path)
    foreseen.symlink_to(victim / "thesis.tex")
    monkeypatch.setattr("capsule_sweeps.runs.files.temporary", lambda *_: foreseen)
    with pytest.raises(OSError, match="exists"):
        write_atomic(path, b"x")


def test_only_regular_files_are_appended_to(tmp_path, victim) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(victim / ".bashrc")
    for name in ("pipe", "link"):
        with pytest.raises(ValueError, match="regular file"):
            open_append(tmp_path / name)
    (tmp_path / "shelf").symlink_to(victim)
    with pytest.raises(ValueError, match="is a link"):
        make_folder(tmp_path / "shelf")


def test_event_files_of_tensorboard_that_are_links_are_not_emptied(tiny_config, victim) -> None:
    run = Run(Path("runs/x-00000000"))
    folder = run.folder / "tensorboard"
    folder.mkdir(parents=True)
    for number, name in enumerate((".bashrc", "thesis.tex")):
        (folder / f"events.out.tfevents.{number}.host.1.0").symlink_to(victim / name)
    config = tiny_config("tracking=tensorboard")
    Shield(config, run, "", [])  # the run continues without TensorBoard, with a warning


def test_marks_of_sent_logs_go_through_no_link(tmp_path, victim) -> None:
    run, outside = Run(tmp_path / "x-00000000"), tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "run-a.wandb").touch()
    (run.folder / "wandb" / "offline-run-2-a").mkdir(parents=True)
    (run.folder / "wandb" / "offline-run-1-a").symlink_to(outside)
    (run.folder / "wandb" / "offline-run-2-a" / "run-a.wandb").touch()
    (run.folder / "wandb" / "offline-run-2-a" / "run-a.wandb.synced").symlink_to(victim / "new")
    mark_as_sent(run)
    assert sorted(path.name for path in outside.iterdir()) == ["run-a.wandb"]


def test_log_of_a_job_that_is_a_link_to_nowhere_is_no_traceback(make_run, capsule_sweeps, runs) -> None:
    folder = make_run(state="failed")
    name = "digits-0123abcd-0123ab"
    runs.change_record(folder, attempts=[{"submission": name, "job": "7"}])
    (folder.parent / ".jobs" / name).mkdir(parents=True)
    (folder.parent / ".jobs" / name / "7_0_log.out").symlink_to("nowhere")
    ended = capsule_sweeps("show", folder.name)
    assert ended.code == 0, ended.text
