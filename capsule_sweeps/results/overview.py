"""What `status` lists: sweeps, and runs with their states."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from capsule_sweeps.console import duration
from capsule_sweeps.display import listed
from capsule_sweeps.results.fitted import shorten
from capsule_sweeps.runs.costs import Rates
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.sweep import read_sweeps

SCREEN = 20  # runs; for more, `status` lists sweeps instead
PLACES = ("hydra.launcher", "hydra/launcher", "runs_dir=", "data_dir=", "tracking=", "tracking.", "training.compile=")


def sweep_table(runs_dir: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """One row per sweep that contains some of these rows of `load_runs`, or of which no run has started, newest first.

    Columns: sweep, date of its last start, done (finished/all runs, including runs that never started), states of the
    others, left (remaining time, estimated from measured epochs of the same model and data, for as many runs at once
    as are running now), best accuracy (%, rule last), the reason of a failure, command.
    """
    measured = runs[runs.seconds_per_epoch.notna()]
    rates = Rates(zip(measured.signed_config, measured.seconds_per_epoch, strict=True))
    rows, present = [], {path.name for path in runs_dir.glob("*")}
    for sweep in read_sweeps(runs_dir):
        own = runs[runs.signature.isin(sweep.signatures)]
        if own.empty and (not sweep.runs or not present.isdisjoint(sweep.runs)):
            continue
        states = own.state[own.state != "finished"].value_counts().to_dict()
        if missing := len(sweep.signatures) - len(own):
            states["new"] = states.get("new", 0) + missing
        failed = own.run[own.state == "failed"]
        reason = _failure(runs_dir / failed.iloc[-1]) if len(failed) else None
        best = 100 * own.accuracy_last[own.state == "finished"].max()
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(sweep.started))
        done = f"{(own.state == 'finished').sum()}/{len(sweep.signatures)}"
        others = ", ".join(f"{count} {state}" for state, count in states.items()) or None
        command = sweep.command.removeprefix("launch.py ").removeprefix("-m ")
        rows.append((sweep.name, date, done, others, _left(own, missing, rates), best, reason, command))
    table = pd.DataFrame(rows, columns=["sweep", "date", "done", "others", "left", "best", "failure", "command"])
    return table.drop(columns=[column for column in ("others", "left", "failure") if table[column].isna().all()])


def briefly(commands: Sequence[str]) -> list[str]:
    """Commands without words about where runs are made, and without those that all have, if each has others."""
    words = [[word for word in _words(command) if not word.startswith(PLACES)] for command in commands]
    common = set.intersection(*map(set, words)) if words else set()
    common = common if all(set(own) - common for own in words) else set()
    brief = [shlex.join(word for word in own if word not in common) for own in words]
    return brief if len(set(brief)) == len(set(commands)) else list(commands)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # an open quote
        return command.split()


def _left(own: pd.DataFrame, missing: int, rates: Rates) -> str | None:
    """Estimated time of the unfinished runs of a sweep; None if nothing is left or no similar run was measured."""
    todo = own[own.state.isin(["running", "queued", "new", "interrupted"])]
    whole = own.epochs.astype(float) * own.signed_config.map(rates.seconds).astype(float)
    left = todo.epochs.astype(float) - todo.epochs_done.astype(float).fillna(0)
    seconds = left * todo.signed_config.map(rates.seconds).astype(float)
    total = float(seconds.sum()) + missing * float(whole.median() if whole.notna().any() else 0.0)
    return duration(total / max(1, int((own.state == "running").sum()))) if total > 0 else None


def run_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per run: run, state, epochs_done, epochs, accuracy (%, rule last), seconds, and labels if any are set."""
    columns = ["run", "state", "epochs_done", "epochs", "accuracy", "seconds"]
    labels = [column for column in ("tags", "note") if runs[column].any()]
    return runs.assign(accuracy=100 * runs.accuracy_last)[[*columns, *labels]]


def failed_note(runs: pd.DataFrame) -> str:
    """The reasons why runs failed, each with the runs that have it; empty if none failed."""
    named: dict[str, list[str]] = {}
    for run in runs[runs.state == "failed"].itertuples():
        named.setdefault(_failure(Path(run.folder)) or "no reason is recorded", []).append(run.run)
    reasons = [f"{listed(names, 2)} ({shorten(reason, 300)})" for reason, names in named.items()]
    return f"Failed: {listed(reasons, 3, '; ')}" if named else ""


def _failure(folder: Path) -> str | None:
    """Why a run failed, in one line."""
    return " ".join(str(Run(folder).record().get("error") or "").split()) or None
