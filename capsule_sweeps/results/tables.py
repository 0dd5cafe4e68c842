"""From run folders to tables. Every accuracy is shown with its selection rule, its n and its spread."""

import json
from collections.abc import Collection
from typing import Any

import pandas as pd

from capsule_sweeps.config.selection_rules import find_rule
from capsule_sweeps.display import counted, listed
from capsule_sweeps.results.columns import as_typed, in_common, settings_frame, typed
from capsule_sweeps.results.intervals import half_width
from capsule_sweeps.results.stein import half_widths, numbers_of_first, two_stage_note
from capsule_sweeps.runs.learned import not_learned_note
from capsule_sweeps.runs.signature import without_neutral

WIDTH = "±95%"  # what people read for half_width
COST = {  # column of `load_runs` → from which ratio on two rows differ; times and memory are never quite the same
    "parameters": 1.0,
    "multiply_adds": 1.01,  # routing iterations of small stacks hardly count
    "seconds_per_epoch": 1.1,
    "peak_memory_mb": 1.1,
}
COUNTS = ("parameters", "multiply_adds")
HEADS = {"half_width": WIDTH, "first_seeds": "n0", "multiply_adds": "M mult-adds"}
HEADS |= {"seconds_per_epoch": "s/epoch", "peak_memory_mb": "peak MB"}
SHOWN_AS = {
    "parameters": "{:,}".format,
    "multiply_adds": lambda value: f"{value / 1e6:,.1f}" if value >= 1e6 else f"{value / 1e6:.2g}",
    "peak_memory_mb": "{:,.0f}".format,
}
NUMBERS = ("n", "mean", "std", "half_width", "first_seeds", "min", "max", "not_learned")
UNLEARNED = "†"
NAMED = 5  # stale runs named in a note; `status stale=true` lists all


