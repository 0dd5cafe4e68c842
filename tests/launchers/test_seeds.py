"""Seeds until the interval is narrow: what is planned from what is finished, typed again and again."""

import io
import re
from pathlib import Path

import pandas as pd
import pytest
from synthetic import finished_run

from capsule_sweeps import load_runs
from capsule_sweeps.launchers.seed_units import Procedure
from capsule_sweeps.launchers.seeds import launch_seeds
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.sweep import first_seeds

WIDTH = "hydra.sweeper.half_width={}"
DRY = "hydra.launcher.dry_run=true"
SPREAD = [0.900, 0.902, 0.904, 0.906, 0.908]  # deviation of the first five: 0.3162 points


def rows(out: str, title: str) -> list[list[str]]:
    """The cells of the last table with this title."""
    lines = re.split(rf"^{title} *$", out, flags=re.MULTILINE)[-1].partition("└")[0].splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def seeds_table(out: str) -> dict[str, tuple[str, ...]]:
    """runs → (n, half-width so far, still needed, hours)."""
    return {row[0]: tuple(row[1:]) for row in rows(out, "Seeds")}


def planned(out: str) -> dict[str, str]:
    """differs by → action."""
    return {row[1]: row[3] for row in rows(out, "Plan")}


def stamps() -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path("runs").rglob("*")}


@pytest.fixture
def invent(tiny):
    """invent(accuracies, *overrides): finished runs with seeds 0, 1, …; None leaves one out."""

    def make(accuracies: list[float | None], *overrides: str, **more) -> None:
        for seed, accuracy in enumerate(accuracies):
            if accuracy is not None:
                finished_run([*tiny, *overrides, f"seed={seed}"], accuracy, **more)

    return make


@pytest.mark.slow
def test_a_sweep_with_real_runs_adds_seeds_in_two_rounds_and_typed_again_does_nothing(launch) -> None:
    words = ("-m", "num_routing=1,2", WIDTH.format(1.5), "hydra.sweeper.min_seeds=3", "hydra.sweeper.max_seeds=4")
    ended = launch(*words)
    assert ended.code == 0, ended.text
    frame = load_runs("runs")
    assert set(frame.state) == {"finished"}
    for number in (1, 2):
        own = frame[frame.num_routing == number]
        asked = (4.302653 * 100 * own.accuracy_last[:3].std() / 1.5) ** 2
        n = 3 if asked <= 3 else 4
        assert len(own) == n and sorted(own.seed) == list(range(n))
        width = 4.302653 * 100 * own.accuracy_last[:3].std() / n**0.5
        assert re.search(rf"│ +{width:.2f} │", ended.out.rpartition("Results")[2])
    assert "Stein's two-stage procedure" in " ".join(ended.out.rpartition("Results")[2].split())
    before = stamps()
    again = launch(*words)
    assert again.code == 0 and set(planned(again.out).values()) == {"skip"} and stamps() == before
    assert again.out.rpartition("Results")[2] == ended.out.rpartition("Results")[2]


def test_first_the_first_seeds_then_as_many_as_they_ask_for(launch, invent) -> None:
    invent([0.9, 0.902, None, 0.906])
    out = launch("-m", WIDTH.format(0.25), DRY).out
    assert planned(out) == {f"seed={s}": "run" if s in (2, 4) else "skip" for s in range(5)}
    (row,) = seeds_table(out).values()
    assert row[0] == "3" and row[2] == "2 of the first 5"
    invent([None, None, 0.904, None, 0.908])
    out = launch("-m", WIDTH.format(0.25), DRY).out  # (2.776445 · 0.3162 / 0.25)² = 12.3
    assert planned(out) == {f"seed={s}": "skip" if s < 5 else "run" for s in range(13)}
    (row,) = seeds_table(out).values()
    assert row[:3] == ("5", "±0.39", "8")
    assert not list(Path("runs").glob(".sweeps/*")), "a dry run writes nothing"


