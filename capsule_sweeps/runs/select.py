"""Which runs a command is about: run names, prefixes of signatures, paths, sweeps, and filters like dataset=CIFAR10."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from capsule_sweeps.runs.frame import load_runs
from capsule_sweeps.runs.record import JOB, SWEEP, read_typed
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import NEUTRAL


def select(runs_dir: Path, words: Sequence[str], imported: bool = False) -> pd.DataFrame:
    """The rows of `load_runs` that fit all filters and, where runs or sweeps are named, are among these.

    A filter is column=value, or key=value for a key of the signed configuration (training.lr=0.1), also one that is
    left at its default; several values are separated by commas (seed=0,1) and compared as they are written. tag=TAG
    selects runs that have this tag. Imported runs are among them if they are named, with imported=true (only these) or
    imported=any (also these), or if the
    caller asks for them. Raises ValueError for an unknown word.
    """
    if not runs_dir.is_dir():
        raise ValueError(f"there is no folder {runs_dir}; say where the runs are with --runs-dir")
    runs = load_runs(runs_dir, imported=True)
    named = [word for word in words if "=" not in word]
    if named:
        signatures = {signature for word in named for signature in _named(runs_dir, runs, word)}
        runs = runs[runs.signature.isin(signatures)]
    if not (imported or named or any(word.startswith("imported=") for word in words)):
        runs = runs[~runs.imported]
    for word in words:
        if word in named or word == "imported=any":
            continue
        key, _, value = word.partition("=")
        if key == "sweep":
            runs = runs[runs.signature.isin(_sweep(runs_dir, value))]
        elif key in ("tag", "tags"):
            runs = runs[[bool({*tags.split()} & {*value.split(",")}) for tags in runs.tags]]
        elif key in runs.columns and key != "signed_config":
            runs = runs[np.array([_among(found, value) for found in runs[key]], bool)]
        elif signed := _signed(runs, key):
            values = [signed_config.get(signed, NEUTRAL.get(signed)) for signed_config in runs.signed_config]
            known = [signed in NEUTRAL or signed in signed_config for signed_config in runs.signed_config]
            runs = runs[
                np.array([has and _among(found, value) for has, found in zip(known, values, strict=True)], bool)
            ]
        elif len(runs):
            columns = ", ".join(column for column in runs.columns if column != "signed_config")
            raise ValueError(f"{word}: there is no column or signed key {key}; columns are {columns}, sweep")
    return runs.reset_index(drop=True)


def _signed(runs: pd.DataFrame, key: str) -> str | None:
    """The signed key that a filter names, as launch.py spells it (backbone.channels) or in full."""
    signed = NEUTRAL.keys() | {name for signed_config in runs.signed_config for name in signed_config}
    return next((name for name in (key, f"model.{key}") if name in signed), None)


def _among(found: Any, asked: str) -> bool:
    """Whether a value is one of those that are written here, separated by commas; a list is written in brackets."""
    if isinstance(found, list):
        return "".join(str(found).split()) == "".join(asked.split()).replace('"', "'")
    return any(_same(found, one) for one in [asked, *asked.split(",")])


def _same(found: Any, asked: str) -> bool:
    """Whether a value is the one that is written here: 5e-4 is 0.0005, false is False, null is None."""
    if found is None or found is pd.NA:
        return asked.lower() in ("null", "none", "nan")
    try:
        return float(found) == float(asked)
    except (TypeError, ValueError):
        return str(found).lower() == asked.lower()


def find_run(runs_dir: Path, word: str) -> Run:
    """The one run that a word names. Raises ValueError when there is none, or more than one."""
    if os.sep in word and (Path(word) / "run.json").is_file():
        return Run(Path(word))
    runs = select(runs_dir, [word])
    if len(runs) != 1:
        raise ValueError(f"{word} names {len(runs)} runs, not one; `status` lists them")
    return Run(runs_dir / runs.run[0])


def _named(runs_dir: Path, runs: pd.DataFrame, word: str) -> list[str]:
    """Signatures of the runs that a name, a path, a prefix of a signature, or a sweep's name stands for."""
    name, parent = Path(word).name, Path(word).parent
    if os.sep in word and parent.resolve() != runs_dir.resolve():
        raise ValueError(f"{word} is not in {runs_dir}; say --runs-dir {parent}")
    if (runs.run == name).any():
        return [name[-8:]]
    if word.startswith("sweep-"):
        return _sweep(runs_dir, word)
    matches = list(runs.signature[runs.signature.str.startswith(word)])
    if len(matches) > 1:
        raise ValueError(f"{word} is the beginning of {len(matches)} signatures: {', '.join(matches)}; say more of it")
    if not matches:
        raise ValueError(f"{word} is no run in {runs_dir}: no name, no beginning of a signature, no path, no sweep")
    return matches


def _sweep(runs_dir: Path, name: str) -> list[str]:
    path = runs_dir / ".sweeps" / f"{Path(name).name}.json"
    submitted = read_typed(runs_dir / ".jobs" / Path(name).name / "job.json", JOB).get("runs")
    if isinstance(submitted, list):  # the name of a submission to SLURM
        return [str(folder)[-8:] for folder in submitted]
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("sweep-*.json"))) or "none"
        raise ValueError(f"{name} is no sweep in {runs_dir}; there are: {known}")
    signatures = read_typed(path, SWEEP).get("signatures")
    if not isinstance(signatures, list):
        raise ValueError(f"{path} is damaged: it lists no signatures")
    return signatures
