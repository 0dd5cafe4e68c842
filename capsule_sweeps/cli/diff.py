"""Compare two runs: where their configuration, code, versions, machine, data and numbers differ."""

import argparse
import json
from typing import Any

from capsule_sweeps.cli import add_format, add_runs_dir, name_or_path

DIGITS, HASH = 5, 12  # the least significant digits of a number, digits of a hash


def add_arguments(parser: argparse.ArgumentParser) -> None:
    about = "two names, paths or prefixes of signatures"
    parser.add_argument("runs", nargs=2, type=name_or_path, metavar="run", help=about)
    add_runs_dir(parser)
    add_format(parser)


def run(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.differences import facts, first_different_epoch
    from capsule_sweeps.runs.select import find_run

    one, other = (find_run(arguments.runs_dir, word) for word in arguments.runs)
    if one.folder.resolve() == other.folder.resolve():
        raise ValueError(f"both words name the run {one.folder}; diff compares two different runs")
    same = one.signature == other.signature
    titles = [str(run.folder) if same else run.signature for run in (one, other)]
    rows, alike = [], []
    parts = [(what, here, there) for (what, here), there in zip(facts(one).items(), facts(other).values(), strict=True)]
    for what, here, there in [*parts, ("epochs", *first_different_epoch(one, other))]:
        keys = [key for key in dict.fromkeys([*here, *there]) if here.get(key) != there.get(key)]
        rows += [[what, key, here.get(key), there.get(key)] for key in keys]
        alike += [] if keys else [what]
    if arguments.format in ("table", "md"):
        rows = [[what, key, *_texts(key, here, there)] for what, key, here, there in rows]
    note = f"{one.folder.name} and {other.folder.name}. Alike: {', '.join(alike) or 'nothing'}."
    note += " Code, versions and machine are those of the last attempts, epochs the first epoch that is not alike."
    frame = pd.DataFrame(rows, columns=["what", "key", *titles], dtype=object)
    print(render(frame, arguments.format, "Differences", note))


def _texts(key: Any, here: Any, there: Any) -> list[str | None]:
    """Two values as texts, numbers and hashes with as many digits as tell them apart."""
    texts = [_text(key, here), _text(key, there)]
    if " of epoch " in str(key) and isinstance(here, float) and isinstance(there, float):
        digits = next((n for n in range(DIGITS, 17) if f"{here:.{n}g}" != f"{there:.{n}g}"), 17)
        texts = [f"{here:.{digits}g}", f"{there:.{digits}g}"]
    elif str(key).endswith("sha256") and here and there and here[:HASH] != there[:HASH]:
        texts = [f"{here[:HASH]}…", f"{there[:HASH]}…"]
    return texts


def _text(key: Any, value: Any) -> str | None:
    if isinstance(value, float) and key.startswith("accuracy"):
        return f"{100 * value:.2f} %"
    if isinstance(value, float) and key == "seconds":
        return f"{value:.1f}"
    return value if value is None or isinstance(value, str) else json.dumps(value)