def test_the_number_of_seeds_depends_on_the_first_ones_only(launch, invent) -> None:
    """Later seeds, however far away they are, change nothing in it: so the coverage holds."""
    invent([*SPREAD, *[0.5, 0.99] * 4])
    out = launch("-m", WIDTH.format(0.25)).out
    assert set(planned(out).values()) == {"skip"} and len(planned(out)) == 13
    assert seeds_table(out) == {"(as configured)": ("13", "±0.24", "0", "0 s")}
    (group,) = {run.group for _, run in load_runs("runs").iterrows()}
    assert first_seeds(Path("runs")) == {group: 5}


def test_at_most_max_seeds_and_the_interval_says_how_wide_it_is(launch, invent) -> None:
    invent(SPREAD)
    out = launch("-m", WIDTH.format(0.1), "hydra.sweeper.max_seeds=7", DRY).out
    assert len(planned(out)) == 7
    (row,) = seeds_table(out).values()
    assert row[2] == "2 of 73, max_seeds=7"  # (2.776445 · 0.3162 / 0.1)² = 77.1: 78 in all


def test_seeds_that_are_named_come_first(launch, invent) -> None:
    out = launch("-m", "seed=7,3", WIDTH.format(0.25), DRY).out
    assert list(planned(out)) == [f"seed={seed}" for seed in (3, 7, 8, 9, 10)]
    ended = launch("-m", "seed=range(9)", WIDTH.format(0.25), "hydra.sweeper.max_seeds=8", DRY)
    assert ended.code == 1 and "seed names 9 seeds, more than hydra.sweeper.max_seeds=8" in ended.text


def test_a_failed_run_is_tried_again_or_passed_over_as_retry_says(launch, invent) -> None:
    invent([None, *SPREAD[1:]])
    invent([0.0], state="failed")
    assert planned(launch("-m", WIDTH.format(3), DRY).out)["seed=0"] == "retry"
    out = launch("-m", WIDTH.format(3), "hydra.launcher.retry=none", DRY).out
    assert planned(out) == {f"seed={s}": "run" if s == 5 else "skip" for s in range(1, 6)}


def test_a_run_that_fails_is_tried_once_per_command_and_reported(launch) -> None:
    ended = launch("-m", "training.lr=1e30", WIDTH.format(3), "hydra.sweeper.min_seeds=2")
    assert ended.code == 1 and ended.text.count("failed,") == 2 and "Traceback" not in ended.text
    assert list(load_runs("runs").seed) == [0, 1]


def test_baselines_and_routings_without_iterations_are_one_group(launch) -> None:
    out = launch("-m", "model=resnet18", "num_routing=1,2", WIDTH.format(1), DRY, base=["dataset=digits"]).out
    assert len(planned(out)) == 5 and len(seeds_table(out)) == 1


def test_the_rule_that_counts_is_selection_rule(launch, tiny, invent) -> None:
    for seed, accuracy in enumerate(SPREAD):
        finished_run([*tiny, f"seed={seed}"], 0.9, best_test=accuracy)
    assert len(planned(launch("-m", WIDTH.format(0.25), DRY).out)) == 5
    assert len(planned(launch("-m", WIDTH.format(0.25), DRY, "selection_rule=best_test").out)) == 13


class Submits:
    """A launcher that does not wait, as a queue's: it remembers what it was given."""

    here = waits = False

    def __init__(self) -> None:
        self.given: list[list[int]] = []

    def num_parallel(self, todo, dry_run) -> int:
        return len(todo)

    def run(self, plan, todo) -> int:
        self.given.append([planned.config.seed for planned in todo])
        return 0


