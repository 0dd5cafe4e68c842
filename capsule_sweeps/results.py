"""From run folders to tables. A number never stands without its selection rule, its n and its spread."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from capsule_sweeps.progress import console, plain_text
from capsule_sweeps.runs.files import read_json
from capsule_sweeps.runs.provenance import changed_code
from capsule_sweeps.runs.run import Run, find_runs
from capsule_sweeps.runs.signature import NEUTRAL
from capsule_sweeps.statistics import compare, half_width

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
    "accuracy_ema_last",
    "seconds",
    "group",
)
RULES = ("last", "best_val", "best_test", "ema_last")
LABELS = ("model", "backbone", "routing", "schedule", "imported")
FLOATS = ("accuracy_last", "accuracy_best_test", "accuracy_best_val", "accuracy_ema_last", "seconds")
INTEGERS = ("num_routing", "seed", "epochs", "epochs_done", "parameters")
MANY = 1000  # rows
NAMED = 5  # stale runs; `status stale=true` has all


def load_runs(runs_dir: Path | str, imported: bool = False) -> pd.DataFrame:
    """One row a run folder under runs_dir, sorted by name; imported ones only if asked for.

    Columns: COLUMNS, `stale` (finished, but with code that changed since), `device`, `imported` (weights from the
    published code), and `science`, the flat dict of the signed configuration. Accuracies are fractions, NaN while the
    run is not finished; seconds are those of its epochs, evaluation included.
    """
    runs = runs_frame(find_runs(Path(runs_dir)).values())
    return runs if imported else runs[~runs.imported].reset_index(drop=True)


def runs_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """`load_runs` for some runs."""
    rows = []
    for run in runs:
        record = run.record()
        state = run.state(record)
        if state in ("queued", "new"):  # not started yet: all that is known stands on the ticket
            ticket = run.ticket()
            record = {**ticket.get("columns", {}), "science": ticket.get("science", {}), **record}
        if state == "finished" and record.get("state") != "finished":  # run.json was damaged; the summary has it all
            record = {**record, **read_json(run.folder / "summary.json")}
        row = {column: record.get(column) for column in COLUMNS}
        row |= {"run": run.folder.name, "signature": run.folder.name[-8:], "state": state}
        stale = state == "finished" and bool(changed_code(record.get("attempts", [])))
        device = record.get("execution", {}).get("device")
        row |= {"stale": stale, "device": device, "imported": "imported" in record}
        rows.append({**row, "science": record.get("science", {})})
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "stale", "device", "imported", "science"])
    frame["imported"] = frame.imported.astype(bool)  # of no rows, too
    for column in FLOATS:
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    for column in INTEGERS:
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype("Int64")
    return frame.sort_values("run", ignore_index=True)


def finished_runs(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The runs that have an accuracy under a selection rule. Raises ValueError for a rule that there is not."""
    if rule not in RULES:
        raise ValueError(f"rule={rule} is no selection rule; it is one of {', '.join(RULES)}")
    return runs[(runs.state == "finished") & runs[f"accuracy_{rule}"].notna()]


def accuracy_table(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Accuracy in percent of the finished runs, one row for each group of runs that differ only in their seed.

    Columns: dataset, num_routing, and whatever else tells the groups apart; n, mean, std (sample standard deviation),
    half_width (of the 95 % t interval; both NaN for n = 1), min (the worst run), max (the best); rule.
    """
    finished = finished_runs(runs, rule)
    frame = finished[["dataset", "num_routing", "group"]].copy()
    for column in LABELS:
        if finished[column].nunique(dropna=False) > 1:
            frame[column] = finished[column]
    keys = differing(finished)
    if keys:
        frame["settings"] = [settings(science, keys) for science in finished.science]
    labels = [column for column in frame.columns if column != "group"]
    frame["accuracy"] = 100 * finished[f"accuracy_{rule}"]
    grouped = frame.groupby([*labels, "group"], dropna=False, sort=True).accuracy
    table = pd.DataFrame(grouped.agg(["count", "mean", "std", "min", "max"])).rename(columns={"count": "n"})
    table.insert(3, "half_width", half_width(table["std"], table.n))
    return table.reset_index().drop(columns="group").assign(rule=rule)


def comparison_table(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """What one more value of num_routing changes, between groups that are alike in all else: see statistics.compare.

    Columns: runs (dataset, and settings where they differ), from, to (num_routing), n, difference (percentage points),
    half_width of its 95 % interval, p_value, seeds_needed, paired, rule.
    """
    finished = finished_runs(runs, rule).dropna(subset=["num_routing", "seed", "group"])
    keys = differing(finished)
    names = [f"{s.get('dataset.name')} {settings(s, keys)}".strip() for s in finished.science]
    rows = []
    for name, alike in finished.groupby(pd.Series(names, index=finished.index), sort=True):
        groups = [
            (number, pd.Series(100 * own[f"accuracy_{rule}"].to_numpy(), index=own.seed.astype(int)))
            for number, own in alike.drop_duplicates(["group", "seed"]).groupby("num_routing")
        ]
        for (fewer, base), (more, values) in pairwise(groups):
            found = compare(values, base)
            row: dict[str, Any] = {
                "runs": name,
                "from": fewer,
                "to": more,
                "n": found.n,
                "difference": found.difference,
            }
            row |= {"half_width": found.half_width, "p_value": found.p_value, "seeds_needed": found.seeds_needed}
            rows.append({**row, "paired": found.paired})
    columns = ["runs", "from", "to", "n", "difference", "half_width", "p_value", "seeds_needed", "paired"]
    return pd.DataFrame(rows, columns=columns).astype({"seeds_needed": "Int64"}).assign(rule=rule)


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Hours of training and evaluation so far, unfinished runs included: by dataset, num_routing and device, and total.

    Hours on the device `cuda` are GPU hours: a run has one GPU. What an interrupted epoch took is not in them.
    """
    frame = runs[["dataset", "num_routing", "device"]].assign(hours=runs.seconds / 3600)
    grouped = frame.groupby(["dataset", "num_routing", "device"], dropna=False, sort=True).hours
    table = grouped.agg(runs="count", hours_per_run="mean", hours="sum").reset_index()
    total = {
        "dataset": "all",
        "runs": table.runs.sum(),
        "hours_per_run": frame.hours.mean(),
        "hours": table.hours.sum(),
    }
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True).astype({"num_routing": "Int64"})


