"""Compare two runs: where their configuration, code, versions, machine, data and numbers differ."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from capsule_sweeps.cli import add_format, add_runs_dir
from capsule_sweeps.config.selection_rules import names

if TYPE_CHECKING:
    from capsule_sweeps.runs.run import Run

NUMBERS = ["state", "parameters", "epochs_done", "seconds"]
NUMBERS += [f"accuracy_{rule}" for rule in names()]
MACHINE = ("host", "processor", "gpu")
VARYING = ("seconds", "images_per_second")  # of an epoch, even between equal runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs=2, metavar="run", help="two names, paths or prefixes of signatures")
    add_runs_dir(parser)
    add_format(parser)


def run(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from capsule_sweeps.results.render import render
    from capsule_sweeps.runs.select import find_run

    one, other = (find_run(arguments.runs_dir, word) for word in arguments.runs)
    if one.folder.resolve() == other.folder.resolve():
        raise ValueError(f"both words name the run {one.folder}; diff compares two different runs")
    titles = [one.name[-8:], other.name[-8:]]
    if titles[0] == titles[1]:
        titles = [str(one.folder), str(other.folder)]
    rows, alike = [], []
    parts = [(what, here, there) for (what, here), there in zip(facts(one).items(), facts(other).values(), strict=True)]
    for what, here, there in [*parts, ("epochs", *first_different_epoch(one, other))]:
        keys = [key for key in dict.fromkeys([*here, *there]) if here.get(key) != there.get(key)]
        rows += [[what, key, here.get(key), there.get(key)] for key in keys]
        alike += [] if keys else [what]
    if arguments.format in ("table", "md"):
        rows = [[what, key, _text(key, here), _text(key, there)] for what, key, here, there in rows]
    note = f"{one.folder.name} and {other.folder.name}. Alike: {', '.join(alike) or 'nothing'}."
    note += " Code, versions and machine are those of the last attempts, epochs the first epoch that is not alike."
    print(
        render(
            pd.DataFrame(rows, columns=["what", "key", *titles], dtype=object), arguments.format, "Differences", note
        )
    )


def facts(run: Run) -> dict[str, dict[str, Any]]:
    """The compared values: part → key → value; None if unknown."""
    from capsule_sweeps.runs.frame import runs_frame
    from capsule_sweeps.runs.signature import NEUTRAL

    record = run.record()
    columns = runs_frame([run]).astype(object).iloc[0]
    columns = columns.where(columns.notna(), None)
    attempt = ([{}, *record.get("attempts", [])])[-1]
    return {
        "configuration": {**NEUTRAL, **columns.signed_config},
        "code": _dict(attempt.get("code")),
        "versions": {"python": attempt.get("python"), **_dict(attempt.get("versions"))},
        "machine": {**{key: attempt.get(key) for key in MACHINE}, **record.get("execution", {})},
        "data": {"data_sha256": record.get("data_sha256")},
        "numbers": {key: columns[key] for key in NUMBERS},
    }


def first_different_epoch(one: Run, other: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The records of both runs of the first epoch in which they differ, bit by bit."""
    from capsule_sweeps.runs.metrics import read_metrics

    def named(row: dict[str, Any]) -> dict[str, Any]:
        return {f"{key} of epoch {row.get('epoch')}": value for key, value in row.items() if key not in VARYING}

    pairs = zip(read_metrics(one)[0], read_metrics(other)[0], strict=False)
    return next(((named(a), named(b)) for a, b in pairs if named(a) != named(b)), ({}, {}))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}  # records come from others


def _text(key: Any, value: Any) -> str | None:
    if isinstance(value, float) and key.startswith("accuracy"):
        return f"{100 * value:.2f} %"
    if isinstance(value, float) and key == "seconds":
        return f"{value:.1f}"
    return value if value is None or isinstance(value, str) else json.dumps(value)
