"""Recipes of routings: the keys of `training` that conf/routing/<name>.yaml sets, since the routing learns with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.compose import CONF_DIR
from capsule_sweeps.config.schema import Training


@cache
def recipe(routing: str) -> dict[str, Any]:
    """What conf/routing/<routing>.yaml sets in `training`; empty for a routing that trains as conf/training says."""
    path = CONF_DIR / "routing" / f"{routing}.yaml"
    return dict(OmegaConf.to_container(OmegaConf.load(path)).get("training") or {}) if path.is_file() else {}  # type: ignore[union-attr, call-overload]


def recipe_notes(configs: Sequence[DictConfig]) -> list[str]:
    """One line per routing of these configurations whose recipe is in force, in whole or in part."""
    notes, defaults = {}, {entry.name: entry.default for entry in fields(Training)}
    for config in configs:
        name = (config.model.get("routing") or {}).get("name")
        set_by_routing = recipe(name) if name else {}
        held = {
            key: value
            for key, value in set_by_routing.items()
            if config.training.get(key) == value and value != defaults[key]
        }
        if held:
            values = ", ".join(f"{key}={value}" for key, value in held.items())
            notes[f"{name}: {values} from conf/routing/{name}.yaml"] = None
    return list(notes)
