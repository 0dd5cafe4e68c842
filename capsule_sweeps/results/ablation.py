"""Ablations: a base configuration and one change at a time, compared seed by seed.

Runs do not record which ablation they are; this follows from their signed configurations. So it does not matter which
command made a run, and the base shares its runs with every other sweep.
"""

import json
import logging
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from capsule_sweeps.config.compose import CONF_DIR, compose_config
from capsule_sweeps.results.against import Pair, against_table, base_names, compared_runs, one_of_each, rest
from capsule_sweeps.results.against_shown import against_notes
from capsule_sweeps.results.intervals import by_seed
from capsule_sweeps.results.settle import FIRST, MARGIN, options, overrides_of, seed_words, sweep_command
from capsule_sweeps.results.stein import first_of
from capsule_sweeps.runs.signature import NEUTRAL, signed_config

log = logging.getLogger(__name__)

NEEDS_ITERATIONS = ("sequential", "uniform", "softmax_over_children")  # have no effect with num_routing=1
REPLACING = NEEDS_ITERATIONS[1:]  # these replace the routing: no effect only beside inverted attention


@cache
def changes() -> dict[str, dict[str, Any]]:
    """Name of each ablation → the signed keys that it changes, with their new values; None for a removed key.

    A file that cannot be composed is left out, with one warning that names it.
    """
    base = signed_config(compose_config(["num_routing=2"]))  # with num_routing=1, some ablations would change nothing
    found = {}
    for path in sorted((CONF_DIR / "ablation").glob("*.yaml")):
        if path.stem != "none":
            try:
                other = signed_config(compose_config(["num_routing=2", f"ablation={path.stem}"]))
            except ValueError as error:
                log.warning("%s is not a readable option and is left out (%s): fix or remove it.", path, error)
                continue
            keys = sorted(key for key in base.keys() | other.keys() if base.get(key) != other.get(key))
            found[path.stem] = {key: other.get(key, NEUTRAL.get(key)) for key in keys}
    return found


