"""Stein's two-stage procedure: its numbers, and its coverage beside that of stopping when the interval is narrow."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from capsule_sweeps.results.intervals import half_width
from capsule_sweeps.results.stein import num_seeds, of_values, two_stage_half_width

ROOT = Path(__file__).resolve().parents[2]
SWEEPS, FIRST, MOST = 20_000, 5, 100
SPREADS = [0.3, 0.6, 1.0, 2.0]  # deviation over seeds, in units of the half-width asked for


def test_the_numbers_are_those_of_the_formula() -> None:
    """t(4) at 97.5 % is 2.776445."""
    assert num_seeds(0.3, 5, 0.25) == 12  # (2.776445 · 0.3 / 0.25)² = 11.1
    assert num_seeds(0.0, 5, 0.25) == 5 and num_seeds(0.1, 5, 0.25) == 5
    assert two_stage_half_width(0.3, 5, 12) == pytest.approx(2.776445 * 0.3 / 12**0.5)
    assert num_seeds(2.5 / 2.7764451051977987, 5, 0.25) == 100  # exactly 100 seeds, whatever the rounding
    values = pd.Series([1.0, 3.0, 100.0, 2.0], index=[0, 1, 7, 2])  # the first three are seeds 0, 1 and 2
    assert of_values(values, 3) == pytest.approx(4.302653 * 1.0 / 2)
    assert np.isnan(of_values(values, 5))


def two_stage(values: np.ndarray) -> tuple[float, float]:
    """Share of simulated sweeps whose interval has the true mean 0, and their mean number of seeds; ±1 is asked for."""
    std = values[:, :FIRST].std(1, ddof=1)
    n = np.minimum(num_seeds(std, FIRST, 1.0), MOST)
    means = values.cumsum(1)[np.arange(SWEEPS), n - 1] / n
    return (abs(means) <= two_stage_half_width(std, FIRST, n)).mean(), n.mean()


def naive(values: np.ndarray, first: int) -> tuple[float, float]:
    """The same for adding a seed to `first` ones until the t interval is narrow."""
    sums, numbers = values.cumsum(1), np.arange(1, MOST + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        widths = half_width(np.sqrt(((values**2).cumsum(1) - sums**2 / numbers) / (numbers - 1)), numbers)
    stop = (widths[:, first - 1 :] <= 1) | (numbers[first - 1 :] == MOST)
    last, rows = stop.argmax(1) + first - 1, np.arange(SWEEPS)
    return (abs(sums[rows, last] / numbers[last]) <= widths[rows, last]).mean(), (last + 1).mean()


def test_two_stages_keep_the_coverage_and_naive_stopping_does_not() -> None:
    rng, page = np.random.default_rng(0), (ROOT / "docs/seeds.md").read_text()
    worst = 1.0
    for spread in SPREADS:
        values = rng.normal(0, spread, (SWEEPS, MOST))
        found = [two_stage(values), naive(values, FIRST), naive(values, 3)]
        assert 0.94 <= found[0][0] <= 0.96, (spread, found)
        worst = min(worst, found[2][0])
        cells = [text for share, seeds in found for text in (f"{100 * share:.1f} %", f"{seeds:.1f}")]
        line = r" *\| *".join(map(re.escape, [f"| {spread:g}", *cells]))
        assert re.search(line, page), [f"{spread:g}", *cells]  # docs/seeds.md shows these numbers
    assert worst < 0.91
