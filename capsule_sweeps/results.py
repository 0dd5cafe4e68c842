"""From run folders to tables. A number never stands without its selection rule, its n and its spread."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from capsule_sweeps.progress import console
from capsule_sweeps.store import Run, find_runs

COLUMNS = (
    "run",
    "signature",
    "state",
    "dataset",
    "model",
    "backbone",
    "routing",
    "schedule",
    "num_routing",
    "seed",
    "epochs",
    "epochs_done",
    "parameters",
    "accuracy_last",
    "accuracy_best_test",
    "accuracy_best_val",
    "seconds",
    "group",
)
FLOATS = ("accuracy_last", "accuracy_best_test", "accuracy_best_val", "seconds")
INTEGERS = ("num_routing", "seed", "epochs", "epochs_done", "parameters")
MANY = 1000  # rows


def load_runs(runs_dir: Path | str) -> pd.DataFrame:
    """One row a run folder under runs_dir, sorted by name.

    Columns: COLUMNS, then `science`, the flat dict of the signed configuration. Accuracies are fractions, NaN while the
    run is not finished; seconds are those of its epochs, evaluation included.
    """
    return runs_frame(find_runs(Path(runs_dir)).values())


def runs_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """`load_runs` for some runs."""
    rows = []
    for run in runs:
        record = run.record()
        row = {column: record.get(column) for column in COLUMNS}
        row |= {"run": run.folder.name, "signature": run.folder.name[-8:], "state": run.state(record)}
        rows.append({**row, "science": record.get("science", {})})
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "science"])
    for column in FLOATS:
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    for column in INTEGERS:
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype("Int64")
    return frame.sort_values("run", ignore_index=True)


def accuracy_table(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Accuracy in percent of the finished runs, one row for each group of runs that differ only in their seed.

    Index: dataset, num_routing, and whatever else differs between the groups; columns n, mean, std (NaN for n = 1),
    min, max.
    """
    finished = runs[runs.state == "finished"].dropna(subset=f"accuracy_{rule}")
    labels = [
        column
        for column in ("dataset", "num_routing", "model", "backbone", "routing", "schedule")
        if column in ("dataset", "num_routing") or finished[column].nunique(dropna=False) > 1
    ]
    frame = finished[[*labels, "group"]].copy()
    frame["accuracy"] = 100 * finished[f"accuracy_{rule}"]
    settings = differing(finished)
    if settings:
        frame["settings"] = [" ".join(f"{key}={science.get(key)}" for key in settings) for science in finished.science]
        labels.append("settings")
    grouped = frame.groupby([*labels, "group"], dropna=False, sort=True).accuracy
    return (
        pd.DataFrame(grouped.agg(["count", "mean", "std", "min", "max"]))
        .rename(columns={"count": "n"})
        .droplevel("group")
    )


def differing(finished: pd.DataFrame) -> list[str]:
    """Signed keys, beyond those that have columns, that keep apart groups which otherwise look alike."""
    labels = ["dataset", "num_routing", "model", "backbone", "routing", "schedule"]
    keys: set[str] = set()
    for _, alike in finished.groupby(labels, dropna=False):
        sciences = list(alike.drop_duplicates("group").science)
        for key in {key for science in sciences for key in science} - {"seed"}:
            if len({json.dumps(science.get(key)) for science in sciences}) > 1:
                keys.add(key)
    return sorted(keys)


def notes(runs: pd.DataFrame, rule: str) -> str:
    """What must be said under a table of accuracies."""
    finished = int((runs.state == "finished").sum())
    text = f"Test accuracy in %, selection rule: {rule}; mean ± sample standard deviation over seeds (none for n = 1)."
    if len(runs) > finished:
        text += f" Left out: {len(runs) - finished} of {len(runs)} runs, not finished."
    if rule == "best_val" and runs[runs.state == "finished"].accuracy_best_val.isna().any():
        text += " Left out: runs without validation images."
    return text


def render(frame: pd.DataFrame, form: str, title: str = "", note: str = "") -> str:
    """A frame as text: `table` (for a terminal), `md`, `csv` or `json` (a list of objects)."""
    if form == "json":
        return frame.to_json(orient="records", indent=1, default_handler=str)
    if form == "csv":
        return frame.to_csv(index=False).rstrip("\n")
    cells = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    if form == "md":
        lines = ["| " + " | ".join(frame.columns) + " |", "|" + "---|" * len(frame.columns)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        return "\n".join([*lines, *(["", note] if note else [])])
    assert form == "table", form
    if len(frame) > MANY:  # a table with borders would take seconds
        plain = pd.DataFrame(cells, columns=frame.columns).to_string(index=False)
        return "\n".join(part for part in (title, plain, note) if part)
    table = Table(title=title or None, title_justify="left")
    for column in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[column])
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    with console().capture() as capture:
        console().print(table)
        if note:
            console().print(note, markup=False, highlight=False)
    return capture.get().rstrip("\n")


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def accuracy_rows(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """`accuracy_table` with its index as columns, for `render`."""
    return accuracy_table(runs, rule).reset_index()
