"""Each notebook is committed without outputs, and runs from top to bottom on runs that a real sweep made."""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "analysis").glob("*.ipynb"))
NAME = "accuracy_vs_num_routing"
SWEEP = (
    "dataset=digits dataset.train_size=64 training=quick training.epochs=1 training.batch_size=16 backbone.channels=8 "
    "capsules.primary.num_capsules=2 capsules.layers=[] num_routing=1,2 seed=0,1 tracking=none"
)


ABLATIONS = (
    "dataset=digits dataset.train_size=64 training=quick training.epochs=2 training.milestones=[1] "
    "training.batch_size=16 backbone.channels=8 capsules.primary.num_capsules=2 tracking=none num_routing=2 seed=0,1 "
    "ablation=none,sequential,softmax_over_children"
)


def sweep(folder: Path, words: str, data_dir: Path) -> Path:
    command = [sys.executable, ROOT / "launch.py", "-m", *words.split(), f"runs_dir={folder}", f"data_dir={data_dir}"]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """Four finished runs: num_routing 1 and 2, two seeds each."""
    return sweep(tmp_path_factory.mktemp("sweep") / "runs", SWEEP, data_dir)


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """Six finished runs: a base and two changes, two seeds each."""
    return sweep(tmp_path_factory.mktemp("ablations") / "runs", ABLATIONS, data_dir)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As much of a checkout as the notebook needs; Jupyter and IPython keep their own files beside it."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "checkout"
    (folder / "analysis").mkdir(parents=True)
    (folder / "launch.py").touch()
    return folder


def execute(folder: Path, name: str = NAME, **parameters: Any) -> nbformat.NotebookNode:
    """The executed notebook, with a cell of parameters after its own as papermill would put it there."""
    notebook = nbformat.read(ROOT / "analysis" / f"{name}.ipynb", as_version=4)
    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    injected = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(injected))
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute()


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """What the cells show of one MIME type."""
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data[kind] for output in found if kind in output.get("data", {})]


def by_hand(runs_dir: Path, rule: str) -> dict[int, list[float]]:
    """num_routing → accuracies in %, from the summaries alone."""
    accuracies: dict[int, list[float]] = {}
    for path in runs_dir.glob("*/summary.json"):
        summary = json.loads(path.read_text())
        accuracies.setdefault(summary["num_routing"], []).append(100 * summary[f"accuracy_{rule}"])
    assert {num_routing: len(values) for num_routing, values in accuracies.items()} == {1: 2, 2: 2}
    return accuracies


@pytest.mark.parametrize(("place", "rule"), [("", "last"), ("analysis", "best_test")])
def test_table_and_figure_from_wherever_jupyter_was_opened(
    checkout: Path, runs_dir: Path, place: str, rule: str
) -> None:
    """Its own parameters are used for the folders: runs at the root, results in analysis."""
    (checkout / "runs").symlink_to(runs_dir)
    notebook = execute(checkout / place, **({} if rule == "last" else {"rule": rule}))

    figures, tables = checkout / "analysis" / "figures", checkout / "analysis" / "tables"
    (image,) = outputs(notebook, "image/png")
    assert base64.b64decode(image) == (figures / f"{NAME}.png").read_bytes()
    assert (figures / f"{NAME}.pdf").read_bytes().startswith(b"%PDF")

    rows = list(csv.DictReader((tables / f"{NAME}.csv").read_text().splitlines()))
    expected = by_hand(runs_dir, rule)
    assert [(row["dataset"], row["num_routing"], row["n"], row["rule"]) for row in rows] == [
        ("digits", "1", "2", rule),
        ("digits", "2", "2", rule),
    ]
    for row in rows:
        values = expected[int(row["num_routing"])]
        assert float(row["mean"]) == pytest.approx(statistics.mean(values))
        assert float(row["std"]) == pytest.approx(statistics.stdev(values))
        assert sorted(values) == pytest.approx([float(row["min"]), float(row["max"])])

    shown, compared = outputs(notebook, "text/markdown")
    assert f"{statistics.mean(expected[2]) - statistics.mean(expected[1]):.2f}" in compared and "| True |" in compared
    written = (tables / f"{NAME}.md").read_text(encoding="utf-8")
    assert (
        all(f"| {statistics.mean(expected[1]):.2f} |" in text for text in (shown, written))
        and f"selection rule: {rule}" in shown
    )
    assert not (tables / "runs").exists() and sorted(path.name for path in (checkout / "analysis").iterdir()) == [
        "figures",
        "tables",
    ]


