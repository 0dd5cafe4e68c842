"""Tables: from run folders to numbers that never stand without rule, n and spread."""

import importlib
import inspect
import io
import json
import re
import signal
from argparse import Namespace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import finished_run

from capsule_sweeps import compose_config, load_metrics, load_runs
from capsule_sweeps.cli.status import clipped, show
from capsule_sweeps.config import selection_rules
from capsule_sweeps.config.moved import PRESENT_SPELLING
from capsule_sweeps.console import console
from capsule_sweeps.results import against
from capsule_sweeps.results.against import Pair, against_table
from capsule_sweeps.results.against_shown import against_notes, shown_differences
from capsule_sweeps.results.fairness import comparison_notes
from capsule_sweeps.results.figures import forest_plot
from capsule_sweeps.results.fitted import shorten
from capsule_sweeps.results.overview import briefly, sweep_table
from capsule_sweeps.results.pivot import pivot
from capsule_sweeps.results.render import render
from capsule_sweeps.results.sections import by_sweep
from capsule_sweeps.results.tables import accuracy_table, cost_table, for_people, notes, stale_note
from capsule_sweeps.runs import filters, neutral
from capsule_sweeps.runs.differences import facts
from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.neutral import routing_settings, setting
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import NEUTRAL, columns, signed_config

ROOT = Path(__file__).resolve().parents[2]
DEMANDED = {"run", "signature", "state", "dataset", "model", "backbone", "routing", "schedule", "num_routing", "seed"}
DEMANDED |= {"epochs", "parameters", "accuracy_last", "accuracy_best_test", "accuracy_best_val", "seconds"}


@pytest.fixture
def invent(place):
    """A finished run's folder without training: overrides → accuracies (last, best_test, best_val)."""

    def make(overrides: list[str], last: float, best_test: float = 1.0, best_val: float | None = None) -> Path:
        config = compose_config(["dataset=digits", *overrides])
        described = columns(config)
        folder = Path("runs") / described["run"]
        folder.mkdir(parents=True)
        found = {"accuracy_last": last, "accuracy_best_test": best_test, "accuracy_best_val": best_val}
        summary = {**described, **found, "seconds": 1.5, "parameters": 10}
        write_json(folder / "run.json", {**summary, "state": "finished", "signed_config": signed_config(config)})
        write_json(folder / "summary.json", summary)
        return folder

    return make


def test_columns_and_types_of_load_runs(launch, trained, runs) -> None:
    assert launch("-m", "num_routing=1,2", "seed=0").code == 0
    assert launch("seed=5", "dataset.val_size=20", signal_at=(signal.SIGTERM, 7)).code == 143
    assert trained("training.lr=1e30").code == 1
    frame = load_runs("runs")
    assert set(frame.columns) >= DEMANDED
    assert sorted(frame.state) == ["failed", "finished", "finished", "interrupted"]
    assert list(frame.run) == [folder.name for folder in runs.folders()]
    assert all(run.endswith(signature) for run, signature in zip(frame.run, frame.signature, strict=True))
    finished = frame[frame.state == "finished"]
    assert finished.accuracy_last.between(0, 1).all() and finished.accuracy_best_test.between(0, 1).all()
    assert finished.accuracy_best_val.isna().all() and (finished.seconds > 0).all()
    assert frame[frame.state != "finished"].accuracy_last.isna().all()
    first = finished.iloc[0]
    assert (first.dataset, first.model, first.backbone) == ("digits", "capsnet", "simple")
    assert (first.routing, first.schedule, first.epochs) == ("inverted_attention", "concurrent", 2)
    for column in ("num_routing", "seed", "epochs", "parameters"):
        assert pd.api.types.is_integer_dtype(frame[column]), column
    for column in ("accuracy_last", "accuracy_best_test", "accuracy_best_val", "seconds"):
        assert frame[column].dtype == float, column


def test_summary_holds_the_same_accuracies(launch, runs) -> None:
    assert launch("dataset.val_size=20", "training.epochs=3", "training.ema=0.9").code == 0
    summary, row = json.loads((runs.only() / "summary.json").read_text()), load_runs("runs").iloc[0]
    for rule in selection_rules.names():
        assert summary[f"accuracy_{rule}"] == row[f"accuracy_{rule}"]
    assert summary["seconds"] == row.seconds == pytest.approx(sum(r["seconds"] for r in runs.metrics(runs.only())))


def test_running_and_new(hold, runs) -> None:
    hold("step", 3)
    assert load_runs("runs").state.tolist() == ["running"]
    Run(Path("runs/x-00000000")).folder.mkdir()
    assert load_runs("runs").set_index("signature").state["00000000"] == "new"


def test_no_runs(place) -> None:
    for runs_dir in ("nothing", "."):
        frame = load_runs(runs_dir)
        assert len(frame) == 0 and set(frame.columns) >= DEMANDED
        assert len(accuracy_table(frame, "last")) == 0
        assert frame.accuracy_last.dtype == float


def test_mean_and_sample_deviation_over_seeds(invent) -> None:
    values = [0.9, 0.92, 0.97]
    for seed, value in enumerate(values):
        invent([f"seed={seed}"], value)
    invent(["num_routing=2"], 0.5)
    table = accuracy_table(load_runs("runs"), "last")
    three, one = table.iloc[0], table.iloc[1]
    assert list(table.dataset) == ["digits"] * 2 and list(table.num_routing) == [1, 2]
    assert (three.n, three["mean"]) == (3, pytest.approx(100 * np.mean(values)))
    assert three["std"] == pytest.approx(100 * np.std(values, ddof=1))
    assert (three["min"], three["max"]) == (pytest.approx(90), pytest.approx(97))
    assert one.n == 1 and np.isnan(one["std"])  # one seed has no deviation, not 0
    text = render(accuracy_table(load_runs("runs"), "last"), "md")
    assert "| digits | 2 | 1 | 50.00 | – | – | 50.00 | 50.00 | last |" in text
    assert three.half_width == pytest.approx(4.302653 * three["std"] / np.sqrt(3))  # t(0.975, 2)
    assert np.isnan(one.half_width)


def test_rule_decides_and_runs_without_it_are_left_out_loudly(invent) -> None:
    invent(["seed=0"], 0.5, best_test=0.75, best_val=0.625)
    invent(["seed=1"], 0.5, best_test=0.75)
    frame = load_runs("runs")
    for rule, mean in (("last", 50), ("best_test", 75), ("best_val", 62.5)):
        row = accuracy_table(frame, rule).iloc[0]
        assert row["mean"] == mean and row.n == (1 if rule == "best_val" else 2)
        assert f"selection rule: {rule}" in notes(frame, rule)
    assert "without validation" in notes(frame, "best_val")
    assert accuracy_table(frame, "ema_last").empty and "without averaged weights" in notes(frame, "ema_last")


def test_what_differs_is_never_averaged(invent) -> None:
    invent(["seed=0"], 0.5)
    invent(["seed=0", "training.lr=0.05"], 0.6)
    invent(["seed=0", "capsules.dropout=0.1"], 0.7)
    rows = accuracy_table(load_runs("runs"), "last")
    assert sorted(rows["mean"]) == pytest.approx([50, 60, 70]) and set(rows.n) == {1}
    assert list(rows["lr"]).count(0.05) == 1 and list(rows.dropout).count(0.1) == 1
    invent(["seed=0", "backbone=resnet"], 0.8)
    assert set(accuracy_table(load_runs("runs"), "last").backbone) == {"simple", "resnet"}


