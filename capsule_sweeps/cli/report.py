"""Write one self-contained HTML page about runs."""

import argparse
from pathlib import Path

from capsule_sweeps.cli import add_rule, add_runs, file
from capsule_sweeps.display import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    parser.add_argument("--out", type=file, default=Path("report.html"), help="the file to write (report.html)")
    add_rule(parser)


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.report import write_report
    from capsule_sweeps.runs.select import select

    write_report(arguments.runs_dir, select(arguments.runs_dir, arguments.runs), arguments.rule, arguments.out)
    say(f"{arguments.out} is written")