def ablation_table(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """`against.against_table` for ablation=none: the column `ablation` has its name, `none` for a base."""
    return against_table(runs, "ablation=none", rule, _pairs)


def ablation_notes(table: pd.DataFrame, runs: pd.DataFrame, rule: str) -> str:
    return against_notes(table, runs, "ablation=none", rule) + _missing_note(table, base_groups(runs, rule))


def _pairs(first: pd.DataFrame) -> list[Pair]:
    return [Pair(base, group, name, "none") for base, own in _bases(first).items() for name, group in own.items()]


def base_groups(runs: pd.DataFrame, rule: str) -> dict[str, tuple[pd.Series, dict[str, str]]]:
    """Name of each base in the table → one of its runs, a row of `load_runs`, and ablation → group of its runs."""
    first = one_of_each(compared_runs(runs, rule))
    bases = _bases(first)
    names, _ = base_names(first.loc[list(bases)], "ablation=none")
    return {name: (first.loc[base], own) for name, (base, own) in zip(names, bases.items(), strict=True)}


def _bases(first: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Group of each base → ablation → group, given a run of each group. A base has ablations and is not an ablation of
    another group itself."""
    configs = {str(group): signed for group, signed in first.signed_config.items()}
    groups = {rest(signed): group for group, signed in configs.items()}
    found: dict[str, dict[str, str]] = {}
    for group, own in configs.items():
        for ablation, changed in changes().items():
            if (other := groups.get(rest({**own, **changed}))) not in (None, group):
                found.setdefault(group, {})[ablation] = str(other)
    changed_groups = {other for ablations in found.values() for other in ablations.values()}
    return {group: ablations for group, ablations in found.items() if group not in changed_groups}


def _without_effect(base: pd.Series, ablation: str) -> bool:
    """Whether an ablation of a run of the base computes the same as the base."""
    replaced = ablation not in REPLACING or base.routing == "inverted_attention"
    return base.num_routing is not pd.NA and base.num_routing == 1 and ablation in NEEDS_ITERATIONS and replaced


def _missing_note(table: pd.DataFrame, bases: dict[str, tuple[pd.Series, dict[str, str]]]) -> str:
    """Sentences, with a leading space, about ablations that are missing from a table or have no effect."""
    text = ""
    missing = [name for name in changes() if name not in set(table.ablation)]
    if missing:
        text += f" No finished runs beside a base: {', '.join(missing)}."
    rows = zip(table.base, table.ablation, strict=True)
    names = [name for base, name in rows if base in bases and _without_effect(bases[base][0], name)]
    if names:
        text += f" With num_routing=1 these have no effect: {', '.join(dict.fromkeys(names))}."
    return text


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class OpenDifference(NamedTuple):
    """A difference that is neither significant nor known to ± MARGIN, and how it would be settled."""

    run: pd.Series  # of the base
    ablation: str
    groups: tuple[str, str]  # the base and the ablation
    differences: pd.Series  # by seed
    first: int  # number of first seeds of the procedure


def settle_ablations(table: pd.DataFrame, runs: pd.DataFrame, rule: str, runs_dir: Path | str) -> list[str]:
    """A command for each ablation whose difference to its base is neither significant nor known to ± MARGIN.

    Bases whose configuration has no short form as overrides are left out, and ablations that have no effect. Commands
    that share a group ask for the same number of first seeds, since a group keeps the smallest one.
    """
    found = _open_differences(table, runs, rule)
    agreed = _agreed_first_seeds(found)
    commands = []
    for one in found:
        seeds = seed_words(one.differences, MARGIN, agreed[one.groups[0]])
        words = overrides_of(json.dumps(one.run.signed_config), str(one.run.dataset), str(one.run.model))
        if words is not None and seeds:
            more = [f"ablation=none,{one.ablation}", "hydra.sweeper.resolve=ablation", f"selection_rule={rule}"]
            commands.append(sweep_command([*words, *(more if rule != "last" else more[:2]), *seeds], runs_dir))
    return commands


def _open_differences(table: pd.DataFrame, runs: pd.DataFrame, rule: str) -> list[OpenDifference]:
    bases, found = base_groups(runs, rule), []
    finished = compared_runs(runs, rule)
    for row in table.itertuples():
        without_spread = row.n > 1 and math.isnan(row.half_width)  # which more seeds of this procedure do not change
        known = abs(row.difference) > row.half_width or row.half_width <= MARGIN
        if row.ablation == "none" or without_spread or known or row.base not in bases:
            continue
        run, ablations = bases[row.base]
        if _without_effect(run, row.ablation):
            continue
        groups = (str(run.group), ablations[row.ablation])
        base, other = (finished[finished.group == group] for group in groups)
        first = min(filter(None, (first_of(base), first_of(other))), default=None)
        differences = by_seed(other, rule) - by_seed(base, rule)  # NaN for a seed of one of them
        if differences.notna().any():
            differences = differences.dropna()
        else:  # the seeds of the base are as good as any
            differences, first = differences[list(base.seed)], first or FIRST
        found.append(OpenDifference(run, row.ablation, groups, differences, first or max(FIRST, len(differences))))
    return found


def _agreed_first_seeds(found: Sequence[OpenDifference]) -> dict[str, int]:
    """Group → the smallest number of first seeds of the differences that share it, also through other groups."""
    agreed: dict[str, int] = {}
    for _ in found:
        for one in found:
            known = [agreed[group] for group in one.groups if group in agreed]
            agreed |= dict.fromkeys(one.groups, min([one.first, *known]))
    return agreed


def first_ablations(runs: pd.DataFrame, runs_dir: Path | str) -> str:
    """Lines that say how to make ablations, of the data set of some runs, where none is finished beside its base."""
    datasets = [name for name in dict.fromkeys(runs.dataset.dropna()) if name in options("dataset")]
    words = [f"dataset={','.join(datasets)}"] if datasets else []
    command = sweep_command(["ablation=glob(*)", "num_routing=2", "seed=0,1,2", *words], runs_dir)
    return f"No ablation is finished beside its base. Make some:\n    {command}"