def test_without_waiting_each_call_plans_from_what_is_finished(tiny, tiny_config, invent) -> None:
    submits, procedure = Submits(), Procedure(0.25, max_seeds=13)

    def call() -> list[float | None]:
        def compose(points):
            return [tiny_config(*point) for point in points]

        return launch_seeds([["num_routing=1"]], compose, Policy(), submits, procedure)[2]

    assert call() == [None] and submits.given == [[0, 1, 2, 3, 4]]
    invent(SPREAD[:4])
    assert call() == [None] and submits.given[1:] == [[4]]
    invent([*[None] * 4, SPREAD[4]])
    assert call() == [None] and submits.given[2:] == [list(range(5, 13))]  # 13 seeds, as above
    invent([*[None] * 5, *[0.904] * 8])
    assert call() == [pytest.approx(0.904)] and submits.given[3:] == [[]]


def test_without_waiting_a_side_that_failed_is_tried_again_or_its_seed_passed_over(tiny_config, invent) -> None:
    submits, procedure = Submits(), Procedure(1, min_seeds=2, max_seeds=4, resolve="num_routing")

    def call(policy: Policy) -> list[float | None]:
        def compose(points):
            return [tiny_config(*point) for point in points]

        return launch_seeds([["num_routing=1"], ["num_routing=2"]], compose, policy, submits, procedure)[2]

    assert call(Policy()) == [None, None] and submits.given.pop() == [0, 1, 0, 1]
    invent([0.9, 0.91], "num_routing=1")
    invent([0.8], "num_routing=2")
    invent([None, 0.0], "num_routing=2", state="failed")
    assert call(Policy()) == [pytest.approx(0.905), None] and submits.given.pop() == [1]
    assert call(Policy(retry="none")) == [None, None] and submits.given.pop() == [2, 2]
    invent([None, None, 0.92], "num_routing=1")
    invent([None, None, 0.82], "num_routing=2")
    assert call(Policy(retry="none")) == [pytest.approx(0.91), pytest.approx(0.81)] and submits.given == [[]]


# ── differences ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_difference_is_resolved_seed_by_seed(launch, invent) -> None:
    """Both groups spread widely, their difference does not: five seeds are enough for it."""
    wide = [0.5, 0.6, 0.7, 0.8, 0.9]
    invent(wide, "num_routing=1")
    invent(
        [value + extra for value, extra in zip(wide, (0.01, 0.012, 0.014, 0.016, 0.018), strict=True)], "num_routing=2"
    )
    words = ("-m", "num_routing=1,2", "hydra.sweeper.resolve=num_routing")
    ended = launch(*words, WIDTH.format(0.4))
    assert ended.code == 0 and set(planned(ended.out).values()) == {"skip"} and len(planned(ended.out)) == 10
    assert seeds_table(ended.out) == {"num_routing: 1 → 2": ("5", "±0.39", "0", "0 s")}
    assert rows(ended.out, "Differences") == [["num_routing: 1 → 2", "5", "1.40", "0.39"]]
    out = launch(*words, WIDTH.format(0.25), DRY).out
    assert len(planned(out)) == 26 and seeds_table(out)["num_routing: 1 → 2"][2] == "8"


def test_tables_have_the_interval_of_the_seeds_that_were_resolved(launch, invent, capsule_sweeps) -> None:
    """Differences 1 to 1.8 chose 13 pairs; later ones spread more, which only the interval of fixed numbers sees."""
    wide = [0.5, 0.6, 0.7, 0.8, 0.9]
    invent([*wide, *[0.7] * 8], "num_routing=1")
    steps = [0.010, 0.012, 0.014, 0.016, 0.018, *[0.0, 0.03] * 4]
    invent([value + extra for value, extra in zip([*wide, *[0.7] * 8], steps, strict=True)], "num_routing=2")
    against = ("results", "--against", "num_routing=1", "--format", "csv")
    plain = capsule_sweeps(*against).out
    assert "first_seeds" not in plain
    ended = launch("-m", "num_routing=1,2", "hydra.sweeper.resolve=num_routing", WIDTH.format(0.25))
    assert set(planned(ended.out).values()) == {"skip"} and len(planned(ended.out)) == 26
    table = pd.read_csv(io.StringIO(capsule_sweeps(*against).out)).set_index("num_routing")
    wanted = 2.776445 * 0.316228 / 13**0.5
    assert table.half_width[2] == pytest.approx(wanted, rel=1e-4) and table.first_seeds[2] == 5
    said = " ".join(capsule_sweeps(*against[:3]).out.split())
    assert "All numbers of seeds were chosen by Stein's two-stage procedure" in said and "n0 = 5 seeds" in said
    assert "Stein's two-stage procedure" in " ".join(ended.out.rpartition("Results")[2].split())
    accuracies = pd.read_csv(io.StringIO(capsule_sweeps("results", "--format", "csv").out)).set_index("num_routing")
    assert accuracies.half_width[1] == pytest.approx(2.776445 * 15.811388 / 13**0.5, rel=1e-4)


