"""Merges run folders of others, from a bundle or from another runs folder, into a runs folder.

Their content is not trusted: a run is taken only if its name, its columns and its accuracies follow from its own
configuration and epochs. Existing runs stay. Each folder is prepared under a temporary name and renamed.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from capsule_sweeps.config import selection_rules
from capsule_sweeps.runs.bundle import CHECKPOINT, FILES, RUN_NAME, SWEEP_NAME, SWEEPS, copy_files, unpack
from capsule_sweeps.runs.differences import TIMES, differences
from capsule_sweeps.runs.files import create_json, make_folder, temporary, write_json
from capsule_sweeps.runs.folders import check_runs_dir, find_runs
from capsule_sweeps.runs.labels import FILE as LABELS_FILE
from capsule_sweeps.runs.lock import alive
from capsule_sweeps.runs.metrics import read_metrics, with_newer_rules
from capsule_sweeps.runs.record import SEEDS, SWEEP, left_out, read_summary, read_typed
from capsule_sweeps.runs.run import Busy, Run
from capsule_sweeps.runs.sweep import seeds_name, signatures_name
from capsule_sweeps.runs.verify import check_checkpoint, verify

CONFLICTS = ".conflicts"


def merge(path: Path, runs_dir: Path) -> Iterator[tuple[str, str, str]]:
    """(run, outcome, what was done) for each run of a bundle or runs folder; outcomes are the keys of OUTCOMES.

    Raises ValueError, with nothing taken, for a file that is not a bundle and a path without runs; OSError if runs_dir
    cannot be written.
    """
    check_runs_dir(runs_dir)
    if path.is_dir() and runs_dir.is_dir() and path.samefile(runs_dir):
        raise ValueError(f"{path} is the folder to merge into: pass another one, or set --runs-dir")
    if (path / "run.json").is_file():
        raise ValueError(f"{path} is one run: pass the folder that contains it, or a bundle of it")
    names = _runs_in(path) if path.is_dir() else []
    if not runs_dir.is_dir():  # or a link to a folder
        make_folder(runs_dir)
    staged = make_folder(temporary(runs_dir / "merge"))
    try:
        if not path.is_dir():
            unpack(path, staged)
            names = _runs_in(staged, path)
        here = {run.signature: run for run in find_runs(runs_dir).values()}
        images = _images(here)
        for name in names:
            try:
                if path.is_dir():
                    _stage(path / name, staged / name)
                record = verify(staged / name)
                _compare_images(record, images)
            except ValueError as error:
                yield name, "refused", str(error)
            else:
                local = here.get(name[-8:])
                origin = path if path.is_dir() else None
                outcome, words = _take(staged / name, record, origin, local, runs_dir, path.name)
                if outcome == "taken":
                    here[name[-8:]] = Run(runs_dir / name)
                    if "data_sha256" in record:
                        images.setdefault(_data(record), here[name[-8:]])
                yield name, outcome, words
            shutil.rmtree(staged / name, ignore_errors=True)
        _take_sweeps((path if path.is_dir() else staged) / SWEEPS, runs_dir / SWEEPS)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


OUTCOMES = {
    "taken": "taken",
    "same": "here already, with equal numbers",
    "left": "left out, what is here knows more",
    "different": "with other numbers than here",
    "refused": "refused",
}


def _runs_in(folder: Path, path: Path | None = None) -> list[str]:
    """The names of the runs in a folder, unpacked from `path`. Raises ValueError if there are none."""
    if found := sorted(name for name in os.listdir(folder) if re.fullmatch(RUN_NAME, name)):
        return found
    raise ValueError(f"no run is in {path or folder}; give a bundle or a folder of runs")


def _stage(folder: Path, into: Path) -> None:
    if folder.is_symlink():
        raise ValueError("it is a link")
    if any(map(alive, folder.glob("attempt-*.json"))):
        raise ValueError("it is running there: merge again when it has ended")
    make_folder(into)
    copy_files(folder, into, [name for name in FILES if name != CHECKPOINT])


# ── the same images ──────────────────────────────────────────────────────────────────────────────────────────────────


def _data(record: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in record["signed_config"].items() if key.startswith("dataset.")})


def _images(here: dict[str, Run]) -> dict[str, Run]:
    """Settings of a dataset → a run here that was trained on it."""
    found: dict[str, Run] = {}
    for run in here.values():
        record = run.record()
        if "data_sha256" in record and "signed_config" in record:
            found.setdefault(_data(record), run)
    return found


def _compare_images(record: dict[str, Any], images: dict[str, Run]) -> None:
    """Raises ValueError if a run here with the same dataset settings was trained on other images."""
    if "data_sha256" in record and (known := images.get(_data(record))) is not None:
        try:
            known.compare_data(record["data_sha256"], record.get("classes") or known.record().get("classes") or [])
        except ValueError as error:
            raise ValueError(f"it was trained on other images than {known.folder.name}, of the same name") from error


# ── taking it ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _take(
    folder: Path, record: dict[str, Any], origin: Path | None, local: Run | None, runs_dir: Path, source: str
) -> tuple[str, str]:
    """The outcome and a sentence. An existing run is moved aside only if it is unfinished and the new one is finished.

    `origin`: the runs folder that has the checkpoint, which is copied only if the run is taken.
    """
    theirs, state = Run(folder), local.state() if local else "new"
    done = (folder / "summary.json").exists()
    if state in ("running", "queued"):
        return "left", f"it is {state} here"
    if local is not None and state == "finished" and done:
        if _numbers(local.folder) == _numbers(folder):
            if (folder / LABELS_FILE).exists() and not (local.folder / LABELS_FILE).exists():
                os.replace(folder / LABELS_FILE, local.folder / LABELS_FILE)
            return "same", ""
        words = differences(local, theirs)
        _fetch_checkpoint(origin, folder, record)
        aside = _keep_aside(folder, runs_dir / CONFLICTS)
        return "different", f"{words}. The existing run stays, the other one is in {aside}"
    if local is not None and state != "new" and not done:
        return "left", f"it is unfinished there and {state} here"
    without = _fetch_checkpoint(origin, folder, record)
    wandb_keys = {key: record.pop(key) for key in list(record) if key.startswith("wandb_")}  # where it is in their W&B
    attempts = len(record.get("attempts", []))
    if done and left_out(folder / "summary.json", summary := read_summary(folder)):
        write_json(folder / "summary.json", summary)
    record["merged"] = {"from": source, "time": time.time(), "attempts": attempts, **wandb_keys}
    write_json(folder / "run.json", record)
    if not done and attempts:  # so that it resumes instead of starting
        (folder / f"attempt-{attempts}.released").touch()
    try:
        if local is not None and state != "new":
            if (local.folder / LABELS_FILE).is_file():
                shutil.copy(local.folder / LABELS_FILE, folder / LABELS_FILE)
            local.put_aside()
        target = runs_dir / folder.name
        with suppress(OSError):
            target.rmdir()  # an empty one
        folder.rename(target)
    except (OSError, Busy) as error:
        return "left", f"its place was taken a moment ago ({error})"
    again = "" if done else "unfinished: the command that asks for it resumes it"
    return "taken", "; ".join(filter(None, (again, without)))


def _fetch_checkpoint(origin: Path | None, folder: Path, record: dict[str, Any]) -> str:
    """Copy the checkpoint if possible; the run is complete without it. Returns what is wrong with it, or ""."""
    try:
        if origin is not None:
            copy_files(origin / folder.name, folder, (CHECKPOINT,))
            if (folder / CHECKPOINT).exists():
                check_checkpoint(folder, record)
    except ValueError as error:
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return f"without its checkpoint: {error}"
    return ""


def _numbers(folder: Path) -> str:
    """All numbers of a finished run except its times, as text, in which NaN equals itself."""
    run = Run(folder)
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(run)[0]]
    summary = with_newer_rules(run, {**run.record(), **read_summary(folder)})
    rows.append({key: summary.get(key) for key in selection_rules.summary_keys()})
    return json.dumps(rows, sort_keys=True)


def _keep_aside(folder: Path, shelf: Path) -> Path:
    """Move a folder to `.conflicts/<name>.<n>`, once."""
    make_folder(shelf)
    number, numbers = 1, _numbers(folder)
    while (target := shelf / f"{folder.name}.{number}").exists():
        if _numbers(target) == numbers:
            return target
        number += 1
    folder.rename(target)
    return target


def _take_sweeps(there: Path, here: Path) -> None:
    """Copy the files of sweeps and of seeds chosen by a procedure, if their names agree with their content."""
    for path in sorted(there.iterdir()) if there.is_dir() and not there.is_symlink() else ():
        if not re.fullmatch(SWEEP_NAME, path.name):
            continue
        if path.name.startswith("seeds-"):
            kept = {key: value for key, value in read_typed(path, SEEDS, nulls=True).items() if key in SEEDS}
            name = seeds_name(kept)
        else:
            kept = {key: value for key, value in read_typed(path, SWEEP).items() if key in SWEEP}
            name = signatures_name(kept.get("signatures", []))
        if path.stem == name:
            make_folder(here)
            with suppress(FileExistsError):
                create_json(here / path.name, kept)
