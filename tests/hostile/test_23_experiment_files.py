"""Files of a configuration that others wrote: nothing in them runs code or takes all memory before anybody is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from capsule_sweeps.config.compose import launcher_settings
from capsule_sweeps.launchers.entry import look

DRY = "hydra.launcher.dry_run=true"
CALLBACK = "hydra: {callbacks: {x: {_target_: os.makedirs, name: planted}}}"


@pytest.fixture
def experiment(place: Path) -> Callable[..., list[str]]:
    """Writes an experiment into a folder of its own; gives the arguments that choose it."""

    def write(*lines: str, where: str = "experiment/mine") -> list[str]:
        path = place.parent / "theirs" / f"{where}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["# @package _global_", *lines]))
        return ["--config-dir", str(place.parent / "theirs"), where.replace("/", "=")]

    return write


@pytest.mark.parametrize("flags", [["-m"], []])
def test_callbacks_of_a_file_are_refused_before_anything_starts(experiment, launch, place, flags) -> None:
    folder, name = experiment(CALLBACK)[1:]
    ended = launch(*flags, f"--config-dir={folder}", name, DRY)
    assert ended.code == 1 and ended.err.startswith("Error: hydra.callbacks.x=os.makedirs would run arbitrary code"), (
        ended.text
    )
    assert not list(place.iterdir())


def test_users_own_environment_and_command_line_are_trusted(experiment, monkeypatch) -> None:
    look(["-m", "+hydra.callbacks.x._target_=os.makedirs", "+hydra.callbacks.x.name=typed", "dataset=digits"])
    monkeypatch.setenv("CAPSULE_SWEEPS_TRUST_FILES", "1")
    look([*experiment(CALLBACK), "-m"])


@pytest.mark.parametrize(
    "lines",
    [
        ["hydra: {callbacks: {x: {_target_: torch.load, f: x, weights_only: false}}}"],
        ["hydra: {callbacks: {x: null}}"],
        ["hydra: {launcher: {_target_: os.makedirs}}"],
        ["hydra: {sweeper: {_target_: subprocess.Popen}}"],
        ["hydra: {sweeper: {_target_: '${oc.env:HOME}'}}"],
        ["hydra: {sweeper: {params: {sampler: {_target_: os.makedirs}}}}"],
        ["hydra: {job_logging: {handlers: {console: {class: subprocess.Popen, args: [id]}}}}"],
        ["hydra: {job_logging: {formatters: {simple: {(): os.makedirs}}}}"],
        ["hydra: {hydra_logging: {handlers: {console: {stream: 'ext://os.environ'}}}}"],
        ["hydra: {job_logging: {handlers: {f: {class: logging.FileHandler, filename: /planted}}}}"],
        ["hydra: {job_logging: {handlers: {f: {filename: '${hydra.runtime.output_dir}/../x'}}}}"],
    ],
)
def test_code_by_other_names(experiment, lines, place) -> None:
    with pytest.raises(ValueError, match=r"^hydra\.\w+.* would run arbitrary code"):
        look([*experiment(*lines), "-m"])
    assert not list(place.iterdir())


def test_a_file_of_any_group_is_looked_at(experiment) -> None:
    with pytest.raises(ValueError, match=r"hydra\.callbacks\.x"):
        look(experiment(CALLBACK, where="ablation/theirs"))


def test_doctor_imports_no_launcher_of_others(place) -> None:
    with pytest.raises(ValueError, match=r"hydra\.launcher\._target_=this\.Launcher would run arbitrary code"):
        launcher_settings(["hydra.launcher._target_=this.Launcher"])


@pytest.mark.parametrize("where", ["experiment/mine", "dataset/unused"])
def test_aliases_that_multiply_are_refused(experiment, where) -> None:
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{n}: &a{n} [{','.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 9)]
    arguments = experiment(*lines, where=where)
    with pytest.raises(ValueError, match="more than 100,000 values when its aliases"):
        look(arguments)


@pytest.mark.parametrize("text", ["a: &a [*a]", "x: &x 1\ny: *x\nz: " + 3000 * "[" + 3000 * "]"])
def test_files_without_an_end(experiment, text) -> None:
    with pytest.raises(ValueError, match=r"aliases|too many brackets|nesting depth"):
        look(experiment(text))


def test_large_files_are_refused_and_small_aliases_are_not(experiment) -> None:
    look(experiment("training: &recipe {lr: 0.1}", "# *recipe"))
    with pytest.raises(ValueError, match="more than 256,000 bytes"):
        look(experiment("# " + 256_000 * "x"))


# Not hostile, but no less surprising: what YAML 1.1 makes of values


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "hydra: {launcher: {time: 12:00:00}}",
            'line 2: time: 12:00:00 is read as the number 43200; write time: "12:00:00"',
        ),
        ("hydra: {sweeper: {params: {seed: 010}}}", "seed: 010 is read as the number 8"),
        ("seed: 0755", "the number 493"),
        ("dataset: {name: on}", "name: on is read as true"),
        ("dataset: {name: 007}", "name: 007 is read as the number 7"),
        ("tracking: {project: 1_000}", "project: 1_000 is read as 1000"),
        ("tracking: {project: 2.50}", "project: 2.50 is read as 2.5"),
    ],
)
def test_values_that_yaml_reads_as_others(experiment, line, words) -> None:
    with pytest.raises(ValueError) as error:
        look([*experiment(line), "hydra/launcher=slurm"])
    assert words in str(error.value) and "mine.yaml" in str(error.value)


def test_values_that_are_what_they_look_like(experiment) -> None:
    lines = ["training: {compile: off, lr: 1e-3, milestones: [1, 2]}", "dataset: {flip: yes, name: 2024, root: null}"]
    lines += ["hydra: {launcher: {time: '12:00:00'}, sweeper: {params: {seed: 0, dataset.val_size: 1_0}}}"]
    look([*experiment(*lines), "hydra/launcher=slurm"])
