"""Differences to a base for display: short column names, a caption, and the notes below the table."""

import pandas as pd

from capsule_sweeps.config.selection_rules import find_rule
from capsule_sweeps.display import listed
from capsule_sweeps.results.against import SHOWN, column_of, uncompared
from capsule_sweeps.results.columns import as_typed, in_common, typed
from capsule_sweeps.results.fitted import Parts
from capsule_sweeps.results.stein import two_stage_note
from capsule_sweeps.results.tables import UNLEARNED, left_out, unlearned_note
from capsule_sweeps.runs.plan_warnings import RATIO


def shown_differences(table: pd.DataFrame, finished: pd.DataFrame | None = None) -> tuple[pd.DataFrame, str]:
    """An `against_table` of finished runs with short column names for display, without p-values and intervals where no
    row has one, and a caption with what all runs share."""
    heads = {"half_width": "±95%", "first_seeds": "n0", "p_value": "p", "p_holm": "p (Holm)"}
    heads["seeds_needed"] = "seeds needed"
    order = table.assign(other=table.paired.notna()).sort_values(["base", "other"], kind="stable").index
    table = table.loc[order].reset_index(drop=True)  # a base is the first of its rows
    settings = list(table.columns[: list(table.columns).index("base")])
    common = [column for column in settings if table[column].nunique(dropna=False) <= 1]
    bases_differ = len(table[settings].astype(str).drop_duplicates()) == table.base.nunique()
    hidden = [*common, *(["base"] if bases_differ else [])]
    shown = as_typed(table, settings).drop(columns=hidden).drop(columns=["recipe", "not_learned"], errors="ignore")
    key = table.columns[list(table.columns).index("base") + 1]
    marks = table.not_learned.astype(bool).map({True: UNLEARNED, False: ""}) if "not_learned" in table else ""
    shown[key] = [Parts(label) for label in table[key] + marks]
    shown = shown.rename(columns=heads)
    if "parameters" in shown:
        counts = ["–" if pd.isna(value) else f"{value:,}" for value in table.parameters]
        shown = shown.assign(parameters=counts) if len(_other_sizes(table)) else shown.drop(columns="parameters")
    shown = shown.drop(columns=[head for head in heads.values() if head in shown and shown[head].isna().all()])
    values = {column: table[column].iloc[0] for column in common} if len(table) else {}
    values = values if finished is None or table.empty else {**in_common(finished), **values}
    return shown, ", ".join(f"{column}={typed(value)}" for column, value in values.items() if not pd.isna(value))


def name_of_base(table: pd.DataFrame, against: str) -> str:
    """KEY=VALUE of the bases of an `against_table`, as their runs have it: `against` may have a glob."""
    values = set(table[column_of(against)][table.paired.isna()])
    names = values if len(values) == 1 else {value.partition(" ")[0] for value in values}  # without what differs
    return f"{against.partition('=')[0]}={names.pop()}" if len(names) == 1 else against


def against_notes(table: pd.DataFrame, runs: pd.DataFrame, against: str, rule: str) -> str:
    text = (
        f"{find_rule(rule).title} in %, selection rule: {rule} for every number. difference: to the base "
        f"({name_of_base(table, against)}) in "
        "percentage points, seed by seed where at least two seeds match, or all do (paired; else Welch), with ±95% for "
        "its interval (t) and two-sided p, neither for one pair or one run, nor where all pairs differ by the same "
        "amount other than 0 (differences that are all 0 have ±0.00 and p 1.00); p (Holm): corrected for the "
        "number of rows; seeds needed: to see a difference of this size (5 % level, power 0.8). n: pairs, or the runs "
        f"of the smaller group; mean: over all runs of a row. {left_out(runs, rule)}"
    )
    text += unlearned_note(table)
    text += _seeds_note(table, column_of(against)) + _sizes_note(table, column_of(against))
    if "first_seeds" in table:
        rows = table[table.paired.notna()]
        what = (
            "the standard error of these rows, of the paired differences or of each such group (Welch), is s0/√n with "
            "n0 − 1 degrees of freedom"
        )
        text += two_stage_note(rows.first_seeds, what, "95 %" if rows.paired.all() else "about 95 %")
    if "recipe" in table:
        found = [
            f"{column_of(against)}={value.rstrip('*')} has {' or '.join(rows.unique())}"
            for value, rows in table.dropna(subset="recipe").groupby(column_of(against), sort=False).recipe
        ]
        text += f" *: the recipe also differs from that of the base: {listed(found, SHOWN, '; ')}."
    if against == "ablation=none":
        return text
    if table.empty:
        return f"{text} No finished group differs from one with {against} in this key alone."
    without_base, bases = uncompared(runs, against, rule)
    base, key = name_of_base(table, against), column_of(against)
    if without_base:
        names = listed(without_base, SHOWN, "; ")
        text += f" Not compared, because no group with {base} equals them in all other settings: {names}."
    if bases:
        text += f" No other group differs in {key} alone from these with {base}: {listed(bases, SHOWN, '; ')}."
    return text


def _seeds_note(table: pd.DataFrame, key: str) -> str:
    """Sentences, with a leading space, about rows without an interval and rows that are not paired, and what helps."""
    rows, text = table[table.paired.notna()], ""
    alone, apart = rows[rows.n == 1], rows[(rows.n > 1) & ~rows.paired.astype(bool)]
    if len(alone):
        text += (
            f" One run, or one pair, has no interval and says nothing about chance ({_rows_of(alone, key)}): run at "
            "least two seeds of such rows and of their base, such as seed=0,1,2."
        )
    if len(apart):
        text += (
            f" Fewer than two seeds in common with the base ({_rows_of(apart, key)}): run the same seeds of both to "
            "compare seed by seed."
        )
    return text


def _other_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose models have at least RATIO times the parameters of their base, or the other way round; with the
    column of_base."""
    if "parameters" not in table:
        return table.head(0)
    bases = table[table.paired.isna()].set_index("base").parameters
    rows = table[table.paired.notna()].assign(of_base=lambda rows: rows.base.map(bases).astype("Int64"))
    ratio = (rows.parameters / rows.of_base).astype(float)
    return rows[(ratio >= RATIO) | (ratio <= 1 / RATIO)]


def _sizes_note(table: pd.DataFrame, key: str) -> str:
    """A sentence, with a leading space, about rows whose models are much larger or smaller than their base."""
    rows = _other_sizes(table)
    if rows.empty:
        return ""
    pairs = zip(rows[key], rows.parameters, rows.of_base, strict=True)
    words = list(dict.fromkeys(f"{key}={value} has {size:,} parameters for {base:,}" for value, size, base in pairs))
    return f" The difference is also one of size: {listed(words, SHOWN)}."


def _rows_of(rows: pd.DataFrame, key: str) -> str:
    return listed([f"{key}={value}" for value in dict.fromkeys(rows[key])], SHOWN)
