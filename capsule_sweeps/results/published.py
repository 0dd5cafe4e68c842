"""Published numbers beside ours: the cells of analysis/published.yaml, and a verdict on each.

An average is judged by the 95 % interval of our mean over seeds. The number of seeds and the spread of the published
average are unknown, so it is treated as exact.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from capsule_sweeps.config.compose import CONF_DIR, compose_config
from capsule_sweeps.config.selection_rules import find_rule, names
from capsule_sweeps.results.intervals import MOST_SEEDS, by_seed, deviation
from capsule_sweeps.results.settle import FIRST, MARGIN, next_half_width, seed_words, sweep_command
from capsule_sweeps.results.stein import first_of, interval, num_seeds, numbers_of_first, two_stage_note
from capsule_sweeps.results.tables import finished_runs, left_out
from capsule_sweeps.runs.signature import columns, signed_config

PATH = CONF_DIR.parent / "analysis" / "published.yaml"
AGGREGATES = ("mean over seeds", "best run", "count")
SEEDS = range(5)  # for missing cells, as in conf/experiment/readme_table.yaml
ERROR = "% error"  # the unit of test errors; accuracies have "%"
OPEN = "too few seeds to say"
NOTED = ["rule", "command"]  # columns in files; for a printed table they are in the note below it


@dataclass(frozen=True)
class Cell:
    """A published number: see the head of analysis/published.yaml."""

    table: str
    row: str
    column: str
    value: float
    unit: str
    aggregate: str
    source: dict[str, str]
    overrides: list[str]
    rule: str | None = None
    tolerance: float = MARGIN
    reading: str = ""

    def __post_init__(self) -> None:
        where = f"{PATH.name}: the cell {self.table}, {self.row}, {self.column}"
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"{where} has aggregate={self.aggregate}; it must be one of {', '.join(AGGREGATES)}")
        if self.rule not in ((None,) if self.aggregate == "count" else names()):
            wanted = "none for a count" if self.aggregate == "count" else f"one of {', '.join(names())}"
            raise ValueError(f"{where} has rule={self.rule}; it must be {wanted}")
        if not isinstance(self.value, int | float) or not isinstance(self.source, dict):
            raise ValueError(f"{where} needs a number as value, and a source with citation and where")
        if {"citation", "where"} - self.source.keys():
            raise ValueError(f"{where} needs a source with citation and where")

    def command(self, runs_dir: Path | str = "runs", seeds: Sequence[str] = ()) -> str:
        """The command that fills the cell with runs in runs_dir; existing runs are not repeated. `seeds`: overrides
        that choose the seeds, instead of the default ones."""
        return sweep_command([*self.overrides, *(seeds or [f"seed={','.join(map(str, SEEDS))}"])], runs_dir)


def table_names(path: Path = PATH) -> list[str]:
    return list(dict.fromkeys(node["table"] for node in _cells(path)))


def _cells(path: Path) -> list[dict[str, Any]]:
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    cells: list[dict[str, Any]] = content["cells"]
    return cells


def read_cells(table: str, path: Path = PATH) -> list[Cell]:
    """The cells of one published table, in the order of the file, one for each reading. Raises ValueError for an
    unknown table or an invalid cell."""
    names = {entry.name for entry in fields(Cell)}
    cells = []
    for number, node in enumerate(_cells(path), 1):
        readings = node.pop("readings", {"": []})
        if unknown := sorted(node.keys() - names):
            raise ValueError(f"{path.name}: cell {number} has the unknown key {unknown[0]}")
        try:
            for reading, words in readings.items():
                own = {"reading": reading, "overrides": [*node["overrides"], *words]} if reading else {}
                cells.append(Cell(**{**node, **own}))
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"{path.name}: cell {number} is not complete ({error})") from error
    found = [cell for cell in cells if cell.table == table]
    if not found:
        known = ", ".join(dict.fromkeys(cell.table for cell in cells))
        raise ValueError(f"the published table {table} is unknown; tables are {known}")
    if len(rules := {cell.rule for cell in found if cell.rule}) > 1:
        raise ValueError(f"{path.name}: the table {table} mixes selection rules: {', '.join(sorted(rules))}")
    return found


def published_table(
    runs: pd.DataFrame,
    cells: list[Cell],
    runs_dir: Path | str = "runs",
    groups: Mapping[tuple[str, ...], str] | None = None,
) -> pd.DataFrame:
    """One row per cell: row, column (with unit), published, reading (if the table has several), ours, n, ± (half-width
    of the 95 % interval), difference (ours − published), verdict, rule, and the command that fills a missing cell or
    settles an open verdict with runs in runs_dir. `groups`: overrides of a cell → the group of runs to show beside it,
    instead of that of the published recipe."""
    rows = []
    for cell in cells:
        values, first = _values(runs, cell, groups)
        found = _ours(cell, values, first)
        row: dict[str, Any] = {"row": cell.row, "column": f"{cell.column} ({cell.unit})", "published": cell.value}
        row |= {"reading": cell.reading, "ours": found["ours"], "n": found["n"], "±": found["half_width"]}
        row |= {"difference": found["ours"] - cell.value, "verdict": verdict(cell, **found), "rule": cell.rule}
        row["command"] = cell.command(runs_dir) if row["verdict"] == "missing" else None
        if row["verdict"].startswith(OPEN):
            seeds = seed_words(values, next_half_width(cell.tolerance, found["half_width"]), first)
            row["command"] = cell.command(runs_dir, [f"selection_rule={cell.rule}", *seeds]) if seeds else None
        rows.append(row)
    table = pd.DataFrame(rows).astype({"n": "Int64"})
    return table if any(table.reading) else table.drop(columns="reading")


def _values(
    runs: pd.DataFrame, cell: Cell, groups: Mapping[tuple[str, ...], str] | None
) -> tuple[pd.Series, int | None]:
    """Our numbers for a cell, in its unit, indexed by seed, and how many first seeds chose theirs; none for a count."""
    overrides = tuple(cell.overrides)
    if cell.aggregate == "count":
        return pd.Series(dtype=float), None
    group = _group(overrides) if groups is None else groups.get(overrides, "")
    finished = finished_runs(runs[runs.group == group], str(cell.rule))
    accuracies = by_seed(finished, str(cell.rule))
    return 100 - accuracies if cell.unit == ERROR else accuracies, first_of(finished)


def _ours(cell: Cell, values: pd.Series, first: int | None) -> dict[str, Any]:
    """Our number for a cell: ours, n, std, half_width, and first; NaN if there is none. std is that of the `first`
    seeds, if these chose n and are finished."""
    if cell.aggregate == "count":
        return {"ours": _million_parameters(tuple(cell.overrides)), "n": None, "std": math.nan, "half_width": math.nan}
    if values.empty:
        return {"ours": math.nan, "n": 0, "std": math.nan, "half_width": math.nan}
    if cell.aggregate == "best run":
        return {"ours": float(values.max()), "n": len(values), "std": math.nan, "half_width": math.nan}
    std = deviation(values, first)[0]
    found = {"ours": float(values.mean()), "n": len(values), "std": std, "first": first}
    return {**found, "half_width": interval(values, first)}


@cache
def _group(overrides: tuple[str, ...]) -> str:
    """The column `group` of a configuration, which its runs with any seed share."""
    return str(columns(compose_config(list(overrides)))["group"])


@cache
def _million_parameters(overrides: tuple[str, ...]) -> float:
    """Parameters of the model in millions, computed from its shapes without a run."""
    from capsule_sweeps.networks.build import num_parameters

    return num_parameters(compose_config(list(overrides))) / 1e6


def verdict(cell: Cell, ours: float, n: int | None, std: float, half_width: float, first: int | None = None) -> str:
    """The verdict on our number beside the published one.

    For an average: `reproduced` if the difference and the half-width are within the tolerance; `below` or `above` if
    the whole interval is beyond it; otherwise `too few seeds to say`, with the number of further seeds that the
    interval needs to be as narrow as the tolerance or, if it is already, half of it, and so on. A best run or a count
    has no interval: the difference decides. `missing` if no run of the cell is finished. `first`: the number of first
    seeds, if a procedure chose n from these; then `std` is their deviation.
    """
    if math.isnan(ours):
        return "missing"
    difference, side = ours - cell.value, "below" if ours < cell.value else "above"
    margin = 1e-9 * max(1.0, abs(cell.value))  # 95.0 − 94.5 is not quite 0.5
    within = abs(difference) <= cell.tolerance + margin
    if cell.aggregate != "mean over seeds":
        return "reproduced" if within else side
    if math.isnan(half_width):  # one seed, or all alike
        return f"{OPEN}: at least 1 more needed"
    if within and half_width <= cell.tolerance + margin:
        return "reproduced"
    if abs(difference) - half_width > cell.tolerance:
        return side
    assert n
    needed = int(num_seeds(std, first or max(FIRST, n), next_half_width(cell.tolerance, half_width)))
    many = max(1, needed - n) if needed <= MOST_SEEDS else "very many"
    return f"{OPEN}: {many} more needed"


def marks(cells: list[Cell]) -> pd.DataFrame:
    """The published accuracies as points of a plot: dataset, num_routing, value (%), aggregate, rule, and the groups of
    runs that reproduce them (one per reading) with the signed configuration of the first group."""
    points: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cell in (cell for cell in cells if cell.aggregate != "count"):
        config = compose_config(cell.overrides)
        accuracy = 100 - cell.value if cell.unit == ERROR else cell.value
        row = {"dataset": config.dataset.name, "num_routing": config.num_routing, "value": accuracy}
        row |= {"aggregate": cell.aggregate, "rule": cell.rule}
        point = points.setdefault(tuple(row.values()), {**row, "groups": [], "signed_config": signed_config(config)})
        point["groups"].append(_group(tuple(cell.overrides)))
    heads = ["dataset", "num_routing", "value", "aggregate", "rule", "groups", "signed_config"]
    return pd.DataFrame(list(points.values()), columns=heads)


def of_table(runs: pd.DataFrame, cells: list[Cell]) -> pd.DataFrame:
    """The runs, finished or not, that belong to some cells."""
    return runs[runs.group.isin({_group(tuple(cell.overrides)) for cell in cells})]


def published_notes(cells: list[Cell], runs: pd.DataFrame, table: pd.DataFrame) -> str:
    rule = next((cell.rule for cell in cells if cell.rule), None)
    own = of_table(runs, cells)
    units = {"%": "points", ERROR: "points"}
    tolerances = dict.fromkeys(f"{cell.tolerance:g} {units.get(cell.unit, cell.unit)}" for cell in cells)
    said = [
        f"Selection rule: {rule} for every accuracy" + (f" ({find_rule(rule).meaning})." if rule else "."),
        "±: half-width of the 95 % interval (t) over n seeds; a best run and a count have none. "
        + left_out(own, str(rule)),
        f"Reproduced: within {' and '.join(tolerances)}.",
    ]
    for citation in dict.fromkeys(cell.source["citation"] for cell in cells):
        sources = [cell.source for cell in cells if cell.source["citation"] == citation]
        places = dict.fromkeys(source["where"] for source in sources)
        commits = dict.fromkeys(f"commit {source['commit']}" for source in sources if "commit" in source)
        said.append(f"Published: {', '.join([citation, *commits])}; {', '.join(places)}.")
    numbers = numbers_of_first(finished_runs(own, str(rule)), str(rule))
    said[1] += two_stage_note(numbers, "± of these rows is t(n0 − 1)·s0/√n")
    for what, these in (
        ("Missing cells are filled by:", table.verdict == "missing"),
        ("Open verdicts would be settled by:", table.verdict.str.startswith(OPEN)),
    ):
        commands = dict.fromkeys(table.command[these].dropna())
        said += [what, *(f"    {command}" for command in commands)] if commands else []
    return "\n".join(said)