def test_unfinished_runs_are_reported_as_left_out(invent) -> None:
    invent(["seed=0"], 0.5)
    (invent(["seed=1"], 0.9) / "summary.json").unlink()
    frame = load_runs("runs")
    assert accuracy_table(frame, "last").iloc[0].n == 1
    assert "1 of 2 runs" in notes(frame, "last")


def test_every_table_names_its_rule_and_finished_runs(invent, capsule_sweeps) -> None:
    invent(["seed=0"], 0.5)
    for form in ("table", "md", "tex"):
        text = " ".join(capsule_sweeps("results", "--rule", "best_test", "--format", form).out.split())
        assert "selection rule: best" in text and "Only finished runs are included" in text and "95" in text


def test_num_routing_is_compared_seed_by_seed(invent) -> None:
    for num_routing, values in {1: [0.90, 0.91, 0.92], 2: [0.91, 0.93, 0.93], 3: [0.90, 0.92, 0.91], 4: [0.5]}.items():
        for seed, value in enumerate(values):
            invent([f"num_routing={num_routing}", f"seed={seed}"], value)
    invent(["num_routing=1", "training.lr=0.05"], 0.1)
    found = against_table(load_runs("runs"), "num_routing=1", "last").set_index("num_routing")
    assert [(found.n[key], found.paired[key]) for key in "234"] == [(3, True), (3, True), (1, False)]
    assert found.difference["2"] == pytest.approx(4 / 3) and found.half_width["2"] == pytest.approx(4.302653 / 3)
    assert found.p_value["2"] == pytest.approx(1 - 4 / np.sqrt(18)) and found.seeds_needed["2"] == 4
    assert found.p_holm["2"] == pytest.approx(2 * found.p_value["2"])  # of two p-values the smaller one counts twice
    assert found.p_holm["3"] == pytest.approx(found.p_value["3"]) and found.difference["3"] == pytest.approx(0)
    assert found.difference["1"] == 0 and found["mean"]["1"] == pytest.approx(91)


def test_rows_without_an_interval_or_without_pairs_are_named(invent) -> None:
    for num_routing, seeds in {1: [0, 1, 2], 2: [0, 1], 3: [2, 3], 4: [1]}.items():
        for seed in seeds:
            invent([f"num_routing={num_routing}", f"seed={seed}"], 0.5 + num_routing * seed / 50)
    runs = load_runs("runs")
    table = against_table(runs, "num_routing=1", "last").set_index("num_routing", drop=False)
    assert table.paired.drop("1").to_dict() == {"2": True, "3": False, "4": False}
    assert table.half_width[["3", "4"]].isna().tolist() == [False, True]
    note = against_notes(table, runs, "num_routing=1", "last")
    assert "has no interval and says nothing about chance (num_routing=4): run at least two seeds" in note
    assert "Fewer than two seeds in common with the base (num_routing=3): run the same seeds of both" in note
    paired = table.drop(["3", "4"])
    assert "run the same seeds" not in against_notes(paired, runs, "num_routing=1", "last")
    assert "run at least" not in against_notes(paired, runs, "num_routing=1", "last")


def test_files_have_what_all_runs_have_in_common(invent, capsule_sweeps) -> None:
    """Otherwise files of two sweeps cannot be joined."""
    for seed, num_routing in ((0, 1), (0, 2)):
        invent([f"num_routing={num_routing}", f"seed={seed}", "routing=dynamic"], 0.5 + seed / 100)
    for words in ([], ["--against", "num_routing=1"], ["--pivot", "num_routing"]):
        rows = json.loads(capsule_sweeps("results", *words, "--format", "json").out)
        found = {(row["dataset"], row["model"], row["backbone"], row["routing"], row["epochs"]) for row in rows}
        assert found == {("digits", "capsnet", "simple", "dynamic", 350)}
    assert capsule_sweeps("results", "--format", "csv").out.count("num_routing") == 1


def test_a_base_is_named_as_its_runs_are(invent, capsule_sweeps) -> None:
    for routing, value in [("em", 0.5), ("inverted_attention", 0.9)]:
        for seed in (0, 1):
            invent([f"routing={routing}", "num_routing=2", f"seed={seed}"], value + seed / 100)
    for word in ("routing=glob(inv*)", "routing=Inverted_Attention", "model.routing.name=glob(*att*)"):
        assert list(against_table(load_runs("runs"), word, "last").routing) == ["em", "inverted_attention"]
        said = " ".join(capsule_sweeps("results", "--against", word).out.split())
        assert f"Differences to {word.partition('=')[0]}=inverted_attention" in said
        assert f"to the base ({word.partition('=')[0]}=inverted_attention)" in said and "glob" not in said
    for norm in ("none", "squash"):
        invent(["routing=inverted_attention", "num_routing=2", f"routing.norm={norm}"], 0.8)
    said = " ".join(capsule_sweeps("results", "--against", "routing=glob(inv*)").out.split())
    assert "to the base (routing=inverted_attention)" in said and "glob" not in said
    for decay in ("0", "5e-5"):
        invent(["routing=em", "num_routing=2", "training.lr=0.1", f"training.weight_decay={decay}"], 0.8)
    rows = capsule_sweeps("results", "routing=em", "--pivot", "num_routing", "--format", "md").out
    assert "| 0 |" in rows and "| 0.0 |" not in rows


def test_groups_that_nothing_is_compared_with_are_named(invent, capsule_sweeps) -> None:
    """Two groups that differ in num_routing alone, but not from a base, and two bases, are not in the table."""
    table = ["num_routing=1", "num_routing=2"]
    for words in (*table, "num_routing=2 training.lr=0.5", "num_routing=3 training.lr=0.5", "routing=uniform"):
        invent([*words.split(), "seed=0"], 0.5)
    said = " ".join(capsule_sweeps("results", "--against", "num_routing=1").out.split())
    assert said.endswith(
        "Not compared, because no group with num_routing=1 equals them in all other settings: digits num_routing=2 "
        "routing=inverted_attention lr=0.5; digits num_routing=3 routing=inverted_attention lr=0.5. "
        "No other group differs in num_routing alone from these with num_routing=1: digits num_routing=1 "
        "routing=uniform lr=0.1."
    )
    said = capsule_sweeps("results", "--against", "num_routing=1", "lr=0.1", "routing=inverted_attention").out
    assert "Not compared" not in said and "No other group" not in said


def test_thousands_of_groups_are_compared_without_comparing_each_with_each(monkeypatch) -> None:
    signed = [{"model.num_routing": number, "training.lr": lr / 10_000} for lr in range(1, 1001) for number in (1, 2)]
    groups = pd.DataFrame({"group": [f"{i:08x}" for i in range(len(signed))], "signed_config": signed})
    groups["num_routing"] = [one["model.num_routing"] for one in signed]
    calls, real = [], against.rest
    monkeypatch.setattr(against, "rest", lambda *words: calls.append(1) or real(*words))
    pairs = list(against._pairs(groups.set_index("group", drop=False), "num_routing=1", groups))
    assert len(pairs) == 1000 and all(int(pair.group, 16) == int(pair.base, 16) + 1 for pair in pairs)
    assert len(calls) == 2000


