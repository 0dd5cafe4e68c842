"""Print the table of accuracies over seeds, beside published numbers, or of the differences that ablations make."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from capsule_sweeps.cli import FORMATS, add_rule, add_runs, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add_rule(parser, default=None)
    parser.add_argument("--format", choices=(*FORMATS, "tex"), default="table", help="tex: LaTeX with booktabs")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--published", metavar="NAME", help="beside published numbers: readme_table")
    kind.add_argument("--ablation", action="store_true", help="differences that ablations make, seed by seed")
    parser.add_argument("--figure", type=path, metavar="PATH", help="with --ablation: a forest plot, PATH.png and .pdf")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.render import render
    from capsule_sweeps.results.tables import accuracy_table, notes
    from capsule_sweeps.runs.select import select
    from capsule_sweeps.runs.sweep import first_seeds

    if arguments.figure and not arguments.ablation:
        raise ValueError("--figure draws the differences that ablations make: set --ablation, too")
    if arguments.published:
        return published(arguments)
    runs, rule = select(arguments.runs_dir, arguments.runs), arguments.rule or "last"
    if not arguments.ablation:
        first = first_seeds(arguments.runs_dir)
        table, note = accuracy_table(runs, rule, first), notes(runs, rule, first)
        print(render(table, arguments.format, title="Results", note=note))
        return
    from capsule_sweeps.results.ablation import ablation_notes, ablation_table
    from capsule_sweeps.results.settle import settle_ablations

    table = ablation_table(runs, rule)
    note = ablation_notes(table, runs, rule)
    if arguments.format not in ("csv", "json") and (
        commands := settle_ablations(table, runs, rule, arguments.runs_dir)
    ):
        note = "\n".join(
            [note, "Differences that are not told from 0 yet would be settled by:", *map("    {}".format, commands)]
        )
    print(render(table, arguments.format, title="Ablations", note=note))
    if arguments.figure:
        from capsule_sweeps.results.figures import forest_plot, save_as

        written = save_as(forest_plot(table), arguments.figure)
        print(f"wrote {written[0]} and {written[1]}", file=sys.stderr)


def published(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.published import NOTED, published_notes, published_table, read_cells
    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.frame import load_runs
    from capsule_sweeps.runs.select import select

    cells = read_cells(arguments.published)
    rule = next((cell.rule for cell in cells if cell.rule), None)
    if arguments.rule not in (None, rule):
        raise ValueError(f"--rule {arguments.rule}: the published table {arguments.published} counts by {rule}")
    nothing_yet = arguments.runs_dir == Path("runs") and not arguments.runs_dir.exists() and not arguments.runs
    runs = load_runs(arguments.runs_dir) if nothing_yet else select(arguments.runs_dir, arguments.runs)
    table = published_table(runs, cells, arguments.runs_dir)
    note = published_notes(cells, runs, table, arguments.runs_dir)
    shown = table if arguments.format in ("csv", "json") else table.drop(columns=NOTED)
    print(render(shown, arguments.format, title=f"{arguments.published}, runs in {arguments.runs_dir}", note=note))
