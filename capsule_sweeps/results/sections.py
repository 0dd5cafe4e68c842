"""The parts of a long table: one per sweep, or one per value of some keys."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from capsule_sweeps.results.columns import typed
from capsule_sweeps.runs.filters import signed_key, unknown, values
from capsule_sweeps.runs.sweep import read_sweeps


def by_sweep(runs_dir: Path, runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Heading and runs of each sweep that contains some of these runs, newest first, and of the runs of no sweep.

    A part has all seeds of its groups, also those from other sweeps, so that a group has the same n everywhere. A sweep
    whose groups are all in another sweep is left out, because its table would repeat rows.
    """
    groups = runs.group.fillna(runs.run)
    found = [(sweep, set(groups[runs.signature.isin(sweep.signatures)])) for sweep in read_sweeps(runs_dir)]
    kept = [
        (sweep, own)
        for place, (sweep, own) in enumerate(found)
        if own and not any(own < other or (own == other and n < place) for n, (_, other) in enumerate(found))
    ]
    parts = [(f"{sweep.name}: {sweep.command}", runs[groups.isin(own)]) for sweep, own in kept]
    rest = runs[~groups.isin(set().union(*(own for _, own in kept)))]
    return [*parts, *([("Runs of no sweep", rest)] if len(rest) else [])]


def by_keys(runs: pd.DataFrame, keys: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """Heading and runs for each combination of values of some columns or signed keys, sorted by these values.

    Raises ValueError for a key that no run has.
    """
    columns = [column_of(runs, key) for key in keys]
    rows = zip(*columns, strict=True)
    texts = [", ".join(f"{key}={typed(value)}" for key, value in zip(keys, row, strict=True)) for row in rows]
    names = pd.Series(texts, index=runs.index, dtype=object)
    return [(str(name), own) for name, own in runs.groupby(names, sort=True)]


def column_of(runs: pd.DataFrame, key: str) -> list[object]:
    """The values of a column or of a signed key, spelled as for launch.py. Raises ValueError if no run has the key."""
    if key in runs.columns and key not in ("signed_config", "sweeps", "folder"):
        return [None if pd.isna(value) else value for value in runs[key]]
    if (signed := signed_key(runs, key)) is None:
        raise ValueError(unknown(runs, key))
    return [None if isinstance(value, float) and pd.isna(value) else value for value in values(runs, signed)]
