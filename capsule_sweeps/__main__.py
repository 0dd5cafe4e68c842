"""python -m capsule_sweeps <command>: look at runs without starting any."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from capsule_sweeps.results import FORMATS, accuracy_rows, load_runs, notes, render

STATUS_COLUMNS = ["run", "state", "epochs_done", "epochs", "accuracy_last", "seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m capsule_sweeps", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where the run folders are (default: runs)")
    shared.add_argument("--format", choices=FORMATS, default="table")
    commands.add_parser("status", parents=[shared], help="list all runs and their states")
    results = commands.add_parser("results", parents=[shared], help="the table of accuracies")
    results.add_argument("--rule", choices=["last", "best_val", "best_test"], default="last", help="selection rule")
    arguments = parser.parse_args()
    if not arguments.runs_dir.is_dir():
        sys.exit(f"Error: there is no folder {arguments.runs_dir}; say where the runs are with --runs-dir")
    runs = load_runs(arguments.runs_dir)
    if arguments.command == "status":
        print(render(runs[STATUS_COLUMNS], arguments.format, title=f"Runs in {arguments.runs_dir}"))
    else:
        rule = arguments.rule
        print(render(accuracy_rows(runs, rule), arguments.format, title="Results", note=notes(runs, rule)))


if __name__ == "__main__":
    main()
