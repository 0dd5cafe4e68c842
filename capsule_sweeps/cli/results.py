"""Print the table of accuracies over seeds, beside published numbers, or of the differences that ablations make."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from capsule_sweeps.cli import FORMATS, add_rule, add_runs, add_wide, file
from capsule_sweeps.display import counted, line, markdown, say

if TYPE_CHECKING:
    import pandas as pd


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add_rule(parser, default=None)
    parser.add_argument("--format", choices=(*FORMATS, "tex"), default="table", help="tex: LaTeX with booktabs")
    add_wide(parser)
    kind = parser.add_mutually_exclusive_group()
    about = "beside published numbers: readme_table or self_routing_table"
    kind.add_argument("--published", metavar="NAME", help=about)
    kind.add_argument("--ablation", action="store_true", help="differences that ablations make, seed by seed")
    kind.add_argument("--against", metavar="KEY=VALUE", help="differences to the runs that differ only in this key")
    kind.add_argument("--pivot", metavar="KEY", help="one column for each value of this key: num_routing")
    about = "novel views at this familiar accuracy in percent, or at the lowest one (dataset=small_norb)"
    kind.add_argument("--at-familiar", metavar="92|lowest", help=about)
    parser.add_argument("--by", metavar="KEY,KEY", help="one table for each value of these keys instead of each sweep")
    parser.add_argument("--figure", type=file, metavar="PATH", help="differences as a forest plot, PATH.png and .pdf")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.runs.select import select

    against = "ablation=none" if arguments.ablation else arguments.against
    if arguments.figure and not against:
        raise ValueError("--figure draws differences: set --ablation or --against KEY=VALUE with it")
    if arguments.by and (against or arguments.published or arguments.at_familiar):
        raise ValueError(
            "--by makes one table of accuracies for each value: leave out --against, --published and --at-familiar"
        )
    if arguments.at_familiar and arguments.rule:
        raise ValueError("--rule chooses the epoch that counts, and so does --at-familiar: leave out one of them")
    if arguments.published:
        return published(arguments)
    runs, rule = select(arguments.runs_dir, arguments.runs), arguments.rule or "last"
    if arguments.at_familiar:
        return at_familiar(runs, arguments)
    if against:
        return differences(runs, rule, against, arguments)
    print(accuracies(runs, rule, arguments))


def accuracies(runs: pd.DataFrame, rule: str, arguments: argparse.Namespace) -> str:
    """The tables of accuracies: one for each sweep or each value of --by; a single one for programs."""
    from capsule_sweeps.config.selection_rules import find_rule
    from capsule_sweeps.results.columns import with_constants
    from capsule_sweeps.results.fairness import comparison_notes
    from capsule_sweeps.results.pivot import column_of, pivot
    from capsule_sweeps.results.render import render
    from capsule_sweeps.results.sections import by_keys, by_sweep
    from capsule_sweeps.results.tables import accuracy_table, finished_runs, for_people, left_out, notes

    form = arguments.format
    if form in ("csv", "json"):
        table = accuracy_table(runs, rule)
        table = pivot(table, arguments.pivot)[0] if arguments.pivot else table
        return render(with_constants(table, finished_runs(runs, rule)), form)
    arguments.by = None if arguments.by == "sweep" else arguments.by  # as without --by
    parts = by_keys(runs, arguments.by.split(",")) if arguments.by else by_sweep(arguments.runs_dir, runs)
    parts = parts if len(parts) > 1 or (arguments.by and parts) else [("Results", runs)]
    alone = len(parts) == 1 or form == "tex"  # a table without lines below that are about all tables
    texts = []
    # A part whose runs do not differ by the key of --pivot is shown as it is, unless that holds for all
    any_pivot = bool(arguments.pivot) and any(column_of(accuracy_table(own, rule), arguments.pivot) for _, own in parts)
    for title, own in parts:
        table = accuracy_table(own, rule)
        if table.empty:
            of = f"None of {counted(len(own), 'run')}" if len(own) else "No run"
            said = f"{of} is finished with an accuracy under rule={rule}."
            said += f" {left_out(own, rule)}" if (own.state == "finished").any() else ""
            texts.append(plain(form, f"{title}\n{said}"))
            continue
        shown, caption = for_people(table, own, arguments.by.split(",") if arguments.by else ())
        unequal = comparison_notes(own, rule, () if arguments.pivot else table.columns)
        note = " ".join(filter(None, (notes(own, rule) if alone else "", unequal)))
        if arguments.pivot and (column_of(table, arguments.pivot) or not any_pivot):
            shown, said = pivot(table, arguments.pivot)
            note = " ".join(filter(None, (said, left_out(own, rule) if alone else "", unequal)))
            caption = "; ".join(filter(None, (f"{find_rule(rule).title} in %, rule {rule}", caption)))
        heading = f"**{markdown(title)}**\n\n" if form == "md" and len(parts) > 1 else ""
        if form == "tex" and not arguments.by:  # the command of a sweep
            heading, title = f"{plain(form, title)}\n", title.partition(": ")[0]
        if form == "tex" and unequal:  # for the author; what the paper says of it is his business
            heading, note = f"{heading}{plain(form, unequal)}\n", note.removesuffix(unequal).rstrip()
        texts.append(heading + render(shown, form, title, note, caption, one_line=True))
    if not alone:
        texts.append(plain(form, notes(runs, rule)))
    return "\n\n".join(texts)


def plain(form: str, text: str) -> str:
    """Lines between tables: comments in a LaTeX file."""
    from capsule_sweeps.results.render import paragraph

    if form == "tex":
        return "\n".join(f"% {line(words)}" for words in text.splitlines())
    return "\n".join(map(markdown, text.splitlines())) if form == "md" else paragraph(text)


def at_familiar(runs: pd.DataFrame, arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.familiar import familiar_notes, familiar_table, shown_familiar
    from capsule_sweeps.results.render import render

    table, form = familiar_table(runs, arguments.at_familiar), arguments.format
    shown, caption = (table, "") if form in ("csv", "json") else shown_familiar(table, runs)
    print(render(shown, form, "Novel views", familiar_notes(table, runs), caption, one_line=True))


def differences(runs: pd.DataFrame, rule: str, against: str, arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.ablation import ablation_notes, ablation_table
    from capsule_sweeps.results.against import against_table
    from capsule_sweeps.results.against_shown import against_notes, name_of_base, shown_differences
    from capsule_sweeps.results.columns import with_constants
    from capsule_sweeps.results.render import render
    from capsule_sweeps.results.tables import finished_runs

    if against == "ablation=none":
        table = ablation_table(runs, rule)
        note = ablation_notes(table, runs, rule)
    else:
        table = against_table(runs, against, rule)
        note = against_notes(table, runs, against, rule)
    if against == "ablation=none" and arguments.format not in ("csv", "json"):
        from capsule_sweeps.results.ablation import first_ablations, settle_ablations
        from capsule_sweeps.results.settle import MARGIN

        if table.empty:
            text = first_ablations(runs, arguments.runs_dir)
            if arguments.figure:
                raise ValueError(text)
            return print(plain(arguments.format, text))
        if commands := settle_ablations(table, runs, rule, arguments.runs_dir):
            said = f"Differences neither distinguishable from 0 nor known to ±{MARGIN} points would be settled by:"
            note = "\n".join([note, said, *map("    {}".format, commands)])
    title = "Ablations" if against == "ablation=none" else f"Differences to {name_of_base(table, against)}"
    if arguments.format in ("csv", "json"):
        shown, caption = with_constants(table, finished_runs(runs, rule)), ""
    else:
        shown, caption = shown_differences(table, finished_runs(runs, rule))
    print(render(shown, arguments.format, title, note, caption, one_line=True))
    if arguments.figure:
        from capsule_sweeps.results.figures import forest_plot, save_as

        written = save_as(forest_plot(table), arguments.figure)
        say(f"wrote {written[0]} and {written[1]}", sys.stderr)


def published(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.results.published import NOTED, of_table, published_notes, published_table, read_cells
    from capsule_sweeps.results.recipes import as_one, near_misses, recipe_note, recipe_tables
    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.frame import load_runs
    from capsule_sweeps.runs.select import check_exists, select

    cells = read_cells(arguments.published)
    rule = next((cell.rule for cell in cells if cell.rule), None)
    if arguments.rule not in (None, rule):
        raise ValueError(f"--rule {arguments.rule}: the published table {arguments.published} counts by {rule}")
    if arguments.runs_dir != Path("runs"):
        check_exists(arguments.runs_dir)
    # Without a run the table says what to run
    runs = select(arguments.runs_dir, arguments.runs) if arguments.runs else load_runs(arguments.runs_dir)
    table = published_table(runs, cells, arguments.runs_dir)
    others = recipe_tables(runs, cells, arguments.runs_dir) if arguments.runs else {}
    if arguments.format in ("csv", "json"):
        print(render(as_one(table, others), arguments.format))
        return
    title = f"{arguments.published}, runs in {arguments.runs_dir}"
    note = published_notes(cells, runs, table)
    parts = []
    if not others or len(of_table(runs, cells)):
        misses = near_misses(runs, cells, filtered=bool(arguments.runs))
        note = "\n".join(filter(None, (note, misses if (table.verdict == "missing").any() else "")))
        parts.append(render(fitting(table.drop(columns=NOTED), arguments.format), arguments.format, title, note))
    for recipe, (other, own) in others.items():
        shown = fitting(other[other.n.fillna(0) > 0].drop(columns=NOTED), arguments.format)
        heading = f"{title}; other recipe: {recipe}"
        parts.append(render(shown, arguments.format, heading, recipe_note(own, other, str(rule))))
    print("\n\n".join(parts))


def fitting(table: pd.DataFrame, form: str) -> pd.DataFrame:
    """A published table; on a narrow terminal with one column `cell`, in which words stay whole."""
    from capsule_sweeps.console import console

    if form != "table" or console().width >= 100:
        return table
    parts = [column for column in ("row", "column", "reading") if column in table]
    cells = [", ".join(filter(None, words)) for words in table[parts].itertuples(index=False)]
    narrow = table.drop(columns=parts)
    narrow.insert(0, "cell", cells)
    return narrow
