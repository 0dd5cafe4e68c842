"""Merge runs of others into this runs folder, from bundles or from other runs folders; existing runs stay."""

import argparse
import sys
from collections import Counter

from capsule_sweeps.cli import add_runs_dir, path
from capsule_sweeps.display import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=path, metavar="PATH", help="bundles, or folders of run folders")
    add_runs_dir(parser)


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.runs.merge import OUTCOMES, merge

    if missing := [str(source) for source in arguments.paths if not source.exists()]:
        raise ValueError(f"{missing[0]} does not exist: give a bundle or a folder of runs")
    counts: Counter[str] = Counter()
    try:
        for source in arguments.paths:
            for name, outcome, words in merge(source, arguments.runs_dir):
                counts[outcome] += 1
                if words:
                    say(f"{name}: {OUTCOMES[outcome]}; {words}")
    except (ValueError, OSError):
        if counts:
            conclude(arguments, counts)
        raise
    conclude(arguments, counts)
    if counts["different"] or counts["refused"]:
        sys.exit(1)


def conclude(arguments: argparse.Namespace, counts: Counter[str]) -> None:
    """Say what became of the runs of all paths so far."""
    from capsule_sweeps.runs.merge import OUTCOMES

    merged = [f"{counts[outcome]} {meaning}" for outcome, meaning in OUTCOMES.items() if counts[outcome]]
    say(f"Merged into {arguments.runs_dir}: {', '.join(merged)}.")
