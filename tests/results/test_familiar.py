"""familiar.py: novel views at the same familiar accuracy, against numbers by hand."""

import json
from pathlib import Path

import pytest
from synthetic import finished_run

from capsule_sweeps import load_runs
from capsule_sweeps.results.familiar import familiar_notes, familiar_table

NORB = ["dataset=small_norb", "dataset.val_size=8100"]


def trained(overrides: list[str], familiar: list[float], novel: list[float]) -> None:
    folder = finished_run([*NORB, *overrides], novel[-1])
    rows = [
        {"epoch": epoch, "val_accuracy": seen, "test_accuracy": new}
        for epoch, (seen, new) in enumerate(zip(familiar, novel, strict=True), 1)
    ]
    Path(getattr(folder, "folder", folder), "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def some(place) -> None:
    for seed, (familiar, novel) in enumerate([([0.80, 0.90, 0.91], [0.70, 0.75, 0.80]), ([0.91, 0.92], [0.71, 0.70])]):
        trained(["dataset.views=azimuth", f"seed={seed}"], familiar, novel)
    # 0.93 and 0.89 are equally near to 0.91: the earlier one counts
    trained(["dataset.views=azimuth", "num_routing=2"], [0.5, 0.93, 0.89, 0.99], [0.4, 0.85, 0.83, 0.9])
    trained(["dataset.views=elevation"], [0.70, 0.60], [0.50, 0.40])
    trained(["dataset.views=all"], [0.70, 0.60], [0.50, 0.40])


def test_epoch_with_the_nearest_familiar_accuracy_counts(some) -> None:
    table = familiar_table(load_runs("runs"), "lowest").set_index(["views", "num_routing"])
    one, two, other = table.loc["azimuth", 1], table.loc["azimuth", 2], table.loc["elevation", 1]
    assert one.level == two.level == pytest.approx(91) and other.level == pytest.approx(60)  # of each kind of views
    assert (one.n, two.n, other.n) == (2, 1, 1)
    assert [one.familiar_last, one.novel_last] == pytest.approx([91.5, 75])
    assert [one.familiar, one.novel] == pytest.approx([91, (80 + 71) / 2])  # last epoch of seed 0, first of seed 1
    assert one["std"] == pytest.approx(9 / 2**0.5) and one.half_width == pytest.approx(12.706205 * 9 / 2, rel=1e-6)
    assert [two.familiar_last, two.familiar, two.novel] == pytest.approx([99, 93, 85])
    assert [other.familiar, other.novel] == pytest.approx([60, 40])


def test_runs_that_never_reach_the_level_do_not_count(some) -> None:
    table = familiar_table(load_runs("runs"), "91.5").set_index(["views", "num_routing"])
    assert table.n.to_dict() == {("azimuth", 1): 1, ("azimuth", 2): 1, ("elevation", 1): 0}
    assert table.novel["azimuth", 1] == pytest.approx(71)  # 91 and 92 are equally near
    assert table.novel.isna()["elevation", 1] and table.familiar_last["elevation", 1] == pytest.approx(60)


def test_where_a_procedure_chose_the_seeds_the_interval_is_its_own(place) -> None:
    """Novel 70, 71, 72, then 79, 79: s0 = 1 of the first three, t(2) = 4.302653, n = 5."""
    for seed, novel in enumerate([0.70, 0.71, 0.72, 0.79, 0.79]):
        trained(["dataset.views=azimuth", f"seed={seed}"], [0.9], [novel])
    runs = load_runs("runs").assign(first_seeds=3)
    table = familiar_table(runs, "lowest")
    assert table.first_seeds.tolist() == [3] and table.half_width[0] == pytest.approx(4.302653 / 5**0.5, rel=1e-6)
    assert "first n0 = 3 seeds" in familiar_notes(table, runs)
    trained(["dataset.views=azimuth", "seed=5"], [0.5], [0.7])  # never reaches the level
    runs = load_runs("runs").assign(first_seeds=3)
    table = familiar_table(runs, "90")
    assert "first_seeds" not in table and table.n[0] == 5 and "n0" not in familiar_notes(table, runs)


def test_command(some, capsule_sweeps) -> None:
    ended = capsule_sweeps("results", "dataset.views=azimuth", "--at-familiar", "lowest")
    assert ended.code == 0 and "level=91.00" in ended.out and "75.50" in ended.out and "85.00" in ended.out, ended.text
    assert "dataset=small_norb" in ended.out and "Only finished" in ended.out
    assert json.loads(capsule_sweeps("results", "--at-familiar", "91", "--format", "json").out)
    for words, sentence in {
        ("--at-familiar", "high"): "--at-familiar high: set an accuracy in percent",
        ("--at-familiar", "0.9", "dataset.views=all"): "none of these runs is finished and was tested on familiar",
        ("--at-familiar", "101"): "--at-familiar 101: set",
        ("--at-familiar", "nan"): "--at-familiar nan: set",
        ("--at-familiar", "lowest", "--rule", "last"): "leave out one of them",
        ("--at-familiar", "lowest", "--by", "views"): "leave out --against",
    }.items():
        ended = capsule_sweeps("results", *words)
        assert ended.code == 1 and sentence in ended.err and ended.err.count("\n") == 1, ended.text