def finished_runs(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The runs that have an accuracy under a selection rule. Raises ValueError for an unknown rule."""
    return runs[(runs.state == "finished") & runs[find_rule(rule).column].notna()]


def accuracy_table(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Accuracy in percent of the finished runs, one row per group of runs that differ only in their seed.

    Columns: dataset, num_routing, and each setting in which groups differ, see `columns.settings_frame`; the columns of
    COST that differ between rows (means over the runs of a row that have one); n, mean, std (sample standard
    deviation), half_width (of the 95 % t interval; both NaN for n = 1, half_width also if all runs are alike), min
    (the worst run), max (the best), not_learned (how many runs of the row did not learn, if any did not); rule.
    If a procedure chose the number of seeds of some groups, half_width is that of its interval for these, and the
    column first_seeds has their n0. Raises ValueError for an unknown rule.
    """
    finished = finished_runs(runs, rule)
    frame = settings_frame(finished, (*COST, *NUMBERS, "rule"))
    labels = list(frame.columns)
    group = finished.group.fillna(finished.run)  # damaged records have no group and are not averaged with others
    number = frame.astype(object).assign(group=group).groupby([*labels, "group"], dropna=False, sort=False).ngroup()
    accuracies = (100 * finished[f"accuracy_{rule}"]).groupby(number)
    table = frame.groupby(number).first().reindex(columns=labels)
    for column, ratio in ((column, ratio) for column, ratio in COST.items() if column in finished):
        means = finished[column].astype(float).groupby(number).mean()
        if means.max() > ratio * means.min():
            table[column] = means.round().astype("Int64") if column in COUNTS else means
    table = table.join(accuracies.agg(["count", "mean", "std"]).rename(columns={"count": "n"}))
    table["half_width"] = half_width(table["std"], table.n)
    for name, (width, n0) in half_widths(finished, rule).items():
        table.loc[table.index.isin(number[group == name]), ["half_width", "first_seeds"]] = width, n0
    if "first_seeds" in table:
        table["first_seeds"] = table.first_seeds.astype("Int64")
    table = table.join(accuracies.agg(["min", "max"]))
    if "not_learned" in finished and (unlearned := finished.not_learned.notna()).any():
        table["not_learned"] = unlearned.groupby(number).sum()
    table = table.sort_values(labels, key=_sortable)
    return table.reset_index(drop=True).assign(rule=rule)


def _sortable(column: pd.Series) -> pd.Series:
    """A sort key for numbers by size and words alphabetically, also in columns that have both."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    return column.map(lambda value: f"{value:020.8f}" if isinstance(value, int | float) else str(value))


def for_people(table: pd.DataFrame, runs: pd.DataFrame, said: Collection[str] = ()) -> tuple[pd.DataFrame, str]:
    """An `accuracy_table` without constant columns, and a caption that names them; settings as they are typed.

    `said`: keys whose values are in the title, not also in the caption.
    """
    always = [column for column in NUMBERS if column != "first_seeds"]  # the note has the n0 of all rows
    drop = [column for column in table.columns if column not in always and table[column].nunique(dropna=False) <= 1]
    shown = table.drop(columns=drop)
    shown = as_typed(shown, [column for column in shown.columns if column not in (*NUMBERS, *COST)])
    for column, text in SHOWN_AS.items():
        if column in shown:
            shown[column] = [None if pd.isna(value) else text(value) for value in table[column]]
    if "not_learned" in table:
        marks = [UNLEARNED if number else "" for number in table.not_learned]
        shown["mean"] = [f"{mean:.2f}{mark}" for mean, mark in zip(table["mean"], marks, strict=True)]
        shown = shown.drop(columns="not_learned")
    shown = shown.rename(columns=HEADS)
    if table.empty:
        return shown, ""
    common = {column: table[column].iloc[0] for column in drop if column not in ("rule", "imported", "first_seeds")}
    common = {**in_common(finished_runs(runs, table.rule.iloc[0])), **common}
    known = {key.removesuffix(".name").rpartition(".")[2] for key in said}
    kept = {key: value for key, value in common.items() if key not in known and not pd.isna(value)}
    return shown, ", ".join(f"{key}={typed(value)}" for key, value in kept.items())


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Hours of training and evaluation so far, including unfinished runs, by dataset, num_routing and device, and
    total.

    Hours on the device `cuda` are GPU hours, because a run uses one GPU. Interrupted epochs are not included.
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


def notes(runs: pd.DataFrame, rule: str) -> str:
    table = accuracy_table(runs, rule)
    alike = ", no interval where all seeds are alike" if (table.half_width.isna() & (table.n > 1)).any() else ""
    return (
        f"{find_rule(rule).title} in %, selection rule: {rule} ({find_rule(rule).meaning}) for every number; "
        "mean ± sample standard deviation over seeds, "
        f"{WIDTH}: half the width of the 95 % interval of the mean (t); neither for n = 1{alike}. "
        f"{left_out(runs, rule)}{unlearned_note(table)}{cost_note(table.columns)}"
        f"{two_stage_note(numbers_of_first(finished_runs(runs, rule), rule))}"
    )


def unlearned_note(table: pd.DataFrame) -> str:
    """What the mark of rows means, with a leading space."""
    return f" {UNLEARNED}: with runs that did not learn." if "not_learned" in table else ""


def cost_note(columns: Collection[str]) -> str:
    """What the costs among the columns of a table are, in sentences with a space before them."""
    text = ""
    if "multiply_adds" in columns:
        text += f" {HEADS['multiply_adds']}: millions of multiply-adds for one image, forward."
    if "peak_memory_mb" in columns:
        text += f" {HEADS['peak_memory_mb']}: most GPU memory reserved; on a CPU, most of the whole process."
    return text


def left_out(runs: pd.DataFrame, rule: str) -> str:
    """Sentences about the runs that a table excludes, and about stale runs and runs that did not learn."""
    finished, text = runs[runs.state == "finished"], "Only finished runs are included."
    if len(runs) > len(finished):
        text += f" Left out: {len(runs) - len(finished):,} of {counted(len(runs), 'run')}, not finished."
    text += stale_note(runs) + images_note(finished)
    text += f" {unlearned}" if (unlearned := not_learned_note(finished)) else ""
    needs = find_rule(rule).needs
    if needs and finished[f"accuracy_{rule}"].isna().any():
        text += f" Left out: runs without {needs.what} ({needs.key})."
    if runs.imported.any():
        text += f" Imported: {runs.imported.sum()}, with the accuracy stored in their files, which is best_test."
    return text


def stale_note(runs: pd.DataFrame) -> str:
    """A sentence, with a leading space, that names the stale runs among some runs; empty if there are none."""
    names = list(runs.run[runs.stale])
    return f" Stale (the code has changed since): {listed(names, NAMED)}." if names else ""


def images_note(runs: pd.DataFrame) -> str:
    """A sentence, with a leading space, about runs with the same data set and settings but different images: those of
    one group, which are named, or of several."""
    columns = [column for column in ("data_sha256", "classes") if column in runs]
    mixed = (runs.groupby("group")[columns].nunique() > 1).any(axis=1)
    names = list(runs.run[runs.group.isin(mixed[mixed].index)])
    if names:
        return (
            " These differ only in their seed but were trained on different images (data_sha256 and classes in "
            f"run.json), so their mean is meaningless: {listed(names, NAMED)}."
        )
    if not columns or runs.empty:
        return ""
    images = runs.signed_config.map(lambda signed: json.dumps(_of_images(signed), sort_keys=True))
    unlike = (runs.groupby([runs.dataset, images])[columns].nunique() > 1).any(axis=1)
    datasets = list(dict.fromkeys(name for name, _ in unlike[unlike].index))
    where = f"Runs on {listed(datasets, NAMED)} were trained on different images (data_sha256 and classes in run.json)"
    return f" {where}: do not compare them." if datasets else ""


def _of_images(signed: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in without_neutral(signed).items() if key.startswith("dataset.")}
