"""Take runs of others into this runs folder, from bundles or from other runs folders; what is here stays."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from capsule_sweeps.cli import add_runs_dir, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=path, metavar="PATH", help="bundles, or folders of run folders")
    add_runs_dir(parser)


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.console import plain_text
    from capsule_sweeps.runs.merge import OUTCOMES, merge

    counts: Counter[str] = Counter()
    for source in arguments.paths:
        for name, outcome, words in merge(source, arguments.runs_dir):
            counts[outcome] += 1
            if words:
                print(plain_text(f"{name}: {OUTCOMES[outcome]}; {words}"), flush=True)
    merged = [f"{counts[outcome]} {meaning}" for outcome, meaning in OUTCOMES.items() if counts[outcome]]
    print(f"Merged into {arguments.runs_dir}: {', '.join(merged) or 'no runs were found'}.")
    if counts["different"] or counts["refused"]:
        sys.exit(1)
