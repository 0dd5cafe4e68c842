"""How fast a stack trains on this machine: step time, images a second and peak memory, beside the backbone's alone.

A step is forward, loss, backward and an SGD step on random images. Steps of all variants are interleaved in one
process and medians compared, so that what else the machine does meets them all. Memory is what one step needs beyond
what stays between steps (weights, gradients, momentum); on a CPU every variant is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsule_sweeps.config import compose_config

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from omegaconf import DictConfig
    from torch import nn

ITERATIONS = (1, 2, 3)
EPOCH_IMAGES = 50_000  # CIFAR-10's
MEMORY_ENV = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # freed memory leaves the process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", help="as for launch.py: dataset=CIFAR100 training.batch_size=16 …")
    parser.add_argument("--against", type=Path, metavar="PATH", help="a checkout of the published code, timed as well")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each variant (7)")
    parser.add_argument("--data", action="store_true", help="only compare the data path with torchvision's")
    parser.add_argument("--format", choices=("table", "md", "csv", "json"), default="table")


def bench(arguments: argparse.Namespace) -> str:
    """The text that the command prints. Raises ValueError for overrides or a checkout that cannot be."""
    from capsule_sweeps.results import render

    if arguments.repeats < 1:
        raise ValueError(f"--repeats={arguments.repeats} is out of range: it must be at least 1")
    config = compose_config(arguments.overrides)
    frame, note = measure_data(config) if arguments.data else measure(config, arguments.against, arguments.repeats)
    return render(frame, arguments.format, title=f"{config.dataset.name}: {machine(config)}", note=note)


def measure(config: DictConfig, against: Path | None, repeats: int) -> tuple[pd.DataFrame, str]:
    """A row a variant, and a sentence on the preparation of data. What does not iterate has one row, not one for each
    number of iterations, and what has no backbone is not measured by one."""
    import pandas as pd
    import torch

    as_in_training()
    device, batch_size = _device(config), config.training.batch_size
    own = ITERATIONS if "num_routing" in config.model and "num_routing" not in config.routing else (0,)
    variants = [("backbone", 0)] if "backbone" in config.model else []
    variants += [(name, num_routing) for num_routing in own for name in ("eager", "compiled")]
    variants += [("published", num_routing) for num_routing in ITERATIONS if against]
    variants.sort(key=lambda variant: variant[1])
    steps: dict[tuple[str, int], Callable[[], None]] = {}
    first: dict[tuple[str, int], float] = {}
    for variant in variants:
        started = time.perf_counter()
        steps[variant] = make_step(config, *variant, against)
        steps[variant]()
        _wait(device)
        first[variant] = time.perf_counter() - started
    steps["data", 0] = _prepare_batch(config)
    seconds: dict[tuple[str, int], list[float]] = {variant: [] for variant in steps}
    for repeat in range(repeats + 1):  # the first round warms up
        for variant, step in steps.items():
            started = time.perf_counter()
            step()
            _wait(device)
            if repeat:
                seconds[variant].append(time.perf_counter() - started)
    median = {variant: statistics.median(values) for variant, values in seconds.items()}
    del steps
    if device.type == "cuda":
        torch.cuda.empty_cache()
    rows = [
        {
            "variant": name,
            "num_routing": num_routing or None,
            "step_ms": round(1000 * median[name, num_routing], 2),
            "images_per_second": round(batch_size / median[name, num_routing], 1),
            "relative_to_backbone": round(median[name, num_routing] / median.get(("backbone", 0), math.nan), 2),
            "step_memory_mb": memory(config, name, num_routing, against),
            "first_step_s": round(first[name, num_routing], 1),
        }
        for name, num_routing in variants
    ]
    frame = pd.DataFrame(rows).astype({"num_routing": "Int64"})
    share = median["data", 0] / median["compiled", own[0]]
    recipe, num_images = config.training, config.dataset.train_size or EPOCH_IMAGES
    hours = recipe.epochs * num_images / batch_size * median["compiled", own[:2][-1]] / 3600
    schedule = f"{config.routing.schedule} schedule, " if len(own) > 1 else ""
    first_step, usual = (" with num_routing=1", "compiled with num_routing=2") if len(own) > 1 else ("", "compiled,")
    note = (
        f"batch size {batch_size}, amp={config.training.amp}, {schedule}medians of {repeats} interleaved steps; "
        f"preparing a batch takes {1000 * median['data', 0]:.2f} ms, {share:.2%} of a compiled step{first_step}; "
        f"{usual} {recipe.epochs} epochs of {num_images:,} images take {hours:.3g} hours, evaluation not counted"
    )
    return frame, note


def make_step(config: DictConfig, name: str, num_routing: int, against: Path | None) -> Callable[[], None]:
    """A training step of one variant, on random images."""
    import torch
    from torch.nn import functional as F

    device, recipe, dataset = _device(config), config.training, config.dataset
    ours = recipe.channels_last and name != "published"  # which has a layout of its own
    layout = torch.channels_last if ours else torch.contiguous_format
    torch.manual_seed(0)
    model = make_model(config, name, num_routing, against).to(device)
    torch.nn.utils.convert_conv2d_weight_memory_format(model, layout)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, recipe.momentum, weight_decay=recipe.weight_decay)
    shape = (recipe.batch_size, dataset.channels, dataset.image_size, dataset.image_size)
    images = torch.randn(shape, device=device).to(memory_format=layout)
    labels = torch.randint(dataset.num_classes, shape[:1], device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.amp == "bf16"):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def make_model(config: DictConfig, name: str, num_routing: int, against: Path | None) -> nn.Module:
    """backbone: followed by a mean over places and one linear layer, not compiled; eager, compiled: ours; published."""
    from omegaconf import OmegaConf
    from torch import nn

    from capsule_sweeps.config import build
    from capsule_sweeps.model import build_model

    dataset = config.dataset
    if name == "published":
        assert against is not None
        return _published(config, num_routing, against)
    if name == "backbone":
        backbone = build(config.backbone, image_shape=(dataset.channels, dataset.image_size, dataset.image_size))
        head = nn.Linear(backbone.out_shape[0], dataset.num_classes)
        return nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    compiled = {"training": {"compile": "on" if name == "compiled" else "off"}}
    iterations = {"model": {"num_routing": num_routing}} if num_routing else {}
    return build_model(OmegaConf.merge(config, compiled, iterations))  # type: ignore[arg-type]


def _published(config: DictConfig, num_routing: int, checkout: Path) -> nn.Module:
    """The published model of this dataset, with its own stack, from the user's checkout."""
    from importlib import import_module

    path = checkout / "configs" / f"resnet_backbone_{config.dataset.name}.json"
    if not path.is_file():
        raise ValueError(f"--against={checkout} has no {path.name}: it must be a checkout of the published code")
    sys.path.insert(0, str(checkout))
    try:
        module = import_module("src.capsule_model")
    finally:
        sys.path.remove(str(checkout))
    sequential = config.routing.get("schedule") == "sequential"
    stack = json.loads(path.read_text())
    model: nn.Module = module.CapsModel(
        config.dataset.image_size, stack, "resnet", 0.0, num_routing, sequential_routing=sequential
    )
    return model