def test_the_note_says_what_pairs_and_first_seeds_are(invent) -> None:
    """Differences 1, 2, 3, 9 of pairs; one common seed is Welch's test; differences that are all 0 have p 1."""
    for num_routing, values in {1: [50] * 4, 2: [51, 52, 53, 59], 4: [50] * 4}.items():
        for seed, value in enumerate(values):
            invent([f"num_routing={num_routing}", f"seed={seed}"], value / 100)
    for seed, value in {3: 0.6, 11: 0.61, 12: 0.62, 13: 0.69}.items():
        invent(["num_routing=3", f"seed={seed}"], value)
    runs = load_runs("runs")
    table = against_table(runs.assign(first_seeds=3), "num_routing=1", "last").set_index("num_routing", drop=False)
    assert table.paired.drop("1").to_dict() == {"2": True, "3": False, "4": True}
    assert table.half_width["2"] == pytest.approx(4.302653 / 4**0.5)  # t(2) · s0 / √n, s0 = 1 of 1, 2, 3
    assert table.half_width["3"] == pytest.approx(4.302653 / 4**0.5)  # the base does not vary
    assert (table.difference["4"], table.half_width["4"], table.p_value["4"]) == (0, 0, 1)
    note = against_notes(table, runs, "num_routing=1", "last")
    assert "where at least two seeds match" in note and "all 0 have ±0.00 and p 1.00" in note
    assert "of the paired differences or of each such group (Welch), is s0/√n" in note and "with about 95 %" in note
    assert "with 95 %" in against_notes(table.drop("3"), runs, "num_routing=1", "last")


def test_every_group_is_compared_with_the_one_that_differs_in_the_key_alone(invent, capsule_sweeps) -> None:
    for routing, num_routing, value in [("em", 1, 0.5), ("em", 2, 0.6), ("inverted_attention", 1, 0.9)]:
        for seed in (0, 1):
            invent([f"routing={routing}", f"num_routing={num_routing}", f"seed={seed}"], value + seed / 100)
    invent(["routing=em", "num_routing=1", "training.lr=0.01", "seed=0"], 0.3)
    runs = load_runs("runs")
    for word in ("routing=inverted_attention", "model.routing.name=inverted_attention"):
        found = against_table(runs, word, "last")
        assert list(found.routing) == ["em", "inverted_attention"]
        assert found.difference[0] == pytest.approx(-40) and found.n[0] == 2
    assert against_table(runs, "training.lr=0.1", "last").difference.min() == pytest.approx(-20.5)
    invent(["routing=em", "num_routing=1", "training.lr=0.001", "training.lr_decay=0.5", "seed=0"], 0.1)
    assert len(against_table(load_runs("runs"), "training.lr=0.1", "last")) == 2  # lr_decay is another key
    for word, sentence in {
        "num_routing=7": "none of the 5 finished groups; num_routing is 1, 2",
        "num_routing=1,2": "num_routing=1,2 has several values; set the one of the baseline, such as num_routing=1",
        "routing=glob(*)": "has several values",
        "num_routing=range(1,3,0)": "a range needs a step other than 0",
        "seed=0": "a group has runs of several seeds",
        "num_routing": "use KEY=VALUE of the baseline",
        "nothing=1": "no run has a key nothing",
    }.items():
        ended = capsule_sweeps("results", "--against", word)
        assert ended.code == 1 and sentence in ended.err and ended.err.startswith("Error: ")
    assert "routing" in capsule_sweeps("results", "--against", "routing=inverted_attention", "--format", "tex").out


def test_what_else_differs_in_the_recipe_is_named_and_a_key_without_results_is_said(invent, capsule_sweeps) -> None:
    for seed in (0, 1):
        invent(["routing=dynamic", "num_routing=2", f"seed={seed}"], 0.5 + seed / 100)
        invent(["routing=inverted_attention", "num_routing=2", f"seed={seed}"], 0.14)
    runs = load_runs("runs")
    table = against_table(runs, "routing=inverted_attention", "last")
    assert [*table.recipe.dropna()] == ["training.clip_norm=1 (base: null)"] and list(table.routing)[1] == "dynamic*"
    note = against_notes(table, runs, "routing=inverted_attention", "last")
    assert "from that of the base: routing=dynamic has training.clip_norm=1 (base: null)." in note
    assert "recipe" not in shown_differences(table)[0]
    assert "recipe" not in against_table(runs[runs.routing == "dynamic"], "routing=dynamic", "last")
    invent(["model=average_pool"], 0.14)
    runs = load_runs("runs")
    runs["state"] = runs.state.mask(runs.model == "capsnet", "failed")
    sentence = "no finished run has the key num_routing, only 4 runs without a result"
    with pytest.raises(ValueError, match=sentence):
        against_table(runs, "num_routing=2", "last")


def test_constants_are_in_the_caption_and_each_setting_that_varies_is_a_column(invent) -> None:
    for lr in ("0.1", "0.05"):
        invent([f"training.lr={lr}", "training.milestones=[3,5]"], 0.5)
        invent([f"training.lr={lr}", "training.loss=margin"], 0.5)
    runs = load_runs("runs")
    shown, caption = for_people(accuracy_table(runs, "last"), runs)
    assert list(shown.columns)[:3] == ["loss", "lr", "milestones"]
    assert set(shown.loss) == {"cross_entropy", "margin"} and set(shown.lr) == {"0.1", "0.05"}  # also neutral values
    assert set(shown.milestones) == {"[3,5]", "[150,250]"}
    for words in ("dataset=digits", "routing=inverted_attention", "num_routing=1", "epochs=350"):
        assert words in caption


def test_captions_and_notes_say_what_makes_rows_hard_to_compare(invent, capsule_sweeps) -> None:
    quick = ["training=quick", "dataset.image_size=16"]
    for seed, em in {0: 0.9, 1: 0.92, 2: 0.97}.items():
        invent([*quick, "routing=em", f"seed={seed}"], em)
        if seed < 2:  # alike, shorter, and without seed 2
            invent([*quick, "routing=dynamic", "num_routing=2", "training.epochs=24", f"seed={seed}"], 0.9)
    runs = load_runs("runs")
    learned = accuracy_table(runs, "last")
    assert np.isnan(learned.half_width[0]) and learned["std"][0] == 0 and "not_learned" not in learned
    assert learned.half_width[1] == pytest.approx(4.302653 * learned["std"][1] / 3**0.5)
    assert "milestones" not in learned and list(learned.epochs) == [24, 12]  # quick has 0.667 and 0.917 of the epochs
    caption = for_people(learned, runs)[1]
    assert "image_size=16, training=quick" in caption and "lr=" not in caption
    text = " ".join(capsule_sweeps("results").out.split())
    assert "Recipes differ between rows: clip_norm=1 for routing=dynamic (null otherwise)." in text
    assert "1 row lacks seed=2; --against" in text and "machines" not in text
    tex = capsule_sweeps("results", "--pivot", "num_routing", "--format", "tex").out.splitlines()
    assert [line[0] for line in tex if "Recipes differ" in line] == ["%"], "comments for the author"
    assert any(line.startswith(r"\caption{Results. Test accuracy") and line.endswith("included.}") for line in tex)
    runs["machine"], runs["parameters"] = ["AMD EPYC"] * 4 + ["NVIDIA H100"], [10] * 4 + [20]
    assert "Sizes differ: em has 20 parameters, dynamic 10." in comparison_notes(runs, "last")
    runs["data_sha256"] = ["a" * 64] * 4 + ["b" * 64]  # of em, within a group
    assert "so their mean is meaningless" in notes(runs, "last")
    runs["data_sha256"] = (runs.routing == "em").map({True: "a" * 64, False: "b" * 64})
    assert "Runs on digits were trained on different images" in notes(runs, "last")
    assert "different images" not in notes(runs[runs.routing == "em"], "last")
    twice = pd.concat([runs, runs.assign(dataset="MNIST", machine=None, first_seeds=5)[:1]])
    assert comparison_notes(twice, "last").count("differ between rows") == 1, "data sets are not compared"
    runs.loc[0, "not_learned"] = "accuracy 90% is within noise of chance"
    assert "Made on different machines (AMD EPYC, NVIDIA H100)" in comparison_notes(runs, "last", ["peak_memory_mb"])
    assert "machines" not in comparison_notes(runs, "last")
    assert list(accuracy_table(runs, "last").not_learned) == [1, 0]
    against = against_table(runs, "num_routing=2", "last", lambda first: [Pair(*first.group, "1", "2")])
    assert dict(zip(against.num_routing, against.not_learned, strict=True)) == {"2": 1, "1": 0}
    assert sorted(shown_differences(against)[0].num_routing) == ["1", "2†"]
    assert list(runs[filters.fit(runs, "not_learned=true")].index) == [0]
    cells, said = pivot(accuracy_table(runs, "last"), "num_routing")
    assert "90.0 ± 0.0 (n=2)†" in cells.to_numpy() and "†: with runs that did not learn." in said
    invent(["training=paper", "training.milestones=[3,5]", "num_routing=3"], 0.9)
    runs = load_runs("runs")
    paper = runs[runs.num_routing == 3]
    assert "training=paper, milestones=[3,5]" in for_people(accuracy_table(paper, "last"), paper)[1]
    assert "training=" not in for_people(accuracy_table(runs, "last"), runs)[1]  # of two recipes none is named


