"""A sweep is the set of runs that one command asked for; `.sweeps/<name>.json` records which."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsule_sweeps.runs.files import make_folder, write_json
from capsule_sweeps.runs.record import SEEDS, SWEEP, read_typed

if TYPE_CHECKING:
    import pandas as pd

    from capsule_sweeps.runs.plan import PlannedRun


def sweep_name(plan: Sequence[PlannedRun]) -> str:
    """The name of a sweep, which depends only on its set of runs."""
    return signatures_name([planned.signature for planned in plan])


def signatures_name(signatures: Sequence[str]) -> str:
    return "sweep-" + hashlib.sha256(" ".join(sorted(signatures)).encode()).hexdigest()[:8]


def record_sweep(plan: Sequence[PlannedRun], launcher: dict[str, Any]) -> str:
    """Record the runs of a sweep and the process that launches them ({} for none). Returns the name of the sweep."""
    name, signatures = sweep_name(plan), sorted(planned.signature for planned in plan)
    folder = make_folder(plan[0].run.folder.parent / ".sweeps")
    content = {"sweep": name, "command": sys.argv, "signatures": signatures, "started": time.time()}
    write_json(folder / f"{name}.json", {**content, "runs": [planned.run.folder.name for planned in plan], **launcher})
    return name


@dataclass(frozen=True)
class Sweep:
    """The content of `.sweeps/<name>.json`: the command as typed, when it last started, the runs that it asked for.

    `runs`: the names of their folders, including runs that never started; empty in old records.
    """

    name: str
    command: str
    started: float
    signatures: list[str]
    runs: list[str]


def read_sweeps(runs_dir: Path) -> list[Sweep]:
    """The sweeps of a runs folder, newest first."""
    found = []
    for path in (runs_dir / ".sweeps").glob("sweep-*.json"):
        record = read_typed(path, SWEEP)
        program, *words = record.get("command") or [""]
        name = Path(program).name.replace("__main__.py", "capsule-sweeps")  # of python -m capsule_sweeps retry
        command = shlex.join([name, *words])
        with suppress(OSError):
            started = record.get("started")
            started = path.stat().st_mtime if started is None else started
            found.append(Sweep(path.stem, command, started, record.get("signatures", []), record.get("runs", [])))
    return sorted(found, key=lambda sweep: (-sweep.started, sweep.name))


def sweeps_of_runs(runs_dir: Path) -> dict[str, list[str]]:
    """Signature → the names of all sweeps that contain the run, newest first."""
    found: dict[str, list[str]] = {}
    for sweep in read_sweeps(runs_dir):
        for signature in sweep.signatures:
            found.setdefault(signature, []).append(sweep.name)
    return found


def record_seeds(runs_dir: Path, procedure: dict[str, Any], groups: Sequence[str]) -> None:
    """Record that a procedure with these settings chooses the seeds of some groups, unless this is recorded already."""
    content = {**procedure, "groups": list(groups)}
    path = runs_dir / ".sweeps" / f"{seeds_name(content)}.json"
    if not path.exists():
        make_folder(path.parent)
        write_json(path, content)


def seeds_name(content: dict[str, Any]) -> str:
    return "seeds-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def first_seeds(runs_dir: Path) -> dict[str, int]:
    """Group → the number of first seeds, for groups whose number of seeds was chosen by a procedure.

    Of several procedures for one group the smallest number counts: a larger one may have been chosen after a look at
    the results. Procedures for differences count as well, because they choose the number of seeds of both groups.
    """
    found: dict[str, int] = {}
    for path in sorted((runs_dir / ".sweeps").glob("seeds-*.json")):
        record = read_typed(path, SEEDS)
        if record.get("min_seeds", 0) >= 2:
            for group in record.get("groups", []):
                found[group] = min(found.get(group, record["min_seeds"]), record["min_seeds"])
    return found


def sweeps_of(runs_dir: Path, runs: pd.DataFrame) -> list[Path]:
    """The files of the sweeps and procedures that concern these rows of `load_runs`."""
    found, signatures, groups = [], set(runs.signature), set(runs.group)
    for path in sorted((runs_dir / ".sweeps").glob("*.json")):
        asked = read_typed(path, SWEEP).get("signatures", []) if path.stem.startswith("sweep-") else []
        chosen = read_typed(path, SEEDS).get("groups", []) if path.stem.startswith("seeds-") else []
        if signatures & {*asked} or groups & {*chosen}:
            found.append(path)
    return found