def memory(config: DictConfig, name: str, num_routing: int, against: Path | None) -> float | None:
    """MB that a step needs beyond what stays between steps; None where the system does not tell, infinity where it has
    less than that."""
    import torch

    if _device(config).type == "cuda":
        try:
            step = make_step(config, name, num_routing, against)
            step()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
        except torch.OutOfMemoryError:
            return math.inf
        return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)
    if not Path("/proc/self/clear_refs").exists():
        return None
    from omegaconf import OmegaConf

    task = {"config": OmegaConf.to_container(config), "name": name, "num_routing": num_routing}
    task |= {"against": str(against) if against else None, "threads": torch.get_num_threads()}
    command = [sys.executable, "-m", "capsule_sweeps.bench"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **MEMORY_ENV, "PYTHONPATH": path}
    done = subprocess.run(command, input=json.dumps(task), env=environment, capture_output=True, text=True)
    if done.returncode == -signal.SIGKILL or "can't allocate memory" in done.stderr or "MemoryError" in done.stderr:
        return math.inf
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed:\n{done.stderr}")
    return float(done.stdout)


def _memory_of_a_step() -> None:
    """What the process that `memory` starts does: Linux can reset the peak of resident memory."""
    import resource

    import psutil
    import torch
    from omegaconf import OmegaConf

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]  # with a limit Linux ends no other program to make room
    free = psutil.virtual_memory().available
    resource.setrlimit(resource.RLIMIT_DATA, (free if hard == resource.RLIM_INFINITY else min(free, hard), hard))
    task = json.loads(sys.stdin.read())
    torch.set_num_threads(task["threads"])
    config: Any = OmegaConf.create(task["config"])
    step = make_step(config, task["name"], task["num_routing"], Path(task["against"]) if task["against"] else None)
    step()
    step()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step()
    print(round((_resident("VmHWM") - before) / 1000, 1))


