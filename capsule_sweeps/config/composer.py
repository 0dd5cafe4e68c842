"""Composes the points of one sweep. What points have in common is composed once."""

import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.ablation import Change, ablation_changes, check_ablation
from capsule_sweeps.config.check import check_effects, check_values, without_hydra
from capsule_sweeps.config.match_width import CAPSNET, MATCH, asks_to_match, check_match, match_width, rival
from capsule_sweeps.config.schema import closed


class Composed(NamedTuple):
    """What some choices of groups compose to."""

    config: bytes  # pickled, which copies four times as fast as copy.deepcopy
    interpolations: str  # with the top-level keys below which they are
    changes: list[Change]  # that the chosen ablation makes


class Resolved(NamedTuple):
    """A composed config, in which interpolations have their values."""

    config: bytes
    values: dict[str, Any]


class Composer:
    """Composes points, lists of overrides, faster than Hydra does and to the same configurations.

    Composing takes tenths of a second and resolving milliseconds, so each choice of groups is composed once, resolved
    once for what interpolations look at, and the other overrides are applied to a copy of that.
    """

    def __init__(self, loader: Any, master: DictConfig | None, points: Iterable[Sequence[str]]) -> None:
        """Read the overrides of these points. Raises ValueError or Hydra's own exceptions for one that is wrong."""
        self._loader, self._master = loader, master
        parser = OverridesParser.create(config_loader=loader)
        words = list(dict.fromkeys([CAPSNET, *(text for point in points for text in point)]))
        self._parsed = dict(zip(words, parser.parse_overrides(words), strict=True))
        self._unescaped = {text: f"{one.get_key_element()}={one.value()}" for text, one in self._parsed.items()}
        check_interpolations(self._unescaped.values())
        loader.validate_sweep_overrides_legal(list(self._parsed.values()), RunMode.RUN, from_shell=False)
        is_choice = choices_of(loader)
        self._choices = {text for text, override in self._parsed.items() if is_choice(override)}
        self._composed: dict[tuple[str, ...], Composed] = {}
        self._resolved: dict[tuple[tuple[str, ...], tuple[str, ...]], Resolved] = {}

    def compose(self, point: Sequence[str]) -> DictConfig:
        """The checked config of a point. Raises ValueError or Hydra's own exceptions if it is wrong."""
        choices = tuple(text for text in point if text in self._choices)
        values = [text for text in point if text not in self._choices]
        composed = self._compose_choices(choices)
        widths = [self._parsed[text] for text in values if self._parsed[text].key_or_group == "model.width"]
        if any(asks_to_match(width.value()) for width in widths):
            check_match(pickle.loads(composed.config))

        seen = self._seen_by_interpolations(composed, point)
        first = tuple(text for text in values if _top(text) in seen)
        resolved = self._resolve(choices, first)

        rest = [text for text in values if text not in first]
        config = pickle.loads(resolved.config)
        self._apply(rest, config)
        changed = {_top(text) for text in rest}
        kept = {key: value for key, value in resolved.values.items() if key not in changed}
        check_ablation(check_values(config, {**kept, **_values(config, changed)}), composed.changes, values)
        check_effects(config)
        if asks_to_match(config.model.get("width")):
            self._match_width(config, point)
        return config

    def _compose_choices(self, choices: tuple[str, ...]) -> Composed:
        """Compose choices of groups, the slow part, if they have not been yet."""
        if choices not in self._composed:
            if self._master is None:
                loaded = self._loader.load_configuration("config", list(choices), RunMode.RUN, from_shell=False)
            else:
                loaded = self._loader.load_sweep_config(self._master, list(choices))
            config = closed(without_hydra(loaded))
            parsed = [self._parsed[text] for text in choices]
            ablations = [override.value() for override in parsed if override.key_or_group == "ablation"]
            changes = ablation_changes(loaded.hydra.runtime, ablations[-1] if ablations else None)
            check_interpolations(OmegaConf.to_yaml(config).splitlines())
            self._composed[choices] = Composed(pickle.dumps(config), _interpolations(config), changes)
        return self._composed[choices]

    def _seen_by_interpolations(self, composed: Composed, point: Sequence[str]) -> set[str]:
        """The words in all interpolations of a point: an override of none of these keys can wait until they have been
        resolved."""
        own = [text for text in point if "${" in self._unescaped[text]]
        texts = [composed.interpolations, *(f"{text.partition('.')[0]} {self._unescaped[text]}" for text in own)]
        return set(re.findall(r"\w+", " ".join(texts)))

    def _resolve(self, choices: tuple[str, ...], overrides: tuple[str, ...]) -> Resolved:
        """Apply the overrides that interpolations look at and resolve these, if that has not been done yet."""
        if (choices, overrides) not in self._resolved:
            config = pickle.loads(self._composed[choices].config)
            self._apply(overrides, config)
            OmegaConf.resolve(config)
            values: Any = OmegaConf.to_container(config)
            self._resolved[choices, overrides] = Resolved(pickle.dumps(config), values)
        return self._resolved[choices, overrides]

    def _apply(self, texts: Sequence[str], config: DictConfig) -> None:
        # Private: there is no public way to apply overrides to a configuration that is composed already
        self._loader._apply_overrides_to_config([self._parsed[text] for text in texts], config)

    def _match_width(self, config: DictConfig, point: Sequence[str]) -> None:
        if rival(point) == list(point):
            raise ValueError(
                f"model.width={MATCH} in a file would also be set for model=capsnet, whose size it asks for: set "
                "it beside model=cnn on the command line or in hydra.sweeper.points"
            )
        match_width(config, lambda: self.compose(rival(point)))


def choices_of(loader: Any) -> Callable[[Override], bool]:
    """A function that tells whether an override takes part in the defaults list. Values for a group, {key: value}, do
    not."""
    groups = set(loader.list_groups(""))  # asked once, because Hydra copies its repository for every question

    @cache
    def is_group(key: str) -> bool:
        if key.startswith("hydra") or "/" not in key:
            return key.startswith("hydra") or key in groups
        return bool(loader.list_groups(key) or loader.get_group_options(key))

    def is_choice(override: Override) -> bool:
        if override.package is not None:
            return True
        return is_group(override.key_or_group) and not isinstance(override.value(), dict)

    return is_choice


def check_interpolations(texts: Iterable[str]) -> None:
    """Raises ValueError for interpolations of Hydra's job number, which sweeps here do not have."""
    for text in texts:
        if re.search(r"\$\{hydra[:.](job|sweep|sweeper)\b", text):
            values = "seed=range(n)" if re.match(r"\W*seed\b", text) else "values, KEY=1,2,3"
            raise ValueError(
                f"{text.strip()} is not available, because all runs of a sweep are planned at once and have no number: "
                f"set {values}"
            )


def _top(text: str) -> str:
    """The top-level key of an override."""
    return re.split(r"[.=]", text.lstrip("+~"))[0]


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