def test_costs_are_columns_where_rows_differ_by_them(invent) -> None:
    for seed in (0, 1):
        invent([f"seed={seed}"], 0.5)
        folder = invent(["model=cnn", f"seed={seed}"], 0.6)
        for name in ("run.json", "summary.json"):
            found = json.loads((folder / name).read_text())
            more = {"parameters": 955402, "epochs_done": 3, "multiply_adds": 7_219_616, "peak_memory_mb": 300.5 + seed}
            write_json(folder / name, {**found, **more})
    runs = load_runs("runs")
    table = accuracy_table(runs, "last").set_index("model")
    assert table.parameters.to_dict() == {"capsnet": 10, "cnn": 955402}
    shown, _ = for_people(accuracy_table(runs, "last"), runs)
    assert "955,402" in set(shown.parameters)
    known_of_one_row = {"multiply_adds", "seconds_per_epoch", "peak_memory_mb"}
    assert not known_of_one_row & set(table)
    for folder in map(Path, runs.folder[runs.model == "capsnet"]):
        record = json.loads((folder / "run.json").read_text())
        more = {"epochs_done": 1, "multiply_adds": 56_986_112, "peak_memory_mb": 1600.0}
        write_json(folder / "run.json", {**record, **more})
    runs = load_runs("runs")
    table = accuracy_table(runs, "last").set_index("model")
    assert table.multiply_adds.to_dict() == {"capsnet": 56_986_112, "cnn": 7_219_616}
    assert table.peak_memory_mb.to_dict() == {"capsnet": 1600.0, "cnn": 301.0}
    assert table.seconds_per_epoch.to_dict() == {"capsnet": 1.5, "cnn": 0.5}
    shown, _ = for_people(accuracy_table(runs, "last"), runs)
    assert shown["M mult-adds"].tolist() == ["57.0", "7.2"] and shown["peak MB"].tolist() == ["1,600", "301"]
    assert "of the whole process" in notes(runs, "last")
    assert "of the whole process" not in notes(runs[runs.model == "cnn"], "last"), "its seeds differ by 1 MB"
    assert "parameters" not in accuracy_table(runs[runs.model == "cnn"], "last")
    for counts in (runs.multiply_adds, runs.multiply_adds.where(runs.model == "cnn", 7_233_440)):  # 7.2 and 7.2 million
        shown = accuracy_table(runs.assign(multiply_adds=counts), "last")
        assert ("multiply_adds" in shown) == (counts.max() > 50_000_000)


def test_pivot_has_a_column_for_each_value_and_the_best_is_bold(invent, capsule_sweeps) -> None:
    for routing, base in {"em": 0.8, "inverted_attention": 0.84}.items():
        for num_routing in (1, 2):
            for seed in (0, 1):
                value = base + seed * 0.02 + (0.1 if routing == "em" and num_routing == 2 else 0)
                invent([f"routing={routing}", f"num_routing={num_routing}", f"seed={seed}"], value)
    frame, said = pivot(accuracy_table(load_runs("runs"), "last"), "num_routing")
    assert list(frame.columns) == ["routing", "num_routing=1", "num_routing=2"] and "n = 2 seeds" in said
    assert frame.to_numpy().tolist() == [
        ["em", "81.0 ± 1.4", "91.0 ± 1.4"],
        ["inverted_attention", "85.0 ± 1.4", "85.0 ± 1.4"],
    ]
    tex = capsule_sweeps("results", "--pivot", "num_routing", "--format", "tex").out
    assert r"em & 81.0 $\pm$ 1.4 & \textbf{91.0 $\pm$ 1.4} \\" in tex and tex.count(r"\textbf") == 2
    assert r"\caption{" in tex and r"\label{tab:results}" in tex and r"\begin{tabular}{lrr}" in tex
    assert "**91.0 ± 1.4**" in capsule_sweeps("results", "--pivot", "num_routing", "--format", "md").out
    ended = capsule_sweeps("results", "--pivot", "training.lr")
    assert ended.code == 1 and "do not differ by it" in ended.err


def test_a_part_that_does_not_differ_by_the_key_of_pivot_is_shown_as_it_is(invent, capsule_sweeps) -> None:
    sweeps = {"sweep-0000000a": ["num_routing=1", "num_routing=2"], "sweep-0000000b": ["seed=1", "training.lr=0.05"]}
    (Path("runs") / ".sweeps").mkdir(parents=True)
    for name, points in sweeps.items():
        signatures = [invent([word], 0.5).name[-8:] for word in points]
        sweep = {"sweep": name, "command": ["launch.py"], "signatures": signatures, "started": 1e9, "runs": []}
        write_json(Path("runs/.sweeps") / f"{name}.json", sweep)
    out = capsule_sweeps("results", "--pivot", "training.lr").out
    assert "lr=0.05" in out and "num_routing" in out and out.count("Mean ± ") + out.count("Single runs") == 1
    ended = capsule_sweeps("results", "--pivot", "epochs")
    assert ended.code == 1 and "they differ by num_routing" in ended.err + "they differ by lr"


def test_a_caption_without_constants_is_whole(place, capsule_sweeps) -> None:
    finished_run(["dataset=digits", "routing=em", "backbone=simple", "training=quick"], 0.5)
    finished_run(["dataset=CIFAR10", "num_routing=2", "backbone=resnet20", "routing.schedule=sequential"], 0.5)
    finished_run(["dataset=digits", "model=cnn"], 0.5)
    tex = capsule_sweeps("results", "--pivot", "dataset", "--format", "tex").out
    assert r"\caption{Results. Test accuracy in \%, rule last. Single runs" in tex, tex


