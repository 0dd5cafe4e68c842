"""Figures for a column of a paper, drawn from `load_runs` without pyplot, so without windows and global state."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D

from capsule_sweeps.config.selection_rules import find_rule
from capsule_sweeps.display import counted, line, listed, mathtext
from capsule_sweeps.results.columns import differences_of, named, settings_frame, typed
from capsule_sweeps.results.fitted import shorten
from capsule_sweeps.results.tables import accuracy_table, finished_runs

LONGEST_NAME = 70  # characters of a line in the legend
SHORT_NAME = 20  # characters of a data set in the title of a legend
COLUMN_WIDTH = 3.4  # inches
# Okabe and Ito, color-blind safe
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v")  # for print without color; 5 × 7 pairs of marker and color until one repeats
Entry = tuple[Any, str]  # of a legend: what it shows, its label
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.color": "#D9D9D9",
    "lines.linewidth": 1.2,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: publishers reject Type 3 fonts
}


def accuracy_vs_num_routing(runs: pd.DataFrame, rule: str = "last", published: pd.DataFrame | None = None) -> Figure:
    """Accuracy (%) under a rule against num_routing, one panel per dataset: mean as a line, sample standard deviation
    as bars (none for n = 1), every run as a point; `published.marks` as markers, with their own rule in the legend.

    Runs on one line differ only in seed and num_routing; models without num_routing are horizontal lines. A published
    value is drawn if there is a run of its recipe; for the others the legend lists what differs. Unfinished runs are
    excluded. Raises ValueError if no run has a num_routing, or for an unknown rule.
    """
    finished = finished_runs(runs, rule).dropna(subset=["dataset"])
    if finished.num_routing.isna().all():
        needs = find_rule(rule).needs
        needed = f" {needs.key}={needs.example}" if needs else ""
        raise ValueError(
            f"none of {counted(len(runs), 'run')} is finished, has a num_routing and an accuracy under rule={rule}; "
            f"choose another runs_dir, or: python launch.py -m num_routing=1,2,3 dataset=digits training=quick{needed}"
        )
    datasets = sorted(finished.dataset.unique())
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        height = 0.0
        for axes, dataset in zip(figure.subplots(len(datasets), squeeze=False)[:, 0], datasets, strict=True):
            theirs = None if published is None else published[published.dataset == dataset]
            labels = _draw_accuracies(axes, finished[finished.dataset == dataset], rule, theirs)
            name = mathtext(shorten(line(dataset), SHORT_NAME))
            axes.get_legend().set_title(f"{name}: mean ± sample std, and every run")
            height += 2.2 + sum(0.04 + 0.11 * (1 + label.count("\n")) for label in labels)
        figure.set_size_inches(COLUMN_WIDTH, height)
    return figure


def forest_plot(table: pd.DataFrame) -> Figure:
    """The differences of an `ablation.ablation_table`, one panel per base: a point each, its 95 % interval as a bar (if
    there is one), the base as a line at 0.

    Raises ValueError if the table has no ablation.
    """
    changed = table[table.paired.notna()]
    if changed.empty:
        raise ValueError(
            "no ablation is finished beside its base; make some: "
            "python launch.py -m 'ablation=glob(*)' num_routing=2 seed=0,1,2 dataset=digits training=quick"
        )
    key = table.columns[list(table.columns).index("base") + 1]
    texts = changed[key].astype(str) + " (n = " + changed.n.astype(str) + ")"
    changed = changed.assign(label=[textwrap.fill(text, 30, break_on_hyphens=False) for text in texts])
    panels = list(changed.groupby("base", sort=True))
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        lines = 1 + changed.label.str.count("\n").max()  # of the longest label
        heights = [0.16 * lines * len(rows) + 0.55 for _, rows in panels]
        figure = Figure(figsize=(COLUMN_WIDTH, sum(heights) + 0.3), layout="constrained")
        grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights, sharex=True)
        for axes, (base, rows) in zip(grid[:, 0], panels, strict=True):
            places = range(len(rows))
            axes.axvline(0, color="black", linewidth=0.8)
            look: dict[str, Any] = {"linestyle": "none", "color": COLORS[0], "marker": "o", "markersize": 4}
            axes.errorbar(rows.difference, places, xerr=rows.half_width, capsize=2, elinewidth=1, **look)
            axes.set_yticks(places, list(map(mathtext, rows.label)))
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_title(mathtext(textwrap.fill(str(base), 60)), fontsize=8, loc="right")
        rule = changed.rule.iloc[0]
        axes.set_xlabel(f"difference (percentage points)\nrule: {rule}; bars: 95 % interval")
    return figure


def training_curves(metrics: Mapping[str, pd.DataFrame]) -> Figure:
    """Loss, accuracy and images per second against epochs, for runs given as name → frame of metrics.jsonl.

    Training is dotted, test is solid; thin vertical lines mark changes of the learning rate. Raises ValueError if there
    is nothing to draw.
    """
    drawn = {name: rows for name, rows in metrics.items() if len(rows)}
    if not drawn:
        raise ValueError("none of these runs has an epoch yet; choose others, or wait for their first one")
    panels = [("loss", "loss (nats)", 1), ("accuracy", "accuracy (%)", 100)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_WIDTH, 4.6 + 0.13 * len(drawn)), layout="constrained")
        *upper, speed = figure.subplots(3, sharex=True, height_ratios=[2, 2, 1])
        for number, (name, rows) in enumerate(drawn.items()):
            color = COLORS[number % len(COLORS)]
            epochs = rows.epoch.to_numpy()
            for axes, (key, _, scale) in zip(upper, panels, strict=True):
                marks: dict[str, Any] = {"color": color, "marker": "." if len(rows) == 1 else ""}  # one point, no line
                axes.plot(epochs, scale * rows[f"train_{key}"], linestyle=":", **marks)
                axes.plot(epochs, scale * rows[f"test_{key}"], label=mathtext(name), **marks)
            speed.plot(epochs, rows.images_per_second, **marks)
            for epoch in rows.epoch[rows.lr.ne(rows.lr.shift()) & (rows.epoch > rows.epoch.min())]:
                for axes in (*upper, speed):
                    axes.axvline(epoch - 0.5, color=color, linewidth=0.5, alpha=0.6)
        for axes, (_, label, _) in zip(upper, panels, strict=True):
            axes.set_ylabel(label)
        speed.set_ylabel("images/s")
        speed.set_ylim(bottom=0)
        speed.set_xlabel("epoch")
        speed.xaxis.get_major_locator().set_params(integer=True)
        entries = upper[0].get_legend_handles_labels()
        legend = figure.legend(*entries, loc="outside upper left", frameon=False, fontsize=5)
        legend.set_title("test solid, training dotted; thin lines: learning rate changes")
    return figure


def save(figure: Figure, folder: Path | str, name: str) -> list[Path]:
    """Write `<folder>/<name>.png` and `.pdf`, and return their paths. Equal figures give equal bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    with matplotlib.rc_context(STYLE):
        figure.savefig(png)
        figure.savefig(pdf, metadata={"CreationDate": None})
    return [png, pdf]


