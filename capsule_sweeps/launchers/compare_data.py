"""Whether the images here are those that existing runs of a plan were trained on."""

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from capsule_sweeps.data.cache import Identity
from capsule_sweeps.data.open import identify
from capsule_sweeps.launchers.preflight import distinct
from capsule_sweeps.runs.plan import PlannedRun

# What of the configuration of a data set says how its images are used, and not which ones they are
SHOWN = ["train_size", "val_size", "test_size", "mean", "std", "crop_padding", "flip", "test_shift", "test_rotation"]

log = logging.getLogger(__name__)


def compare_data(plan: Sequence[PlannedRun]) -> None:
    """Raises ValueError if an existing run of the plan was trained on other images than those here, or if points with
    one signature have different images.

    Images are read only where the names, sizes and times of their files are new. Runs whose images are not here or
    cannot be read are not compared; a warning says so.
    """
    known: dict[str, Identity | None] = {}
    for planned in plan:
        points = distinct([planned.config, *planned.same], "dataset", "data_dir")
        exists = planned.action != "rerun" and "data_sha256" in planned.run.record()
        if not exists and len(points) == 1:
            continue
        first: Identity | None = None
        for config in points:
            content = {key: value for key, value in config.dataset.items() if key not in SHOWN}
            if (key := repr([content, config.data_dir])) not in known:
                known[key] = _identity(config)
            if (found := known[key]) is None:
                continue
            if exists:
                planned.run.compare_data(*found)
            if first not in (None, found):
                raise ValueError(
                    f"{planned.run.folder.name} is asked for twice, with different images under one dataset.name; set "
                    "a different dataset.name for each"
                )
            first = found


def _identity(config: DictConfig) -> Identity | None:
    """The identity of the images of a configuration; None, with a warning, if it is unknown."""
    reason = f"they are not in data_dir={config.data_dir}"
    try:
        if (found := identify(config.dataset, Path(config.data_dir))) is not None:
            return found
    except (ValueError, ImportError) as error:  # a source may need a package that is not installed
        reason = str(error).rstrip(".")
    log.warning("Runs that exist are not compared with the images of %s: %s.", config.dataset.name, reason)
    return None