def test_on_a_narrow_terminal_rows_say_their_settings_once(invent, capsule_sweeps, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console(), "_width", 80)
    for routing in ("inverted_attention", "attention"):
        for lr in ("0.1", "0.05"):
            for num_routing in (1, 2):
                words = [f"routing={routing}", f"training.lr={lr}", f"num_routing={num_routing}"]
                for seed in (0, 1):
                    invent(
                        [*words, "dataset.image_size=16", f"seed={seed}"],
                        0.5 + seed * num_routing / 100 + num_routing / 7,
                    )
                    invent([*words, "training.label_smoothing=0.1", f"seed={seed}"], 0.5 + num_routing / 70)
    invent(["dataset.image_size=16", "training.lr=0.05", "num_routing=3"], 0.5)
    invent([*words, "dataset.image_size=16", "seed=2"], 0.123)
    text = capsule_sweeps("results", "--pivot", "num_routing").out
    assert "50.0 (n=1)" in text and "79.6 ± 1.4 (n=2)" in text, "numbers are never cut"
    lines = capsule_sweeps("results", "--against", "num_routing=1").out.splitlines()
    assert sum("… num_routing=2 " in line for line in lines) == 8 and max(map(len, lines)) <= 80
    rows = capsule_sweeps("status", "routing=attention").out
    assert "0/350" in rows and "epochs_done" not in rows
    assert list(json.loads(capsule_sweeps("status", "seed=0", "--format", "json").out)[0])[1:4] == [
        *("state", "epochs_done", "epochs")
    ]


def test_commands_of_sweeps_are_shown_by_what_tells_them_apart() -> None:
    commands = [
        "dataset=digits seed=0,1 num_routing=1 runs_dir=r",
        "dataset=digits num_routing=2 hydra.launcher.parallel=2",
    ]
    assert briefly(commands) == ["seed=0,1 num_routing=1", "num_routing=2"]
    assert briefly(commands[:1]) == ["dataset=digits seed=0,1 num_routing=1"] and briefly([]) == []
    assert briefly(["note='x y' lr=1", "note='z y' lr=1"]) == ["'note=x y'", "'note=z y'"]
    assert briefly(["-m training.compile=false", "-m tracking=none"]) == [
        "-m training.compile=false",
        "-m tracking=none",
    ]
    assert briefly(["a=1 b=2", "a=1"]) == ["a=1 b=2", "a=1"], "none is left without words"


def test_rows_are_grouped_by_sweep_or_by_keys(invent, capsule_sweeps) -> None:
    names = {lr: invent([f"training.lr={lr}"], 0.5).name for lr in ("0.1", "0.05", "0.01")}
    another_seed = invent(["training.lr=0.1", "seed=5"], 0.5).name  # counts wherever its group is
    alone = invent(["num_routing=2"], 0.5).name
    Path("runs/.sweeps").mkdir()
    for number, lrs in enumerate((["0.1"], ["0.1", "0.05"], ["0.1", "0.01"])):
        signatures = [names[lr][-8:] for lr in lrs]
        record = {"command": ["/x/launch.py", "-m", f"number={number}"], "signatures": signatures, "started": number}
        write_json(Path(f"runs/.sweeps/sweep-0000000{number}.json"), record)
    runs = load_runs("runs")
    assert [(title, sorted(own.run)) for title, own in by_sweep(Path("runs"), runs)] == [
        ("sweep-00000002: launch.py -m number=2", sorted([names["0.1"], another_seed, names["0.01"]])),
        ("sweep-00000001: launch.py -m number=1", sorted([names["0.1"], another_seed, names["0.05"]])),
        ("Runs of no sweep", [alone]),
    ]
    assert runs.set_index("run").sweeps[names["0.1"]] == [f"sweep-0000000{n}" for n in (2, 1, 0)]
    text = capsule_sweeps("results", "--by", "training.lr,num_routing").out
    assert text.count("training.lr=0.1, num_routing=") == 2 and "training.lr=0.01, num_routing=1" in text
    assert len(json.loads(capsule_sweeps("results", "--format", "json").out)) == 4
    text = capsule_sweeps("results", "--by", "training.lr,num_routing", "--format", "tex").out
    captions = re.findall(r"caption\{(.*)\}\n", text)
    assert len(captions) == 4, "each table of a paper has what its numbers are, and names its settings once"
    assert all(r"in \%, selection rule: last" in one and one.count("num\\_routing=") == 1 for one in captions), captions
    text = capsule_sweeps("results", "--format", "tex").out
    assert "% sweep-00000002: launch.py" in text and "launch.py" not in "".join(re.findall(r"caption\{.*", text))
    ended = capsule_sweeps("results", "--by", "training.lrr")
    assert ended.code == 1 and "did you mean training.lr?" in ended.err


@pytest.mark.parametrize("width", [80, 120])
def test_no_number_wraps_and_no_line_is_too_long(invent, capsule_sweeps, monkeypatch, width) -> None:
    for lr in ("0.1", "0.05"):
        for routing in ("inverted_attention", "self_routing"):
            invent([f"training.lr={lr}", f"routing={routing}", "dataset.train_size=500"], 0.91234)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(console(), "_width", width)
    text = capsule_sweeps("results").out
    assert max(map(len, text.splitlines())) <= width and text.count("91.23") >= 4
    assert capsule_sweeps("results", "--wide").out.count("91.23") == 12  # mean, min, max
    monkeypatch.setattr(console(), "_width", 50)
    assert max(map(len, capsule_sweeps("results").out.splitlines())) <= 50
    for narrow in (30, 3):  # wider than the terminal, but no number is cut
        monkeypatch.setattr(console(), "_width", narrow)
        text = render(accuracy_table(load_runs("runs"), "last"), "table", note="so:\n    python x y z", one_line=True)
        assert text.count("91.23") == 4 and "    python x y z\nNot" in text
        assert "a" in render(pd.DataFrame({"command": ["a b c d e f g h i j"]}), "table", one_line=True)
    assert shorten("inverted_attention", 9) == "inve…tion"


def test_a_hidden_column_is_not_explained(monkeypatch) -> None:
    frame = pd.DataFrame({"routing": ["inverted_attention"], "M mult-adds": [7.5], "n": [3], "mean": [97.48]})
    monkeypatch.setenv("COLUMNS", "44")
    monkeypatch.setattr(console(), "_width", 44)
    text = render(frame, "table", note="M mult-adds: in no sentence. M mult-adds: one. End.", one_line=True)
    assert text.endswith("M mult-adds: in no sentence. End. Not shown\nfor lack of space: M mult-adds (--wide).")


def test_costs_are_hours_of_all_runs(invent) -> None:
    invent(["seed=0"], 0.5)
    (invent(["seed=1"], 0.9) / "summary.json").unlink()
    invent(["num_routing=2"], 0.5)
    table = cost_table(load_runs("runs"))
    assert list(table.dataset) == ["digits", "digits", "all"] and list(table.runs) == [2, 1, 3]
    assert list(table.hours) == pytest.approx([3 / 3600, 1.5 / 3600, 4.5 / 3600])
    assert list(table.hours_per_run) == pytest.approx([1.5 / 3600] * 3)
    assert cost_table(load_runs("nothing")).hours.sum() == 0


# Commands


@pytest.fixture
def some_runs(invent):
    for num_routing in (1, 2):
        for seed in (0, 1):
            invent([f"num_routing={num_routing}", f"seed={seed}"], 0.9 + num_routing / 100 + seed / 1000)


