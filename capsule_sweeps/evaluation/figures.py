"""Figures of evaluations: confusion matrices, and accuracies under a condition."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from capsule_sweeps.display import mathtext
from capsule_sweeps.results.columns import setting_text
from capsule_sweeps.results.figures import COLORS, COLUMN_WIDTH, MARKERS, STYLE
from capsule_sweeps.results.stein import first_of, interval

LONGEST_LINE = 48  # characters in a legend


def confusion_figure(matrices: Mapping[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Confusion matrices (K, K) of counts, one panel each with its name as title, in % of the images of a row's class.

    A class without images is an empty row. If there are few classes, cells also show the numbers.
    """
    few, size = len(classes) <= 12, COLUMN_WIDTH * (1.0 if len(classes) <= 20 else 1.5)
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(size, len(matrices) * size * 0.95), layout="constrained")
        grid = figure.subplots(len(matrices), squeeze=False)
        for axes, (name, counts) in zip(grid[:, 0], matrices.items(), strict=True):
            totals = counts.sum(1, keepdims=True)
            shares = np.divide(100.0 * counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
            shown = axes.imshow(shares, vmin=0, vmax=100, cmap="cividis")
            axes.set(xlabel="predicted class", ylabel="class", title=mathtext(name))
            if len(classes) <= 20:
                names = list(map(mathtext, classes))
                axes.set_xticks(range(len(names)), names, rotation=90)
                axes.set_yticks(range(len(names)), names)
            for row, column in np.argwhere(shares >= 0.5) if few else []:
                share = shares[row, column]
                color = "wk"[int(share > 60)]
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=5, color=color)
            bar = figure.colorbar(shown, ax=axes, shrink=0.7, aspect=30)
            bar.set_label("% of the class's images", fontsize=7)
    return figure


def accuracy_curves(frame: pd.DataFrame, over: str, labels: Sequence[str]) -> Figure:
    """Accuracy in % against the numeric column `over`: one curve for each combination of the columns `labels`, with the
    95 % interval over seeds as bars (none for one seed). The vertical axis names the weights."""
    shown: list[str] = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        groups = frame.groupby(list(labels), dropna=False, sort=False) if labels else [((), frame)]
        for number, (names, rows) in enumerate(groups):
            places = rows.groupby(over)
            bars = [interval(own.set_index("seed").accuracy, first_of(own)) for _, own in places]
            texts = zip(labels, map(setting_text, names), strict=True)
            parts = textwrap.fill(", ".join(f"{key}={text}" for key, text in texts if text is not None), LONGEST_LINE)
            shown += [parts] if parts else []
            look: dict[str, Any] = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
            look |= {"linestyle": ("-", "-.", ":")[number // len(COLORS) % 3], "markersize": 3, "capsize": 2}
            means = places.accuracy.mean()
            axes.errorbar(means.index, means, bars, label=mathtext(parts) or None, **look)
        axes.set_xlabel(mathtext(over))
        weights = ", ".join(map(str, frame["weights"].unique())) if "weights" in frame else ""
        axes.set_ylabel("test accuracy (%)" + (mathtext(f", weights={weights}") if weights else ""))
        if shown:
            above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "alignment": "left"}
            axes.legend(frameon=False, fontsize=6, **above)
        figure.set_size_inches(COLUMN_WIDTH, 2.2 + sum(0.04 + 0.1 * (1 + label.count("\n")) for label in shown))
    return figure
