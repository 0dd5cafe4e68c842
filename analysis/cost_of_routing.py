"""How the cost of a training step grows with num_routing, batch size, number and size of capsules.

    python analysis/cost_of_routing.py [overrides as for launch.py]

Writes analysis/tables/cost_of_routing.md: each row changes one thing against the first. CIFAR-10's stack at batch 16
takes a few minutes on two CPU cores. `compiled` is as `training.compile` says (on, if nothing is said).
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

from capsule_sweeps.bench import machine, make_step
from capsule_sweeps.config import compose_config

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
CHANGES = {
    "2 iterations, sequential, batch 16, 32 capsules of 16": [],
    **{f"num_routing={n}": [f"num_routing={n}"] for n in (1, 3, 4)},
    **{f"num_routing={n}, concurrent": [f"num_routing={n}", "routing.schedule=concurrent"] for n in (2, 3, 4)},
    **{f"batch {n}": [f"training.batch_size={n}"] for n in (4, 64)},
    **{f"{n} capsules": stack(num_capsules=n) for n in (8, 16, 64)},
    **{f"poses of {n}": stack(pose_size=n) for n in (4, 36)},
}


def main() -> None:
    steps, batch_sizes = {}, {}
    for name, changes in CHANGES.items():
        config = compose_config([*BASE, *changes, *sys.argv[1:]])
        variant = "eager" if config.training.compile == "off" else "compiled"
        steps[name] = make_step(config, variant, config.num_routing, None)
        steps["backbone " + name] = make_step(config, "backbone", 0, None)
        batch_sizes[name] = config.training.batch_size
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(REPEATS + 1):  # the first compiles
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    lines = ["| change | ms an image | backbone = 1 |", "|---|--:|--:|"]
    for name, size in batch_sizes.items():
        ratio = median[name] / median["backbone " + name]
        lines.append(f"| {name} | {1000 * median[name] / size:.1f} | {ratio:.2f} |")
    lines += ["", f"{machine(config)}; medians of {REPEATS} interleaved steps"]
    path = Path(__file__).parent / "tables" / "cost_of_routing.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
