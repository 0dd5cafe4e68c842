"""Selects runs for a command: by run name, signature prefix, path, sweep, and filters such as dataset=CIFAR10."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from capsule_sweeps.runs import filters
from capsule_sweeps.runs.frame import load_runs
from capsule_sweeps.runs.record import JOB, SWEEP, read_typed
from capsule_sweeps.runs.run import Run

log = logging.getLogger(__name__)

# Filters that runs may fit later
CHANGING = ("state", "stale", "not_learned", "imported", "epochs_done", "tag", "tags", "note")


def select(runs_dir: Path, words: Sequence[str], imported: bool = False, some: bool = True) -> pd.DataFrame:
    """The rows of `load_runs` that fit all filters and, if runs or sweeps are named, belong to these.

    The word all leaves nothing out. A filter is column=value, or key=value for a key of the signed configuration, as
    typed on the command line: see `filters`. tag=TAG selects runs with this tag. Imported runs are included if they are
    named, with imported=true (only imported runs) or imported=any (all runs), or with the argument `imported`. Raises
    ValueError for a folder without runs, an unknown word, and a filter that no run fits. With `some=False`, for
    commands that look at states or clean up, no run is an answer where a filter in CHANGING fits none, and where no run
    of the sweeps in a folder has started.
    """
    check_exists(runs_dir)
    runs = load_runs(runs_dir, imported=True)
    if runs.empty:
        if some or not (runs_dir / ".sweeps").is_dir():
            raise ValueError(f"no run is in {runs_dir}; set --runs-dir to the folder of the runs")
        log.warning("No run in %s has started.", runs_dir)
    words = [word for word in words if word != "all"]
    named = [word for word in words if "=" not in word]
    if named:
        signatures = {signature for word in named for signature in _named(runs_dir, runs, word)}
        runs = runs[runs.signature.isin(signatures)]
    if not (imported or named or any(word.startswith("imported=") for word in words)):
        runs = runs[~runs.imported]
    for word in words:
        key, _, value = word.partition("=")
        if word in named or word == "imported=any":
            continue
        if key == "sweep":
            runs = runs[runs.signature.isin(_sweep(runs_dir, value))]
        elif len(runs):
            fitting = runs[filters.fit(runs, word, words)]
            if fitting.empty:
                sentence = filters.none_fits(runs, word, words)
                if some or key not in CHANGING:
                    raise ValueError(sentence)
                log.warning(sentence)
            elif said := filters.without_runs(runs, word, words):
                log.warning(said)
            runs = fitting
    return runs.reset_index(drop=True)


def check_exists(runs_dir: Path) -> None:
    if not runs_dir.is_dir():
        raise ValueError(f"{runs_dir} does not exist; set --runs-dir to the folder of the runs")


def find_run(runs_dir: Path, word: str) -> Run:
    """The run that a word names. Raises ValueError if there is none, or more than one."""
    if os.sep in word and (Path(word) / "run.json").is_file():
        found = Run(Path(word))
        if why := found.damage():
            raise ValueError(f"{found.folder.name}: damaged ({why})")
        return found
    runs = select(runs_dir, [word])
    if len(runs) != 1:
        raise ValueError(f"{word} names {len(runs)} runs, not one; `status` lists them")
    return Run(runs_dir / runs.run[0])


def _named(runs_dir: Path, runs: pd.DataFrame, word: str) -> list[str]:
    """Signatures of the runs that a name, a path, a prefix of a signature, or the name of a sweep denotes."""
    name, parent = Path(word).name, Path(word).parent
    if os.sep in word and parent.resolve() != runs_dir.resolve():
        raise ValueError(f"{word} is not in {runs_dir}; set --runs-dir {parent}")
    if (runs.run == name).any():
        return [name[-8:]]
    if word.startswith("sweep-"):
        return _sweep(runs_dir, word)
    matches = list(runs.signature[runs.signature.str.startswith(word)])
    if len(matches) > 1:
        raise ValueError(f"{word} matches {len(matches)} signatures ({', '.join(matches)}); use a longer prefix")
    if not matches and (why := Run(runs_dir / name).damage()):
        raise ValueError(f"{name}: damaged ({why})")
    if not matches:
        raise ValueError(f"no run or sweep in {runs_dir} matches {word}; `status` lists the runs")
    return matches


def _sweep(runs_dir: Path, name: str) -> list[str]:
    path = runs_dir / ".sweeps" / f"{Path(name).name}.json"
    submitted = read_typed(runs_dir / ".jobs" / Path(name).name / "job.json", JOB).get("runs")
    if isinstance(submitted, list):  # the name of a submission to SLURM
        return [str(folder)[-8:] for folder in submitted]
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("sweep-*.json"))) or "none"
        raise ValueError(f"{name} is not a sweep in {runs_dir}; sweeps are: {known}")
    signatures = read_typed(path, SWEEP).get("signatures")
    if not isinstance(signatures, list):
        raise ValueError(f"{path} is damaged: it lists no signatures")
    return signatures
