"""Send to Weights & Biases what it lacks of runs, and check that it arrived."""

import argparse
import sys

from capsule_sweeps.cli import add_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    parser.add_argument("--merged", action="store_true", help="also runs that `merge` took from others")
    about = "where to (default: the place that your own configuration names)"
    parser.add_argument("--to", metavar="ENTITY/PROJECT", help=about)
    parser.add_argument("--rebuild", action="store_true", help="also untracked runs, and again what W&B has wrong")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.display import say
    from capsule_sweeps.runs.run import Run
    from capsule_sweeps.runs.select import select
    from capsule_sweeps.tracking.wandb_sync import sync

    found, outcomes = select(arguments.runs_dir, arguments.runs), []
    runs = [Run(arguments.runs_dir / name) for name in found.run]
    for name, arrived, text in sync(runs, arguments.rebuild, arguments.merged, arguments.to):
        outcomes.append(arrived)
        say(f"{'ok     ' if arrived else 'MISSING'}  {name}: {text}")
    if not outcomes:
        print("nothing to send: no run has tracking=wandb; --rebuild also sends the others")
    if not all(outcomes):
        sys.exit(1)
