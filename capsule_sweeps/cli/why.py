"""Print the last section of show: what makes a run what it is, and how its nearest relatives differ from it."""

import argparse

from capsule_sweeps.cli import add_format, add_run

HIDDEN = True  # the overview lists show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_format(parser)


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.show import why
    from capsule_sweeps.runs.select import find_run

    print(why(find_run(arguments.runs_dir, arguments.run), arguments.format))
