"""Run failed and interrupted runs again, as they were configured.

Shows what it would run and asks on a terminal; --yes runs it. Selects runs as `status` does; `all` selects all of them.
Set data_dir=… or dataset.root=… if the images have moved.
"""

import argparse
import sys

from capsule_sweeps.cli import add_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    parser.add_argument("--parallel", default="1", help="the number of runs at once, or auto (1)")
    parser.add_argument("--yes", action="store_true", help="run what is listed, without a question")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.launchers.retry import retry
    from capsule_sweeps.runs.select import select

    changes = [word for word in arguments.runs if word.startswith(("data_dir=", "dataset.root="))]
    words = [word for word in arguments.runs if word not in changes]
    if not words:
        raise ValueError("retry needs a run, a sweep, a filter such as num_routing=2, or all")
    parallel = int(arguments.parallel) if arguments.parallel.isdigit() else arguments.parallel
    runs = select(arguments.runs_dir, words)
    if not arguments.yes:
        retry(arguments.runs_dir, runs, parallel, changes, dry_run=True)
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ValueError("nothing was run, because there is no terminal to confirm it on: add --yes")
        if not confirmed():
            return
    if not retry(arguments.runs_dir, runs, parallel, changes):
        sys.exit(1)


def confirmed() -> bool:
    """Asks on the terminal."""
    try:
        return input("Run these? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
