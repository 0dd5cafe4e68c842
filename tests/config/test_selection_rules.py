"""A rule is one entry of `RULES`: everything else derives from it."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from capsule_sweeps import compose_config, load_runs
from capsule_sweeps.config import selection_rules
from capsule_sweeps.config.selection_rules import Needs, Rule, summarize
from capsule_sweeps.launchers.hydra import warn_of_test_images

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "analysis").glob("*.ipynb"))
ROWS = [
    {"epoch": 1, "test_accuracy": 0.5, "val_accuracy": 0.7, "ema_test_accuracy": 0.1},
    {"epoch": 2, "test_accuracy": 0.75, "val_accuracy": 0.6, "ema_test_accuracy": 0.2},
    {"epoch": 3, "test_accuracy": 0.625, "val_accuracy": 0.7, "ema_test_accuracy": 0.3},
]


def test_every_rule_by_hand() -> None:
    assert summarize(ROWS) == {
        "accuracy_last": 0.625,
        "accuracy_best_val": 0.5,
        "epoch_best_val": 1,  # the first of equals
        "accuracy_best_test": 0.75,
        "epoch_best_test": 2,
        "accuracy_ema_last": 0.3,
        "accuracy_val_last": 0.7,
    }
    bare = summarize([{"epoch": 1, "test_accuracy": 0.5}])
    assert (
        bare["accuracy_best_val"]
        is bare["epoch_best_val"]
        is bare["accuracy_ema_last"]
        is bare["accuracy_val_last"]
        is None
    )
    assert list(bare) == list(summarize(ROWS)) and set(bare) == set(selection_rules.summary_keys())


def test_unknown_rule() -> None:
    with pytest.raises(ValueError, match="rule=best is unknown: set it to one of last, best_val"):
        selection_rules.find_rule("best")


@pytest.fixture
def first(monkeypatch) -> Rule:
    """One more rule, in the tuple alone."""
    needs = Needs("images to hold out", "dataset.val_size", "20")
    rule = Rule("first", lambda rows: (rows[0]["test_accuracy"], 1), needs, "the first epoch", chooses=True)
    monkeypatch.setattr(selection_rules, "RULES", (*selection_rules.RULES, rule))
    return rule


@pytest.mark.slow
def test_a_new_rule_is_seen_everywhere(first, tiny_config, launch, capsule_sweeps, runs) -> None:
    from capsule_sweeps.results.figures import accuracy_vs_num_routing
    from capsule_sweeps.tracking.wandb_dashboard import check_names
    from capsule_sweeps.tracking.wandb_send import summary_keys

    with pytest.raises(ValueError, match=r"selection_rule=first needs images to hold out: set dataset\.val_size"):
        tiny_config("selection_rule=first")
    ended = launch("selection_rule=first", "dataset.val_size=20")  # the schema accepts it
    assert ended.code == 0 and "first (the first epoch) for every number" in " ".join(ended.out.split())
    folder = runs.only()
    accuracy = runs.metrics(folder)[0]["test_accuracy"]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["accuracy_first"], summary["epoch_first"]) == (accuracy, 1)
    frame = load_runs("runs")
    assert frame.accuracy_first[0] == accuracy
    assert f"{100 * accuracy:.2f}" in capsule_sweeps("results", "--rule", "first", "--format", "csv").out
    assert capsule_sweeps("report", "--rule", "first").code == 0
    assert "accuracy in %, first" in Path("report.html").read_text()
    assert accuracy_vs_num_routing(frame, "first").axes
    assert {"accuracy_first", "epoch_first"} <= set(summary_keys())
    with pytest.raises(ValueError, match=r"no run there has logged accuracy_first"):
        check_names({"test_accuracy", "train_loss", "epoch"}, set(), "accuracy_first")


def test_settings_are_chosen_by_validation_images(launch, runs, capsule_sweeps, caplog) -> None:
    from capsule_sweeps.results.figures import accuracy_vs_num_routing

    assert "needs validation images: set dataset.val_size" in launch("selection_rule=val_last").err
    assert launch("-m", "num_routing=1,2", "selection_rule=val_last", "dataset.val_size=20").code == 0
    found = [json.loads((folder / "summary.json").read_text())["accuracy_val_last"] for folder in runs.folders()]
    assert found == [runs.metrics(folder)[-1]["val_accuracy"] for folder in runs.folders()]
    for words in ([], ["--against", "num_routing=1"], ["--pivot", "num_routing"]):
        said = " ".join(capsule_sweeps("results", "--rule", "val_last", *words).out.split())
        assert "Validation accuracy in %" in said and "Test accuracy" not in said
    for file in (folder / name for folder in runs.folders() for name in ("run.json", "summary.json")):
        older = {key: value for key, value in json.loads(file.read_text()).items() if key != "accuracy_val_last"}
        file.write_text(json.dumps(older))
    assert list(load_runs("runs").accuracy_val_last) == found
    again = launch("-m", "num_routing=1,2", "selection_rule=val_last", "dataset.val_size=20")
    assert again.code == 0 and "2 to run" not in again.out, "accuracies of earlier runs are known"
    metrics = runs.folders()[0] / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole.splitlines()[0] + "\n")
    assert load_runs("runs").accuracy_val_last.isna().sum() == 1, "the last epoch is lost"
    metrics.write_text(whole)
    axes = accuracy_vs_num_routing(load_runs("runs"), "val_last").axes[0]
    assert axes.get_ylabel().startswith("validation accuracy")
    for rule in selection_rules.names():
        warn_of_test_images(rule)
    warned = [record.args for record in caplog.records if "by test images" in record.msg]
    assert warned == [(name,) for name in selection_rules.names() if name != "val_last"]


def code_of(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_use_what_exists_and_list_no_rules(path) -> None:
    code = code_of(path)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("capsule_sweeps"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
    others = [name for name in selection_rules.names() if name != "last"]
    assert not re.search("|".join(others), code)


def test_no_other_file_lists_the_rules() -> None:
    for path in (ROOT / "capsule_sweeps").rglob("*.py"):
        if path.name != "selection_rules.py":
            assert not re.search(r"\bbest_val\b|\baccuracy_ema_last\b", path.read_text()), path


def test_conf_names_no_rule_that_is_unknown() -> None:
    assert compose_config([]).selection_rule in selection_rules.names()
