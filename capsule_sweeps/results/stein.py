"""Stein's two-stage procedure: as many seeds as a confidence interval with a given half-width needs.

The first n0 seeds give a standard deviation s0, and n = max(n0, ⌈(t(n0 − 1) s0 / h)²⌉ seeds are run in all. The
interval mean ± t(n0 − 1) s0 / √n covers the true mean with exactly 95 % for normal accuracies, although n depends on
the data, because s0 is independent of the mean. An interval that is recomputed after every seed until it is narrow
does not (docs/seeds.md). Functions accept numbers or arrays; all values are in one unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from capsule_sweeps.results.intervals import t_quantile

ROUNDING = 1e-9  # of (t s / h)²: 25.000000000001 seeds are 25


def num_seeds(std: Any, first: int, wanted: float) -> Any:
    """The number of seeds for the half-width `wanted`, given the deviation of the `first` ones; at least `first`."""
    asked = (t_quantile(first - 1) * np.asarray(std, float) / wanted) ** 2
    return np.maximum(first, np.ceil(asked * (1 - ROUNDING))).astype(np.int64)


def two_stage_half_width(std: Any, first: int, n: Any) -> Any:
    """Half the width of the 95 % interval of a mean over n seeds, given the deviation of the `first` ones."""
    return t_quantile(first - 1) * np.asarray(std, float) / np.sqrt(np.asarray(n, float))


def of_values(values: pd.Series, first: int) -> float:
    """`two_stage_half_width` of accuracies indexed by seed; NaN for fewer than `first` of them."""
    if len(values) < first:
        return math.nan
    std = float(values.sort_index().iloc[:first].std(ddof=1))
    return float(two_stage_half_width(std, first, len(values)))


def half_widths(finished: pd.DataFrame, rule: str, first: Mapping[str, int]) -> dict[str, float]:
    """Group → `of_values` in percentage points, for the groups whose number of first seeds is known."""
    found = {}
    for group, own in finished[finished.group.isin(list(first))].groupby("group"):
        values = pd.Series(100 * own[f"accuracy_{rule}"].to_numpy(), index=own.seed)
        if len(values) >= first[str(group)]:
            found[str(group)] = of_values(values, first[str(group)])
    return found


def two_stage_note(finished: pd.DataFrame, first: Mapping[str, int]) -> str:
    """A sentence, with a leading space, if the procedure chose the seeds of some of these runs; otherwise empty."""
    counts = finished[finished.group.isin(list(first))].groupby("group").size()
    numbers = sorted({first[str(group)] for group, n in counts.items() if n >= first[str(group)]})
    if not numbers:
        return ""
    of = "All" if finished.group.isin(list(first)).all() else "Some"
    return (
        f" {of} numbers of seeds were chosen by Stein's two-stage procedure: the half_width of these groups is "
        f"t(n0 − 1)·s0/√n, with the deviation s0 of their first n0 = {' or '.join(map(str, numbers))} seeds, so that "
        "the 95 % hold although n depends on what was seen."
    )
