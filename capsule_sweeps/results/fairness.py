"""Sentences under a table about what makes its rows hard to compare: recipes, sizes, seeds and machines."""

import json
from collections.abc import Collection

import pandas as pd

from capsule_sweeps.display import counted, listed
from capsule_sweeps.results.columns import LABELS, differing, short_names, typed
from capsule_sweeps.results.tables import finished_runs
from capsule_sweeps.runs.neutral import setting
from capsule_sweeps.runs.plan_warnings import RATIO
from capsule_sweeps.runs.signature import NEUTRAL

SHOWN = 5  # settings, machines or seeds in a sentence
IMPLIED = ("training.milestones", "training.lr_decay")  # by epochs and learning rate


def comparison_notes(runs: pd.DataFrame, rule: str, shown: Collection[str] = ()) -> str:
    """Sentences about the finished runs of a table; empty if its rows share recipe, size, seeds and machine.

    Only rows of the same data set are compared, and machines only if times or memory are `shown`, columns of the table.
    """
    finished, measured = finished_runs(runs, rule), {"seconds_per_epoch", "peak_memory_mb"} & {*shown}
    of_each = [own for _, own in finished.groupby("dataset")]
    recipes = [*dict.fromkeys(words for own in of_each for words in _recipes(own))]
    said = [f"Recipes differ between rows: {listed(recipes, SHOWN)}."] if recipes else []
    said += dict.fromkeys(words(own) for words in (_sizes, _seeds) for own in of_each)
    return " ".join(filter(None, (*said, _machines(finished) if measured else "")))


def _recipes(finished: pd.DataFrame) -> list[str]:
    """Settings training.* that differ between rows but are no column, because the routing or the data set sets them."""
    first = finished.drop_duplicates("group")
    columns = differing(first)
    keys = sorted({key for signed in first.signed_config for key in signed if key.startswith("training.")})
    short, said = short_names(keys), []
    for key in (key for key in keys if key not in (*columns, *IMPLIED)):
        values = first.signed_config.map(lambda signed, key=key: json.dumps(setting(signed, key)))
        neutral = json.dumps(NEUTRAL.get(key, ""))
        usual = neutral if (values == neutral).any() else values.mode().iloc[0]
        for value in (value for value in values.unique() if value != usual):
            having = first[values == value]
            label = next((label for label in ("routing", *LABELS) if _tells(first, values == value, label)), None)
            where = f" for {label}={','.join(sorted(having[label].astype(str).unique()))}" if label else ""
            text, other = (typed(json.loads(one)) for one in (value, usual))
            said.append(f"{short[key]}={text}{where} ({other} otherwise)")
    return said


def _tells(first: pd.DataFrame, chosen: pd.Series, label: str) -> bool:
    """Whether a column has no value in common between the chosen rows and the others."""
    return not set(first[label][chosen].astype(str)) & set(first[label][~chosen].astype(str))


def _sizes(finished: pd.DataFrame) -> str:
    """Models of which one has at least RATIO times the parameters of another."""
    known = finished.dropna(subset="parameters").sort_values("parameters", kind="stable")
    if known.empty or known.parameters.iloc[-1] < RATIO * known.parameters.iloc[0]:
        return ""
    labels = [label for label in LABELS[1:4] if known[label].nunique(dropna=False) > 1] or ["run"]
    names = [" ".join(row[label] for label in labels if isinstance(row[label], str)) for _, row in known.iterrows()]
    counts = known.parameters
    return f"Sizes differ: {names[-1]} has {counts.iloc[-1]:,} parameters, {names[0]} {counts.iloc[0]:,}."


def _seeds(finished: pd.DataFrame) -> str:
    """Seeds that some rows have and others do not; not where a procedure chose how many."""
    sets = finished.dropna(subset=["group", "seed"]).groupby("group").seed.agg(set)
    missing = sorted(set.union(*sets) - set.intersection(*sets)) if len(sets) else []
    if finished.first_seeds.notna().any() or not missing:
        return ""
    lacking = sum(not own.issuperset(missing) for own in sets)
    named = f"seed={','.join(map(str, missing[:SHOWN]))}{',…' if len(missing) > SHOWN else ''}"
    return (
        f"Not the same seeds in all rows: {counted(lacking, 'row lacks', 'rows lack')} "
        f"{'some of ' if len(missing) > 1 else ''}{named}; --against compares seed by seed."
    )


def _machines(finished: pd.DataFrame) -> str:
    machines = sorted(finished.machine.dropna().unique())
    words = f"Made on different machines ({listed(machines, SHOWN)}): times and memory are not comparable."
    return words if len(machines) > 1 else ""
