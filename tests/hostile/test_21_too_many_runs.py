"""Sweeps without an end are refused at once, before anything is made of them."""

from __future__ import annotations

import tracemalloc

import pytest

from capsule_sweeps.config.points import sweep_points


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=range(1000000)", "1000000 points, more than hydra.sweeper.max_runs=10000"),
        ("seed=range(1000000000000)", "more than"),
        ("seed=shuffle(range(1000000000000))", "more than"),
        ("seed=range(0,1,1e-300)", "more than"),
        ("seed=range(0,10,0)", "step"),
        ("seed=range(0,10,-1)", "no values"),
        ("seed=range(inf)", "has no end"),
        ("seed=range(1" + 400 * "0" + ")", "has no end"),
        ("seed=interval(0,1)", "is not available"),
        ("seed=1,range(2,4)", r"seed=1,range\(2,4\) is not available: write all values"),
        ("routing=glob(*),em", "is not available: write all values"),
        ("seed=" + 1000 * "[" + 1000 * "]", "brackets"),
    ],
)
def test_sweep_without_an_end_is_refused_before_it_is_made(override, words) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=words):
            sweep_points([override, "num_routing=1"])
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_products_of_files_are_counted_as_well() -> None:
    params = {f"+k{n}": "range(99)" for n in range(5)}
    with pytest.raises(ValueError, match="= 9509900499 points"):
        sweep_points([], params)
    with pytest.raises(ValueError, match=r"99 \+ 99 \+ 1 = 199 points, more than hydra\.sweeper\.max_runs=198"):
        sweep_points([], points=[{"a": "range(99)"}, {"b": "range(99)"}, {}], max_runs=198)
    assert len(sweep_points([], points=[{"a": "range(99)"}, {"b": "range(99)"}], max_runs=198)) == 198
