"""How the cost of a training step grows with num_routing, batch size, number and size of capsules.

    python analysis/cost_of_routing.py [overrides as for launch.py]

Writes analysis/tables/cost_of_routing.md: each row changes one thing. CIFAR-10's stack at batch 16
takes a few minutes on two CPU cores. `compiled` is as `training.compile` says (on, if nothing is said).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.profiling.bench import interleaved_medians, machine
from capsule_sweeps.profiling.steps import as_in_training, device_of, make_step

REPEATS = 5


def stack(num_capsules: int = 32, pose_size: int = 16) -> list[str]:
    """Overrides for CIFAR-10's stack with other numbers of capsules and pose sizes throughout."""
    conv = f"type: conv, num_capsules: {num_capsules}, pose_size: {pose_size}, kernel_size: 3"
    return [
        f"capsules.primary.num_capsules={num_capsules}",
        f"capsules.primary.pose_size={pose_size}",
        f"capsules.layers=[{{{conv}, stride: 2}}, {{{conv}, stride: 1}}]",
        f"capsules.classes.pose_size={pose_size}",
    ]


BASE = ["training.batch_size=16", "num_routing=2", "routing.schedule=sequential"]
COLUMNS: dict[str, dict[object, list[str]]] = {  # what changes → its values → overrides
    "num_routing, sequential": {n: [f"num_routing={n}"] for n in (1, 2, 3, 4)},
    "num_routing, concurrent": {n: [f"num_routing={n}", "routing.schedule=concurrent"] for n in (1, 2, 3, 4)},
    "batch size": {n: [f"training.batch_size={n}"] for n in (4, 16, 64)},
    "capsules of each type": {n: stack(num_capsules=n) for n in (8, 16, 32, 64)},
    "numbers in a pose": {n: stack(pose_size=n) for n in (4, 16, 36)},
}


def main() -> None:
    as_in_training()
    steps: dict[tuple[object, ...], Callable[[], None]] = {}
    for column, values in COLUMNS.items():
        for value, changes in values.items():
            config = compose_config([*BASE, *changes, *sys.argv[1:]])
            variant = "eager" if config.training.compile == "off" else "compiled"
            steps[column, value] = make_step(config, variant, config.num_routing, None)
            steps[column, value, "backbone"] = make_step(config, "backbone", 0, None)
    median, _ = interleaved_medians(steps, REPEATS, device_of(config))
    lines = ["| what changes | its value: cost of a step (backbone = 1) |", "|---|---|"]
    for column, values in COLUMNS.items():
        ratios = [f"{v}: {median[column, v] / median[column, v, 'backbone']:.2f}" for v in values]
        lines.append(f"| {column} | {', '.join(ratios)} |")
    lines += ["", f"{machine(config)}; medians of {REPEATS} interleaved steps; the others stay as in: {' '.join(BASE)}"]
    path = Path(__file__).parent / "tables" / "cost_of_routing.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
