"""The cost of a training step as a bar chart, from `python -m capsule_sweeps bench --against PATH --format json`.

python analysis/step_cost.py BENCH.json docs/step_cost.svg
"""

import argparse
import json

from matplotlib.figure import Figure

COLORS = {"compiled": "#2a6f97", "eager": "#8fb8d0", "published": "#c8553d"}
NAMES = {"compiled": "capsule_sweeps, compiled", "eager": "capsule_sweeps, eager", "published": "published code"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the output of bench")
    parser.add_argument("out", help="the figure to write, such as step_cost.svg")
    arguments = parser.parse_args()
    with open(arguments.source) as file:
        rows = [row for row in json.load(file) if row["variant"] in COLORS]
    iterations = sorted({row["num_routing"] for row in rows})
    variants = [name for name in COLORS if any(row["variant"] == name for row in rows)]
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(variants):
        own = {row["num_routing"]: row["relative_to_backbone"] for row in rows if row["variant"] == name}
        positions = [number + (place - (len(variants) - 1) / 2) * 0.27 for number in own]
        bars = axes.barh(positions, list(own.values()), height=0.25, color=COLORS[name], label=NAMES[name])
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(iterations, [f"{number} iteration{'s' if number > 1 else ''}" for number in iterations])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.9, 60)
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time of a training step, backbone alone = 1")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    figure.savefig(arguments.out)


if __name__ == "__main__":
    main()
