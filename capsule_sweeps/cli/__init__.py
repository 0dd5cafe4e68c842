"""The commands of `python -m capsule_sweeps`: each file but main.py is one, named as the command (`_` for `-`).

A command's docstring is its help, `add_arguments(parser)` its options and `run(arguments)` what it does. The overview
imports every file, so heavy imports belong into `run`. This module holds the options that several commands share.
"""

import argparse
import os
from pathlib import Path

from capsule_sweeps.config.selection_rules import names

LONGEST_NAME = 250  # bytes; file systems take 255, a suffix such as .png included
FORMATS = ("table", "md", "csv", "json")


def path(text: str) -> Path:
    """A path on the command line. Raises argparse.ArgumentTypeError if no file system takes its names, and for the
    home folder of an unknown user."""
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:
        home = text.partition("/")[0]
        raise argparse.ArgumentTypeError(f"the home folder of {home} is unknown; set the whole path") from error
    if long := [part for part in found.parts if len(os.fsencode(part)) > LONGEST_NAME]:
        raise argparse.ArgumentTypeError(f"{long[0][:20]}… is too long: a name has up to {LONGEST_NAME} bytes")
    return found


def name_or_path(text: str) -> str:
    """A word that may be a path, in which ~ is the home folder; ~dataset.root is an override."""
    return str(path(text)) if text.startswith("~") and os.sep in text else text


def file(text: str) -> Path:
    """A path on the command line that ends in a name, of a file to write."""
    if (found := path(text)).name in ("", ".."):
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
    return found


def add_runs_dir(parser: argparse.ArgumentParser, default: Path | None = Path("runs")) -> None:
    parser.add_argument("--runs-dir", type=path, default=default, help="the folder of the run folders (runs)")


def add_runs(parser: argparse.ArgumentParser, filters: str = "dataset=CIFAR10 num_routing=2 state=failed") -> None:
    about = f"run names, paths, prefixes of signatures, sweeps, all, or filters: {filters}"
    parser.add_argument("runs", nargs="*", type=name_or_path, help=about)
    add_runs_dir(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=name_or_path, help="name, path or prefix of a signature")
    add_runs_dir(parser)


def add_overrides(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("overrides", nargs="*", help=about)


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="table", help="of the output (table)")


def add_wide(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wide", action="store_true", help="show whole names and all columns, however wide")


def add_rule(parser: argparse.ArgumentParser, default: str | None = "last") -> None:
    about = "the selection rule: which accuracy counts (last" + ("" if default else "; a published table's own")
    parser.add_argument("--rule", choices=names(), default=default, help=about + ")")
