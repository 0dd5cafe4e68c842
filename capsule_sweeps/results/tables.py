"""From run folders to tables. A number never stands without its selection rule, its n and its spread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pandas as pd

from capsule_sweeps.config.selection_rules import find_rule
from capsule_sweeps.results.intervals import compare, half_width
from capsule_sweeps.results.stein import half_widths, two_stage_note
from capsule_sweeps.runs.signature import NEUTRAL

LABELS = ("model", "backbone", "routing", "schedule", "imported")
NAMED = 5  # stale runs; `status stale=true` has all


def finished_runs(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The runs that have an accuracy under a selection rule. Raises ValueError for an unknown rule."""
    return runs[(runs.state == "finished") & runs[find_rule(rule).column].notna()]


def accuracy_table(runs: pd.DataFrame, rule: str, first: Mapping[str, int] | None = None) -> pd.DataFrame:
    """Accuracy in percent of the finished runs, one row for each group of runs that differ only in their seed.

    Columns: dataset, num_routing, and whatever else tells the groups apart; n, mean, std (sample standard deviation),
    half_width (of the 95 % t interval; both NaN for n = 1), min (the worst run), max (the best); rule. `first` is the
    number of first seeds of groups whose seeds a procedure chose (`runs.sweep.first_seeds`): it has its interval.
    """
    finished = finished_runs(runs, rule)
    frame = finished[["dataset", "num_routing", "group"]].copy()
    for column in LABELS:
        if finished[column].nunique(dropna=False) > 1:
            frame[column] = finished[column]
    keys = differing(finished)
    if keys:
        frame["settings"] = [settings(signed, keys) for signed in finished.signed_config]
    labels = [column for column in frame.columns if column != "group"]
    frame["accuracy"] = 100 * finished[f"accuracy_{rule}"]
    grouped = frame.groupby([*labels, "group"], dropna=False, sort=True).accuracy
    table = pd.DataFrame(grouped.agg(["count", "mean", "std", "min", "max"])).rename(columns={"count": "n"})
    table.insert(3, "half_width", half_width(table["std"], table.n))
    for group, width in half_widths(finished, rule, first or {}).items():
        table.loc[table.index.get_level_values("group") == group, "half_width"] = width
    return table.reset_index().drop(columns="group").assign(rule=rule)


def comparison_table(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """What one more value of num_routing changes, between groups that are alike in all else: see statistics.compare.

    Columns: runs (dataset, and settings where they differ), from, to (num_routing), n, difference (percentage points),
    half_width of its 95 % interval, p_value, seeds_needed, paired, rule.
    """
    finished = finished_runs(runs, rule).dropna(subset=["num_routing", "seed", "group"])
    keys = differing(finished)
    names = [f"{s.get('dataset.name')} {settings(s, keys)}".strip() for s in finished.signed_config]
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
        configs = list(alike.drop_duplicates("group").signed_config)
        for key in {key for signed in configs for key in signed} - {"seed", "model.num_routing"}:
            if len({json.dumps(signed.get(key)) for signed in configs}) > 1:
                keys.add(key)
    return sorted(keys)


def setting(signed: dict[str, Any], key: str) -> Any:
    """The value of a signed key; a neutral value is not signed, but it is what the run has."""
    return signed.get(key, NEUTRAL.get(key))


def settings(signed: dict[str, Any], keys: list[str]) -> str:
    return " ".join(f"{key}={setting(signed, key)}" for key in keys)


def notes(runs: pd.DataFrame, rule: str, first: Mapping[str, int] | None = None) -> str:
    """What must be said under a table of accuracies."""
    return (
        f"Test accuracy in %, selection rule: {rule} ({find_rule(rule).meaning}) for every number; "
        "mean ± sample standard deviation over seeds, "
        f"half_width of the 95 % interval (t); neither for n = 1. {left_out(runs, rule)}"
        f"{two_stage_note(finished_runs(runs, rule), first or {})}"
    )


def left_out(runs: pd.DataFrame, rule: str) -> str:
    """In sentences: that only finished runs enter a table, how many of these do not and why, and which are stale."""
    finished, text = runs[runs.state == "finished"], "Only finished runs enter."
    if len(runs) > len(finished):
        text += f" Left out: {len(runs) - len(finished)} of {len(runs)} runs, not finished."
    text += stale_note(runs) + images_note(finished)
    needs = find_rule(rule).needs
    if needs and finished[f"accuracy_{rule}"].isna().any():
        text += f" Left out: runs without {needs.what} ({needs.key})."
    if runs.imported.any():
        text += f" Imported: {runs.imported.sum()}, with the accuracy that their files tell, which is best_test."
    return text


def stale_note(runs: pd.DataFrame) -> str:
    """A sentence, with a space before it, that names the stale ones of some runs; empty where there is none."""
    names = list(runs.run[runs.stale])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f" These are stale, made with code that changed since: {', '.join(names[:NAMED])}{more}." if names else ""


def images_note(runs: pd.DataFrame) -> str:
    """A sentence, with a space before it, that names runs which differ in their seed and in their images."""
    columns = [column for column in ("data_sha256", "classes") if column in runs]
    mixed = (runs.groupby("group")[columns].nunique() > 1).any(axis=1)
    names = list(runs.run[runs.group.isin(mixed[mixed].index)])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        " These differ in their seed alone but were trained on different images (data_sha256 and classes in run.json), "
        f"so that their mean says nothing: {', '.join(names[:NAMED])}{more}."
        if names
        else ""
    )
