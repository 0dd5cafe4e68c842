"""Published numbers beside ours: the cells, their verdicts, and the experiment that fills them."""

import io
import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf
from synthetic import composed, finished_run

from capsule_sweeps import compose_config, load_runs
from capsule_sweeps.console import console
from capsule_sweeps.results.intervals import half_width
from capsule_sweeps.results.published import PATH, SEEDS, Cell, marks, published_table, read_cells, verdict
from capsule_sweeps.runs.signature import columns
from capsule_sweeps.runs.sweep import record_seeds

ROOT = Path(__file__).resolve().parents[2]
README = {  # (overrides, aggregate) → what the published README says
    ("CIFAR10", 1, "mean over seeds"): 94.73,
    ("CIFAR10", 2, "mean over seeds"): 94.85,
    ("CIFAR10", 2, "best run"): 95.14,
    ("CIFAR100", 1, "mean over seeds"): 76.02,
    ("CIFAR100", 2, "mean over seeds"): 76.27,
    ("CIFAR100", 2, "best run"): 78.02,
    ("CIFAR10", 2, "count"): 1.83,
    ("CIFAR100", 2, "count"): 2.80,
}


def cell(value: float = 90.0, aggregate: str = "mean over seeds", **own) -> Cell:
    rule = None if aggregate == "count" else "best_test"
    source = {"citation": "a paper", "where": "table 1"}
    return Cell("t", "row", "column", value, "%", aggregate, source, ["dataset=digits"], rule, **own)


def judged(values: list[float], **own) -> str:
    one, found = cell(**own), pd.Series(values)
    ours = found.max() if one.aggregate == "best run" else found.mean()
    return verdict(one, ours, len(found), found.std(), half_width(found.std(), len(found)))


# The file


def test_cells_are_what_the_readme_and_the_paper_say() -> None:
    found, readings = {}, {}
    for one in read_cells("readme_table"):
        config = compose_config(one.overrides)
        found[config.dataset.name, config.num_routing, one.aggregate] = one.value
        assert one.rule == (None if one.aggregate == "count" else "best_test")
        assert (config.backbone.name, config.training.epochs) == ("resnet", 350)
        assert one.unit == ("million" if one.aggregate == "count" else "%")
        assert one.source.get("commit") == (None if one.aggregate == "count" else "53899ae")
        assert config.capsules.interleaved == (one.reading == "mixed windows")
        readings.setdefault((config.dataset.name, config.num_routing, one.aggregate), []).append(one.reading)
    assert found == README
    both = ["fixed windows", "mixed windows"]
    assert readings == {key: [""] if key[2] == "count" else both for key in README}


def test_every_table_of_the_file_can_be_read() -> None:
    tables = {node["table"] for node in yaml.safe_load(PATH.read_text())["cells"]}
    assert "readme_table" in tables and all(read_cells(table) for table in tables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregate": "median"}, "aggregate=median; it must be one of mean over seeds, best run, count"),
        ({"rule": "best"}, "rule=best; it must be one of last"),
        ({"aggregate": "count"}, "it must be none for a count"),
        ({"value": "94"}, "needs a number"),
        ({"source": {"citation": "a paper"}}, "citation and where"),
        ({"extra": 1}, "unknown key extra"),
        ({"overrides": None}, "not complete"),
    ],
)
def test_a_wrong_cell_is_one_sentence(tmp_path, change, message) -> None:
    node = yaml.safe_load(PATH.read_text())["cells"][0]
    node = {key: value for key, value in {**node, **change}.items() if value is not None}
    (tmp_path / "published.yaml").write_text(yaml.safe_dump({"cells": [node]}))
    with pytest.raises(ValueError, match=message):
        read_cells("readme_table", tmp_path / "published.yaml")


def test_a_table_never_mixes_rules(tmp_path) -> None:
    first, second, *_ = yaml.safe_load(PATH.read_text())["cells"]
    (tmp_path / "published.yaml").write_text(yaml.safe_dump({"cells": [first, {**second, "rule": "last"}]}))
    with pytest.raises(ValueError, match="mixes selection rules: best_test, last"):
        read_cells("readme_table", tmp_path / "published.yaml")


# Verdicts


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([90.1, 90.2, 90.0], "reproduced"),
        ([90.49, 90.51], "reproduced"),  # exactly the tolerance
        ([88.0, 88.1, 88.2], "below"),
        ([92.0, 92.1, 92.2], "above"),
        ([90.6, 90.6, 90.6], "too few seeds to say: at least 1 more needed"),  # alike: nothing about chance
        ([89.0, 91.0], "too few seeds to say"),
        ([90.0], "too few seeds to say: at least 1 more needed"),
        ([89.2, 89.4, 89.3, 89.5], "too few seeds to say"),  # the interval reaches back over the tolerance
    ],
)
def test_verdict_on_an_average(values, wanted) -> None:
    assert judged(values).startswith(wanted)


