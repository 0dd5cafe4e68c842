"""Accuracies as papers print them: one row per method, one column per value of a key, best values in bold."""

from collections import Counter

import pandas as pd

from capsule_sweeps.display import counted
from capsule_sweeps.results.columns import setting_text, short_names
from capsule_sweeps.results.fitted import Best
from capsule_sweeps.results.tables import COST, NUMBERS, UNLEARNED, unlearned_note


def settings_of(table: pd.DataFrame) -> list[str]:
    return [column for column in table.columns if column not in (*COST, *NUMBERS, "rule")]


def column_of(table: pd.DataFrame, key: str) -> str | None:
    """The column of an `accuracy_table` for a key as spelled for launch.py; None if its rows do not differ by it."""
    names = (key, key.removeprefix("model.").removesuffix(".name"), short_names([key])[key])
    return next((name for name in names if name in settings_of(table)), None)


def pivot(table: pd.DataFrame, key: str) -> tuple[pd.DataFrame, str]:
    """A `tables.accuracy_table` with a column for each value of one of its columns, and a sentence about the cells.

    A cell is mean ± sample standard deviation, or the mean of a single run. If n differs between cells, each shows it
    in brackets. The best mean of each column (or of the only row) is bold, separately for each dataset. Raises
    ValueError if the table has no such column.
    """
    settings, column = settings_of(table), column_of(table, key)
    if column is None:
        others = [name for name in settings if table[name].nunique(dropna=False) > 1]
        raise ValueError(
            f"--pivot {key}: the runs of this table do not differ by it; they differ by "
            f"{', '.join(others) or 'their seeds only'}"
        )
    rows = [name for name in settings if name != column and table[name].nunique(dropna=False) > 1]
    order = table[column].sort_values() if column == "num_routing" else table[column]
    columns = [f"{column}={_text(value)}" for value in dict.fromkeys(order)]
    methods = [tuple(_text(value) for value in row) for row in table[rows].astype(object).to_numpy()]
    datasets = list(table.dataset) if "dataset" in rows else [""] * len(table)
    num_methods = Counter(dataset for dataset, _ in set(zip(datasets, methods, strict=True)))
    heads = [f"{column}={_text(value)}" for value in table[column]]
    rivals = [(data, head if num_methods[data] > 1 else "") for data, head in zip(datasets, heads, strict=True)]
    learned = table["mean"].where(table.not_learned == 0) if "not_learned" in table else table["mean"]
    highest = learned.groupby(pd.Series(rivals, index=table.index), sort=False).transform("max")
    sizes = set(table.n)
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for method, head, (_, row), best in zip(methods, heads, table.iterrows(), highest, strict=True):
        text = f"{row['mean']:.1f}" + ("" if pd.isna(row["std"]) else f" ± {row['std']:.1f}")
        text += f" (n={row.n})" if len(sizes) > 1 else ""
        text += UNLEARNED if row.get("not_learned", 0) else ""
        own = cells.setdefault(method, dict(zip(rows, method, strict=True)) | dict.fromkeys(columns, "–"))
        own[head] = Best(text) if row["mean"] == best else text
    frame = pd.DataFrame(list(cells.values()), columns=[*rows, *columns])
    seeds = f"n = {counted(max(sizes), 'seed')}" if len(sizes) == 1 else "n seeds in brackets"
    said = "Single runs (n = 1)" if sizes == {1} else f"Mean ± sample standard deviation, {seeds}"
    return frame, f"{said}; bold: the best.{unlearned_note(table)}"


def _text(value: object) -> str:
    return setting_text(value) or "–"
