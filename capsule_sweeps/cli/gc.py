"""List what is no longer needed: temporary files, files of ended jobs, and folders that force=true put aside."""

import argparse

from capsule_sweeps.cli import add_runs
from capsule_sweeps.display import counted, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    parser.add_argument("--yes", action="store_true", help="remove what is listed")


def run(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.garbage import garbage, remove
    from capsule_sweeps.runs.select import check_exists, select

    check_exists(arguments.runs_dir)
    names = set(select(arguments.runs_dir, arguments.runs, some=False).run) if arguments.runs else set()
    found = [
        (path, reason, size)
        for path, reason, size in garbage(arguments.runs_dir)
        if not arguments.runs or {path.parent.name, path.name.rpartition(".")[0]} & names
    ]
    if not found:
        say(f"Nothing to remove in {arguments.runs_dir}.")
        return
    for path, _, _ in found if arguments.yes else []:
        remove(path, arguments.runs_dir)
    table = pd.DataFrame([{"path": str(path), "why": reason, "MB": size / 1e6} for path, reason, size in found])
    entries = f"{counted(len(found), 'entry', 'entries')}, {table.MB.sum():,.1f} MB"
    said = f"Removed {entries}." if arguments.yes else f"Nothing is removed without --yes: {entries}."
    print(render(table, "table", title="Removed" if arguments.yes else "Not needed", note=said))
