"""Pack run folders into one file for a colleague; `merge` takes it in."""

import argparse

from capsule_sweeps.cli import add_runs, file
from capsule_sweeps.display import counted, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    parser.add_argument("--out", type=file, required=True, metavar="FILE.tar.gz", help="the file to write, a new one")
    parser.add_argument("--checkpoints", action="store_true", help="also the weights: checkpoint.pt")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.runs.bundle import write_bundle
    from capsule_sweeps.runs.run import Run
    from capsule_sweeps.runs.select import select
    from capsule_sweeps.runs.sweep import sweeps_of

    runs = select(arguments.runs_dir, arguments.runs, imported=True)
    busy = runs.state.isin(["running", "queued", "new"])
    packed = runs[~busy]
    if packed.empty:
        raise ValueError(f"nothing to pack: no finished, interrupted or failed run of these is in {arguments.runs_dir}")
    folders = [Run(arguments.runs_dir / name) for name in packed.run]
    write_bundle(folders, sweeps_of(arguments.runs_dir, packed), arguments.out, arguments.checkpoints)
    left = f"; left out: {busy.sum()} that are running or have not begun" if busy.any() else ""
    size = arguments.out.stat().st_size / 1e6
    say(f"{arguments.out} is written: {counted(len(packed), 'run')}, {size:,.1f} MB{left}")
