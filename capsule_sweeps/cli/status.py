"""List runs and their states."""

from __future__ import annotations

import argparse
import time

from capsule_sweeps.cli import STATUS_COLUMNS, add_format, add_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add_format(parser)
    parser.add_argument("--watch", action="store_true", help="refresh every two seconds, until Ctrl-C")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.console import console
    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.learned import not_learned_note
    from capsule_sweeps.runs.select import select
    from capsule_sweeps.runs.where import where

    while True:
        runs = select(arguments.runs_dir, arguments.runs, imported=True)
        runs["state"] = runs.state.mask(runs.stale, "stale").mask(runs.imported, "imported")
        counts = ", ".join(f"{count} {state}" for state, count in runs.state.value_counts().items()) or "none"
        labels = [column for column in ("tags", "note") if runs[column].any()]
        shown = runs[[*STATUS_COLUMNS, *labels]].assign(slurm=where(arguments.runs_dir, runs))
        shown = shown if shown.slurm.any() else shown.drop(columns="slurm")
        note = ". ".join(filter(None, (counts, not_learned_note(runs))))
        text = render(shown, arguments.format, title=f"Runs in {arguments.runs_dir}", note=note)
        if arguments.watch:
            console().clear()
        print(text, flush=True)
        if not arguments.watch:
            return
        time.sleep(2)
