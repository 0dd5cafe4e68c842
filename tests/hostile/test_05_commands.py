"""What lies in a runs folder never becomes a command, or settings of one."""

import json
from pathlib import Path

import pytest

from capsule_sweeps.launchers import retry
from capsule_sweeps.launchers.slurm.launcher import Launcher
from capsule_sweeps.runs.queue import SUBMISSION, Entry
from capsule_sweeps.runs.run import Run

NAME = "digits-01234567-abcdef"


@pytest.fixture
def submission(place, monkeypatch) -> Path:
    """The files of a submission in runs/.jobs, as this user's own launcher leaves them."""
    monkeypatch.setattr(Launcher, "available", lambda self: True)
    folder = place / "runs" / ".jobs" / NAME
    folder.mkdir(parents=True, mode=0o755)
    (folder / "job.json").write_text(json.dumps({"settings": {"partition": "gpu", "setup": ["touch PWNED"]}}))
    return folder


def test_own_settings_are_shown_before_they_are_used(submission, capsys) -> None:
    launcher = retry.same_launcher(Entry("slurm", submission), "digits-r1")
    assert launcher is not None and launcher.setup == ["touch PWNED"]
    said = capsys.readouterr().out
    assert NAME in said and "setup=['touch PWNED']" in said and "partition=gpu" in said


def test_settings_that_others_can_write_are_not_used(submission) -> None:
    submission.chmod(0o775)
    with pytest.raises(ValueError, match=r"settings from there are not used; run it with launch\.py"):
        retry.same_launcher(Entry("slurm", submission), "digits-r1")


def test_unknown_settings_are_one_sentence(submission) -> None:
    (submission / "job.json").write_text(json.dumps({"settings": {"no_such_setting": 1}}))
    with pytest.raises(ValueError, match=r"job\.json is damaged"):
        retry.same_launcher(Entry("slurm", submission), "digits-r1")


@pytest.mark.parametrize("name", ["..", ".", "../x/sub", "sub", "digits-01234567-abcdef\n", ".x-01234567-abcdef"])
def test_submissions_have_a_pattern(name) -> None:
    assert not SUBMISSION.fullmatch(name)


def test_a_submission_inside_of_the_run_folder_is_not_looked_at(submission, monkeypatch) -> None:
    run = Run(Path("runs/digits-r1-01234567"))
    (run.folder / "sub").mkdir(parents=True)
    (run.folder / "sub" / "job.json").write_text(json.dumps({"settings": {"setup": ["touch PWNED"]}}))
    (run.folder / "queued.json").write_text(json.dumps({"queue": "slurm", "submission": f"../{run.folder.name}/sub"}))
    entry = run.entry()
    assert entry is None or retry.same_launcher(entry, run.folder.name) is None


@pytest.mark.parametrize("name", ["n\ntouch PWNED4\n#", "a\x1b[31m", "b\rc", "50%"])
def test_control_characters_in_runs_dir_are_refused(place, name, monkeypatch) -> None:
    """A newline would be a second line of the job script."""
    monkeypatch.setattr(Launcher, "available", lambda self: True)
    with pytest.raises(ValueError, match="control character"):
        Launcher().check(place / name)
