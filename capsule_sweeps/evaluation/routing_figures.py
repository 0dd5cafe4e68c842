"""Figures of what routing does inside a run, drawn from what routing_statistics.py returns."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from capsule_sweeps.display import counted, mathtext
from capsule_sweeps.results.figures import COLORS, COLUMN_WIDTH, MARKERS, STYLE

IMAGES: dict[Any, Any] = {**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}


def routing_maps(image: np.ndarray, maps: Sequence[Sequence[np.ndarray]]) -> Figure:
    """`inside.coefficient_maps`: the image (C, H, W), and a row for each layer with a map for each iteration."""
    num_columns = 1 + max(map(len, maps))
    highest = max(float(values.max()) for of_layer in maps for values in of_layer)
    with matplotlib.rc_context(IMAGES):
        figure = Figure(figsize=(COLUMN_WIDTH, 0.3 + 0.95 * len(maps)), layout="constrained")
        grid = figure.subplots(len(maps), num_columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        grid[0, 0].imshow(pixels, cmap="gray", vmin=0, vmax=255)
        grid[0, 0].set_title("input", fontsize=7)
        for number, (row, of_layer) in enumerate(zip(grid, maps, strict=True), 1):
            name = "classes" if number == len(maps) else f"layer {number}"
            for iteration, (axes, values) in enumerate(zip(row[1:], of_layer, strict=False), 1):
                axes.set_axis_on()
                shown = axes.imshow(values, vmin=0, vmax=highest, cmap="viridis")
                axes.set_title(f"iteration {iteration}", fontsize=6, pad=2)
                axes.set_xlabel("grid column", fontsize=6, labelpad=1)
                axes.set_ylabel(f"{mathtext(name)}\ngrid row" if iteration == 1 else "", fontsize=6, labelpad=1)
                axes.set(xticks=[], yticks=[])
        bar = figure.colorbar(shown, ax=grid, shrink=0.8, aspect=30)
        bar.set_label("largest coefficient of a child, mean", fontsize=7)
    return figure


def routing_over_images(statistics: pd.DataFrame) -> Figure:
    """`inside.routing_statistics`: entropy and agreement by layer and iteration, a box over images each."""
    last = statistics.layer.max()
    layers, names, boxed = [], [], []
    for (layer, iteration), rows in statistics.groupby(["layer", "iteration"], sort=True):
        layers.append(layer)
        names.append(f"{'classes' if layer == last else f'layer {layer}'}\nit. {iteration}")
        boxed.append(rows)
    labels = {"entropy": "entropy of coefficients\n(1 = even)", "agreement": "agreement, weighted\n(pose units²)"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_WIDTH, 3.2), layout="constrained")
        for axes, (column, label) in zip(figure.subplots(2, sharex=True), labels.items(), strict=True):
            values = [rows[column].dropna().to_numpy() for rows in boxed]
            boxes = axes.boxplot(values, widths=0.6, patch_artist=True, flierprops={"markersize": 2})
            for layer, box, median in zip(layers, boxes["boxes"], boxes["medians"], strict=True):
                box.set_facecolor(COLORS[(layer - 1) % len(COLORS)])
                box.set_alpha(0.6)
                median.set_color("black")
            axes.set_ylabel(label)
        axes.set_xticks(range(1, len(names) + 1), names, fontsize=6)
        axes.set_xlabel(f"layer, iteration; boxes: {counted(statistics.image.nunique(), 'training image')}")
    return figure


def class_feeds_figure(feeds: np.ndarray, name: str) -> Figure:
    """`inside.class_feeds` (k, l, N): where on the grid, and from which child capsules, a class capsule is fed."""
    limit = float(np.abs(feeds.sum(2)).max()) or 1.0
    with matplotlib.rc_context(IMAGES):
        figure = Figure(figsize=(COLUMN_WIDTH, 1.6), layout="constrained")
        places, kinds = figure.subplots(1, 2)
        shown = places.imshow(feeds.sum(2), cmap="PuOr", vmin=-limit, vmax=limit)
        places.set(xlabel="column", ylabel="row", xticks=[], yticks=[])
        places.set_title(f"fed to class {mathtext(name)}, by place", fontsize=7)
        figure.colorbar(shown, ax=places, shrink=0.8).ax.tick_params(labelsize=6)
        kinds.bar(range(feeds.shape[2]), feeds.sum((0, 1)), color=COLORS[0])
        kinds.axhline(0, color="black", linewidth=0.6)
        kinds.set(xlabel="child capsule", ylabel="coefficient × agreement")
        kinds.xaxis.get_major_locator().set_params(integer=True)
        kinds.set_title("by child capsule", fontsize=7)
    return figure


def response_figure(response: Mapping[str, Mapping[str, np.ndarray]], name: str) -> Figure:
    """`inside.pose_response`: every number of the class capsule's pose, and the class's probability, by transform."""
    units = {"shift": "shift right (pixels)", "rotation": "rotation left (degrees)"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_WIDTH, 3.0), layout="constrained")
        grid = figure.subplots(2, len(units), sharex="col", sharey="row", height_ratios=[2, 1])
        for (kind, label), column in zip(units.items(), grid.T, strict=True):
            poses, probability = column
            amount = response[kind]["amount"]
            poses.plot(amount, response[kind]["poses"], linewidth=0.8)
            for number, line in enumerate(poses.lines):
                line.set_color(COLORS[number % len(COLORS)])
                line.set_linestyle(("-", "--", ":", "-.")[number // len(COLORS) % 4])
            probability.plot(amount, response[kind]["probability"], color="black", marker=MARKERS[0], markersize=2)
            probability.set_ylim(-0.05, 1.05)
            probability.set_xlabel(label)
        grid[0, 0].set_ylabel(f"pose of class {mathtext(name)}\n({response['shift']['poses'].shape[1]} numbers)")
        grid[1, 0].set_ylabel("probability")
    return figure
