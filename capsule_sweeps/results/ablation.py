"""Ablations: a base configuration and one change at a time, compared seed by seed.

Which run is which ablation is not written down anywhere: it follows from the signed configurations. So a run counts
however it was asked for, and the base shares its runs with every other sweep.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pandas as pd

from capsule_sweeps.config.compose import CONF_DIR, compose_config
from capsule_sweeps.results.intervals import compare, summarize
from capsule_sweeps.results.tables import finished_runs, left_out, settings
from capsule_sweeps.runs.signature import NEUTRAL, signed_config

COLUMNS = ["base", "ablation", "n", "mean", "difference", "half_width", "p_value", "seeds_needed", "paired", "rule"]
NEEDS_ITERATIONS = ("sequential", "uniform", "softmax_over_children")  # no change with num_routing=1


@cache
def changes() -> dict[str, dict[str, Any]]:
    """Name of each ablation → the signed keys that it changes, with their new values; None where a key is gone."""
    base = signed_config(compose_config(["num_routing=2"]))  # uniform coefficients take the iterations away
    found = {}
    for path in sorted((CONF_DIR / "ablation").glob("*.yaml")):
        if path.stem != "none":
            other = signed_config(compose_config(["num_routing=2", f"ablation={path.stem}"]))
            keys = sorted(key for key in base.keys() | other.keys() if base.get(key) != other.get(key))
            found[path.stem] = {key: other.get(key, NEUTRAL.get(key)) for key in keys}
    return found


def ablation_table(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Each ablation of which a run and a run of its base are finished: one row, the largest loss first.

    Columns: base (what tells it from other bases), ablation, n (pairs of seeds, or the smaller group's runs), mean of
    the ablation's runs, difference to the base (percentage points), half_width of its 95 % interval, p_value,
    seeds_needed (see `statistics.compare`), paired, rule. Each base has a row, too, whose ablation is `none`.
    """
    finished = finished_runs(runs, rule).dropna(subset=["group", "seed"]).drop_duplicates(["group", "seed"])
    accuracies = {
        group: pd.Series(100 * own[f"accuracy_{rule}"].to_numpy(), index=own.seed.astype(int))
        for group, own in finished.groupby("group")
    }
    first = finished.drop_duplicates("group").set_index("group")
    bases = _bases({str(group): signed for group, signed in first.signed_config.items()})
    rows = []
    for (base, ablations), name in zip(bases.items(), _names(first.loc[list(bases)]), strict=True):
        own = accuracies[base]
        row = {"base": name, "ablation": "none", "n": len(own), "mean": summarize(own).mean, "difference": 0.0}
        rows.append({**row, "half_width": float("nan"), "p_value": float("nan"), "paired": None})
        for ablation, group in ablations.items():
            found = compare(accuracies[group], own)
            row = {"base": name, "ablation": ablation, "n": found.n, "mean": summarize(accuracies[group]).mean}
            row |= {"difference": found.difference, "half_width": found.half_width, "p_value": found.p_value}
            rows.append({**row, "seeds_needed": found.seeds_needed, "paired": found.paired})
    table = pd.DataFrame(rows, columns=COLUMNS).assign(rule=rule)
    table = table.sort_values(["base", "difference"], kind="stable", ignore_index=True)
    return table.astype({"n": "Int64", "seeds_needed": "Int64", "mean": float, "difference": float})


def base_groups(runs: pd.DataFrame, rule: str) -> dict[str, pd.Series]:
    """What the table calls a base → one of its runs, a row of `load_runs`."""
    finished = finished_runs(runs, rule).dropna(subset=["group", "seed"]).drop_duplicates(["group", "seed"])
    first = finished.drop_duplicates("group").set_index("group")
    own = first.loc[list(_bases({str(group): signed for group, signed in first.signed_config.items()}))]
    return {name: run for name, (_, run) in zip(_names(own), own.iterrows(), strict=True)}


def _bases(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Group of each base → ablation → group; a base is what has ablations and is itself no ablation of another group.

    `configs`: a signed configuration of each group.
    """
    groups = {_key(signed): group for group, signed in configs.items()}
    found: dict[str, dict[str, str]] = {}
    for group, own in configs.items():
        for ablation, changed in changes().items():
            if (other := groups.get(_key({**own, **changed}))) not in (None, group):
                found.setdefault(group, {})[ablation] = str(other)
    changed_groups = {other for ablations in found.values() for other in ablations.values()}
    return {group: ablations for group, ablations in found.items() if group not in changed_groups}


def _key(signed: dict[str, Any]) -> str:
    """A signed configuration but for its seed, as text."""
    kept = {key: value for key, value in signed.items() if key != "seed" and value is not None}
    return json.dumps({key: value for key, value in kept.items() if NEUTRAL.get(key) != value}, sort_keys=True)


def _names(first: pd.DataFrame) -> list[str]:
    """What to call bases, given a run of each: dataset and num_routing, and other signed keys that tell them apart."""
    configs = list(first.signed_config)
    values = {key: {json.dumps(signed.get(key)) for signed in configs} for signed in configs for key in signed}
    named = ("dataset.", "seed", "model.num_routing")
    keys = sorted(key for key, found in values.items() if len(found) > 1 and not key.startswith(named))
    if first.dataset.nunique() > 1:
        keys = [key for key in keys if not key.startswith(("model.capsules.", "model.backbone."))]
    names = []
    for _, run in first.iterrows():
        routed = str(run.model) if pd.isna(run.num_routing) else f"num_routing={run.num_routing}"
        words = [str(run.dataset), routed, *([settings(run.signed_config, keys)] if keys else [])]
        names.append(" ".join(words))
    twins = {name for name in names if names.count(name) > 1}
    return [f"{name} {group}" if name in twins else name for name, group in zip(names, first.index, strict=True)]


def ablation_notes(table: pd.DataFrame, runs: pd.DataFrame, rule: str) -> str:
    """What must be said under a table of ablations."""
    text = (
        f"Test accuracy in %, selection rule: {rule} for every number. difference: to the base (none) in percentage "
        "points, seed by seed where seeds match (paired; else Welch), with half_width of its 95 % interval (t) and "
        "two-sided p_value; seeds_needed: to see a difference of this size (5 % level, power 0.8). n: pairs, or "
        "the runs of the smaller group; mean: over all runs of a row. "
    )
    text += left_out(runs, rule)
    missing = [name for name in changes() if name not in set(table.ablation)]
    if missing:
        text += f" No finished runs beside a base: {', '.join(missing)}."
    once = table.base.str.contains(r"num_routing=1\b") & table.ablation.isin(NEEDS_ITERATIONS)
    if once.any():
        names = ", ".join(dict.fromkeys(table.ablation[once]))
        text += f" With num_routing=1 there is nothing that these could change: {names}."
    if table.empty:
        text += " Make some: python launch.py -m 'ablation=glob(*)' num_routing=2 seed=0,1,2"
    return text
