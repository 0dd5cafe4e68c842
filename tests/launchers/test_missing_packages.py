"""Without a package that only some commands need, each ends in one sentence with the command that installs it."""

import sys

import pytest

from capsule_sweeps.launchers import preflight
from capsule_sweeps.tracking import wandb_client


def need_sklearn(_: object) -> None:
    raise ModuleNotFoundError("No module named 'sklearn.datasets'", name="sklearn.datasets")


def test_a_command_names_the_package(capsule_sweeps, place, monkeypatch) -> None:
    monkeypatch.setattr("capsule_sweeps.cli.status.run", need_sklearn)
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    ended = capsule_sweeps("status")
    assert (ended.code, ended.err) == (1, "Error: the package sklearn is not installed: pip install scikit-learn\n")


def test_doctor_says_what_is_missing(tiny_config, monkeypatch) -> None:
    assert "are installed" in preflight.packages(tiny_config())
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name in ("sklearn", "submitit") else name)
    with pytest.raises(ValueError, match=r"pip install submitit scikit-learn$"):
        preflight.packages(tiny_config())


def test_without_wandb_no_server_is_blamed(monkeypatch) -> None:
    monkeypatch.setattr(wandb_client, "settings", lambda: None)
    assert "the package wandb is not installed" in str(wandb_client.obstacle())
