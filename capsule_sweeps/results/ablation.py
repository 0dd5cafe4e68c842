"""Ablations: a base configuration and one change at a time, compared seed by seed.

Runs do not record which ablation they are; this follows from their signed configurations. So it does not matter which
command made a run, and the base shares its runs with every other sweep.
"""

from functools import cache
from typing import Any

import pandas as pd

from capsule_sweeps.config.compose import CONF_DIR, compose_config
from capsule_sweeps.results.against import Pair, against_notes, against_table, base_names, rest
from capsule_sweeps.results.tables import finished_runs
from capsule_sweeps.runs.signature import NEUTRAL, signed_config

NEEDS_ITERATIONS = ("sequential", "uniform", "softmax_over_children")  # have no effect with num_routing=1


@cache
def changes() -> dict[str, dict[str, Any]]:
    """Name of each ablation → the signed keys that it changes, with their new values; None for a removed key."""
    base = signed_config(compose_config(["num_routing=2"]))  # with num_routing=1, some ablations would change nothing
    found = {}
    for path in sorted((CONF_DIR / "ablation").glob("*.yaml")):
        if path.stem != "none":
            other = signed_config(compose_config(["num_routing=2", f"ablation={path.stem}"]))
            keys = sorted(key for key in base.keys() | other.keys() if base.get(key) != other.get(key))
            found[path.stem] = {key: other.get(key, NEUTRAL.get(key)) for key in keys}
    return found


def ablation_table(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """`against.against_table` for ablation=none: the column `ablation` has its name, `none` for a base."""
    return against_table(runs, "ablation=none", rule, _pairs)


def ablation_notes(table: pd.DataFrame, runs: pd.DataFrame, rule: str) -> str:
    return against_notes(table, runs, "ablation=none", rule) + _missing_note(table)


def _pairs(first: pd.DataFrame) -> list[Pair]:
    bases = _bases({str(group): signed for group, signed in first.signed_config.items()})
    return [Pair(base, group, name, "none") for base, own in bases.items() for name, group in own.items()]


def base_groups(runs: pd.DataFrame, rule: str) -> dict[str, tuple[pd.Series, dict[str, str]]]:
    """Name of each base in the table → one of its runs, a row of `load_runs`, and ablation → group of its runs."""
    finished = finished_runs(runs, rule).dropna(subset=["group", "seed"]).drop_duplicates(["group", "seed"])
    first = finished.drop_duplicates("group").set_index("group", drop=False)
    bases = _bases({str(group): signed for group, signed in first.signed_config.items()})
    names, _ = base_names(first.loc[list(bases)], "ablation=none")
    return {name: (first.loc[base], own) for name, (base, own) in zip(names, bases.items(), strict=True)}


def _bases(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Group of each base → ablation → group. A base has ablations and is not an ablation of another group itself.

    `configs`: a signed configuration of each group.
    """
    groups = {rest(signed): group for group, signed in configs.items()}
    found: dict[str, dict[str, str]] = {}
    for group, own in configs.items():
        for ablation, changed in changes().items():
            if (other := groups.get(rest({**own, **changed}))) not in (None, group):
                found.setdefault(group, {})[ablation] = str(other)
    changed_groups = {other for ablations in found.values() for other in ablations.values()}
    return {group: ablations for group, ablations in found.items() if group not in changed_groups}


def _missing_note(table: pd.DataFrame) -> str:
    """Sentences, with a leading space, about ablations that are missing from a table or have no effect."""
    text = ""
    missing = [name for name in changes() if name not in set(table.ablation)]
    if missing:
        text += f" No finished runs beside a base: {', '.join(missing)}."
    once = table.base.str.contains(r"num_routing=1\b") & table.ablation.isin(NEEDS_ITERATIONS)
    if once.any():
        names = ", ".join(dict.fromkeys(table.ablation[once]))
        text += f" With num_routing=1 these have no effect: {names}."
    return text
