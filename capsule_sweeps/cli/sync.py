"""Send to Weights & Biases what it lacks of runs, and check that it arrived."""

from __future__ import annotations

import argparse
import sys

from capsule_sweeps.cli import add_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    parser.add_argument("--merged", action="store_true", help="also runs that `merge` took from others")
    parser.add_argument("--rebuild", action="store_true", help="also untracked runs, and again what W&B has wrong")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.runs.run import Run
    from capsule_sweeps.runs.select import select
    from capsule_sweeps.tracking.wandb_sync import sync

    runs, outcomes = select(arguments.runs_dir, arguments.runs), []
    folders = [Run(arguments.runs_dir / name) for name in runs.run]
    for name, arrived, text in sync(folders, arguments.rebuild, arguments.merged):
        outcomes.append(arrived)
        print(f"{'ok     ' if arrived else 'MISSING'}  {name}: {text}", flush=True)
    if not outcomes:
        print("nothing to send: no run with tracking=wandb; --rebuild takes the others too")
    if not all(outcomes):
        sys.exit(1)
