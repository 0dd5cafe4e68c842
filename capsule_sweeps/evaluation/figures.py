"""Figures of evaluations: confusion matrices, and accuracies under a condition."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from capsule_sweeps.display import mathtext
from capsule_sweeps.results.figures import COLORS, COLUMN_WIDTH, STYLE
from capsule_sweeps.results.stein import first_of, interval


def confusion_figure(matrices: Mapping[str, np.ndarray], classes: Sequence[str]) -> Figure:
    """Confusion matrices (K, K) of counts, one panel each with its name as title, in % of the images of a row's class.

    A class without images is an empty row. If there are few classes, cells also show the numbers.
    """
    few, size = len(classes) <= 12, COLUMN_WIDTH * (1.0 if len(classes) <= 20 else 1.5)
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(size, len(matrices) * size * 0.95), layout="constrained")
        for axes, (name, counts) in zip(
            figure.subplots(len(matrices), squeeze=False)[:, 0], matrices.items(), strict=True
        ):
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
                axes.text(
                    column, row, f"{share:.0f}", ha="center", va="center", fontsize=5, color="wk"[int(share > 60)]
                )
            bar = figure.colorbar(shown, ax=axes, shrink=0.7, aspect=30)
            bar.set_label("% of the class's images", fontsize=7)
    return figure


def accuracy_curves(frame: pd.DataFrame, over: str, labels: Sequence[str]) -> Figure:
    """Accuracy in % against the numeric column `over`: one curve for each combination of the columns `labels`, with the
    95 % interval over seeds as bars (none for one seed). The vertical axis names the weights."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        groups = frame.groupby(list(labels), dropna=False, sort=False) if labels else [((), frame)]
        for number, (names, rows) in enumerate(groups):
            places = rows.groupby(over)
            bars = [interval(own.set_index("seed").accuracy, first_of(own)) for _, own in places]
            parts = [f"{key}={name}" for key, name in zip(labels, names, strict=True) if not pd.isna(name)]
            label = mathtext(", ".join(parts)) or None
            color = COLORS[number % len(COLORS)]
            means = places.accuracy.mean()
            axes.errorbar(means.index, means, bars, label=label, color=color, marker=".", capsize=2)
        axes.set_xlabel(mathtext(over))
        weights = ", ".join(map(str, frame["weights"].unique())) if "weights" in frame else ""
        axes.set_ylabel("test accuracy (%)" + (mathtext(f", weights={weights}") if weights else ""))
        if labels:
            figure.legend(loc="outside upper left", frameon=False, fontsize=6)
    return figure
