"""Write a run's model as a torch.export program, which runs without this package."""

import argparse

from capsule_sweeps.cli import add_run, file
from capsule_sweeps.display import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--out", type=file, required=True, metavar="MODEL.pt2", help="the file to write, a new one")
    about = "the last ones, their average, or the best epoch's (those of the run's selection_rule)"
    parser.add_argument("--weights", choices=("last", "ema", "best"), help=about)


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.evaluation.export import export
    from capsule_sweeps.runs.select import find_run

    say(export(find_run(arguments.runs_dir, arguments.run), arguments.out, arguments.weights))
