"""Runs of other recipes beside published cells, and the runs that come nearest to a missing cell."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.display import counted, listed
from capsule_sweeps.results.columns import differences_of, typed
from capsule_sweeps.results.published import Cell, published_table
from capsule_sweeps.results.stein import numbers_of_first, two_stage_note
from capsule_sweeps.results.tables import finished_runs, left_out
from capsule_sweeps.runs.signature import signed_config

RECIPE = "training."  # the keys of a recipe
DATASET = "dataset.name"
NEAR = 3  # keys, those of the recipe together are one; a run that differs in more is not mentioned
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


def recipe_tables(runs: pd.DataFrame, cells: list[Cell], runs_dir: Any) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Recipe → `published.published_table` of the runs that differ from the cells only in these values of training.*,
    and these runs, finished or not.

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
        tables[recipe] = table.assign(verdict=said, command=None), runs[runs.group.isin(own.values())]
    return tables


def recipe_note(runs: pd.DataFrame, table: pd.DataFrame, rule: str) -> str:
    """The note under a table of `recipe_tables`; `runs`: those of its groups."""
    return (
        "Runs of another recipe (training.*) than the published one: the title has what differs. "
        f"Cells without such runs are not shown: {(table.n == 0).sum()}. {left_out(runs, rule)} "
        f"±: half-width of the 95 % interval (t) over n seeds. Rule: {rule}."
        + two_stage_note(numbers_of_first(finished_runs(runs, rule), rule), "± of these rows is t(n0 − 1)·s0/√n")
    )


def as_one(published: pd.DataFrame, tables: dict[str, tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    parts = [published.assign(recipe="published"), *(table.assign(recipe=name) for name, (table, _) in tables.items())]
    return pd.concat(parts, ignore_index=True) if tables else published


def near_misses(runs: pd.DataFrame, cells: list[Cell], filtered: bool = False) -> str:
    """Lines about missing cells: the nearest finished runs of the same data set, and the few keys in which they differ
    from the cell. Without a filter, also how to see runs of another recipe."""
    nearest: dict[str, tuple[Cell, pd.Series, Differences]] = {}
    for cell, run, differing in differences(runs, cells):
        known = nearest.get(f"{cell.row}, {cell.column}")
        if DATASET not in differing and (known is None or _distance(differing) < _distance(known[2])):
            nearest[f"{cell.row}, {cell.column}"] = (cell, run, differing)
    nearest = {name: found for name, found in nearest.items() if 0 < _distance(found[2])[0] <= NEAR}
    lines: dict[str, list[str]] = {}
    for name, (_, run, differing) in nearest.items():
        words = [f"{key}={typed(here)} (not {typed(there)})" for key, (here, there) in differing.items()]
        count = int(((runs.group == run.group) & (runs.state == "finished")).sum())
        lines.setdefault(f"{counted(count, 'finished run')} with {listed(words, SHOWN)}", []).append(name)
    if not lines:
        return ""
    said = ["Near misses:", *(f"    {'; '.join(names)}: {line}" for line, names in lines.items())]
    if not filtered and any(all(key.startswith(RECIPE) for key in found[2]) for found in nearest.values()):
        said.append("To see runs of another recipe beside the cells, add a filter, such as training=fast.")
    return "\n".join(said)


def _distance(differing: Differences) -> tuple[int, int]:
    recipe = sum(key.startswith(RECIPE) for key in differing)
    return len(differing) - recipe + (recipe > 0), len(differing)
