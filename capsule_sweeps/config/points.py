"""The points of a sweep: which lists of overrides a command line and an experiment ask for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from capsule_sweeps.config.errors import one_sentence

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MAX_RUNS = 10_000


def sweep_points(
    overrides: Sequence[str],
    params: Mapping[str, Any] | None = None,
    points: Sequence[Mapping[str, Any]] = (),
    loader: Any = None,
    max_runs: int = MAX_RUNS,
) -> list[list[str]]:
    """The points of a sweep, each a list of overrides: every combination of the values that overrides give.

    `params` are overrides as well. Each of `points` is a mapping of overrides whose values are combined among
    themselves and with everything else, and the sweep has the points of all of them. Of two overrides of one key the
    one of the command line counts, then that of `points`, then that of `params`; a choice of a group and values for
    it, {key: value}, are two things. Raises ValueError for more than max_runs points, before any is made.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with one_sentence():
        parser = OverridesParser.create(config_loader=loader)
        given, always = parser.parse_overrides(list(overrides)), parser.parse_overrides(_words(params or {}, "params"))
        if not isinstance(points, Sequence) or isinstance(points, str):
            raise ValueError(f"hydra.sweeper.points={points} must be a list of mappings: [{{KEY: VALUE}}, …]")
        parts = [parser.parse_overrides(_words(point, "points")) for point in points] or [[]]
        products = [_last([always, part, given]) for part in parts]
        sizes = [[num_values(override) for override in product] for product in products]
        if (size := sum(map(math.prod, sizes))) > max_runs:
            words = " + ".join(" × ".join(str(count) for count in counts if count > 1) or "1" for counts in sizes)
            raise ValueError(
                f"this sweep has {words} = {size} points, more than hydra.sweeper.max_runs={max_runs}: "
                "sweep over fewer values, or set hydra.sweeper.max_runs"
            )
        return [list(point) for product in products for point in itertools.product(*map(_values, product))]


def _words(mapping: Any, where: str) -> list[str]:
    """A mapping as it would be written on the command line."""
    if not isinstance(mapping, Mapping):
        raise ValueError(f"hydra.sweeper.{where}: {mapping} must be a mapping, KEY: VALUE")
    return [f"{key}={_text(value)}" for key, value in mapping.items()]


def _text(value: Any) -> str:
    """A value as it would be written on the command line. Strings are what they are there: `1,2` is two values."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_text, value)) + "]"
    return str(value)


def _last(layers: Iterable[Sequence[Override]]) -> list[Override]:
    """One override of each key: that of the last layer that has it, and in a layer the last one."""
    found: list[Override] = []
    for layer in layers:
        named = {_same(override, override.key_or_group) for override in layer}
        found = [override for override in found if _same(override, override.key_or_group) not in named]
        found += {_same(override, override.get_key_element()): override for override in layer}.values()
    return found


def _same(override: Override, key: str) -> tuple[str, bool]:
    """The key of an override; of two overrides with one key only the last counts."""
    value = override.value()
    values = getattr(value, "list", [value])  # of a choice
    return key, any(isinstance(item, dict) for item in values)


def num_values(override: Override) -> int:
    """The number of values of an override, without generating them. Raises ValueError for none or infinitely many."""
    from hydra.core.override_parser.types import ChoiceSweep, Glob, RangeSweep, Sweep

    value, word = override.value(), override.input_line
    if not override.is_sweep_override():
        return 1
    if not override.is_discrete_sweep():
        raise ValueError(f"{word} is not available: a grid needs values to choose from, such as 1,2,3 or range(1,4)")
    if isinstance(value, ChoiceSweep) and any(isinstance(item, Sweep | Glob) for item in value.list):
        raise ValueError(f"{word} is not available: write all values, such as 1,2,3, or one range or one glob")
    if isinstance(value, RangeSweep):
        if not value.step:
            raise ValueError(f"{word} has no end: a range needs a step other than 0")
        try:
            count = math.ceil((float(value.stop or 0) - float(value.start or 0)) / float(value.step))
        except (OverflowError, ValueError) as error:  # infinite, or not a number
            raise ValueError(f"{word} has no end: give a range numbers") from error
    else:
        count = len(value.list) if isinstance(value, ChoiceSweep) else len(list(override.sweep_iterator()))
    if count < 1:
        raise ValueError(f"{word} has no values: set at least one")
    return count


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
