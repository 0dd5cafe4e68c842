"""Runs of other recipes beside published cells, and the runs that come nearest to a missing cell."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.display import counted, listed
from capsule_sweeps.results.columns import differences_of, typed
from capsule_sweeps.results.published import Cell, published_table
from capsule_sweeps.results.tables import finished_runs
from capsule_sweeps.runs.signature import signed_config

RECIPE = "training."  # the keys of a recipe
NEAR = 12  # keys; a run that differs in more is not mentioned
SHOWN = 6  # keys in a sentence

Differences = dict[str, tuple[Any, Any]]  # signed key → value of the run, value of the cell


def differences(runs: pd.DataFrame, cells: Sequence[Cell]) -> list[tuple[Cell, pd.Series, Differences]]:
    """Each pair of a cell and a run of a group of finished runs, with the keys in which they differ."""
    found = []
    for cell in (cell for cell in cells if cell.aggregate != "count"):
        wanted = signed_config(compose_config(cell.overrides))
        for _, run in finished_runs(runs, str(cell.rule)).drop_duplicates("group").iterrows():
            found.append((cell, run, differences_of(run.signed_config, wanted)))
    return found


def recipe_tables(runs: pd.DataFrame, cells: list[Cell], runs_dir: Any) -> dict[str, pd.DataFrame]:
    """Recipe → `published.published_table` of the runs that differ from the cells only in these values of training.*.

    Runs of two recipes are never in one cell. The verdict is `other recipe`, and there are no commands.
    """
    groups: dict[str, dict[tuple[str, ...], str]] = {}
    for cell, run, differing in differences(runs, cells):
        if differing and all(key.startswith(RECIPE) for key in differing):
            recipe = " ".join(f"{key}={typed(here)}" for key, (here, _) in differing.items())
            groups.setdefault(recipe, {})[tuple(cell.overrides)] = run.group
    tables = {}
    for recipe, own in groups.items():
        table = published_table(runs, cells, runs_dir, own)
        said = table.verdict.mask(table.n.fillna(0) > 0, "other recipe: " + table.verdict)
        tables[recipe] = table.assign(verdict=said, command=None)
    return tables


def as_one(published: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    parts = [published.assign(recipe="published"), *(table.assign(recipe=name) for name, table in tables.items())]
    return pd.concat(parts, ignore_index=True) if tables else published


def near_misses(runs: pd.DataFrame, cells: list[Cell]) -> str:
    """Lines about missing cells: the nearest finished runs, and the keys in which they differ from the cell."""
    nearest: dict[str, tuple[Cell, pd.Series, Differences]] = {}
    for cell, run, differing in differences(runs, cells):
        known = nearest.get(f"{cell.row}, {cell.column}")
        if known is None or len(differing) < len(known[2]):
            nearest[f"{cell.row}, {cell.column}"] = (cell, run, differing)
    lines: dict[str, list[str]] = {}
    for name, (_, run, differing) in nearest.items():
        if 0 < len(differing) <= NEAR:
            words = [f"{key}={typed(here)} (not {typed(there)})" for key, (here, there) in differing.items()]
            count = int(((runs.group == run.group) & (runs.state == "finished")).sum())
            line = f"{counted(count, 'finished run')} with {listed(words, SHOWN)}"
            lines.setdefault(line, []).append(name)
    if not lines:
        return ""
    said = [f"    {'; '.join(names)}: {line}" for line, names in lines.items()]
    how = "To see runs of another recipe beside the cells, add a filter, such as training=fast."
    return "\n".join(["Near misses:", *said, how])
