"""The arithmetic of tables: against numbers worked out by hand, published power tables, and scipy."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from capsule_sweeps.results.intervals import compare, half_width, seeds_needed

accuracies = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=3, max_size=8)


def by_seed(*values: float, first: int = 0) -> pd.Series:
    return pd.Series(values, index=range(first, first + len(values)), dtype=float)


@settings(max_examples=50, deadline=None)
@given(accuracies)
def test_interval_is_that_of_scipy(values) -> None:
    assume(np.std(values) > 1e-6)
    mean, width = np.mean(values), half_width(np.std(values, ddof=1), len(values))
    wanted = stats.t.interval(0.95, len(values) - 1, mean, stats.sem(values))
    assert (mean - width, mean + width) == pytest.approx(wanted)
    assert math.isnan(half_width(1.0, 1))


@settings(max_examples=50, deadline=None)
@given(accuracies, accuracies)
def test_paired_is_that_of_scipy(ours, base) -> None:
    n = min(len(ours), len(base))
    assume(np.std(np.subtract(ours[:n], base[:n])) > 1e-3)
    found, wanted = compare(by_seed(*ours[:n]), by_seed(*base[:n])), stats.ttest_rel(ours[:n], base[:n])
    assert found.p_value == pytest.approx(wanted.pvalue, rel=1e-6, abs=1e-12)
    low, high = wanted.confidence_interval(0.95)
    assert (found.difference - found.half_width, found.difference + found.half_width) == pytest.approx((low, high))


@settings(max_examples=50, deadline=None)
@given(accuracies, accuracies)
def test_without_common_seeds_it_is_welch(ours, base) -> None:
    assume(np.std(ours) > 1e-3 and np.std(base) > 1e-3)
    found = compare(by_seed(*ours), by_seed(*base, first=100))
    wanted = stats.ttest_ind(ours, base, equal_var=False)
    assert not found.paired and found.n == min(len(ours), len(base))
    assert found.p_value == pytest.approx(wanted.pvalue, rel=1e-6, abs=1e-12)
    low, high = wanted.confidence_interval(0.95)
    assert (found.difference - found.half_width, found.difference + found.half_width) == pytest.approx((low, high))


def test_only_common_seeds_are_paired_in_whatever_order() -> None:
    found = compare(pd.Series({2: 2.0, 1: 3.0, 0: 1.0, 9: 50.0}), pd.Series({0: 0.0, 1: 1.0, 2: 1.0, 7: -50.0}))
    assert found == compare(by_seed(1, 3, 2), by_seed(0, 1, 1))


def test_one_common_seed_of_several_is_no_pairing() -> None:
    assert not compare(by_seed(1, 2, 3), by_seed(3, 2, 1, first=2)).paired


def test_of_one_pair_only_the_difference_is_known() -> None:
    found = compare(by_seed(3), by_seed(1))
    assert (found.n, found.paired, found.difference, found.seeds_needed) == (1, True, 2, None)
    assert math.isnan(found.half_width) and math.isnan(found.p_value)
    assert math.isnan(compare(by_seed(3), by_seed(1, 2, first=5)).p_value)


def test_without_spread_nothing_is_known_but_the_difference() -> None:
    """Accuracies are counts of images: two seeds may differ by the same number of images, which is no certainty."""
    found = compare(by_seed(2, 3, 4), by_seed(1, 2, 3))
    assert found.difference == 1 and math.isnan(found.half_width) and math.isnan(found.p_value)
    assert found.seeds_needed is None
    rounded = compare(by_seed(98.24, 96.98), by_seed(97.23, 95.97))  # 1.01 twice, but for rounding
    assert rounded.difference == pytest.approx(1.01) and math.isnan(rounded.p_value)
    found = compare(by_seed(1, 2, 3), by_seed(1, 2, 3))
    assert (found.difference, found.half_width, found.p_value, found.seeds_needed) == (0, 0, 1, None)
    assert math.isnan(compare(by_seed(2, 2), by_seed(1, 1, first=5)).p_value)


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_pairs_needed_are_those_of_power_tables(effect, n) -> None:
    """Two-sided paired t-test, 5 %, power 0.8."""
    assert seeds_needed(effect, 1.0) == n == seeds_needed(-3 * effect, 9.0)


@pytest.mark.parametrize(("effect", "n"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_seeds_of_two_groups_are_those_of_power_tables(effect, n) -> None:
    """Two-sided t-test of two independent groups, 5 %, power 0.8."""
    assert seeds_needed(effect, 1.0, 1.0) == n


def test_no_number_of_seeds_shows_nothing() -> None:
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-5, 1.0) is None
    assert seeds_needed(100.0, 1e-4) == 2
