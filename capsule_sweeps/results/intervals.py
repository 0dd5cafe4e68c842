"""Statistics of runs that differ only in their seed: intervals, comparisons, and required numbers of seeds.

scipy is imported inside the functions that need it, so listing runs stays fast. Accuracies may be fractions or percent;
results are in the unit of the input.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

LEVEL = 0.95  # of every interval
POWER = 0.8  # probability of detecting a true difference
MOST_SEEDS = 100_000
NO_SPREAD = 1e-24  # variances of what is alike but for rounding, over the square of the values
ALIKE = 1e-9  # the same for a deviation, in percentage points


@dataclass(frozen=True)
class Comparison:
    """One group minus another, with the half-width of its 95 % interval and a two-sided p-value (NaN when unknown).

    `n` counts pairs if `paired`, else the runs of the smaller group. `seeds_needed` is the number of seeds (of each
    group) that would show a difference of this size, see `seeds_needed`; None if there is none or it is unknown.
    `first_seeds` is the number of seeds that the deviation is of, if a procedure chose n from these; otherwise None.
    """

    n: int
    paired: bool
    difference: float
    half_width: float
    p_value: float
    seeds_needed: int | None
    first_seeds: int | None = None


def by_seed(runs: pd.DataFrame, rule: str) -> pd.Series:
    """The accuracies in percent, indexed by seed, of some finished runs of a group, rows of `load_runs`."""
    return pd.Series(100 * runs[f"accuracy_{rule}"].to_numpy(), index=list(runs.seed))


def half_width(std: Any, n: Any) -> Any:
    """Half the width of the 95 % interval of a mean: t(0.975, n − 1) · std / √n; accepts arrays. NaN for n = 1, and
    for std = 0: accuracies are counts of images, so a few runs may well be alike, which says nothing about others."""
    std, n = np.asarray(std, float), np.asarray(n, float)
    return np.where(std > ALIKE, t_quantile(n - 1) * std / np.sqrt(n), np.nan)


def t_quantile(df: Any) -> Any:
    """The 97.5 % quantile of Student's t; NaN for df < 1."""
    from scipy.special import stdtrit  # importing scipy.stats would take half a second longer

    df = np.asarray(df, float)
    return np.where(df > 0, stdtrit(np.where(df > 0, df, 1.0), (1 + LEVEL) / 2), np.nan)


def deviation(values: pd.Series, first: int | None) -> tuple[float, int]:
    """The deviation s0 of the first seeds of accuracies indexed by seed, and the number n0 of these.

    For `first=None`, or fewer values than `first`, those of all values.
    """
    n0 = first if first is not None and len(values) >= first else len(values)
    return (float(values.sort_index().iloc[:n0].std(ddof=1)) if n0 > 1 else math.nan), n0


def compare(values: pd.Series, base: pd.Series, *first: int | None) -> Comparison:
    """`values` minus `base`, two Series of accuracies indexed by seed.

    Paired by seed (paired t-test) if at least two seeds are in both groups, or the groups have the same seeds;
    otherwise by Welch's t-test, which assumes independent groups. For a single pair, and if all differences are equal
    and not 0, only the difference is known.
    `first`: the number of first seeds from which a procedure chose the size of each group; None for fixed sizes. Then
    only the deviation of these seeds counts, as in `stein`, because it is independent of the means.
    """
    from scipy.special import stdtr

    common = values.index.intersection(base.index)
    paired = len(common) >= 2 or set(values.index) == set(base.index)
    if paired:
        values, base = values[common], base[common]
    begun = [min((number for number in first if number is not None), default=None)] if paired else list(first)
    differing = [values - base] if paired else [values, base]
    n, difference = min(len(values), len(base)), float(values.mean() - base.mean())
    variances = [float(group.var(ddof=1)) for group in differing]  # NaN for one run
    if any(map(math.isnan, variances)):
        return Comparison(n, paired, difference, math.nan, math.nan, None)
    if max(variances) < NO_SPREAD * max(1.0, *values.abs(), *base.abs()) ** 2:
        # Accuracies are counts of images, so few runs may well be alike: that says nothing about how runs vary
        same = abs(difference) < NO_SPREAD**0.5
        return Comparison(n, paired, difference, 0.0 if same else math.nan, 1.0 if same else math.nan, None)
    needed = seeds_needed(difference, *variances)
    found = [deviation(group, number) for group, number in zip(differing, begun or [None, None], strict=True)]
    known = [n0 for (_, n0), number in zip(found, begun, strict=False) if n0 == number]
    parts = [(std**2 / len(group), n0 - 1) for (std, n0), group in zip(found, differing, strict=True)]
    if not (square := sum(part for part, _ in parts)):  # no spread among the first seeds
        return Comparison(n, paired, difference, math.nan, math.nan, needed, min(known, default=None))
    df = square**2 / sum(part**2 / df for part, df in parts)
    width, p_value = float(t_quantile(df)) * math.sqrt(square), 2 * float(stdtr(df, -abs(difference) / square**0.5))
    return Comparison(n, paired, difference, width, p_value, needed, min(known, default=None))


def holm(p_values: pd.Series) -> pd.Series:
    """p-values with Holm's correction for their number (family-wise error rate), same index; NaN stays NaN."""
    ranked = p_values.dropna().sort_values()
    factors = np.arange(len(ranked), 0, -1)
    return (ranked * factors).cummax().clip(upper=1.0).reindex(p_values.index)


def seeds_needed(difference: float, *variances: float) -> int | None:
    """The number of seeds that show a difference of this size at the 5 % level with a probability (power) of 80 %.

    `variances`: one, of paired differences, and the result counts pairs; or those of two independent groups, and the
    result counts the seeds of each. The power is that of the two-sided t-test, from the noncentral t distribution. The
    search starts at the n of the normal approximation, which is never too large. At least 2; None if the difference is
    0 or MOST_SEEDS are not enough.
    """
    from scipy.special import ndtri
    from scipy.stats import nct

    if difference == 0:
        return None
    if not any(variances):
        return 2
    effect = abs(difference) / math.sqrt(sum(variances))
    n = max(2, math.ceil(((ndtri((1 + LEVEL) / 2) + ndtri(POWER)) / effect) ** 2) - 1)
    share = sum(variances) ** 2 / sum(variance**2 for variance in variances)  # 1 for pairs, 1 to 2 for two groups
    while n <= MOST_SEEDS:
        df, shift = share * (n - 1), effect * math.sqrt(n)
        critical = float(t_quantile(df))
        if nct.sf(critical, df, shift) + nct.cdf(-critical, df, shift) >= POWER:
            return n
        n += 1
    return None