@pytest.mark.parametrize("command", ["status", "results"])
def test_every_format_is_readable(some_runs, capsule_sweeps, command) -> None:
    ended = {form: capsule_sweeps(command, "--format", form) for form in ("table", "md", "csv", "json")}
    assert all(one.code == 0 and one.err == "" for one in ended.values())
    objects, csv = json.loads(ended["json"].out), pd.read_csv(io.StringIO(ended["csv"].out))
    assert len(objects) == len(csv) == (4 if command == "status" else 2)
    assert list(objects[0]) == list(csv.columns)
    heads = [cell.strip() for cell in ended["md"].out.splitlines()[0].strip("|").split("|")]
    for name in heads:
        assert name in ended["table"].out
    if command == "results":  # what is constant is in the caption
        assert heads == ["num_routing", "n", "mean", "std", "±95%", "min", "max"]
        common = ["model", "backbone", "routing", "schedule", "epochs", "dataset"]
        assert list(csv.columns) == [*common, "num_routing", "n", "mean", "std", "half_width", "min", "max", "rule"]
        assert all("dataset=digits" in ended[form].out for form in ("md", "table"))
    assert capsule_sweeps(command).out == ended["table"].out


def test_tex_is_a_booktabs_table(some_runs, capsule_sweeps) -> None:
    text = capsule_sweeps("results", "--format", "tex").out
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    header, *rows = [line for line in text.splitlines() if " & " in line]
    assert header.endswith(r" \\") and r"num\_routing" in header and len(rows) == 2
    assert all(row.count(" & ") == header.count(" & ") for row in rows) and r"\begin{tabular}{rrrrrrr}" in text
    assert r"in \%" in text and r"$\pm$" in text


def test_results_are_those_of_load_runs(some_runs, capsule_sweeps) -> None:
    found = pd.DataFrame(json.loads(capsule_sweeps("results", "--format", "json").out))
    assert found["mean"].tolist() == pytest.approx([91.05, 92.05])
    assert found.n.tolist() == [2, 2]


def test_results_prints_the_table_of_the_sweep_again(launch, capsule_sweeps) -> None:
    out = launch("-m", "num_routing=1,2").out
    assert capsule_sweeps("results").out.partition("Results")[2].strip() == out.partition("Results")[2].strip()


def test_json_has_null_where_there_is_no_number(invent, capsule_sweeps) -> None:
    invent(["seed=0"], 0.5)
    (row,) = json.loads(capsule_sweeps("results", "--format=json").out)
    assert row["std"] is None and row["n"] == 1


def test_missing_folder_is_reported_in_one_sentence(place, capsule_sweeps) -> None:
    for command in ("status", "results"):
        ended = capsule_sweeps(command, "--runs-dir", "nowhere")
        assert ended.code != 0 and "nowhere" in ended.err and "--runs-dir" in ended.err and "Traceback" not in ended.err


def test_selections_without_runs_are_one_error_in_each_command(place, invent, capsule_sweeps) -> None:
    Path("empty").mkdir()
    commands = ["status", "results", "results --ablation", "report", "evaluate all", "retry all", "cancel all"]
    commands += ["bundle --out b.tar.gz", "tag all +x", "show a", "export a --out e.pt2", "diff a b", "note a b"]
    for command in [*commands, "gc all", "status seed=1"]:
        ended = capsule_sweeps(*command.split(), "--runs-dir", "empty")
        assert ended.code == 1 and not ended.out, command
        assert ended.err == "Error: no run is in empty; set --runs-dir to the folder of the runs\n", command
    invent([], 0.5)
    for command in ("results", "results --pivot num_routing", "report", "evaluate", "retry", "bundle --out b.tar.gz"):
        ended = capsule_sweeps(*command.split(), "state=failed")
        assert (ended.code, ended.out) == (1, ""), command
        assert ended.err == "Error: state=failed fits none of the 1 run; state is finished\n", command
    for path in ("empty", "."):
        ended = capsule_sweeps("merge", path, "--runs-dir", "elsewhere")
        assert ended.err == f"Error: no run is in {path}; give a bundle or a folder of runs\n" and ended.code == 1
    assert not Path("elsewhere").exists()
    assert "No run is finished" not in capsule_sweeps("results").out
    assert "CIFAR-10" in capsule_sweeps("results", "--published", "readme_table", "--runs-dir", "empty").out
    assert "does not exist" in capsule_sweeps("results", "--published", "readme_table", "--runs-dir", "none").err


def test_a_small_number_is_not_shown_as_zero() -> None:
    assert (
        render(pd.DataFrame({"a": [100 * 0.14, None], "b": [1, 1e-20 / 3]}), "csv") == "a,b\n14.0,1.0\n,3.333333333e-21"
    )
    text = render(pd.DataFrame({"p_value": [0.0004, 0.0, -0.004, 0.25]}), "md")
    assert [line.strip("| ") for line in text.splitlines()[2:]] == ["0.0004", "0.00", "-0.004", "0.25"]


def test_stale_runs_are_named_as_long_as_they_are_few() -> None:
    runs = pd.DataFrame({"run": list("abcdefgh"), "stale": [False, True] + 6 * [True]})
    assert stale_note(runs[:1]) == ""
    assert stale_note(runs[:3]).endswith("since): b, c.")
    assert stale_note(runs).endswith("since): b, c, d, e, f and 2 more.")


def test_status_lists_sweeps_with_what_is_left_and_why_a_run_failed(invent, capsule_sweeps) -> None:
    names = [invent([f"seed={seed}"], 0.5 + seed / 10).name for seed in (0, 1)]
    for name in ("run.json", "summary.json"):
        path = Path("runs") / names[0] / name
        write_json(path, {**json.loads(path.read_text()), "epochs_done": 10, "seconds": 100.0})
    broken = Path("runs") / invent(["seed=2"], 0.9).name
    (broken / "summary.json").unlink()
    write_json(
        broken / "run.json", {**json.loads((broken / "run.json").read_text()), "state": "failed", "error": "nan"}
    )
    Path("runs/.sweeps").mkdir()
    for number, own in enumerate(([names[0]], [*names, broken.name, "never-started-00000001"])):
        command = ["launch.py", "-m", "n=1"] if number else ["some/where/__main__.py", "retry", "all"]
        record = {"command": command, "signatures": [one[-8:] for one in own]}
        write_json(Path(f"runs/.sweeps/sweep-0000000{number}.json"), {**record, "started": number})
    table = sweep_table(Path("runs"), load_runs("runs"))
    assert list(table.sweep) == ["sweep-00000001", "sweep-00000000"] and list(table.done) == ["2/4", "1/1"]
    assert table.others[0] == "1 failed, 1 new" and table.failure[0] == "nan" and table.best[0] == pytest.approx(60)
    assert table.left[0] == "58 min" and list(table.command) == [
        "n=1",
        "capsule-sweeps retry all",
    ]  # a whole run: 350 epochs of 10 s
    out = capsule_sweeps("status").out
    assert "2/4" in out and all(name in out for name in names) and "60.00" in out
    alone = " ".join(capsule_sweeps("status", "seed=2").out.split())
    assert f"1 failed. Failed: {broken.name} (nan)" in alone, "also where there is no table of sweeps"
    record = json.loads((broken / "run.json").read_text())
    write_json(broken / "run.json", {**record, "error": "begin" + "x" * 400 + "end"})
    alone = capsule_sweeps("status", "seed=2", "--format", "md").out
    assert "(beginxxx" in alone and "xxxend)" in alone and "x" * 300 not in alone
    listed = json.loads(capsule_sweeps("status", "sweep-00000000", "--format", "json").out)
    assert [(row["run"], row["accuracy"]) for row in listed] == [(names[0], 50.0)]