@pytest.mark.parametrize(
    ("values", "more"),
    [
        ([89.0, 91.0], 60),  # ±0.5: (2.776445 · 1.41421 / 0.5)² = 61.7 of five first seeds
        ([90.0, 90.9, 90.1], 5),  # 7.5
        ([91.0, 92.5, 91.5], 15),  # 17.98, whatever the difference is
        ([89.2, 89.4, 89.3, 89.5], 5),  # it is ±0.205 already: (2.776445 · 0.12910 / 0.125)² = 8.2
    ],
)
def test_the_number_of_further_seeds_does_not_follow_the_difference(values, more) -> None:
    assert judged(values) == f"too few seeds to say: {more} more needed"


def test_the_tolerance_is_the_cells() -> None:
    assert judged([90.1, 90.2, 90.0], tolerance=0.05).startswith("too few seeds")
    assert judged([93.0, 93.1, 93.2], tolerance=5) == "reproduced"


@pytest.mark.parametrize(
    ("values", "wanted"),
    [([80.0, 90.4], "reproduced"), ([90.4], "reproduced"), ([89.0, 89.4], "below"), ([90.6, 70.0], "above")],
)
def test_a_best_run_has_no_interval(values, wanted) -> None:
    assert judged(values, aggregate="best run") == wanted


def test_very_many_seeds_are_not_counted() -> None:
    assert verdict(cell(), 90.0, 3, 1e6, 1e6) == "too few seeds to say: very many more needed"


# The table


@pytest.fixture
def half_done(place):
    """CIFAR-10: num_routing 1 reproduced, 2 with one seed; CIFAR-100: one run, not finished."""
    for seed, accuracy in enumerate([0.9470, 0.9480, 0.9475, 0.9468, 0.9472]):
        finished_run(["dataset=CIFAR10", "num_routing=1", f"seed={seed}"], 0.9, accuracy)
    finished_run(["dataset=CIFAR10", "num_routing=2", "seed=7"], 0.9, 0.9512)
    finished_run(["dataset=CIFAR10", "num_routing=2", "seed=0", "training.lr=0.05"], 0.9, 0.99)  # another model
    finished_run(["dataset=CIFAR100", "num_routing=1", "seed=0"], 0.5, state="interrupted")


def test_published_ours_and_verdict(half_done) -> None:
    table = published_table(load_runs("runs"), read_cells("readme_table"))
    assert list(table.columns) == [
        "row",
        "column",
        "published",
        "reading",
        "ours",
        "n",
        "±",
        "difference",
        "verdict",
        "rule",
        "command",
    ]
    assert set(table[table.reading == "mixed windows"].verdict) == {"missing"}
    rows = table[table.reading != "mixed windows"].set_index(["row", "column"])
    one = rows.loc["CIFAR-10, num_routing 1", "average (%)"]
    assert (one.n, one.verdict, one.published) == (5, "reproduced", 94.73)
    assert one.ours == pytest.approx(94.73) and one.difference == pytest.approx(0, abs=1e-9)
    assert one["±"] == pytest.approx(2.776445 * pd.Series([94.70, 94.80, 94.75, 94.68, 94.72]).std() / 5**0.5)
    two = rows.loc["CIFAR-10, num_routing 2", "average (%)"]
    assert (two.n, two.verdict) == (1, "too few seeds to say: at least 1 more needed") and pd.isna(two["±"])
    best = rows.loc["CIFAR-10, num_routing 2", "best model (%)"]
    assert (best.n, best.verdict) == (1, "reproduced") and pd.isna(best["±"])
    assert best.difference == pytest.approx(95.12 - 95.14)
    for row in ("CIFAR-100, num_routing 1", "CIFAR-100, num_routing 2"):
        missing = rows.loc[row, "average (%)"]
        assert (missing.n, missing.verdict) == (0, "missing") and pd.isna(missing.ours)
    assert missing.command == "python launch.py -m dataset=CIFAR100 num_routing=2 seed=0,1,2,3,4"


def test_errors_are_compared_with_errors(place) -> None:
    """The self-routing paper's table has test errors: 91.83 % accuracy is an error of 8.17 %."""
    cells = read_cells("self_routing_table")
    (one,) = (cell for cell in cells if (cell.row, cell.column) == ("SR-1", "CIFAR-10"))
    for seed, accuracy in enumerate([0.9173, 0.9193]):
        finished_run([*one.overrides, f"seed={seed}"], 0.5, best_val=accuracy)
    row = published_table(load_runs("runs"), [one]).iloc[0]
    assert (row.column, row.published, row.n) == ("CIFAR-10 (% error)", 8.17, 2)
    assert row.ours == pytest.approx(8.17) and row.difference == pytest.approx(0, abs=1e-9)
    assert marks([one]).value[0] == pytest.approx(91.83)
    assert len(cells) == 24 and {cell.rule for cell in cells} == {None, "best_val"}


