"""Figures hold what the runs say: every run a point, means and deviations by hand, nothing left behind in pyplot."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer

from capsule_sweeps.results.figures import COLORS, accuracy_vs_num_routing, finished_runs, save, training_curves

TWO_SETS = {
    ("CIFAR10", 1): [0.9, 0.91, 0.95],
    ("CIFAR10", 2): [0.8, 0.84],
    ("CIFAR10", 3): [0.7],
    ("CIFAR100", 1): [0.5, 0.6],
}


def frame(accuracies: dict[tuple[str, int], list[float]], schedule: str = "concurrent", **more: Any) -> pd.DataFrame:
    """What `load_runs` gives of finished runs; `more` are keys of the signed configuration."""
    rows = []
    for (dataset, num_routing), values in accuracies.items():
        signed_config = {
            "dataset.name": dataset,
            "model.num_routing": num_routing,
            "model.routing.schedule": schedule,
            **more,
        }
        for seed, value in enumerate(values):
            row = {"run": f"{dataset}-r{num_routing}-s{seed}", "state": "finished", "dataset": dataset}
            row |= {"model": "capsnet", "backbone": "resnet", "routing": "inverted_attention", "schedule": schedule}
            row |= {"imported": False, "num_routing": num_routing, "seed": seed, "group": repr(signed_config)}
            row |= {"accuracy_last": value, "accuracy_best_test": value + 0.01, "accuracy_best_val": np.nan}
            rows.append({**row, "signed_config": {**signed_config, "seed": seed}})
    runs = pd.DataFrame(rows)
    return runs.astype({"num_routing": "Int64", "seed": "Int64"})


def bars(axes: Axes) -> list[ErrorbarContainer]:
    return [container for container in axes.containers if isinstance(container, ErrorbarContainer)]


def labels(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def drawn(runs: pd.DataFrame, rule: str = "last") -> list[Axes]:
    figure = accuracy_vs_num_routing(runs, rule)
    figure.draw_without_rendering()
    return figure.axes


def points(axes: Axes) -> np.ndarray:
    """(x, y) of every run's point."""
    return np.concatenate([c.get_offsets() for c in axes.collections if isinstance(c, PathCollection)])


def spans(container: ErrorbarContainer) -> list[tuple[float, float]]:
    """Lower and upper end of each bar that is drawn; none stands where there is no deviation."""
    ends = [segment[:, 1] for segment in container.lines[2][0].get_segments() if len(segment)]
    return [(float(low), float(high)) for low, high in ends if np.isfinite([low, high]).all()]


def test_one_panel_a_dataset_with_labels_and_the_rule() -> None:
    first, second = drawn(frame(TWO_SETS), "best_test")
    assert [axes.get_legend().get_title().get_text().split(":")[0] for axes in (first, second)] == [
        "CIFAR10",
        "CIFAR100",
    ]
    for axes in (first, second):
        assert axes.get_xlabel() == "num_routing (routing iterations)"
        assert axes.get_ylabel() == "test accuracy (%)\nselection rule: best_test"
    assert labels(first) == ["n = 3, 2, 1"] and labels(second) == ["n = 2"]
    assert list(first.get_xticks()) == [1, 2, 3] and list(second.get_xticks()) == [1]


@pytest.mark.parametrize(("rule", "more"), [("last", 0), ("best_test", 1)])
def test_every_run_is_a_point_near_its_num_routing(rule: str, more: float) -> None:
    runs = frame(TWO_SETS)
    first, second = drawn(runs, rule)
    assert len(points(first)) + len(points(second)) == len(runs)
    by_x = {r: sorted(y for x, y in points(first) if round(x) == r) for r in (1, 2, 3)}
    assert by_x == {r: pytest.approx([100 * a + more for a in sorted(TWO_SETS["CIFAR10", r])]) for r in (1, 2, 3)}
    assert len({x for x, _ in points(first)}) == len(points(first))  # equal accuracies would still be two points


def test_means_and_deviations_by_hand() -> None:
    (line,) = bars(drawn(frame(TWO_SETS))[0])
    percent = [[100 * a for a in TWO_SETS["CIFAR10", r]] for r in (1, 2, 3)]
    assert list(line.lines[0].get_ydata()) == pytest.approx([statistics.mean(values) for values in percent])
    expected = [
        (statistics.mean(v) - statistics.stdev(v), statistics.mean(v) + statistics.stdev(v)) for v in percent[:2]
    ]
    assert np.allclose(spans(line), expected)  # two bars: one run has no deviation, not a deviation of 0