def test_sweeps_that_have_not_started_are_no_error(place, invent, capsule_sweeps, monkeypatch, caplog) -> None:
    def record_sweep() -> None:
        Path("runs/.sweeps").mkdir(parents=True)
        record = {"command": ["launch.py", "-m", "n=1"], "signatures": ["00000001"], "runs": ["a-00000001", "x" * 999]}
        write_json(Path("runs/.sweeps/sweep-0000000a.json"), {**record, "started": 1e9})

    naps = iter([lambda: Path("runs/.cache").mkdir(parents=True), record_sweep, lambda: None])

    def nap(seconds: float) -> None:
        if (step := next(naps, None)) is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr("time.sleep", nap)
    ended = capsule_sweeps("status", "--watch")  # begun before the sweep
    assert ended.code == 130 and ended.out.startswith(2 * "No run is in runs yet.\n") and "Error" not in ended.err
    assert ended.out.count("sweep-0000000a") == 2
    for words in ("status", "status sweep-0000000a", "status state=running", "cancel all", "gc sweep-0000000a"):
        caplog.clear()
        ended = capsule_sweeps(*words.split())
        assert ended.code == 0 and "No run in runs has started." in caplog.messages, words
        assert ("0/1" in ended.out and "1 new" in ended.out) == (words[:9] in ("status", "status sw")), words
    assert capsule_sweeps("results").code == 1
    invent([], 0.5)
    assert "0/1" in capsule_sweeps("status").out, "also beside other runs"
    assert "0/1" not in capsule_sweeps("status", "seed=0").out


def test_metrics_of_runs_are_one_tidy_frame(invent) -> None:
    for seed in (0, 1):
        folder = invent([f"seed={seed}"], 0.5)
        rows = [{"epoch": epoch, "test_accuracy": epoch / 10} for epoch in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    invent(["seed=2"], 0.5)
    frame = load_metrics(load_runs("runs"))
    assert frame.groupby("seed").test_accuracy.agg(list).to_dict() == {0: [0.1, 0.2], 1: [0.1, 0.2]}
    assert set(load_runs("runs", settings=True)["training.lr"]) == {0.1}


def test_variants_with_one_name_have_labels_of_their_own(invent) -> None:
    for words in ([], ["routing=em"], ["routing=em", "routing.density=sum"], ["num_routing=3"]):
        invent(["num_routing=2", *words], 0.5)
    invent(["model=resnet18"], 0.5)
    runs = load_runs("runs")
    labels = set(against_table(runs, "routing=inverted_attention", "last").routing)
    assert labels == {"inverted_attention", "em density=mean", "em density=sum"}
    runs = runs[runs.routing != "em"]
    assert list(against_table(runs, "model=resnet18", "last").model) == [
        *("resnet18", "capsnet num_routing=2", "capsnet num_routing=3")
    ]


@pytest.fixture
def rivals(invent):
    """A CNN, two routings of another name, two of the same name, and one with another recipe."""
    invent(["model=cnn"], 0.5)
    for words in (["attention"], ["em"], ["em", "routing.density=sum"], ["inverted_attention", "training.lr=0.05"]):
        invent([f"routing={words[0]}", *words[1:]], 0.6)
    return load_runs("runs")


def test_rivals_are_named_by_what_tells_them_apart_and_none_is_dropped(rivals, capsule_sweeps, monkeypatch) -> None:
    found = against_table(rivals, "model=cnn", "last").model
    labels = {"capsnet attention", "capsnet em density=mean", "capsnet em density=sum", "capsnet inverted_attention*"}
    assert set(found) == {"cnn", *labels} and len(found) == 5
    assert all(label in capsule_sweeps("results", "--against", "model=cnn", "--format", "csv").out for label in labels)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console(), "_width", 80)
    out = capsule_sweeps("results", "--against", "model=cnn").out
    table = out[: out.index("Test accuracy")]
    assert max(map(len, out.splitlines())) <= 80
    assert all(word in table for label in labels for word in label.split()), out
    long = against_table(rivals, "model=cnn", "last").assign(model=" ".join(["schedule=sequential"] * 6))
    figure = forest_plot(long)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert min(text.get_window_extent().x0 for text in axes.get_yticklabels()) >= 0, "long labels stay in the figure"


def test_a_comparison_of_models_of_other_size_says_so(rivals) -> None:
    runs = rivals.assign(parameters=rivals.model.map({"cnn": 955402, "capsnet": 37521}).astype("Int64"))
    table = against_table(runs, "model=cnn", "last")
    assert set(table.parameters) == {955402, 37521}
    assert "The difference is also one of size: model=capsnet attention has 37,521 parameters for 955,402" in (
        against_notes(table, runs, "model=cnn", "last")
    )
    assert "955,402" in render(shown_differences(table)[0], "md")
    alike = against_table(runs.assign(parameters=[*range(30, 30 + len(runs))]), "model=cnn", "last")
    assert alike.parameters.nunique() == len(runs) and "parameters" not in shown_differences(alike)[0]
    assert "also one of size" not in against_notes(alike, runs, "model=cnn", "last")


def test_null_is_one_of_several_values_of_a_filter(rivals) -> None:
    for word, number in {"routing=em,null": 3, "num_routing=1,null": 5, "routing.density=sum,null": 4}.items():
        assert filters.fit(rivals, word).sum() == number, word


def test_a_backbone_tells_rivals_apart_and_equal_rivals_keep_their_names(invent) -> None:
    for words in (["model=cnn"], ["backbone=resnet"], ["backbone=simple"]):
        for epochs in (2, 3):  # the labels of one base do not depend on another base
            invent([*words, f"training.epochs={epochs}", "training.milestones=[1]"], 0.5)
    found = against_table(load_runs("runs"), "model=cnn", "last")
    assert found.groupby("base").model.agg(set).tolist() == [{"cnn", "capsnet resnet", "capsnet simple"}] * 2


def test_a_neutral_value_is_only_that_of_models_with_the_setting(rivals, invent) -> None:
    invent(["routing=uniform"], 0.7)
    runs = load_runs("runs", settings=True)
    table = accuracy_table(runs, "last")
    assert {(row.routing, row.density) for row in table.astype(object).fillna("–").itertuples()} == {
        *(("–", "–"), ("attention", "–"), ("em", "mean"), ("em", "sum"), ("inverted_attention", "–"), ("uniform", "–")),
    }
    frame, _ = pivot(table, "density")
    assert set(frame.columns) >= {"density=–", "density=mean", "density=sum"}
    assert frame["density=sum"].tolist().count("–") == len(frame) - 1, "em alone has it"
    assert filters.fit(runs, "density=sum").sum() == filters.fit(runs, "density=mean").sum() == 1
    assert filters.fit(runs, "routing.norm=layer").sum() == 3 and filters.fit(runs, "head=shared").sum() == 5
    assert runs["model.routing.density"].tolist().count("sum") == 1
    cnn = Run(Path("runs", runs.run[runs.model == "cnn"].item()))
    assert facts(cnn)["configuration"]["model.routing.density"] is None
    invent(["model=cnn", "training.clip_norm=1"], 0.5)
    assert list(against_table(load_runs("runs"), "clip_norm=1", "last").clip_norm) == ["1", "null"], "null is a value"


