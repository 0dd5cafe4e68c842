"""Compose configurations with Hydra, as launch.py and the commands do."""

from __future__ import annotations

import itertools
import math
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from capsule_sweeps.config.check import check, check_values, without_hydra
from capsule_sweeps.config.errors import sentence
from capsule_sweeps.config.schema import Config

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR = next(filter(Path.is_dir, [PACKAGE / "conf"]), PACKAGE.parent / "conf")  # of a wheel, of a checkout
MAX_RUNS = 10_000

ConfigStore.instance().store(name="schema", node=Config)  # the first of conf/config.yaml's defaults


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
def one_sentence() -> Iterator[None]:
    """While open, what Hydra and OmegaConf raise becomes a ValueError of one sentence."""
    from hydra.errors import HydraException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(sentence(error)) from error
    except RecursionError as error:
        raise ValueError("an override is not readable: it has too many brackets within each other") from error


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra's compose API, ready to use on conf/."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with one_sentence(), initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


def compose_config(overrides: list[str]) -> DictConfig:
    """The checked, resolved configuration that `python launch.py <overrides>` runs.

    Raises ValueError (one sentence) for what cannot be composed or is out of range.
    """
    from hydra import compose

    with _hydra():
        return check(compose("config", overrides))


def launcher_settings(overrides: list[str]) -> dict[str, Any]:
    """The settings `hydra.launcher` under these overrides, `_target_` among them. Raises ValueError as above."""
    from hydra import compose

    with _hydra():
        composed = compose("config", overrides, return_hydra_config=True)
        return dict(OmegaConf.to_container(composed.hydra.launcher, resolve=True))  # type: ignore[arg-type]


def compose_points(loader: Any, master: DictConfig, points: Sequence[Sequence[str]]) -> list[DictConfig]:
    """The checked config of each point, a list of overrides.

    Composing is slow (tenths of a second) and resolving is, too (milliseconds), so each choice of groups is composed
    once, resolved once for what interpolations look at, and the other overrides are applied to a copy of that. Raises
    ValueError or Hydra's own exceptions for the first point that is wrong.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    @cache
    def is_group(key: str) -> bool:
        return bool(key.startswith("hydra") or loader.list_groups(key) or loader.get_group_options(key))

    def is_choice(override: Override) -> bool:
        """Whether it takes part in the defaults list. Values for a group, {key: value}, do not."""
        return override.package is not None or (
            is_group(override.key_or_group) and not isinstance(override.value(), dict)
        )

    def apply(texts: Sequence[str], config: DictConfig) -> None:
        # Private: there is no public way to apply overrides to a composed configuration
        loader._apply_overrides_to_config([parsed[text] for text in texts], config)

    parser = OverridesParser.create(config_loader=loader)
    parsed = {text: parser.parse_override(text) for text in dict.fromkeys(text for point in points for text in point)}
    choice = {text: is_choice(override) for text, override in parsed.items()}
    composed: dict[tuple[str, ...], tuple[bytes, str]] = {}
    resolved: dict[tuple[tuple[str, ...], tuple[str, ...]], bytes] = {}
    configs = []
    for point in points:
        choices = tuple(text for text in point if choice[text])
        if choices not in composed:
            config = without_hydra(loader.load_sweep_config(master, list(choices)))
            composed[choices] = pickle.dumps(config), _interpolations(config)
        pickled, looked_at = composed[choices]
        looked_at += " ".join(f"{text.partition('.')[0]} {text}" for text in point if "${" in text)
        words = set(re.findall(r"\w+", looked_at))
        values = [text for text in point if not choice[text]]
        first = tuple(text for text in values if re.split(r"[.=]", text.lstrip("+~"))[0] in words)
        if (choices, first) not in resolved:
            config = pickle.loads(pickled)
            apply(first, config)
            OmegaConf.resolve(config)
            resolved[choices, first] = pickle.dumps(config)
        config = pickle.loads(resolved[choices, first])  # a copy: four times as fast as copy.deepcopy
        apply([text for text in values if text not in first], config)
        configs.append(check_values(config))
    return configs


def _interpolations(config: DictConfig) -> str:
    """The interpolations in a config, and the top-level keys below which they are."""
    found = []
    for key, value in OmegaConf.to_container(config).items():  # type: ignore[union-attr]
        text = repr(value)
        found += [str(key), *re.findall(r"\$\{.*", text)] if "${" in text else []
    return " ".join(found)


def sweep_points(
    overrides: Sequence[str], params: Sequence[str] = (), loader: Any = None, max_runs: int = MAX_RUNS
) -> list[list[str]]:
    """The points of a sweep, each a list of overrides: every combination of the values that overrides give.

    Of two overrides of one key the last counts; a choice of a group and values for it, {key: value}, are two things.
    `params` give way to overrides. Raises ValueError for more than max_runs points, before any is made.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with one_sentence():
        parser = OverridesParser.create(config_loader=loader)
        parsed = parser.parse_overrides(list(overrides))
        given = {_same(override, override.key_or_group) for override in parsed}
        parsed = [o for o in parser.parse_overrides(list(params)) if _same(o, o.key_or_group) not in given] + parsed
        last = {_same(override, override.get_key_element()): override for override in parsed}
        sizes = [_num_values(override) for override in last.values()]
        if (size := math.prod(sizes)) > max_runs:
            words = " × ".join(str(size) for size in sizes if size > 1)
            raise ValueError(
                f"this sweep has {words} = {size} points, more than hydra.sweeper.max_runs={max_runs}: "
                "sweep over fewer values, or set hydra.sweeper.max_runs"
            )
        return [list(point) for point in itertools.product(*map(_values, last.values()))]


def _same(override: Override, key: str) -> tuple[str, bool]:
    """What two overrides share of which only the last counts."""
    value = override.value()
    values = getattr(value, "list", [value])  # of a choice
    return key, any(isinstance(item, dict) for item in values)


def _num_values(override: Override) -> int:
    """How many values an override gives, without making them. Raises ValueError for none and for no end of them."""
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    value, word = override.value(), override.input_line
    if not override.is_sweep_override():
        return 1
    if not override.is_discrete_sweep():
        raise ValueError(f"{word} is not available: a grid needs values to choose from, such as 1,2,3 or range(1,4)")
    if isinstance(value, RangeSweep):
        if not value.step:
            raise ValueError(f"{word} has no end: a range needs a step other than 0")
        count = math.ceil((float(value.stop or 0) - float(value.start or 0)) / float(value.step))
    else:
        count = len(value.list) if isinstance(value, ChoiceSweep) else len(list(override.sweep_iterator()))
    if count < 1:
        raise ValueError(f"{word} has no values: give at least one")
    return count


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]
