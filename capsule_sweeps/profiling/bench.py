"""How fast a stack trains on this machine: step time, images a second and peak memory, beside the backbone's alone.

Steps of all variants (steps.py) are interleaved and their medians compared: what else the machine does meets them all.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from capsule_sweeps.config.build import user_code
from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.console import bar
from capsule_sweeps.display import counted

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from omegaconf import DictConfig


Key = TypeVar("Key", bound=Hashable)
Medians = Mapping[tuple[str, int], float]  # seconds of a step, by variant and num_routing
ITERATIONS = (1, 2, 3)


def bench(overrides: list[str], against: Path | None = None, repeats: int = 7, form: str = "table") -> str:
    """The output of the command. Raises ValueError for invalid overrides or an invalid checkout."""
    from capsule_sweeps.results.render import render

    if repeats < 1:
        raise ValueError(f"--repeats={repeats} is out of range: it must be at least 1")
    config = compose_config(overrides)
    frame, note = measure(config, against, repeats)
    return render(frame, form, title=f"{config.dataset.name}: {machine(config)}", note=note)


def measure(config: DictConfig, against: Path | None, repeats: int) -> tuple[pd.DataFrame, str]:
    """A row a variant, and a sentence on the preparation of data. What does not iterate has one row, not one for each
    number of iterations, and what has no backbone is not measured by one."""
    import pandas as pd

    from capsule_sweeps.networks.build import free_graphs
    from capsule_sweeps.profiling.steps import as_in_training, device_of, make_step, memory, published_stack, wait

    if against:
        published_stack(config, against)
    as_in_training()
    device, batch_size = device_of(config), config.training.batch_size
    own = ITERATIONS if "num_routing" in config.model and "num_routing" not in config.routing else (0,)
    kinds = ("eager",) if config.training.compile == "off" else ("eager", "compiled")
    backbones = ["backbone", "backbone compiled"][: len(kinds)] if "backbone" in config.model else []
    variants = [(name, 0) for name in backbones] + [(name, num_routing) for num_routing in own for name in kinds]
    variants += [("published", num_routing) for num_routing in ITERATIONS if against]
    variants.sort(key=lambda variant: variant[1])
    steps: dict[tuple[str, int], Callable[[], None]] = {}
    first: dict[tuple[str, int], float] = {}
    with bar("first steps", len(variants)) as advance:
        for variant in variants:
            started = time.perf_counter()
            with user_code(str(config.model.name)):
                steps[variant] = make_step(config, *variant, against)
                steps[variant]()
            wait(device)
            first[variant] = time.perf_counter() - started
            advance(1)
    steps["data", 0] = _prepare_batch(config)
    median, rounds = interleaved_medians(steps, repeats, device)
    del steps
    free_graphs(device)
    rows = [
        {
            "variant": name,
            "num_routing": num_routing or None,
            "step_ms": round(1000 * median[name, num_routing], 2),
            "images_per_second": round(batch_size / median[name, num_routing], 1),
            "relative_to_backbone": round(median[name, num_routing] / median.get(("backbone", 0), math.nan), 2),
            "step_memory_mb": memory(config, name, num_routing, against) if rounds == repeats else None,
            "first_step_s": round(first[name, num_routing], 1),
        }
        for name, num_routing in variants
    ]
    frame = pd.DataFrame(rows).astype({"num_routing": "Int64"})
    return frame, _note(config, kinds[-1], own, median, rounds, repeats)


def _note(config: DictConfig, kind: str, own: tuple[int, ...], median: Medians, rounds: int, repeats: int) -> str:
    """What holds for all rows, what preparing a batch takes, and about how long a run takes."""
    from capsule_sweeps.routing.compiled import images_of_an_epoch

    share = median["data", 0] / median[kind, own[0]]
    recipe, batch_size, num_images = config.training, config.training.batch_size, images_of_an_epoch(config)
    hours = recipe.epochs * num_images / batch_size * median[kind, own[:2][-1]] / 3600
    schedule = f"{config.routing.schedule} schedule, " if len(own) > 1 else ""
    stopped = f" of {repeats}, stopped by Ctrl-C before memory was measured" if rounds < repeats else ""
    step = "a compiled step" if kind == "compiled" else "a step"
    first_step, usual = (" with num_routing=1", f"{kind} with num_routing=2") if len(own) > 1 else ("", f"{kind},")
    return (
        f"batch size {batch_size}, amp={config.training.amp}, {schedule}"
        f"medians of {rounds} interleaved steps{stopped}; "
        f"preparing a batch takes {1000 * median['data', 0]:.2f} ms, {share:.2%} of {step}{first_step}; "
        f"{usual} {counted(recipe.epochs, 'epoch')} of {counted(num_images, 'image')} take {hours:.3g} hours, "
        "evaluation not counted"
    )


def interleaved_medians(
    steps: Mapping[Key, Callable[[], None]], repeats: int, device: torch.device
) -> tuple[dict[Key, float], int]:
    """Median seconds of each step, and of how many rounds; in every round each step is run once, the first warms up.

    Ctrl-C after a whole round ends the measurement, with what there is.
    """
    from capsule_sweeps.profiling.steps import wait

    rounds: list[dict[Key, float]] = []
    with bar("rounds", repeats + 1) as advance:
        try:
            for _ in range(repeats + 1):
                seconds: dict[Key, float] = {}
                for name, step in steps.items():
                    started = time.perf_counter()
                    step()
                    wait(device)
                    seconds[name] = time.perf_counter() - started
                rounds.append(seconds)
                advance(1)
        except KeyboardInterrupt:
            if len(rounds) < 2:
                raise
    measured = rounds[1:]
    return {name: statistics.median(round[name] for round in measured) for name in steps}, len(measured)


def _prepare_batch(config: DictConfig) -> Callable[[], None]:
    import torch

    from capsule_sweeps.data.augment import augment, normalize
    from capsule_sweeps.data.split import Split
    from capsule_sweeps.profiling.steps import device_of
    from capsule_sweeps.routing.compiled import images_of_an_epoch

    device, dataset, num_images = device_of(config), config.dataset, images_of_an_epoch(config)
    size = dataset.image_size + 2 * dataset.crop_margin
    shape = (num_images, dataset.channels, size, size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    split = Split(images, torch.zeros(num_images, dtype=torch.int64, device=device))
    mean, std = dataset.mean or [0.0] * dataset.channels, dataset.std or [1.0] * dataset.channels

    index = torch.randperm(num_images, device=device)[: config.training.batch_size]  # once an epoch, as in training

    def prepare() -> None:
        normalize(augment(split.batch(index)[0], dataset.crop_padding, dataset.flip, dataset.crop_margin), mean, std)

    return prepare


def machine(config: DictConfig) -> str:
    import torch

    from capsule_sweeps.profiling.steps import device_of
    from capsule_sweeps.runs.provenance import provenance

    known = provenance(device=device_of(config))
    device = known["gpu"] or f"{known['processor']}, {counted(torch.get_num_threads(), 'thread')}"
    return f"{device}, torch {torch.__version__}"
