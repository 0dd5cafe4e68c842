"""Ask running runs to save and stop, and take queued runs out of the queue."""

import argparse

from capsule_sweeps.cli import add_runs
from capsule_sweeps.display import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.launchers.cancel import cancel
    from capsule_sweeps.runs.select import select

    if not arguments.runs:
        raise ValueError("cancel needs a run, a sweep, a filter such as state=running, or all")
    sweeps = [word.removeprefix("sweep=") for word in arguments.runs if word.startswith(("sweep-", "sweep="))]
    say("\n".join(cancel(arguments.runs_dir, select(arguments.runs_dir, arguments.runs, some=False), sweeps)))
