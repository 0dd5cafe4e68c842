"""Run folders as a table: one row per run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from capsule_sweeps.config import selection_rules
from capsule_sweeps.runs.labels import read_labels
from capsule_sweeps.runs.provenance import changed_code
from capsule_sweeps.runs.record import read_summary
from capsule_sweeps.runs.run import Run, find_runs

INTEGERS = ("num_routing", "seed", "epochs", "epochs_done", "parameters")


def frame_columns() -> list[str]:
    """What is known of a run, one accuracy per selection rule."""
    return [
        *("run", "signature", "state", "dataset", "model", "backbone", "routing", "schedule", "num_routing", "seed"),
        *("epochs", "epochs_done", "parameters", *selection_rules.columns(), "seconds", "group"),
    ]


def load_runs(runs_dir: Path | str, imported: bool = False) -> pd.DataFrame:
    """One row a run folder under runs_dir, sorted by name; imported ones only if asked for.

    Columns: `frame_columns`, `stale` (finished, but with code that changed since), `device`, `imported` (weights from
    the published code), `data_sha256` and `classes` (names, one a line) of its images, `tags` (with spaces between
    them), `note`, and `signed_config`, a flat dict. Accuracies are fractions, NaN while the run is not finished;
    seconds are those of its epochs, evaluation included.
    """
    runs = runs_frame(find_runs(Path(runs_dir)).values())
    return runs if imported else runs[~runs.imported].reset_index(drop=True)


def runs_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """`load_runs` for some runs."""
    columns = frame_columns()
    rows = []
    for run in runs:
        record = run.record()
        state = run.state(record)
        if state in ("queued", "new"):  # not started yet: all that is known stands on the entry
            entry = run.queue_entry()
            record = {**entry.get("columns", {}), "signed_config": entry.get("signed_config", {}), **record}
        if state == "finished" and record.get("state") != "finished":  # run.json was damaged; the summary has it all
            record = {**record, **read_summary(run.folder)}
        row = {column: record.get(column) for column in columns}
        row |= {"run": run.folder.name, "signature": run.folder.name[-8:], "state": state}
        labels = read_labels(run.folder)
        row |= {"tags": " ".join(labels.tags), "note": labels.note}
        stale = state == "finished" and bool(changed_code(record))
        device = record.get("execution", {}).get("device")
        row |= {"stale": stale, "device": device, "imported": "imported" in record}
        row |= {"data_sha256": record.get("data_sha256"), "classes": "\n".join(record.get("classes") or ()) or None}
        rows.append({**row, "signed_config": record.get("signed_config", {})})
    more = ["stale", "device", "imported", "data_sha256", "classes", "tags", "note", "signed_config"]
    frame = pd.DataFrame(rows, columns=[*columns, *more])
    frame["imported"] = frame.imported.astype(bool)  # of no rows, too
    frame = frame.astype(
        {**dict.fromkeys((*selection_rules.columns(), "seconds"), float), **dict.fromkeys(INTEGERS, "Int64")}
    )
    return frame.sort_values("run", ignore_index=True)