def _resident(field: str) -> int:
    """kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def _prepare_batch(config: DictConfig) -> Callable[[], None]:
    import torch

    from capsule_sweeps.data import Split, augment, normalize

    device, dataset = _device(config), config.dataset
    shape = (EPOCH_IMAGES, dataset.channels, dataset.image_size, dataset.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    split = Split(images, torch.zeros(EPOCH_IMAGES, dtype=torch.int64, device=device))
    mean, std = dataset.mean or [0.0] * dataset.channels, dataset.std or [1.0] * dataset.channels

    index = torch.randperm(EPOCH_IMAGES, device=device)[: config.training.batch_size]  # once an epoch, as in training

    def prepare() -> None:
        normalize(augment(split.batch(index)[0], dataset.crop_padding, dataset.flip), mean, std)

    return prepare


def measure_data(config: DictConfig) -> tuple[pd.DataFrame, str]:
    """One epoch of augmented batches: ours, and torchvision's transforms in a DataLoader with 2 workers."""
    import numpy as np
    import pandas as pd
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from capsule_sweeps.data import Split, augment, normalize

    batch_size, device = config.training.batch_size, _device(config)
    shape = (EPOCH_IMAGES, 32, 32, 3)
    pixels = np.random.RandomState(0).randint(256, size=shape, dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
    split = Split(images, torch.zeros(EPOCH_IMAGES, dtype=torch.int64, device=device))
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize(mean, std)])

    class Pictures(Dataset[Any]):
        def __len__(self) -> int:
            return EPOCH_IMAGES

        def __getitem__(self, index: int) -> Any:
            return transform(Image.fromarray(pixels[index])), 0

    def ours() -> None:
        for index in torch.randperm(EPOCH_IMAGES, device=device).split(batch_size):
            normalize(augment(split.batch(index)[0], 4, True), mean, std)

    def theirs() -> None:
        for batch, _ in DataLoader(Pictures(), batch_size, shuffle=True, num_workers=2):
            batch.to(device)

    seconds = {}
    for name, epoch in (("tensors on the device", ours), ("torchvision, 2 workers", theirs)):
        started = time.perf_counter()
        epoch()
        _wait(device)
        seconds[name] = time.perf_counter() - started
    fastest = min(seconds.values())
    rows = [{"data path": name, "epoch_s": round(s, 2), "times": round(s / fastest, 1)} for name, s in seconds.items()]
    return pd.DataFrame(rows), f"{EPOCH_IMAGES} random 32x32 images, batch size {batch_size}"


def machine(config: DictConfig) -> str:
    """Processor, threads and GPU, for the title of a table."""
    import torch

    from capsule_sweeps.provenance import provenance

    known = provenance()
    device = (
        known["gpu"] if _device(config).type == "cuda" else f"{known['processor']}, {torch.get_num_threads()} threads"
    )
    return f"{device}, torch {torch.__version__}"


def _device(config: DictConfig) -> torch.device:
    import torch

    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def as_in_training() -> None:
    """What `train` sets for its process."""
    import torch

    from capsule_sweeps.allocator import keep_freed_memory

    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    _memory_of_a_step()