def test_different_configuration_is_never_one_line() -> None:
    """Not even where the two have no num_routing in common."""
    one, other = {("CIFAR10", 1): [0.9, 0.91]}, {("CIFAR10", 2): [0.8, 0.84]}
    (axes,) = drawn(pd.concat([frame(one, **{"training.lr": 0.1}), frame(other, **{"training.lr": 0.5})]))
    assert labels(axes) == ["lr=0.1, n = 2", "lr=0.5, n = 2"]
    assert [len(line.lines[0].get_ydata()) for line in bars(axes)] == [1, 1]

    (axes,) = drawn(pd.concat([frame(one), frame(other, schedule="sequential")], ignore_index=True))
    assert [label.split(",")[0] for label in labels(axes)] == ["concurrent", "sequential"]
    colors = [to_hex(line.lines[0].get_color()).upper() for line in bars(axes)]
    assert len(set(colors)) == 2 and set(colors) <= set(COLORS)


def test_long_names_are_not_cut_off() -> None:
    more = {"dataset.crop_padding": 4, "model.capsules.pose": "matrix", "model.head": "shared"}
    runs = [frame(TWO_SETS, **more, **{"model.routing.norm": norm}) for norm in ("layer", "squash")]
    runs += [
        frame(TWO_SETS, schedule="sequential", **{key: "another" for key in more}, **{"model.routing.norm": "none"})
    ]
    figure = accuracy_vs_num_routing(pd.concat(runs, ignore_index=True))
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_legend().get_window_extent().x1 <= figure.bbox.x1


def test_unfinished_runs_stay_out() -> None:
    runs = frame(TWO_SETS)
    runs.loc[runs.dataset == "CIFAR100", "state"] = "interrupted"
    (axes,) = drawn(runs)
    assert len(points(axes)) == 6 == len(finished_runs(runs, "last"))


def test_no_runs_no_routing_no_rule() -> None:
    runs = frame(TWO_SETS)
    with pytest.raises(
        ValueError, match=r"none of 0 runs .* rule=last; choose another runs_dir, or: python launch\.py -m"
    ):
        accuracy_vs_num_routing(runs[:0])
    with pytest.raises(ValueError, match=r"none of 8 runs .* rule=best_val.* dataset\.val_size="):
        accuracy_vs_num_routing(runs, "best_val")
    with pytest.raises(ValueError, match="rule=best is unknown"):
        accuracy_vs_num_routing(runs, "best")
    with pytest.raises(ValueError, match="none of 8 runs is finished, has a num_routing"):
        accuracy_vs_num_routing(runs.assign(num_routing=pd.array([pd.NA] * len(runs), dtype="Int64")))


def test_files_are_a_column_wide_and_the_same_each_time(tmp_path: Path) -> None:
    from PIL import Image

    before = dict(matplotlib.rcParams)
    once = save(accuracy_vs_num_routing(frame(TWO_SETS)), tmp_path / "new" / "folder", "plot")
    again = save(accuracy_vs_num_routing(frame(TWO_SETS)), str(tmp_path), "plot")
    assert [path.name for path in once] == ["plot.png", "plot.pdf"]
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    assert once[1].read_bytes().startswith(b"%PDF")
    with Image.open(once[0]) as image:
        assert image.width == 1020  # 3.4 inches at 300 dots an inch
    assert dict(matplotlib.rcParams) == before