def differing(finished: pd.DataFrame) -> list[str]:
    """Signed keys that tell runs apart beyond dataset, LABELS, num_routing and seed."""
    keys: set[str] = set()
    for _, alike in finished.groupby(["dataset", *LABELS], dropna=False):
        sciences = list(alike.drop_duplicates("group").science)
        for key in {key for science in sciences for key in science} - {"seed", "model.num_routing"}:
            if len({json.dumps(science.get(key)) for science in sciences}) > 1:
                keys.add(key)
    return sorted(keys)


def setting(science: dict[str, Any], key: str) -> Any:
    """The value of a signed key; a neutral value is not signed, but it is what the run has."""
    return science.get(key, NEUTRAL.get(key))


def settings(science: dict[str, Any], keys: list[str]) -> str:
    return " ".join(f"{key}={setting(science, key)}" for key in keys)


def notes(runs: pd.DataFrame, rule: str) -> str:
    """What must be said under a table of accuracies."""
    return (
        f"Test accuracy in %, selection rule: {rule} for every number; mean ± sample standard deviation over seeds, "
        f"half_width of the 95 % interval (t); neither for n = 1. {left_out(runs, rule)}"
    )


def left_out(runs: pd.DataFrame, rule: str) -> str:
    """In sentences: that only finished runs enter a table, how many of these do not and why, and which are stale."""
    finished, text = runs[runs.state == "finished"], "Only finished runs enter."
    if len(runs) > len(finished):
        text += f" Left out: {len(runs) - len(finished)} of {len(runs)} runs, not finished."
    text += stale_note(runs)
    lacking = {"best_val": "validation images", "ema_last": "averaged weights (training.ema)"}.get(rule)
    if lacking and finished[f"accuracy_{rule}"].isna().any():
        text += f" Left out: runs without {lacking}."
    if runs.imported.any():
        text += f" Imported: {runs.imported.sum()}, with the accuracy that their files tell, which is best_test."
    return text


def stale_note(runs: pd.DataFrame) -> str:
    """A sentence, with a space before it, that names the stale ones of some runs; empty where there is none."""
    names = list(runs.run[runs.stale])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f" These are stale, made with code that changed since: {', '.join(names[:NAMED])}{more}." if names else ""


def render(frame: pd.DataFrame, form: str, title: str = "", note: str = "") -> str:
    """A frame as text: `table` (for a terminal), `md`, `tex` (booktabs), `csv` or `json` (a list of objects)."""
    if form == "json":
        return frame.to_json(orient="records", indent=1, default_handler=str)
    if form == "csv":
        return frame.to_csv(index=False).rstrip("\n")
    cells = [[cell_text(value) for value in row] for row in frame.itertuples(index=False)]
    if form == "md":
        lines = ["| " + " | ".join(frame.columns) + " |", "|" + "---|" * len(frame.columns)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        return "\n".join([*lines, *(["", note] if note else [])])
    if form == "tex":
        return _tex(frame, cells, note)
    assert form == "table", form
    if len(frame) > MANY:  # a table with borders would take seconds
        plain = pd.DataFrame(cells, columns=frame.columns).to_string(index=False)
        return "\n".join(part for part in (title, plain, note) if part)
    table = Table(title=title or None, title_justify="left")
    for column in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[column])
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(plain_text, row))
    with console().capture() as capture:
        console().print(table)
        if note:
            console().print(note, markup=False, highlight=False)
    return capture.get().rstrip("\n")


def cell_text(value: Any) -> str:
    """A value of a table as people read it: – for none, two decimals, of small numbers one digit that is not 0."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:.1g}"  # a small number is no zero
    return str(value)


TEX = {  # of letters that LaTeX reads as commands, or that not every font has
    "\\": r"\textbackslash{}",
    **{letter: "\\" + letter for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "√": r"$\surd$",
    "'": r"\textquotesingle{}",
    "\n": r" \\ ",
}


def _tex(frame: pd.DataFrame, cells: list[list[str]], note: str) -> str:
    """A LaTeX tabular with booktabs, numbers to the right, and the note beneath it."""

    def plain(text: str) -> str:
        return "".join(TEX.get(letter, letter) for letter in text)

    right = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame.columns]
    lines = ["% needs \\usepackage{booktabs}", "\\begin{tabular}{" + "".join("lr"[number] for number in right) + "}"]
    lines += ["\\toprule", " & ".join(map(plain, map(str, frame.columns))) + " \\\\", "\\midrule"]
    lines += [" & ".join(map(plain, row)) + " \\\\" for row in cells]
    lines += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join([*lines, *(["", "\\par\\smallskip{\\footnotesize " + plain(note) + "}"] if note else [])])