def test_first_seeds_stay_those_of_the_first_procedure(launch, invent) -> None:
    """Five seeds chose; to call all that they asked for the first ones would be to stop when it is narrow."""
    invent([*SPREAD, *[0.5, 0.99] * 4])
    assert launch("-m", WIDTH.format(0.25)).code == 0
    ended = launch("-m", WIDTH.format(0.25), "hydra.sweeper.min_seeds=13")
    assert ended.code == 1 and "min_seeds=13 is more than the 5 first seeds" in ended.text
    assert set(load_runs("runs").first_seeds) == {5}


def test_groups_without_a_neighbor_get_the_first_seeds(launch) -> None:
    swept = ("-m", "model=capsnet,resnet18", "num_routing=1,2", "hydra.sweeper.resolve=num_routing")
    out = launch(*swept, WIDTH.format(1), DRY, base=["dataset=digits"]).out
    assert len(planned(out)) == 15 and any("no neighbor" in label for label in seeds_table(out))


def test_a_difference_of_which_one_side_fails_is_shown_as_unknown(launch, invent) -> None:
    words = ("-m", "training.lr=0.01,1e30", "hydra.sweeper.resolve=training.lr", WIDTH.format(9))
    invent([0.9, 0.91], "training.lr=0.01")
    invent([0.0, 0.0], "training.lr=1e30", state="failed")
    few = ("hydra.sweeper.min_seeds=2", "hydra.sweeper.max_seeds=2", "hydra.launcher.retry=none")
    ended = launch(*words, *few)
    assert rows(ended.out, "Differences") == [["training.lr: 0.01 → 1e+30", "0", "–", "–"]], ended.text
    said = " ".join(ended.out.split())
    assert "–: fewer than 2 pairs are finished." in said and "No seed is left to run" in said and ended.code == 1


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra.sweeper.half_width=0"], "half_width=0 is out of range"),
        (["hydra.sweeper.half_width=nan"], "half_width=nan is out of range"),
        ([WIDTH.format(1), "hydra.sweeper.min_seeds=1"], "min_seeds=1 is out of range"),
        ([WIDTH.format(1), "hydra.sweeper.max_seeds=3"], "max_seeds=3 is less than hydra.sweeper.min_seeds=5"),
        ([WIDTH.format(1), "hydra.sweeper.max_seeds=100000"], "more than hydra.sweeper.max_runs"),
        (["hydra.sweeper.resolve=num_routing"], "has no effect: set hydra.sweeper.half_width"),
        ([WIDTH.format(1), "hydra.sweeper.resolve=num_routing"], "has nothing to compare"),
        ([WIDTH.format(1), "hydra.launcher.force=true"], "plans from what is finished"),
        ([WIDTH.format(1), "debug=true"], "debug=true leaves no runs"),
        ([WIDTH.format(1), "seed=2147483647"], "seed=2147483647 is out of range: 19 more seeds follow it"),
    ],
)
def test_what_cannot_be_is_one_sentence(launch, place, words, said) -> None:
    ended = launch("-m", *words)
    assert ended.code == 1 and said in ended.text and "Traceback" not in ended.text
    assert list(place.iterdir()) == []


def test_it_is_for_sweeps(launch, place) -> None:
    ended = launch(WIDTH.format(1))
    assert ended.code == 1 and "add -m" in ended.text and list(place.iterdir()) == []
