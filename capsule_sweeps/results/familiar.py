"""Accuracy on novel viewpoints at the same accuracy on familiar ones: `results --at-familiar`, for dataset=small_norb.

Models differ on familiar views already. So of each run the epoch counts whose familiar accuracy is nearest to a common
level, the earliest of equally near ones. Familiar accuracy is `val_accuracy`, novel accuracy is `test_accuracy`, both
of the weights of that epoch.
"""

import math

import pandas as pd

from capsule_sweeps.results.columns import as_typed, constants, settings_frame, typed
from capsule_sweeps.results.intervals import half_width
from capsule_sweeps.results.stein import first_of, interval, two_stage_note
from capsule_sweeps.results.tables import left_out
from capsule_sweeps.runs.frame import load_metrics

LOWEST = "lowest"
ROUNDING = 1e-9  # percentage points
NUMBERS = ["level", "n", "familiar_last", "novel_last", "familiar", "novel", "std", "half_width", "first_seeds"]
HEADS = {"familiar_last": "familiar, last", "novel_last": "novel, last", "half_width": "±95%", "first_seeds": "n0"}


def familiar_table(runs: pd.DataFrame, level: str) -> pd.DataFrame:
    """A row for each group of finished runs that differ only in their seed, all accuracies in percent.

    Columns: those of `settings_frame`; level; n (runs that reach it); familiar_last and novel_last (means of the last
    epochs); familiar and novel (means of the epochs that count); std and half_width (95 %, t) of novel; first_seeds if
    a procedure chose the seeds of some groups, see `tables.accuracy_table`. `level` is a number in percent, or
    `lowest`: of each dataset.views the lowest familiar accuracy that a run has in its last epoch. Runs that never reach
    the level do not count. Raises ValueError for another level, and without such runs.
    """
    views = runs.signed_config.map(lambda signed: signed.get("dataset.views"))
    chosen = runs[(runs.state == "finished") & views.isin(["azimuth", "elevation"])]
    epochs = load_metrics(chosen)
    epochs = epochs.dropna(subset=["val_accuracy", "test_accuracy"]) if "val_accuracy" in epochs else epochs[:0]
    chosen = chosen[chosen.run.isin(epochs.run)]
    if chosen.empty:
        raise ValueError(
            "--at-familiar: none of these runs is finished and was tested on familiar and novel views: train some with "
            "dataset=small_norb dataset.views=azimuth dataset.val_size=8100"
        )
    own = {run: 100 * rows[["val_accuracy", "test_accuracy"]] for run, rows in epochs.groupby("run")}
    found = pd.DataFrame([own[run].iloc[-1].to_numpy() for run in chosen.run], chosen.index, NUMBERS[2:4])
    lowest = found.familiar_last.groupby(views[chosen.index]).transform("min")
    found["level"] = lowest if level == LOWEST else _percent(level)
    counted = [_nearest(own[run], wanted) for run, wanted in zip(chosen.run, found.level, strict=True)]
    found[["familiar", "novel"]] = pd.DataFrame(counted, chosen.index)
    settings = settings_frame(chosen, NUMBERS)
    labels = list(settings.columns)
    number = settings.astype(object).assign(group=chosen.group).groupby([*labels, "group"], dropna=False).ngroup()
    table = settings.groupby(number).first().reindex(columns=labels)
    means = found.groupby(number).mean()
    table = table.join(means[["level"]]).join(found.groupby(number).novel.count().rename("n"))
    table = table.join(means[NUMBERS[2:6]]).join(found.groupby(number).novel.std().rename("std"))
    table["half_width"] = half_width(table["std"], table.n)
    for row, runs_of_row in chosen.groupby(number):
        novel = pd.Series(found.novel[runs_of_row.index].to_numpy(), index=runs_of_row.seed)
        first = first_of(runs_of_row)
        if first is not None and len(novel) >= first and novel.notna().all():  # else the first seeds are others
            table.loc[row, ["half_width", "first_seeds"]] = interval(novel, first), first
    if "first_seeds" in table:
        table["first_seeds"] = table.first_seeds.astype("Int64")
    return table.reset_index(drop=True)


def _percent(level: str) -> float:
    try:
        number = float(level)
    except ValueError:
        number = math.nan
    if not 0 < number <= 100:
        raise ValueError(f"--at-familiar {level}: set an accuracy in percent, such as 92, or {LOWEST}")
    return number


def _nearest(epochs: pd.DataFrame, level: float) -> tuple[float, float]:
    """Familiar and novel accuracy of the epoch that counts; NaN for a run that never reaches the level."""
    if epochs.val_accuracy.max() < level - ROUNDING:
        return math.nan, math.nan
    row = epochs.loc[(epochs.val_accuracy - level).abs().round(9).idxmin()]  # the first of equally near ones
    return row.val_accuracy, row.test_accuracy


def familiar_notes(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    return (
        "Accuracy in %: familiar is that of test toys from the views of training, novel that from all other views. Of "
        "each run the epoch counts whose familiar accuracy is nearest to the level; runs that never reach it do not "
        "count. n: runs that count; ±95%: half the width of the 95 % interval of novel (t). "
        f"{left_out(runs, 'last')}{two_stage_note(table.first_seeds) if 'first_seeds' in table else ''}"
    )


def shown_familiar(table: pd.DataFrame, runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The table without constant columns, and a caption that has them."""
    settings = [column for column in table if column not in NUMBERS]
    same = [column for column in [*settings, "level"] if table[column].nunique(dropna=False) <= 1]
    values = {**constants(runs), **{column: table[column].iloc[0] for column in same}}
    texts = {key: f"{value:.2f}" if key == "level" else typed(value) for key, value in values.items()}
    caption = ", ".join(f"{key}={text}" for key, text in texts.items() if not pd.isna(values[key]))
    return as_typed(table, settings).drop(columns=same).rename(columns=HEADS), caption
