"""Stein's two-stage procedure: its numbers, and its coverage beside that of stopping when the interval is narrow."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from capsule_sweeps.results.intervals import compare, deviation, half_width
from capsule_sweeps.results.stein import num_seeds, two_stage_half_width

ROOT = Path(__file__).resolve().parents[2]
SWEEPS, FIRST, MOST = 20_000, 5, 100
SPREADS = [0.3, 0.6, 1.0, 2.0]  # deviation over seeds, in units of the half-width asked for


def test_the_numbers_are_those_of_the_formula() -> None:
    """t(4) at 97.5 % is 2.776445."""
    assert num_seeds(0.3, 5, 0.25) == 12  # (2.776445 · 0.3 / 0.25)² = 11.1
    assert num_seeds(0.3, 5, 1e-200) == 10**15, "no overflow"
    assert num_seeds(0.0, 5, 0.25) == 5 and num_seeds(0.1, 5, 0.25) == 5
    assert two_stage_half_width(0.3, 5, 12) == pytest.approx(2.776445 * 0.3 / 12**0.5)
    assert num_seeds(2.5 / 2.7764451051977987, 5, 0.25) == 100  # exactly 100 seeds, whatever the rounding
    values = pd.Series([1.0, 3.0, 100.0, 2.0], index=[0, 1, 7, 2])  # the first three are seeds 0, 1 and 2
    assert deviation(values, 3) == (1.0, 3)
    assert deviation(values, 5) == deviation(values, None) == (pytest.approx(float(values.std())), 4)


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


def test_resolved_differences_keep_the_coverage_and_so_do_the_means_of_their_groups() -> None:
    """Three groups with common seeds, as `resolve` plans them: the differences of neighbors choose the numbers.

    The interval t(n0 − 1)·s0/√n of the procedure covers, and so it does for what did not choose: the mean of a group
    and the difference of the outer groups. The t interval of a fixed number of seeds does not.
    """
    rng, rows = np.random.default_rng(1), np.arange(SWEEPS)
    shared = rng.normal(0, 1, (SWEEPS, MOST))
    groups = [shared + rng.normal(0, 1, (SWEEPS, MOST)) for _ in range(3)]
    steps = [groups[1] - groups[0], groups[2] - groups[1]]
    asked = [np.minimum(num_seeds(step[:, :FIRST].std(1, ddof=1), FIRST, 1.0), MOST) for step in steps]
    plain = []
    for values, n in (
        (steps[0], asked[0]),
        (groups[0], asked[0]),
        (groups[1], np.maximum(*asked)),
        (groups[2] - groups[0], np.minimum(*asked)),
    ):
        sums, squares = (known.cumsum(1)[rows, n - 1] for known in (values, values**2))
        means, stds = sums / n, np.sqrt((squares - sums**2 / n) / (n - 1))
        width = two_stage_half_width(values[:, :FIRST].std(1, ddof=1), FIRST, n)
        assert 0.94 <= (abs(means) <= width).mean() <= 0.96
        plain.append((abs(means) <= half_width(stds, n)).mean())
    assert plain[0] < 0.94, plain


def test_settling_with_the_difference_seen_would_find_differences_where_there_are_none() -> None:
    """Five pairs without a true difference; those that are open get the seeds for a half-width, and count again."""
    rng, page = np.random.default_rng(2), (ROOT / "docs/seeds.md").read_text()
    fixed, followed = {}, {}
    for sd in (0.3, 1, 5):
        seen = rng.normal(0, sd, (SWEEPS, FIRST))
        mean, std = seen.mean(1), seen.std(1, ddof=1)
        open_yet = abs(mean) <= two_stage_half_width(std, FIRST, FIRST)
        for wanted, found in ((np.full(SWEEPS, 0.5), fixed), (abs(mean), followed)):
            n = np.where(open_yet, np.minimum(num_seeds(std, FIRST, wanted), 10_000), FIRST)
            means = (FIRST * mean + np.sqrt(n - FIRST) * rng.normal(0, sd, SWEEPS)) / n
            found[sd] = 100 * (abs(means) > two_stage_half_width(std, FIRST, n)).mean()
    assert list(followed.values()) == pytest.approx([9.2, 9.2, 9.2], abs=0.6) and "difference in 9 %" in page
    assert list(fixed.values()) == pytest.approx([5.0, 7.0, 8.8], abs=0.6) and "in 5 %, 7 % and 9 %" in page


def test_a_comparison_has_the_deviation_of_the_first_seeds() -> None:
    """Differences 1, 2, 3 of the first three pairs, then 9, 9: s0 = 1, t(2) = 4.302653, mean 4.8."""
    base = pd.Series([5.0, 1.0, 4.0, 2.0, 0.0])
    found = compare(base + pd.Series([1.0, 2, 3, 9, 9]), base, 3, None)
    assert (found.n, found.paired, found.first_seeds) == (5, True, 3)
    assert found.half_width == pytest.approx(4.302653 / 5**0.5, rel=1e-6)
    t = 4.8 * 5**0.5
    assert found.p_value == pytest.approx(1 - t / (t**2 + 2) ** 0.5)
    assert compare(base + 1, base, 7, None).first_seeds is None, "its first seeds are not finished"
    # without common seeds: Welch's t with the deviation of the first three of one group, and of all of the other
    found = compare(pd.Series([1.0, 2.0, 3.0, 7.0], [10, 11, 12, 13]), pd.Series([0.0, 2.0]), 3, None)
    parts = [1 / 4, 2 / 2]
    df = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1)
    from scipy import stats

    assert not found.paired and found.half_width == pytest.approx(stats.t.ppf(0.975, df) * sum(parts) ** 0.5)


def test_evaluations_over_seeds_have_the_interval_of_the_procedure() -> None:
    from capsule_sweeps.evaluation.many import show_many, summary

    frame = pd.DataFrame({"run": list("abcde"), "seed": range(5), "first_seeds": 3, "group": "g", "images": 10})
    frame = frame.assign(num_routing=1, accuracy=[1.0, 2.0, 3.0, 9.0, 9.0])
    assert summary(frame)["±"].tolist() == [pytest.approx(4.302653 / 5**0.5, rel=1e-6)]
    assert "two-stage procedure" in " ".join(show_many(frame, "table").split())
    assert summary(frame.assign(first_seeds=pd.NA))["±"].tolist() == [pytest.approx(half_width(3.8987, 5), rel=1e-4)]
    own = frame.drop(columns="first_seeds")  # made by hand
    assert "4.80" in show_many(own, "table") and show_many(own, "csv").startswith("run,seed,images")
