"""Show the details of one run, and how the most similar runs differ from it."""

import argparse

from capsule_sweeps.cli import add_format, add_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_format(parser)


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.show import show
    from capsule_sweeps.runs.select import find_run

    print(show(find_run(arguments.runs_dir, arguments.run), arguments.format))
