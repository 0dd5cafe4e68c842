"""Compose configurations with Hydra, as launch.py and the commands do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from capsule_sweeps.config.check import _sentence, check

PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR = next(filter(Path.is_dir, [PACKAGE / "conf"]), PACKAGE.parent / "conf")  # of a wheel, of a checkout


def compose_config(overrides: list[str]) -> DictConfig:
    """The checked, resolved configuration that `python launch.py <overrides>` runs.

    Raises ValueError (one sentence) for what cannot be composed or is out of range.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return check(compose("config", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_sentence(error)) from error


def forced(overrides: Sequence[str]) -> list[str]:
    """Overrides of which `group.key=value` may name any key of the schema, those too that no YAML file has."""
    return [f"++{word}" if re.match(r"\w+\.[^=]*=", word) else word for word in overrides]


def launcher_settings(overrides: list[str]) -> dict[str, Any]:
    """The settings `hydra.launcher` under these overrides, `_target_` among them. Raises ValueError as above."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            composed = compose("config", overrides, return_hydra_config=True)
            return dict(OmegaConf.to_container(composed.hydra.launcher, resolve=True))  # type: ignore[arg-type]
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_sentence(error)) from error


def sweep_points(overrides: list[str]) -> list[list[str]]:
    """The points of a sweep, each a list of overrides: every combination of the values that overrides give."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        (points,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ValueError(_sentence(error)) from error
    return points
