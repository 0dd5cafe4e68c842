"""Run failed and interrupted runs again, as they were configured."""

from __future__ import annotations

import argparse
import sys

from capsule_sweeps.cli import add_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    parser.add_argument("--parallel", default="1", help="the number of runs at once, or auto (1)")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.launchers.retry import retry
    from capsule_sweeps.runs.select import select

    parallel = int(arguments.parallel) if arguments.parallel.isdigit() else arguments.parallel
    if not retry(arguments.runs_dir, select(arguments.runs_dir, arguments.runs), parallel):
        sys.exit(1)
