"""Accuracies as papers print them: one row per method, one column per value of a key, best values in bold."""

import pandas as pd

from capsule_sweeps.display import counted
from capsule_sweeps.results.columns import short_names, typed
from capsule_sweeps.results.render import Best
from capsule_sweeps.results.tables import COST, NUMBERS


def pivot(table: pd.DataFrame, key: str) -> tuple[pd.DataFrame, str]:
    """A `tables.accuracy_table` with a column for each value of one of its columns, and a sentence about the cells.

    A cell is mean ± sample standard deviation, or the mean of a single run. If n differs between cells, each shows it
    in brackets. The best mean of each column (or of the only row) is bold, separately for each dataset. Raises
    ValueError if the table has no such column.
    """
    settings = [column for column in table.columns if column not in (*COST, *NUMBERS, "rule")]
    short = short_names([key])[key]
    column = next((name for name in (key, key.removeprefix("model."), short) if name in settings), None)
    if column is None:
        raise ValueError(
            f"--pivot {key}: the runs of this table do not differ by it; they differ by {', '.join(settings)}"
        )
    rows = [name for name in settings if name != column and table[name].nunique(dropna=False) > 1]
    heads = list(dict.fromkeys(table[column].sort_values() if column == "num_routing" else table[column]))
    sizes = set(table.n)
    found: dict[tuple[object, ...], dict[object, pd.Series]] = {}
    for _, row in table.iterrows():
        place: tuple[object, ...] = tuple("–" if pd.isna(row[name]) else str(typed(row[name])) for name in rows)
        found.setdefault(place, {})[_head(row[column])] = row
    best = _best(found, rows)
    cells = []
    for place, columns in found.items():
        cells.append({**dict(zip(rows, place, strict=True)), **{f"{column}={head}": "–" for head in map(_head, heads)}})
        for head, row in columns.items():
            text = f"{row['mean']:.1f}" + ("" if pd.isna(row["std"]) else f" ± {row['std']:.1f}")
            text += f" (n={row.n})" if len(sizes) > 1 else ""
            cells[-1][f"{column}={head}"] = Best(text) if (place, head) in best else text
    frame = pd.DataFrame(cells, columns=[*rows, *(f"{column}={head}" for head in map(_head, heads))])
    seeds = f"n = {counted(max(sizes), 'seed')}" if len(sizes) == 1 else "n seeds in brackets"
    said = "Single runs (n = 1)" if sizes == {1} else f"Mean ± sample standard deviation, {seeds}"
    return frame, f"{said}; bold: the best."


def _head(value: object) -> str:
    return "none" if pd.isna(value) else str(typed(value))


def _best(found: dict[tuple[object, ...], dict[object, pd.Series]], rows: list[str]) -> set[tuple[object, object]]:
    """Row and column of each cell with the largest mean of its column and dataset, or of the only row."""
    cells = [(place, head, row["mean"]) for place, columns in found.items() for head, row in columns.items()]

    def rivals(place: tuple[object, ...], head: object) -> tuple[object, ...]:
        dataset = place[rows.index("dataset")] if "dataset" in rows else None
        alone = sum(1 for other in found if "dataset" not in rows or other[rows.index("dataset")] == dataset) == 1
        return (dataset, None if alone else head)

    highest: dict[tuple[object, ...], float] = {}
    for place, head, mean in cells:
        key = rivals(place, head)
        highest[key] = max(mean, highest.get(key, mean))
    return {(place, head) for place, head, mean in cells if mean == highest[rivals(place, head)]}
