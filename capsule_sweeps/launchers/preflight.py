"""Checks that everything is available that runs need: one list for `doctor` and, in part, for each launch."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from capsule_sweeps.config.build import in_words
from capsule_sweeps.console import PIP_NAMES, missing_package
from capsule_sweeps.display import counted
from capsule_sweeps.runs.folders import check_runs_dir
from capsule_sweeps.runs.plan import PlannedRun
from capsule_sweeps.runs.plan_warnings import architecture
from capsule_sweeps.runs.queue import find_queue, queue_names, this_job
from capsule_sweeps.tracking.base import tracker_class

FREE_GIB = 5


@dataclass(frozen=True)
class Check:
    """`look` returns what it found, and raises ValueError with the remedy."""

    name: str
    look: Callable[[DictConfig], str]
    before_launch: tuple[str, ...] = ()  # the config keys that it depends on; (): only doctor checks this
    quick: Callable[[DictConfig], Any] | None = None  # what is looked at before a launch, if that is less


def examine(config: DictConfig, here: bool = True, words: Sequence[str] = ()) -> Iterator[tuple[str, bool, str]]:
    """(what, ok, what was found or what to do), one after the other.

    Nothing is trained on a login node; neither is its device looked at if the runs are not trained `here`. `words`:
    the arguments of doctor.
    """
    waiting = not here and not this_job()
    login = waiting or any(find_queue(name).is_login_node() for name in queue_names())
    command = shlex.join(["srun", "python", "-m", "capsule_sweeps", "doctor", *words])
    left_out: dict[Any, str] = {}
    if waiting:
        left_out[device] = "left out on a login node"
    if login:
        left_out[step] = f"left out on a login node: `{command}`, with the options of your jobs, does it in a job"
    for check in CHECKS:
        try:
            yield check.name, True, left_out.get(check.look) or check.look(config)
        except ModuleNotFoundError as error:
            yield check.name, False, missing_package(error)
        except Exception as error:
            yield check.name, False, in_words(error)


def preflight(plan: Sequence[PlannedRun], devices: bool = True, at_once: int = 1) -> None:
    """Raises ValueError for anything that would prevent a run from starting: folders, device, stack, data, memory.

    Starts nothing. Device and memory of this machine are checked only with `devices`, for `at_once` runs.
    """
    configs = [planned.config for planned in plan if planned.to_do]
    for check in CHECKS:
        if check.before_launch and (devices or check.look is not device):
            for config in distinct(configs, *check.before_launch):
                (check.quick or check.look)(config)
    for config in distinct(configs, "dataset", "data_dir"):
        found = _load(config)
        for planned in plan:
            same = all(planned.config[key] == config[key] for key in ("dataset", "data_dir"))
            if same and planned.to_do:
                check_batch_size(planned.config, len(found.train))
    for config in distinct(configs, "model", "dataset", "training") if devices else []:
        memory(config, at_once)


def check_batch_size(config: DictConfig, num_images: int) -> None:
    """Raises ValueError for batches that are larger than the data set, and for a last batch that is too small.

    With a larger one an epoch would be one step, of whatever size is asked.
    """
    if config.training.batch_size > num_images:
        raise ValueError(
            f"training.batch_size={config.training.batch_size} exceeds the {counted(num_images, 'training image')} of "
            f"{config.dataset.name}: set it to {num_images} or less"
        )
    if 1 in (config.training.batch_size, num_images % config.training.batch_size):
        from capsule_sweeps.training.memory import check_last_batch

        check_last_batch(config, num_images)


def distinct(configs: Sequence[DictConfig], *keys: str) -> list[DictConfig]:
    """One of all configs that have the same values for some keys."""
    return list({repr([config[key] for key in keys]): config for config in reversed(configs)}.values())


def _load(config: DictConfig) -> Any:
    import torch

    from capsule_sweeps.data.load import load_data

    return load_data(config.dataset, Path(config.data_dir), torch.device("cpu"))


def _existing(config: DictConfig) -> Path:
    """runs_dir, or the nearest folder above it that exists."""
    runs_dir = Path(config.runs_dir).absolute()
    return next(path for path in [runs_dir, *runs_dir.parents] if path.is_dir())


def writable(config: DictConfig) -> str:
    check_runs_dir(Path(config.runs_dir))
    return f"{config.runs_dir} can be written"


def lockable(config: DictConfig) -> str:
    """Check exclusive creation, on which claims rely, by two processes with one name."""
    folder = _existing(config)
    path = folder / f".lock-test-{os.getpid()}"
    program = "import sys\ntry: open(sys.argv[1], 'x')\nexcept FileExistsError: sys.exit(3)"
    try:
        path.touch(exist_ok=False)
        code = subprocess.run([sys.executable, "-I", "-c", program, str(path)]).returncode
    finally:
        path.unlink(missing_ok=True)
    if code != 3:
        raise ValueError(f"{folder} lets two processes create one file: put runs_dir on another file system")
    return "exclusive creation holds between processes"


def space(config: DictConfig) -> str:
    free = shutil.disk_usage(_existing(config)).free / 2**30
    if free < FREE_GIB:
        raise ValueError(f"only {free:.1f} GiB are free for {config.runs_dir}; make room, or set runs_dir")
    return f"{free:.0f} GiB free for {config.runs_dir}"


def data(config: DictConfig) -> str:
    found = _load(config)
    check_batch_size(config, len(found.train))
    train, test = counted(len(found.train), "training image"), counted(len(found.test), "test image")
    return f"{config.dataset.name}: {train} and {test}"


def usable(config: DictConfig) -> Any:
    """The torch.device; it is not initialized, because the processes of a pool do this themselves."""
    from capsule_sweeps.training.execution import choose_device

    return choose_device(config.device)


def device(config: DictConfig) -> str:
    import torch

    chosen = usable(config)
    if chosen.type == "cuda":
        return f"{torch.cuda.get_device_name(chosen)}, {torch.cuda.mem_get_info(chosen)[0] / 2**30:.0f} GiB free"
    return f"{chosen} with {counted(torch.get_num_threads(), 'thread')} (no GPU is used)"


def stack(config: DictConfig) -> str:
    from capsule_sweeps.networks.build import num_parameters

    return f"{config.model.name} with {counted(num_parameters(config), 'parameter')}"


def measure_sizes(plan: Sequence[PlannedRun]) -> None:
    """Fill in the numbers of parameters that the plan, which does not import torch, does not know from other runs."""
    from capsule_sweeps.networks.build import num_parameters

    sizes: dict[str, int] = {}
    for planned in plan:
        key = architecture(planned.signed)
        sizes[key] = sizes.get(key) or planned.parameters or num_parameters(planned.config)
        planned.parameters = sizes[key]


def memory(config: DictConfig, at_once: int = 1) -> None:
    """Raises ValueError if a step on a CPU needs more memory than is free, for which Linux would kill the process."""
    from capsule_sweeps.training.memory import check_memory

    if usable(config).type == "cpu":
        check_memory(config, at_once)


def step(config: DictConfig) -> str:
    """One forward and backward pass at the configured batch size, and an evaluation with as many images."""
    import torch

    from capsule_sweeps.networks.build import build_model
    from capsule_sweeps.training.evaluation import evaluation_batch

    chosen = usable(config)
    memory(config)
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
    with torch.no_grad():
        model.eval()(images[: evaluation_batch(config)].to(chosen))
    return (
        f"one step of {config.model.name} with batch {len(images)}: {time.perf_counter() - started:.2f} s, uncompiled"
    )


def packages(_: DictConfig) -> str:
    needed = ("wandb", "submitit", "sklearn", "matplotlib", "argcomplete")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ValueError(f"not installed: pip install {' '.join(PIP_NAMES.get(name, name) for name in missing)}")
    extras = {"tensorboard": "tracking=tensorboard", "wandb_workspaces": "`dashboard`"}
    without = [f"{PIP_NAMES.get(name, name)}, for {use}" for name, use in extras.items() if find_spec(name) is None]
    note = f" (not installed: {'; '.join(without)})" if without else ""
    return f"wandb, submitit, scikit-learn, matplotlib and argcomplete are installed{note}"


def tracked(config: DictConfig) -> str:
    return tracker_class(config).check(config)


CHECKS = (
    Check("runs_dir", writable, before_launch=("runs_dir",)),
    Check("lock", lockable),
    Check("disk space", space),
    Check("device", device, before_launch=("device",), quick=usable),
    Check("stack", stack, before_launch=("model", "dataset")),
    Check("data", data),  # `preflight` opens them itself, to compare them with those of runs that exist
    Check("training step", step),
    Check("packages", packages),
    Check("tracking", tracked),
)