def test_parameters_are_counted_exactly(place) -> None:
    table = published_table(load_runs("runs"), read_cells("readme_table")).set_index("row")
    assert table.ours["CIFAR-10"] == 1.828817 and table.ours["CIFAR-100"] == 2.799629
    assert table.verdict["CIFAR-10"] == table.verdict["CIFAR-100"] == "reproduced"


@pytest.mark.slow
def test_every_format_has_every_cell_rule_and_command(half_done, capsule_sweeps) -> None:
    ended = {
        form: capsule_sweeps("results", "--published", "readme_table", "--format", form)
        for form in ("table", "md", "tex", "csv", "json")
    }
    assert all(one.code == 0 and one.err == "" for one in ended.values())
    objects, csv = json.loads(ended["json"].out), pd.read_csv(io.StringIO(ended["csv"].out))
    assert len(objects) == len(csv) == 2 * len(README) - 2  # a count has one reading
    objects = [one for one in objects if one["reading"] != "mixed windows"]
    assert [row["verdict"] for row in objects] == list(csv.verdict[csv.reading != "mixed windows"])
    assert {row["rule"] for row in objects} == {"best_test", None}  # there is no note in these files
    assert objects[4]["ours"] is None and objects[4]["n"] == 0 and objects[0]["n"] == 5
    command = "python launch.py -m dataset=CIFAR100 num_routing=1 seed=0,1,2,3,4"
    for form in ("table", "md", "tex"):
        text = " ".join(ended[form].out.split())
        for word in ("published", "ours", "difference", "verdict", "reproduced", "missing", "too few seeds to say"):
            assert word in text, (form, word)
        assert command in text
        assert "best" in text and "with the best test accuracy" in text
        assert "Only finished runs are included. Left out: 1 of" in text
    assert objects[4]["command"] == command and r"\toprule" in ended["tex"].out


def test_nothing_yet_is_a_table_of_what_to_do(place, capsule_sweeps) -> None:
    ended = capsule_sweeps("results", "--published", "readme_table", "--format", "json")
    found = {row["verdict"] for row in json.loads(ended.out) if "parameters" not in row["column"]}
    assert ended.code == 0 and found == {"missing"}
    assert capsule_sweeps("results", "--published", "readme_table", "--runs-dir", "nowhere").code != 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--published", "table_9"], ["published table table_9 is unknown", "readme_table"]),
        (["--published", "readme_table", "--rule", "last"], ["--rule last", "best_test"]),
        (["--published", "readme_table", "--ablation"], ["not allowed with"]),
        (["--figure", "x"], ["--ablation"]),
    ],
)
def test_what_cannot_be_asked_for(half_done, capsule_sweeps, arguments, words) -> None:
    ended = capsule_sweeps("results", *arguments)
    assert ended.code != 0 and all(word in ended.err for word in words) and "Traceback" not in ended.text


# The experiment


def planned(ended) -> set[str]:
    """Names of the runs in a plan."""
    assert ended.code == 0, ended.text
    rows = [line.strip("│").split("│") for line in ended.out.splitlines() if line.startswith("│")]
    return {row[0].strip() for row in rows if len(row) == 4} - {""}  # of names that continue in a second line


DRY = "hydra.launcher.dry_run=true"


@pytest.mark.parametrize(("flag", "table", "number"), [(["-m"], "readme_table", 40), ([], "self_routing_table", 80)])
@pytest.mark.slow
def test_the_experiment_runs_exactly_what_the_cells_need(launch, flag, table, number) -> None:
    needed = {
        columns(composed([*words, f"seed={seed}"]))["signature"]
        for words in {tuple(one.overrides) for one in read_cells(table)}
        for seed in SEEDS
    }
    runs = planned(launch(*flag, f"experiment={table}", DRY, base=[]))  # names are shortened in the middle
    assert {name[-8:] for name in runs} == needed and len(needed) == number


def test_the_command_of_a_missing_cell_runs_that_cell(launch) -> None:
    one = read_cells("readme_table")[-2]
    words = one.command().removeprefix("python launch.py ").split()
    wanted = {columns(composed([*one.overrides, f"seed={seed}"]))["run"] for seed in range(5)}
    assert planned(launch(*words, DRY, base=[])) == wanted