def save_as(figure: Figure, path: Path) -> list[Path]:
    """`save` under a path given by the user, with or without one of the two suffixes."""
    path = path.with_suffix("") if path.suffix in (".png", ".pdf") else path
    return save(figure, path.parent, path.name)


def _draw_accuracies(axes: Axes, finished: pd.DataFrame, rule: str, published: pd.DataFrame | None) -> list[str]:
    """Draw the panel of one dataset with its legend; return the labels of that."""
    entries = _draw_lines(axes, finished, rule)
    shown = {*finished.num_routing.dropna().astype(int)}
    if published is not None and len(published):
        differing = pd.Series([other_recipe(finished, mark) for _, mark in published.iterrows()], published.index)
        entries += [_text_entry(words) for words in differing.unique() if words]
        drawn = published[differing == ""]
        entries += _draw_published(axes, drawn)
        shown |= {*drawn.num_routing.astype(int)}

    ticks = sorted(shown)
    axes.set_xticks(ticks)
    if ticks:  # otherwise all models of this dataset are without num_routing
        axes.set_xlim(ticks[0] - 0.5, ticks[-1] + 0.5)
    axes.set_xlabel("num_routing (routing iterations)")
    axes.set_ylabel(f"{find_rule(rule).images} accuracy (%)\nselection rule: {rule}")
    handles, labels = [handle for handle, _ in entries], [label for _, label in entries]
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "alignment": "left", "frameon": False}
    side_by_side = {tuple: HandlerTuple(ndivide=None)}  # bar and point
    axes.legend(handles, labels, handler_map=side_by_side, handlelength=3, **above)
    return labels