def test_drawing_needs_neither_pyplot_nor_torch(tmp_path: Path) -> None:
    frame(TWO_SETS).to_pickle(tmp_path / "runs.pickle")
    program = (
        "import sys, pandas; from capsule_sweeps.results.figures import accuracy_vs_num_routing, save;"
        "save(accuracy_vs_num_routing(pandas.read_pickle('runs.pickle')), '.', 'plot');"
        "print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def cells_of(runs: pd.DataFrame, **signed: Any) -> pd.DataFrame:
    """Published cells for CIFAR10, of the recipe of some runs or of another one."""
    own = runs[runs.dataset == "CIFAR10"].iloc[0]
    rows = [
        {"num_routing": 2, "value": 94.85, "aggregate": "mean over seeds"},
        {"num_routing": 4, "value": 95.14, "aggregate": "best run"},
    ]
    more = {"groups": ["another"] if signed else [own.group], "signed_config": {**own.signed_config, **signed}}
    return pd.DataFrame([{**row, "dataset": "CIFAR10", "rule": "best_test", **more} for row in rows])


def test_published_values_are_markers_with_their_own_rule() -> None:
    figure = accuracy_vs_num_routing(frame(TWO_SETS), "last", cells_of(frame(TWO_SETS)))
    figure.draw_without_rendering()
    first, second = figure.axes
    assert {(2.0, 94.85), (4.0, 95.14)} <= {tuple(point) for point in points(first)}
    assert labels(first)[-2:] == ["published, mean over seeds (best_test)", "published, best run (best_test)"]
    assert list(first.get_xticks()) == [1, 2, 3, 4]
    assert len(labels(second)) == 1


def test_published_values_of_another_recipe_are_in_the_legend_and_no_markers() -> None:
    runs = frame(TWO_SETS, **{"training.epochs": 12})
    figure = accuracy_vs_num_routing(runs, "last", cells_of(runs, **{"training.epochs": 350}))
    figure.draw_without_rendering()
    assert (2.0, 94.85) not in {tuple(point) for point in points(figure.axes[0])}
    (words,) = (label for label in labels(figure.axes[0]) if "published" in label)
    assert " ".join(words.split()) == "published values not drawn, made with training.epochs=350 (here 12)"


def test_models_without_num_routing_are_horizontal_lines_and_many_lines_stay_readable() -> None:
    runs = frame(TWO_SETS)
    baseline = frame({("CIFAR10", 1): [0.6, 0.7]}).assign(model="cnn", routing=None, schedule=None, group="cnn")
    baseline["num_routing"] = baseline.num_routing.mask(baseline.num_routing == 1)
    lines = [frame({("CIFAR10", r): [0.5] for r in (1, 2, 3)}, **{"training.lr": lr / 100}) for lr in range(1, 25)]
    figure = accuracy_vs_num_routing(pd.concat([runs, baseline, *lines], ignore_index=True))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert any(line.get_linestyle() == "--" and list(line.get_ydata()) == [65.0, 65.0] for line in axes.lines)
    assert any(label.startswith("cnn") for label in labels(axes))
    assert len(labels(axes)) == 26  # no group is dropped
    looks = [(one.get_color(), one.get_linestyle()) for one in axes.lines if one.get_linestyle() not in ("None", "--")]
    assert len(looks) == 25 and looks.count(looks[0]) <= 2  # seven colors, three kinds of lines
    only = baseline.assign(dataset="MNIST")  # a panel without any num_routing
    assert len(drawn(pd.concat([runs, only], ignore_index=True))[-1].lines) == 1
    width, height = figure.get_size_inches()
    assert height / width < 4


def curves(lrs: list[float]) -> pd.DataFrame:
    """Metrics of a run with these learning rates."""
    rows = [
        {
            "epoch": epoch,
            "lr": lr,
            "train_loss": 2.0 / epoch,
            "test_loss": 2.5 / epoch,
            "train_accuracy": 0.1 * epoch,
            "test_accuracy": 0.2 * epoch,
            "images_per_second": 100.0 * epoch,
        }
        for epoch, lr in enumerate(lrs, 1)
    ]
    return pd.DataFrame(rows)


def test_training_curves_hold_metrics_and_learning_rate_changes() -> None:
    figure = training_curves({"one": curves([0.1, 0.1, 0.01, 0.001]), "none yet": pd.DataFrame()})
    figure.draw_without_rendering()
    loss, accuracy, speed = figure.axes
    assert [list(line.get_ydata()) for line in loss.lines[:2]] == [[2, 1, 2 / 3, 0.5], [2.5, 1.25, 2.5 / 3, 0.625]]
    assert list(accuracy.lines[1].get_ydata()) == pytest.approx([20, 40, 60, 80])
    assert list(speed.lines[0].get_ydata()) == [100, 200, 300, 400]
    for axes in figure.axes:
        verticals = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert verticals == [2.5, 3.5]  # between the epochs
        assert axes.get_ylabel()
    assert speed.get_xlabel() == "epoch"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one"]


def test_no_epoch_no_curves() -> None:
    with pytest.raises(ValueError, match="none of these runs has an epoch yet"):
        training_curves({"one": pd.DataFrame()})
