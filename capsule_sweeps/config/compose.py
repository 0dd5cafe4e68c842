"""Compose configurations with Hydra, as launch.py and the commands do."""

from __future__ import annotations

import gc
import pickle
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from capsule_sweeps.config.ablation import Change, ablation_changes, check_ablation
from capsule_sweeps.config.check import check_values, without_hydra
from capsule_sweeps.config.errors import one_sentence, sentence
from capsule_sweeps.config.match_width import CAPSNET, MATCH, asks_to_match, check_match, match_width, rival
from capsule_sweeps.config.schema import OPEN_SCHEMA, closed
from capsule_sweeps.config.trust import check_hydra
from capsule_sweeps.config.versions import BASE

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

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

    Composing takes tenths of a second and resolving milliseconds, so each choice of groups is composed
    once, resolved once for what interpolations look at, and the other overrides are applied to a copy of that. Raises
    ValueError or Hydra's own exceptions for the first point that is wrong.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from hydra.types import RunMode

    groups = set(loader.list_groups(""))  # asked once, because Hydra copies its repository for every question

    @cache
    def is_group(key: str) -> bool:
        if key.startswith("hydra") or "/" not in key:
            return key.startswith("hydra") or key in groups
        return bool(loader.list_groups(key) or loader.get_group_options(key))

    def is_choice(override: Override) -> bool:
        """Whether it takes part in the defaults list. Values for a group, {key: value}, do not."""
        return override.package is not None or (
            is_group(override.key_or_group) and not isinstance(override.value(), dict)
        )

    def load(choices: Sequence[str]) -> DictConfig:
        if master is not None:
            return loader.load_sweep_config(master, list(choices))
        return loader.load_configuration("config", list(choices), RunMode.RUN, from_shell=False)

    def apply(texts: Sequence[str], config: DictConfig) -> None:
        # Private: there is no public way to apply overrides to a composed configuration
        loader._apply_overrides_to_config([parsed[text] for text in texts], config)

    parser = OverridesParser.create(config_loader=loader)
    words = list(dict.fromkeys([CAPSNET, *(text for point in points for text in point)]))
    parsed = dict(zip(words, parser.parse_overrides(words), strict=True))
    meant = {text: f"{override.get_key_element()}={override.value()}" for text, override in parsed.items()}  # unescaped
    check_interpolations(list(meant.values()))
    loader.validate_sweep_overrides_legal(list(parsed.values()), RunMode.RUN, from_shell=False)
    choice = {text: is_choice(override) for text, override in parsed.items()}
    composed: dict[tuple[str, ...], tuple[bytes, str, list[Change]]] = {}
    resolved: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[bytes, Any]] = {}

    def compose_point(point: Sequence[str]) -> DictConfig:
        choices = tuple(text for text in point if choice[text])
        if choices not in composed:
            loaded = load(choices)
            config = closed(without_hydra(loaded))
            ablations = [parsed[text].value() for text in choices if parsed[text].key_or_group == "ablation"]
            changes = ablation_changes(loaded.hydra.runtime, ablations[-1] if ablations else None)
            composed[choices] = pickle.dumps(config), _interpolations(config), changes
            check_interpolations(config)
        pickled, looked_at, changes = composed[choices]
        looked_at += " ".join(f"{text.partition('.')[0]} {meant[text]}" for text in point if "${" in meant[text])
        seen = set(re.findall(r"\w+", looked_at))
        values = [text for text in point if not choice[text]]
        if any(parsed[text].key_or_group == "model.width" and asks_to_match(parsed[text].value()) for text in values):
            check_match(pickle.loads(pickled))
        first = tuple(text for text in values if re.split(r"[.=]", text.lstrip("+~"))[0] in seen)
        if (choices, first) not in resolved:
            config = pickle.loads(pickled)
            apply(first, config)
            OmegaConf.resolve(config)
            resolved[choices, first] = pickle.dumps(config), OmegaConf.to_container(config)
        pickled, known = resolved[choices, first]
        config = pickle.loads(pickled)  # a copy: four times as fast as copy.deepcopy
        rest = [text for text in values if text not in first]
        apply(rest, config)
        changed = {re.split(r"[.=]", text.lstrip("+~"))[0] for text in rest}
        kept = {key: value for key, value in known.items() if key not in changed}
        check_ablation(check_values(config, {**kept, **_values(config, changed)}), changes, values)
        if asks_to_match(config.model.get("width")):
            if rival(point) == list(point):
                raise ValueError(
                    f"model.width={MATCH} in a file would also be set for model=capsnet, whose size it asks for: set "
                    "it beside model=cnn on the command line or in hydra.sweeper.points"
                )
            match_width(config, lambda: compose_point(rival(point)))
        return config

    configs = []
    common = set.intersection(*map(set, points)) if points else set()
    for point in points:
        try:
            configs.append(compose_point(point))
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            own = " ".join(text for text in point if text not in common)
            text = str(error) if type(error) is ValueError else sentence(error)
            raise ValueError(f"{text} (at the point {own})" if own and own not in text else text) from error
    return configs


def check_interpolations(config: DictConfig | Sequence[str]) -> None:
    """Raises ValueError for interpolations of Hydra's job number, which sweeps here do not have."""
    texts = config if not isinstance(config, DictConfig) else OmegaConf.to_yaml(config).splitlines()
    for text in texts:
        if re.search(r"\$\{hydra[:.](job|sweep|sweeper)\b", text):
            values = "seed=range(n)" if re.match(r"\W*seed\b", text) else "values, KEY=1,2,3"
            raise ValueError(
                f"{text.strip()} is not available, because all runs of a sweep are planned at once and have no number: "
                f"set {values}"
            )


def _values(config: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    """Some top-level values of a config in plain dictionaries."""
    found = {key: config[key] for key in keys if key in config}
    return {key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in found.items()}


def _interpolations(config: DictConfig) -> str:
    """The interpolations in a config, and the top-level keys below which they are."""
    found = []
    for key, value in OmegaConf.to_container(config).items():  # type: ignore[union-attr]
        text = repr(value)
        found += [str(key), *re.findall(r"\$\{.*", text)] if "${" in text else []
    return " ".join(found)
