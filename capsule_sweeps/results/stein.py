"""Stein's two-stage procedure: as many seeds as a confidence interval with a given half-width needs.

The first n0 seeds give a standard deviation s0, and n = max(n0, ⌈(t(n0 − 1) s0 / h)²⌉ seeds are run in all. The
interval mean ± t(n0 − 1) s0 / √n covers the true mean with exactly 95 % for normal accuracies, although n depends on
the data, because s0 is independent of the mean. An interval that is recomputed after every seed until it is narrow
does not (docs/seeds.md). Functions accept numbers or arrays; all values are in one unit.
"""

from typing import Any

import numpy as np
import pandas as pd

from capsule_sweeps.results.intervals import ALIKE, by_seed, deviation, t_quantile

MOST = 10**15  # seeds: more are the same to everybody, and still a whole number
ROUNDING = 1e-9  # of (t s / h)²: 25.000000000001 seeds are 25


def num_seeds(std: Any, first: int, wanted: float) -> Any:
    """The number of seeds for the half-width `wanted`, given the deviation of the `first` ones; at least `first`."""
    with np.errstate(over="ignore"):
        asked = (t_quantile(first - 1) * np.asarray(std, float) / wanted) ** 2
    return np.clip(np.ceil(asked * (1 - ROUNDING)), first, MOST).astype(np.int64)


def two_stage_half_width(std: Any, first: int, n: Any) -> Any:
    """Half the width of the 95 % interval of a mean over n seeds, given the deviation of the `first` ones."""
    return t_quantile(first - 1) * np.asarray(std, float) / np.sqrt(np.asarray(n, float))


def first_of(runs: pd.DataFrame) -> int | None:
    """How many first seeds the group of some rows of `load_runs` has; None where no look chose its seeds."""
    if "first_seeds" not in runs:
        return None
    known = runs["first_seeds"].dropna()
    return int(known.min()) if len(known) else None


def interval(values: pd.Series, first: int | None) -> float:
    """Half the width of the 95 % interval of the mean of values indexed by seed, in their unit; NaN for one value, and
    for values that are all the same."""
    std, n0 = deviation(values, first)
    return float(two_stage_half_width(std, n0, len(values))) if std > ALIKE * values.abs().max() else float("nan")


def half_widths(finished: pd.DataFrame, rule: str) -> dict[str, tuple[float, int]]:
    """Group → half-width in percentage points and n0, of the groups whose seeds the procedure chose."""
    found: dict[str, tuple[float, int]] = {}
    if "first_seeds" not in finished:
        return found
    for group, own in finished[finished.first_seeds.notna()].groupby("group"):
        values, first = by_seed(own, rule), first_of(own)
        if first is not None and len(values) >= first:
            found[str(group)] = (interval(values, first), first)
    return found


def numbers_of_first(finished: pd.DataFrame, rule: str) -> pd.Series:
    """n0 of each group of some finished runs, NA for a fixed number of seeds."""
    known = half_widths(finished, rule)
    groups = list(dict.fromkeys(finished.group.dropna()))
    return pd.Series([known[name][1] if name in known else None for name in groups], index=groups, dtype="Int64")


def two_stage_note(
    numbers: pd.Series, what: str = "±95% of these rows is t(n0 − 1)·s0/√n", coverage: str = "95 %"
) -> str:
    """A sentence, with a leading space, if the procedure chose the seeds of some rows; otherwise empty.

    `numbers`: n0 of each row, NA for a fixed number of seeds. `what`: what s0, the deviation of the first n0, is for.
    """
    found = sorted({int(number) for number in numbers.dropna()})
    if not found:
        return ""
    of = "All" if numbers.notna().all() else "Some"
    return (
        f" {of} numbers of seeds were chosen by Stein's two-stage procedure: {what}, with the "
        f"deviation s0 of the first n0 = {' or '.join(map(str, found))} seeds, so that the interval covers with "
        f"{coverage} although n depends on what was seen."
    )