def test_no_finished_runs_is_one_sentence(checkout: Path) -> None:
    with pytest.raises(CellExecutionError) as caught:
        execute(checkout, runs_dir="elsewhere")
    assert caught.value.ename == "ValueError"
    assert caught.value.evalue.startswith("none of 0 runs is finished")
    assert "choose another runs_dir" in caught.value.evalue and "python launch.py -m" in caught.value.evalue
    assert not list((checkout / "analysis").iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert all(cell.id for cell in notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert "parameters" in code[0].metadata.tags
    assert notebook.metadata.kernelspec.name == "python3"


def test_the_notebooks_are_found() -> None:
    wanted = {NAME, "paper_tables", "training_curves", "inside_routing", "ablations"}
    assert {path.stem for path in NOTEBOOKS} == wanted


def left(checkout: Path, folder: str) -> set[str]:
    return {path.name for path in (checkout / "analysis" / folder).glob("*") if path.stat().st_size > 0}


def both(*names: str) -> set[str]:
    return {f"{name}.{form}" for name in names for form in ("png", "pdf")}


def test_paper_tables(checkout: Path, runs_dir: Path) -> None:
    (shown,) = outputs(execute(checkout, "paper_tables", runs_dir=str(runs_dir)), "text/markdown")
    assert left(checkout, "tables") == {"readme_table.md", "readme_table.tex", "readme_table.csv"}
    rows = list(csv.DictReader((checkout / "analysis" / "tables" / "readme_table.csv").read_text().splitlines()))
    assert {row["verdict"] for row in rows} == {"missing", "reproduced"}  # the parameters need no run
    assert "dataset=CIFAR100 num_routing=2 seed=0,1,2,3,4" in shown


def test_training_curves(checkout: Path, ablated: Path) -> None:
    notebook = execute(checkout, "training_curves", runs_dir=str(ablated), words=["schedule=concurrent"])
    assert left(checkout, "figures") == both("training_curves") and len(outputs(notebook, "image/png")) == 1
    speed, costs = outputs(notebook, "text/markdown")
    assert speed.count("digits-capsnet-simple-") == 4 and "images/s" in speed
    seconds = [json.loads(path.read_text())["seconds"] for path in ablated.glob("*/summary.json")]
    *_, total = csv.DictReader((checkout / "analysis" / "tables" / "costs.csv").read_text().splitlines())
    assert float(total["hours"]) == pytest.approx(sum(seconds) / 3600) and (total["dataset"], int(total["runs"])) == (
        "all",
        6,
    )
    assert "| cpu |" in costs


def test_training_curves_of_runs_that_have_some(checkout: Path, runs_dir: Path, tmp_path: Path) -> None:
    """Six that have no epoch yet stand before them in the alphabet."""
    runs = shutil.copytree(runs_dir, tmp_path / "runs")
    for number in range(6):
        (runs / f"a-{number:08d}").mkdir()
    execute(checkout, "training_curves", runs_dir=str(runs))
    assert left(checkout, "figures") == both("training_curves")


def test_inside_routing(checkout: Path, ablated: Path) -> None:
    notebook = execute(checkout, "inside_routing", runs_dir=str(ablated), num_images=8)
    names = [f"inside_routing_{name}" for name in ("maps", "over_images", "feeds", "response")]
    assert left(checkout, "figures") == both(*names) and len(outputs(notebook, "image/png")) == 4
    (means,) = outputs(notebook, "text/markdown")
    assert "| 1 | 1 | 1.00 |" in means and "Means over 8 training images" in means


def test_ablations(checkout: Path, ablated: Path) -> None:
    notebook = execute(checkout, "ablations", runs_dir=str(ablated))
    assert left(checkout, "figures") == both("ablations") and len(outputs(notebook, "image/png")) == 1
    assert left(checkout, "tables") == {"ablations.md", "ablations.tex", "ablations.csv"}
    (shown,) = outputs(notebook, "text/markdown")
    assert all(f"| {name} | 2 |" in shown.replace("†", "") for name in ("none", "sequential", "softmax_over_children"))


def test_make_notebooks_leaves_copies_and_pages(checkout: Path, runs_dir: Path) -> None:
    """What cannot be executed on these runs, here ablations, is reported, and the others are there."""
    for path in [*NOTEBOOKS, ROOT / "analysis" / "render.py"]:
        (checkout / "analysis" / path.name).write_text(path.read_text())
    command = [sys.executable, checkout / "analysis" / "render.py", str(runs_dir), "paper_tables", "ablations"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0 and "paper_tables: analysis/rendered/paper_tables.html" in done.stdout
    assert "ablations.html says what is missing: no ablation is finished beside its base" in done.stdout
    assert left(checkout, "rendered") == {"paper_tables.ipynb", "paper_tables.html", "ablations.html"}
    copy = nbformat.read(checkout / "analysis" / "rendered" / "paper_tables.ipynb", as_version=4)
    assert outputs(copy, "text/markdown")
    assert "python launch.py -m dataset=CIFAR10" in (checkout / "analysis/rendered/paper_tables.html").read_text()
    make = subprocess.run(["make", "-n", "notebooks", "RUNS=some/runs"], cwd=ROOT, capture_output=True, text=True)
    assert "analysis/render.py some/runs" in make.stdout
