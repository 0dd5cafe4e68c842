"""Before hours are spent: is everything there that the runs of a configuration need?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig

from capsule_sweeps.runs.run import check_runs_dir
from capsule_sweeps.tracking.base import tracker_class

FREE_GIB = 5


def examine(config: DictConfig) -> Iterator[tuple[str, bool, str]]:
    """(what, all right?, what was found or what to do), one after the other."""
    tracker = tracker_class(config)
    checks: list[tuple[str, Callable[[DictConfig], str]]] = [
        ("runs_dir", writable),
        ("lock", lockable),
        ("disk space", space),
        ("data", data),
        ("device", device),
        ("training step", step),
        (tracker.title, tracker.check),
    ]
    for name, look in checks:
        try:
            yield name, True, look(config)
        except Exception as error:
            yield name, False, " ".join(str(error).split()) or type(error).__name__


def writable(config: DictConfig) -> str:
    check_runs_dir(Path(config.runs_dir))
    return f"{config.runs_dir} can be written"


def lockable(config: DictConfig) -> str:
    """Exclusive creation is what claims rest on: two processes try it on one name."""
    folder = next(
        path for path in [Path(config.runs_dir).absolute(), *Path(config.runs_dir).absolute().parents] if path.is_dir()
    )
    path = folder / f".lock-test-{os.getpid()}"
    program = "import sys\ntry: open(sys.argv[1], 'x')\nexcept FileExistsError: sys.exit(3)"
    try:
        path.touch(exist_ok=False)
        code = subprocess.run([sys.executable, "-c", program, str(path)]).returncode
    finally:
        path.unlink(missing_ok=True)
    if code != 3:
        raise ValueError(f"{folder} lets two processes create one file: put runs_dir on another file system")
    return "exclusive creation holds between processes"


def space(config: DictConfig) -> str:
    folder = next(
        path for path in [Path(config.runs_dir).absolute(), *Path(config.runs_dir).absolute().parents] if path.is_dir()
    )
    free = shutil.disk_usage(folder).free / 2**30
    if free < FREE_GIB:
        raise ValueError(f"only {free:.1f} GiB are free for {config.runs_dir}; make room, or set runs_dir")
    return f"{free:.0f} GiB free for {config.runs_dir}"


def data(config: DictConfig) -> str:
    from capsule_sweeps.data.load import load_data

    found = load_data(config.dataset, Path(config.data_dir), "cpu")
    return f"{config.dataset.name}: {len(found.train):,} training and {len(found.test):,} test images"


def device(config: DictConfig) -> str:
    import torch

    from capsule_sweeps.training.execution import choose_device

    chosen = choose_device(config.device)
    if chosen.type == "cuda":
        return f"{torch.cuda.get_device_name(chosen)}, {torch.cuda.mem_get_info(chosen)[0] / 2**30:.0f} GiB free"
    return f"{chosen} with {torch.get_num_threads()} threads (no GPU is used)"


def step(config: DictConfig) -> str:
    """One forward and backward pass at the configured batch size."""
    import time

    import torch

    from capsule_sweeps.networks.build import build_model
    from capsule_sweeps.training.execution import choose_device

    chosen = choose_device(config.device)
    eager = config.copy()
    eager.training.compile = "off"
    model, dataset = build_model(eager).to(chosen), config.dataset
    images = torch.randn(config.training.batch_size, dataset.channels, dataset.image_size, dataset.image_size)
    started = time.perf_counter()
    with torch.autocast(chosen.type, torch.bfloat16, enabled=config.training.amp == "bf16"):
        loss = model(images.to(chosen)).float().logsumexp(1).mean()
    loss.backward()
    value = loss.item()
    if value != value:
        raise ValueError("the model's output is not a number: check training.amp and the installation of torch")
    return (
        f"one step of {config.model.name} with batch {len(images)}: {time.perf_counter() - started:.2f} s, uncompiled"
    )
