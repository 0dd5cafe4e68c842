"""Write a run's model as a torch.export program, which runs without this package."""

from __future__ import annotations

import argparse

from capsule_sweeps.cli import add_run, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--out", type=path, required=True, metavar="MODEL.pt2", help="the file to write, a new one")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.evaluation.export import export
    from capsule_sweeps.runs.select import find_run

    print(export(find_run(arguments.runs_dir, arguments.run), arguments.out))
