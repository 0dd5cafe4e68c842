"""List sweeps, or runs and their states."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from capsule_sweeps.cli import add_format, add_runs, add_wide
from capsule_sweeps.display import counted

if TYPE_CHECKING:
    import pandas as pd

BETWEEN = 2.0  # seconds
LEAST = 8  # lines of the table of runs that a low terminal shows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add_format(parser)
    add_wide(parser)
    parser.add_argument("--watch", action="store_true", help="refresh every two seconds, until Ctrl-C")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.console import console
    from capsule_sweeps.runs.folders import run_folders
    from capsule_sweeps.runs.select import select

    runs_dir = arguments.runs_dir
    while True:
        if arguments.watch and not run_folders(runs_dir) and not (runs_dir / ".sweeps").is_dir():
            text = f"No run is in {runs_dir} yet."
        else:
            text = show(select(runs_dir, arguments.runs, imported=True, some=False), arguments)
        if arguments.watch and console().is_terminal and arguments.format in ("table", "md"):
            text = clipped(text, console().height)
            console().clear()
        print(text, flush=True)
        if not arguments.watch:
            return
        time.sleep(BETWEEN)


def show(runs: pd.DataFrame, arguments: argparse.Namespace) -> str:
    """Sweeps and runs as text. Without words and with many runs: sweeps, and the runs that are in none or at work.

    Sweeps none of whose runs has started are shown as well."""
    import pandas as pd

    from capsule_sweeps.console import console
    from capsule_sweeps.results.fitted import Parts
    from capsule_sweeps.results.overview import SCREEN, briefly, failed_note, run_table, sweep_table
    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.learned import not_learned_note
    from capsule_sweeps.runs.where import where

    sweeps = sweep_table(arguments.runs_dir, runs)
    if arguments.runs:
        sweeps = sweeps[sweeps.sweep.isin([word.removeprefix("sweep=") for word in arguments.runs])]
    waiting = not sweeps.sweep.isin([name for names in runs.sweeps for name in names]).all()
    many = len(runs) > SCREEN and len(sweeps) > 0 and not arguments.runs
    runs["state"] = runs.state.mask(runs.stale, "stale").mask(runs.imported, "imported")
    counts = ", ".join(f"{count} {state}" for state, count in runs.state.value_counts().items()) or "none"
    note = ". ".join(filter(None, (counts, failed_note(runs), not_learned_note(runs))))
    heading = f"Runs in {arguments.runs_dir}"
    if arguments.watch:  # those at work stay in view, at the top, and no note hides the sweeps
        unlearned = int(runs.not_learned.notna().sum())
        heading += f": {counts}" + (f"; {unlearned} did not learn (`status` says why)" if unlearned else "")
        note = ""
        order = {"running": 0, "queued": 1}
        runs = runs.sort_values("state", key=lambda states: states.map(order).fillna(2), kind="stable")
    for_people = arguments.format in ("table", "md")
    alone = (runs.sweeps.str.len() == 0) | runs.state.isin(["running", "failed"])
    listed = runs[alone] if many and for_people else runs
    shown = run_table(listed).assign(slurm=where(arguments.runs_dir, listed))
    shown = shown if shown.slurm.any() else shown.drop(columns="slurm")
    if for_people:  # 9/12 leaves room for names
        pairs = zip(shown.epochs_done.fillna(0), shown.epochs, strict=True)
        epochs = [None if total is pd.NA else f"{done}/{total}" for done, total in pairs]
        shown = shown.assign(epochs=epochs).drop(columns="epochs_done")
    parts = []
    if for_people and (waiting or (not arguments.runs and (many or len(sweeps) > 1))):
        said = "`status SWEEP` lists the runs of a sweep."
        said += "" if len(listed) else f" All runs: {(note or counts).rstrip('.')}."
        title = f"Sweeps in {arguments.runs_dir}"
        if arguments.watch and len(sweeps) > (most := max(1, console().height // 4)):
            said, sweeps = f"The newest {most} of {len(sweeps)} sweeps. {said}", sweeps.head(most)
        words = sweeps.command if arguments.wide else briefly(list(sweeps.command))
        shown_sweeps = sweeps.assign(command=[word if arguments.watch else Parts(word) for word in words])
        parts.append(render(shown_sweeps, arguments.format, title, said, one_line=True))
    if len(listed) or not parts:
        parts.append(render(shown, arguments.format, heading, note, one_line=True))
    if arguments.watch and len(parts) > 1:
        parts[1] = clipped(parts[1], max(LEAST, console().height - parts[0].count("\n") - 2))
    return "\n\n".join(reversed(parts) if arguments.watch else parts)


def clipped(text: str, height: int) -> str:
    """As many lines as a terminal of this height shows, and how many are missing."""
    lines = text.split("\n")
    if len(lines) < height:
        return text
    kept = lines[: max(1, height - 2)]
    more = counted(len(lines) - len(kept), "more line")
    return "\n".join([*kept, f"… {more}: enlarge the terminal, or name a sweep or a filter"])