def test_settings_of_each_routing_are_those_that_its_class_takes() -> None:
    for first, settings in routing_settings().items():
        module, _, kind = PRESENT_SPELLING[first].rpartition(".")
        taken = inspect.signature(getattr(importlib.import_module(module), kind)).parameters
        for key in (key.rpartition(".")[2] for key in NEUTRAL if key.startswith("model.routing.")):
            assert (key in taken) == (key in settings), (kind, key)
    others = {"model.routing._target_": ["of", "others"]}
    assert setting(others, "model.routing.norm") == "layer", "an unknown class may have it"


BROKEN = {
    "nothing": b"# nothing yet",
    "key": b"# @package _global_\nrouting:\n",
    "word": b"routing: em",
    "list": b"[a]",
    "defaults": b"defaults: 5",
    "open": b"a: [",
    "latin": b"a: \xe4",
    "date": b"a: 2026-99-99",
    "deep": b"[" * 3000 + b"]" * 3000,
}


def test_a_new_routing_brings_its_settings_along(monkeypatch, tmp_path, caplog) -> None:
    """One YAML declares them; an option that starts from another one has all of its settings. Drafts are named."""
    (tmp_path / "routing").mkdir()
    for name, text in BROKEN.items():
        (tmp_path / f"routing/{name}.yaml").write_bytes(text)
    (tmp_path / "routing/one.yaml").write_text(
        "defaults: [other, one, open, {override /a: b}]\n_target_: of.others.One"
    )
    (tmp_path / "routing/other.yaml").write_text("defaults: [one]\n_target_: of.others.Cycle\nnorm: none")
    (tmp_path / "routing/new.yaml").write_text("_target_: of.others.New\nsharpness: 2")
    (tmp_path / "routing/newer.yaml").write_text("defaults: [new, _self_]\n_target_: of.others.Newer\nnorm: none")
    monkeypatch.setattr(neutral, "CONF_DIR", tmp_path)
    monkeypatch.setattr(neutral, "routing_settings", cache(neutral.routing_settings.__wrapped__))
    monkeypatch.setitem(NEUTRAL, "model.routing.sharpness", 1)
    found = {
        kind: [
            setting({"model.routing._target_": f"of.others.{kind}"}, f"model.routing.{key}")
            for key in ("sharpness", "norm")
        ]
        for kind in ("New", "Newer", "Other", "One")
    }
    assert found == {"New": [1, None], "Newer": [1, "layer"], "Other": [1, "layer"], "One": [None, "layer"]}
    warned = [re.match(r"\S*/routing/(\w+)\.yaml is not a readable option", line) for line in caplog.messages]
    assert [one and one[1] for one in warned] == sorted(BROKEN), caplog.messages


def test_settings_are_never_rounded(invent, capsule_sweeps) -> None:
    """0.0125 and 0.015 are two rates, in a table whose numbers have two decimals as well."""
    for lr in ("0.0125", "0.015"):
        for num_routing in (1, 2):
            invent([f"training.lr={lr}", f"num_routing={num_routing}"], 0.5)
    for words in ([], ["--pivot", "num_routing"], ["--against", "num_routing=1"]):
        out = capsule_sweeps("results", *words).out
        assert "0.0125" in out and "0.015" in out, out
    chosen = capsule_sweeps("results", "lr=0.015", "--format", "csv").out  # a head of a column is a key of filters
    assert chosen.count("\n") == 3 and "num_routing" in chosen


def test_names_of_sweeps_are_whole_in_a_narrow_terminal(invent, capsule_sweeps, monkeypatch) -> None:
    names = [f"sweep-{digit * 8}" for digit in "12"]
    for seed, name in enumerate(names):
        folder = invent([f"seed={seed}"], 0.5)
        command = ["launch.py", "-m", "dataset=digits", *(f"training.lr=0.0{digit}" for digit in range(1, 9))]
        signatures = [folder.name[-8:], "0" * 8]
        (folder.parent / ".sweeps").mkdir(exist_ok=True)
        sweep = {"sweep": name, "command": command, "signatures": signatures, "runs": [], "started": 1e9}
        write_json(folder.parent / ".sweeps" / f"{name}.json", sweep)
    for columns_wide in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns_wide))
        monkeypatch.setattr(console(), "_width", columns_wide)
        lines = capsule_sweeps("status").out.splitlines()
        assert max(map(len, lines)) <= columns_wide
        for name in names:
            assert len([line for line in lines if name in line and "1/2" in line and "50.00" in line]) == 1, lines


def test_watching_keeps_running_runs_in_view_however_low_the_terminal(invent, monkeypatch) -> None:
    folders = [invent([f"seed={seed}"], 0.5) for seed in range(6)]
    for number in range(30):
        signatures = [folder.name[-8:] for folder in folders]
        (Path("runs") / ".sweeps").mkdir(exist_ok=True)
        sweep = {"sweep": f"sweep-{number:08x}", "command": ["launch.py"], "signatures": signatures, "started": 1e9}
        write_json(Path("runs/.sweeps") / f"sweep-{number:08x}.json", {**sweep, "runs": []})
    runs = load_runs("runs")
    runs.loc[5, "state"] = "running"
    monkeypatch.setattr(console(), "_height", 12)
    asked = Namespace(runs_dir=Path("runs"), runs=[], watch=True, format="table", wide=False)
    lines = clipped(show(runs, asked), 12).splitlines()
    assert len(lines) <= 11 and any("running" in line and runs.run[5][-8:] in line for line in lines[:6]), lines
    assert "more lines" in lines[-1]
    assert clipped("a\nb", 12) == "a\nb"


@pytest.mark.parametrize("at_work", [1, 40])
def test_watching_keeps_sweeps_in_view_beside_many_runs_and_notes(invent, monkeypatch, at_work) -> None:
    name, signatures = invent([], 0.5).name[:-8], [f"{number:08x}" for number in range(45)]
    (Path("runs") / ".sweeps").mkdir()
    for sweep, some in (("sweep-0000000a", signatures[:30]), ("sweep-0000000b", signatures[15:])):
        own = {"sweep": sweep, "command": ["launch.py"], "signatures": some, "started": 1e9, "runs": []}
        write_json(Path("runs/.sweeps") / f"{sweep}.json", own)
    runs = pd.concat([load_runs("runs")] * 45, ignore_index=True).assign(signature=signatures)
    runs["run"], runs["not_learned"] = name + runs.signature, "training loss rose from 2.3 to 32, and more " * 3
    runs.loc[: at_work - 1, "state"] = "running"
    monkeypatch.setattr(console(), "_height", 24)
    monkeypatch.setattr(console(), "_width", 80)
    monkeypatch.setenv("COLUMNS", "80")
    asked = Namespace(runs_dir=Path("runs"), runs=[], watch=True, format="table", wide=False)
    lines = clipped(show(runs, asked), 24).splitlines()
    assert len(lines) <= 23 and max(map(len, lines)) <= 80
    assert f"{at_work} running" in lines[0] and "45 did not learn" in " ".join(lines[:2])
    assert all(any(name in line for line in lines) for name in ("sweep-0000000a", "sweep-0000000b")), lines
    assert any(runs.run[0][-8:] in line and "running" in line for line in lines[:8])
    assert "All runs: 45 finished." in show(runs.assign(state="finished", sweeps=[["sweep-0000000a"]] * 45), asked)