@pytest.mark.parametrize("folder", ["elsewhere/runs", "it's (b,c) {d} \\"])
def test_the_command_fills_the_folder_that_was_asked_for(launch, capsule_sweeps, folder) -> None:
    Path(folder).mkdir(parents=True)
    ended = capsule_sweeps("results", "--published", "readme_table", "--runs-dir", folder, "--format", "json")
    words = shlex.split(json.loads(ended.out)[0]["command"])[3:]
    config = compose_config([word for word in words if not word.startswith("seed=")])
    assert config.runs_dir == folder
    assert len(planned(launch("-m", *words, DRY, base=[]))) == 5


def test_the_command_line_wins_over_an_experiment(launch) -> None:
    found = planned(launch("-m", "experiment=readme_table", "seed=9", "dataset=digits", DRY, base=[]))
    assert len(found) == 4 and all(name.startswith("digits-") and "-s9-" in name for name in found)


def test_experiments_are_not_swept_over(launch) -> None:
    ended = launch("-m", "experiment=readme_table,ablations", DRY, base=[])
    assert ended.code == 1 and "experiment takes one name" in ended.err


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_opens_with_command_cost_and_accuracy(path) -> None:
    header = path.read_text().splitlines()
    assert header[0] == "# @package _global_"
    if path.stem == "none":
        assert not OmegaConf.load(path)
        return
    assert header[1] == f"# python launch.py -m experiment={path.stem}"
    assert header[2].startswith("# Cost: ") and header[3].startswith("# Accuracy it should reach")


def test_other_recipes_and_near_misses_beside_published_cells(place, capsule_sweeps, monkeypatch) -> None:
    for epochs in (20, 30):
        finished_run(["dataset=CIFAR10", "num_routing=1", f"training.epochs={epochs}"], 0.9, epochs / 100)
    out = " ".join(capsule_sweeps("results", "--published", "readme_table").out.split())
    assert "Near misses:" in out and "1 finished run with training.epochs=20 (not 350)" in out and "20.00" not in out
    rows = json.loads(capsule_sweeps("results", "--published", "readme_table", "num_routing=1", "--format", "json").out)
    filled = {row["recipe"]: (row["ours"], row["verdict"]) for row in rows if row["n"]}
    assert {name: ours for name, (ours, _) in filled.items()} == {
        "training.epochs=20 training.milestones=[9,14]": pytest.approx(20),
        "training.epochs=30 training.milestones=[13,21]": pytest.approx(30),
    }
    assert all(verdict.startswith("other recipe: ") for _, verdict in filled.values())
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console(), "_width", 80)
    text = capsule_sweeps("results", "--published", "readme_table", "training.epochs=30").out
    assert max(map(len, text.splitlines())) <= 80 and "num_routing" in text.partition("┡")[2].partition("└")[0]
    assert "missing" not in text and "Cells without such runs are not shown: 11." in text
    text = " ".join(text.split())
    assert "other recipe: training.epochs=30 training.milestones" in text and "training.epochs=20" not in text
    assert "two-stage" not in text and "Left out" not in text


@pytest.mark.slow
def test_the_note_under_another_recipe_is_about_its_own_runs(place, capsule_sweeps) -> None:
    """Nine seeds, of which the first five chose the number: ± is 2.776445 · s0 / √9, with s0 = √0.025 · 10 points."""
    words = ["dataset=CIFAR10", "num_routing=1", "training.epochs=20"]
    for seed in range(9):
        finished_run([*words, f"seed={seed}"], 0.9, 0.9 + 0.01 * (seed % 5 if seed < 5 else 2))
    finished_run([*words, "seed=9"], 0.9, state="failed")
    finished_run(["dataset=CIFAR10", "num_routing=1", "training.epochs=20", "backbone=simple"], 0.9, state="failed")
    finished_run(["dataset=digits", "num_routing=1", "training.epochs=20"], 0.9)
    group = columns(compose_config(words))["group"]
    record_seeds(place / "runs", {"half_width": 0.5, "min_seeds": 5, "resolve": None}, [group])
    text = " ".join(
        capsule_sweeps("results", "--published", "readme_table", "training.epochs=20", "--wide").out.split()
    )
    assert re.search(r"92\.00 │ 9 │ 1\.46 ", text) and "Left out: 1 of 10 runs" in text, text
    assert "two-stage procedure: ± of these rows is t(n0 − 1)·s0/√n" in text
    assert "digits" not in text, "another data set is no near miss"
    near = " ".join(capsule_sweeps("results", "--published", "readme_table").out.split())
    assert "9 finished runs with training.epochs=20 (not 350)" in near and "dataset.name" not in near
    assert "add a filter" in near and "add a filter" not in text
