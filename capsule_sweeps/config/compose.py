"""Compose configurations with Hydra, as launch.py and the commands do."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from capsule_sweeps.config.composer import Composer
from capsule_sweeps.config.errors import one_sentence, sentence
from capsule_sweeps.config.moved import PRESENT_SPELLING
from capsule_sweeps.config.schema import OPEN_SCHEMA
from capsule_sweeps.config.trust import check_hydra
from capsule_sweeps.config.versions import BASE
from capsule_sweeps.config.yaml_files import read_options

PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR = next(filter(Path.is_dir, [PACKAGE / "conf"]), PACKAGE.parent / "conf")  # of a wheel, of a checkout

ConfigStore.instance().store(name="schema", node=OPEN_SCHEMA)  # the first of conf/config.yaml's defaults


def store_settings(name: str, target: str, *classes: type) -> None:
    """The settings `hydra.launcher.<key>` of a launcher: the fields of some dataclasses, for conf/hydra/launcher.

    A dataclass of their own, for Hydra cannot change those that are frozen.
    """
    entries: list[Any] = [("_target_", str, field(default=target))]
    for cls in classes:
        hints = get_type_hints(cls)
        for entry in fields(cls):
            given: Any = {"default": entry.default} if entry.default is not MISSING else {}
            given = given or {"default_factory": entry.default_factory}
            # OmegaConf cannot merge {key: value} into a typed dictionary that is null; __post_init__ checks such values
            hint = Any if "dict[" in str(hints[entry.name]) else hints[entry.name]
            entries.append((entry.name, hint, field(**given)))
    node = make_dataclass("Settings", entries)
    ConfigStore.instance().store(group="hydra/launcher/settings", name=name, node=node, provider="capsule_sweeps")


@contextmanager
def _loader() -> Iterator[Any]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with one_sentence(), initialize_config_dir(str(CONF_DIR), **BASE):
        yield GlobalHydra.instance().config_loader()


def compose_config(overrides: list[str]) -> DictConfig:
    """The checked, resolved configuration that `python launch.py <overrides>` runs.

    Raises ValueError (one sentence) for invalid overrides and values out of range.
    """
    with _loader() as loader:
        (config,) = compose_points(loader, None, [overrides])
        return config


def launcher_settings(overrides: list[str]) -> dict[str, Any]:
    """The settings `hydra.launcher` under these overrides, `_target_` among them. Raises ValueError as above."""
    from hydra import compose

    with _loader():
        composed = compose("config", overrides, return_hydra_config=True)
        check_hydra(composed.hydra)
        return dict(OmegaConf.to_container(composed.hydra.launcher, resolve=True))  # type: ignore[arg-type]


@contextmanager
def no_collection() -> Iterator[None]:
    """While open, Python does not search for cyclic garbage: the configurations of a sweep are none, and searching
    them again and again takes almost half of the time of a large plan."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@no_collection()
def compose_points(loader: Any, master: DictConfig | None, points: Sequence[Sequence[str]]) -> list[DictConfig]:
    """The checked config of each point, a list of overrides; `master` has those that are for Hydra itself.

    Raises ValueError or Hydra's own exceptions for the first point that is wrong.
    """
    composer = Composer(loader, master, points)
    common = set.intersection(*map(set, points)) if points else set()
    configs = []
    for point in points:
        try:
            configs.append(composer.compose(point))
            check_names(configs[-1])
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            own = " ".join(text for text in point if text not in common)
            text = str(error) if type(error) is ValueError else sentence(error)
            raise ValueError(f"{text} (at the point {own})" if own and own not in text else text) from error
    return configs


def check_names(config: DictConfig) -> None:
    """Raises ValueError for a class under the name of another one, by which tables would call its runs."""
    for group in ("routing", "backbone", "model"):
        name, target = config[group].name, config[group].get("_target_")
        known = read_options(CONF_DIR / group).get(name, {}).get(group, {}).get("_target_")
        if known and target and PRESENT_SPELLING.get(target, target) != PRESENT_SPELLING.get(str(known), known):
            raise ValueError(
                f"{group}.name={name} is the name of {known}, but {group}._target_={target}: give this class a name of "
                f"its own, `name: …` in its YAML file or {group}.name=…"
            )
