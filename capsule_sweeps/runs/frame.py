"""Run folders as a table: one row per run."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from capsule_sweeps.config import selection_rules
from capsule_sweeps.config.check import home
from capsule_sweeps.runs.folders import find_runs
from capsule_sweeps.runs.labels import read_labels
from capsule_sweeps.runs.learned import find_not_learned
from capsule_sweeps.runs.metrics import read_metrics, with_newer_rules
from capsule_sweeps.runs.neutral import setting
from capsule_sweeps.runs.provenance import changed_code
from capsule_sweeps.runs.record import read_summary, say_damaged
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import NEUTRAL
from capsule_sweeps.runs.sweep import first_seeds, sweeps_of_runs

INTEGERS = ("num_routing", "seed", "epochs", "epochs_done", "parameters", "multiply_adds")


def frame_columns() -> list[str]:
    """The columns of `load_runs` that come from run.json, including one accuracy per selection rule."""
    return [
        *("run", "signature", "state", "dataset", "model", "backbone", "routing", "schedule", "num_routing", "seed"),
        *("epochs", "epochs_done", "parameters", "multiply_adds", "peak_memory_mb"),
        *(*selection_rules.columns(), "seconds", "group"),
    ]


def load_runs(runs_dir: Path | str, imported: bool = False, settings: bool = False) -> pd.DataFrame:
    """One row per run folder under runs_dir, sorted by name; imported runs only with `imported`. Damaged folders, whose
    name, signature and configuration do not agree, are left out with a warning.

    Columns: `frame_columns`, `seconds_per_epoch`, `stale` (finished, but the code has changed since), `device`,
    `machine` (its GPU or processor), `imported` (weights from the published code), `data_sha256` and `classes` (names,
    one per line) of its images, `tags` (separated by spaces), `note`, `sweeps` (the names of all sweeps that contain
    the run), `folder`, `not_learned` (why a finished run did not learn, or None), `first_seeds` (of a group whose
    number of seeds a procedure chose, see `runs.sweep.first_seeds`), and `signed_config`, the signed configuration as a
    flat dict; with `settings` also one column for each signed key, such as training.lr.

    Accuracies are fractions, and NaN while the run is not finished. `seconds` is the total time of all epochs including
    evaluation. `multiply_adds` are those of one image, forward; `peak_memory_mb` is the most memory of a CUDA GPU that
    tensors took, on other devices the most main memory of the whole process. Both are missing in runs made before they
    were recorded. Raises ValueError if runs_dir cannot be read.
    """
    runs = runs_frame(filter(agrees, find_runs(Path(home(str(runs_dir)))).values()))
    runs = runs if imported else runs[~runs.imported].reset_index(drop=True)
    return runs.join(settings_columns(runs)) if settings else runs


def settings_columns(runs: pd.DataFrame) -> pd.DataFrame:
    """One column per signed key of some runs, including neutral values; None if a run does not have the key."""
    keys = sorted(NEUTRAL.keys() | {key for signed in runs.signed_config for key in signed})
    rows = [[setting(signed, key) for key in keys] for signed in runs.signed_config]
    return pd.DataFrame(rows, columns=keys, index=runs.index).drop(columns=["seed"], errors="ignore")


def load_metrics(runs: pd.DataFrame) -> pd.DataFrame:
    """The epochs of some rows of `load_runs` as one tidy frame, for seaborn and groupby: one row per run and epoch.

    Columns: run, dataset, model, backbone, routing, schedule, num_routing, seed, group, and those of metrics.jsonl
    (epoch, lr, seconds, images_per_second, train_loss, test_accuracy as a fraction, …). A damaged row and all rows
    after it are left out.
    """
    named = ["run", "dataset", "model", "backbone", "routing", "schedule", "num_routing", "seed", "group"]
    frames = [pd.DataFrame(read_metrics(Run(Path(folder)))[0]).assign(run=Path(folder).name) for folder in runs.folder]
    rows = pd.concat([frame for frame in frames if "epoch" in frame] or [pd.DataFrame(columns=["run", "epoch"])])
    return runs[named].merge(rows, on="run", validate="one_to_many")


def agrees(run: Run) -> bool:
    """Whether name, signature and configuration of a run folder agree; logs a warning if they do not."""
    if why := run.damage():
        say_damaged(run.folder.name, why, run.folder)
    return not why


def runs_frame(runs: Iterable[Run]) -> pd.DataFrame:
    columns = frame_columns()
    rows, runs = [], list(runs)
    folders = {run.folder.parent for run in runs}
    sweeps, first = ({folder: read(folder) for folder in folders} for read in (sweeps_of_runs, first_seeds))
    for run in runs:
        record = run.record()
        state = run.state(record)
        if state in ("queued", "new"):  # not started yet: the queue entry is the only source
            entry = run.queue_entry()
            record = {**entry.get("columns", {}), "signed_config": entry.get("signed_config", {}), **record}
        if state == "finished" and record.get("state") != "finished":  # run.json is damaged; the summary is complete
            record = {**record, **read_summary(run.folder)}
        if state == "finished":
            record = with_newer_rules(run, record)
        row = {column: record.get(column) for column in columns}
        row |= {"run": run.folder.name, "signature": run.signature, "state": state}
        stale = state == "finished" and bool(changed_code(record))
        device = record.get("execution", {}).get("device")
        labels = read_labels(run.folder)
        row |= {"tags": " ".join(labels.tags), "note": labels.note}
        row |= {"data_sha256": record.get("data_sha256"), "classes": "\n".join(record.get("classes") or ()) or None}
        row["not_learned"] = find_not_learned(run, record) if state == "finished" else None
        attempt = (record.get("attempts") or [{}])[-1]
        row["machine"] = attempt.get("gpu") if device == "cuda" else attempt.get("processor")
        row |= {"stale": stale, "device": device, "imported": "imported" in record, "folder": str(run.folder)}
        row["sweeps"] = sweeps[run.folder.parent].get(run.signature, [])
        row["first_seeds"] = first[run.folder.parent].get(str(row["group"]))
        rows.append({**row, "signed_config": record.get("signed_config", {})})
    more = ["stale", "device", "machine", "imported", "data_sha256", "classes", "not_learned", "tags", "note", "folder"]
    frame = pd.DataFrame(rows, columns=[*columns, *more, "sweeps", "first_seeds", "signed_config"])
    frame["imported"] = frame.imported.astype(bool)  # also for an empty frame
    frame.insert(list(frame.columns).index("seconds") + 1, "seconds_per_epoch", frame.seconds / frame.epochs_done)
    floats = (*selection_rules.columns(), "seconds", "seconds_per_epoch", "peak_memory_mb")
    types = dict.fromkeys(floats, "float64") | dict.fromkeys((*INTEGERS, "first_seeds"), "Int64")
    return frame.astype(types).sort_values("run", ignore_index=True)
