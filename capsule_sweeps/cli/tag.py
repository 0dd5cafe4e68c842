"""Give runs tags, +TAG, and take tags away, -TAG; `tag=TAG` selects runs by them."""

import argparse

from capsule_sweeps.cli import add_runs_dir, name_or_path
from capsule_sweeps.display import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    about = "runs as for status, and tags with + or -"
    parser.add_argument("words", nargs="+", type=name_or_path, metavar="RUN|+TAG|-TAG", help=about)
    add_runs_dir(parser)
    parser.set_defaults(escape=escape)


def escape(words: list[str]) -> list[str]:
    """-TAG behind a space, which argparse does not take for an option."""
    return [f" {word}" if word[:1] == "-" and word[1:2] != "-" and word != "-h" else word for word in words]


def run(arguments: argparse.Namespace) -> None:
    from capsule_sweeps.runs.labels import change_tags
    from capsule_sweeps.runs.select import select

    words = [word.strip() for word in arguments.words]
    tags = [word for word in words if word[:1] in "+-"]
    named = [word for word in words if word not in tags]
    if not tags or not named:
        raise ValueError("tag needs runs and tags: tag RUN +good -bad")
    add, remove = ([word[1:] for word in tags if word[0] == sign] for sign in "+-")
    for name in select(arguments.runs_dir, named, imported=True).run:
        labels = change_tags(arguments.runs_dir / name, add, remove)
        say(f"{name}: {' '.join(labels.tags) or 'no tags'}")
