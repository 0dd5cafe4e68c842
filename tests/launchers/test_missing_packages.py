"""Without a package that only some commands need, each ends in one sentence with the command that installs it."""

import sys
from importlib.machinery import PathFinder

import pytest
from synthetic import finished_run

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
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == "tensorboard" else name)
    assert preflight.packages(tiny_config()).endswith("(not installed: tensorboard, for tracking=tensorboard)")
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name in ("sklearn", "submitit") else name)
    with pytest.raises(ValueError, match=r"pip install submitit scikit-learn$"):
        preflight.packages(tiny_config())


def test_without_wandb_no_server_is_blamed(monkeypatch) -> None:
    monkeypatch.setattr(wandb_client, "settings", lambda: None)
    assert "the package wandb is not installed" in str(wandb_client.obstacle())


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("torchvision", ["prepare-data", "dataset=MNIST"]),
        ("sklearn", ["prepare-data", "dataset=digits", "data_dir=new"]),
        ("matplotlib", ["report"]),
        ("scipy", ["results", "dataset=digits"]),
        ("wandb", ["sync"]),
    ],
)
def test_what_is_not_installed_is_named_and_nothing_else_is_blamed(
    capsule_sweeps, place, monkeypatch, package, words
) -> None:
    finished_run(["dataset=digits", "seed=0"], 0.5)
    finished_run(["dataset=digits", "seed=1"], 0.6)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("capsule_sweeps.results.figures")]:
        monkeypatch.delitem(sys.modules, name)
    find = PathFinder.find_spec
    hidden = classmethod(lambda _, name, *more: None if name.partition(".")[0] == package else find(name, *more))
    monkeypatch.setattr(PathFinder, "find_spec", hidden)
    ended = capsule_sweeps(*words)
    sentence = f"the package {package} is not installed"
    assert ended.code == 1 and sentence in ended.err and ended.err.count("\n") == 1, ended.text
    assert "download" not in ended.err and "server" not in ended.err
