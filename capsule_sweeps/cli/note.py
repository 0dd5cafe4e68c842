"""Set the note of a run; an empty one, "", removes it."""

import argparse

from capsule_sweeps.cli import add_run
from capsule_sweeps.display import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("note", help="the text, in quotes")


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.runs.labels import change_note
    from capsule_sweeps.runs.select import find_run

    found = find_run(arguments.runs_dir, arguments.run)
    labels = change_note(found.folder, arguments.note)
    say(f"{found.folder.name}: {labels.note or 'no note'}")