def _draw_lines(axes: Axes, finished: pd.DataFrame, rule: str) -> list[Entry]:
    """Draw our accuracies, the lines slightly shifted so that none hides another."""
    lines = list(finished.groupby(_line_names(finished), sort=True))
    gap = min(0.2, 0.7 / len(lines))
    entries: list[Entry] = []
    for number, (name, runs) in enumerate(lines):
        color = COLORS[number % len(COLORS)]
        table = accuracy_table(runs, rule).sort_values("num_routing")
        if runs.num_routing.isna().all():
            flat = axes.axhline(table["mean"].iloc[0], color=color, linestyle="--", linewidth=1)
            entries.append((flat, _label(name or str(runs.model.iloc[0]), list(table.n))))
            continue
        shift = gap * (number - (len(lines) - 1) / 2)
        style = ("-", "-.", ":")[number // len(COLORS) % 3]  # tells lines of one color apart
        look: dict[str, Any] = {"color": color, "linestyle": style, "marker": "_", "markersize": 7}
        look |= {"markeredgewidth": 1.2, "capsize": 2.5, "elinewidth": 0.8, "capthick": 0.8}
        places = table.num_routing.astype(float) + shift - 0.25 * gap
        bars = axes.errorbar(places, table["mean"], yerr=table["std"], **look)
        dots: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "color": color, "alpha": 0.6, "linewidths": 0}
        places = runs.num_routing.astype(float) + shift + 0.25 * gap * (1 + _spread(runs))
        points = axes.scatter(places, 100 * runs[f"accuracy_{rule}"], s=10, zorder=3, **dots)
        entries.append(((bars, points), _label(name, list(table.n))))
    return entries


def _draw_published(axes: Axes, marks: pd.DataFrame) -> list[Entry]:
    """Draw published values."""
    entries: list[Entry] = []
    for (aggregate, rule), cells in marks.groupby(["aggregate", "rule"], sort=False):
        marker, size = ("P", 22) if aggregate == "best run" else ("*", 40)
        stars = axes.scatter(cells.num_routing, cells.value, s=size, marker=marker, color="black", zorder=2)
        entries.append((stars, f"published, {aggregate} ({rule})"))
    return entries


def _text_entry(words: str) -> Entry:
    """A sentence in a legend, which stands for nothing that is drawn."""
    return Line2D([], [], linestyle="none"), mathtext(textwrap.fill(words, 55))


def _label(name: str, counts: list[int]) -> str:
    shown = counts if len(set(counts)) > 1 else counts[:1]
    words = [shorten(name, LONGEST_NAME)] if name else []
    return mathtext(textwrap.fill(", ".join([*words, "n = " + ", ".join(map(str, shown))]), 40))


def other_recipe(finished: pd.DataFrame, mark: pd.Series) -> str:
    """Why a published value is not drawn: how the nearest finished runs differ from its recipe; empty if they do
    not."""
    if finished.group.isin(mark["groups"]).any():
        return ""
    differences = [differences_of(signed, mark.signed_config) for signed in finished.signed_config]
    nearest = min(differences, key=len)
    words = [f"{key}={typed(there)} (here {typed(here)})" for key, (here, there) in nearest.items()]
    return f"published values not drawn, made with {listed(words, 3)}"


def _line_names(finished: pd.DataFrame) -> pd.Series:
    """For each run the name of its line: the settings in which lines differ, empty if there is only one."""
    frame = settings_frame(finished).drop(columns=["dataset", "num_routing"])
    return pd.Series([named(row) for _, row in frame.iterrows()], index=frame.index, dtype=object)


def _spread(runs: pd.DataFrame) -> pd.Series:
    """Horizontal offsets in [-1, 1] of the points of one mean, in the order of their seeds; 0 for n = 1."""
    seeds = runs.groupby("num_routing").seed
    steps = (seeds.transform("size") - 1).clip(lower=1).astype(float)
    rank = seeds.rank(method="first").astype(float) - 1
    return (2 * rank / steps - 1).where(seeds.transform("size") > 1, 0.0)
