"""Whatever would keep a run from starting, found before any starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from capsule_sweeps.runs.plan import Point
from capsule_sweeps.runs.run import check_runs_dir

if TYPE_CHECKING:
    pass


def preflight(plan: Sequence[Point], devices: bool = True) -> None:
    """Raises ValueError for whatever would keep a run from starting: folders, device, stack, data. Starts nothing.

    The data that are opened for it must be those of the runs of this plan that exist already.
    """
    import torch

    from capsule_sweeps.data.load import load_data
    from capsule_sweeps.networks.build import build_model
    from capsule_sweeps.training.execution import choose_device

    configs = [point.config for point in plan if point.to_do]
    for runs_dir in {str(config.runs_dir) for config in configs}:
        check_runs_dir(Path(runs_dir))
    for device in {str(config.device) for config in configs} if devices else set():
        choose_device(device)
    with torch.device("meta"):
        for config in _distinct(configs, "model", "dataset"):
            build_model(config)
    for config in _distinct(configs, "dataset", "data_dir"):
        data = load_data(config.dataset, Path(config.data_dir), torch.device("cpu"))
        for point in plan:
            same = all(point.config[key] == config[key] for key in ("dataset", "data_dir"))
            if same and point.to_do:
                check_batch_size(point.config, len(data.train))
            if same and point.action != "run anew":
                point.run.compare_data(data.sha256)


def check_batch_size(config: DictConfig, num_images: int) -> None:
    """Raises ValueError for batches larger than the data set: an epoch would be one step, of whatever size is asked."""
    if config.training.batch_size > num_images:
        raise ValueError(
            f"training.batch_size={config.training.batch_size} is more than the {num_images} training images of "
            f"{config.dataset.name}: set it to {num_images} or less"
        )


def _distinct(configs: Sequence[DictConfig], *keys: str) -> list[DictConfig]:
    """The first config of each combination of values of some keys."""
    return list({repr([config[key] for key in keys]): config for config in reversed(configs)}.values())
