"""Commands that settle open verdicts: more seeds, by the two-stage procedure, for the configuration of some runs."""

import json
import math
import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from capsule_sweeps.config.compose import CONF_DIR, compose_config
from capsule_sweeps.config.moved import FIRST_SPELLING
from capsule_sweeps.config.yaml_files import read_options
from capsule_sweeps.results.intervals import deviation
from capsule_sweeps.results.stein import num_seeds
from capsule_sweeps.runs.signature import NEUTRAL, signed_config

FIRST, MOST = 5, 20  # the defaults of hydra.sweeper.min_seeds and max_seeds
MARGIN = 0.5  # points; a difference that is known to be smaller than twice this is as good as none
TOO_MANY = 1000  # seeds; no command is suggested for more
IN_MODEL = ("backbone.", "capsules.", "routing.", "num_routing")  # top-level keys that are signed as a part of model


def next_half_width(margin: float, half_width: float) -> float:
    """The half-width to ask for, in the unit of both: `margin`, or, where the interval is as narrow already, the next
    of margin/2, margin/4, ….

    It does not depend on the difference seen so far: more seeds only for small differences, and fewer for large ones,
    would make the interval too narrow for the level it claims (docs/seeds.md).
    """
    while 0 < half_width <= margin:
        margin /= 2
    return margin


def seed_words(values: pd.Series, wanted: float, first: int | None = None) -> list[str]:
    """The overrides that narrow the interval of values, indexed by seed, to ± `wanted`; [] for too many seeds.

    The values count as the first seeds of the procedure, which needs the fewest additional seeds, unless a procedure
    with so many `first` seeds has begun.
    """
    std, n = deviation(values, first)[0], len(values)
    first = first or max(FIRST, n)
    asked = max(n, int(num_seeds(0.0 if math.isnan(std) else std, first, wanted)))
    if asked > TOO_MANY:
        return []
    words = [f"hydra.sweeper.half_width={wanted:.10g}"]
    words += [f"hydra.sweeper.min_seeds={first}"] if first != FIRST else []
    words += [f"hydra.sweeper.max_seeds={max(asked, first)}"] if max(asked, first) > MOST else []
    seeds = sorted(map(int, values.index.dropna()))
    if seeds == list(range(n)):
        return words
    following = n > 2 and seeds == list(range(seeds[0], seeds[0] + n))
    return [f"seed={f'range({seeds[0]},{seeds[0] + n})' if following else ','.join(map(str, seeds))}", *words]


def sweep_command(words: Sequence[str], runs_dir: Path | str) -> str:
    """The command `python launch.py -m …`, quoted for a shell, for runs in runs_dir."""
    words = list(words)
    if str(runs_dir) != "runs":
        plain = re.fullmatch(r"[\w./-]+", str(runs_dir))
        words.append(f"runs_dir={runs_dir if plain else quoted(str(runs_dir))}")
    return "python launch.py -m " + " ".join(map(shlex.quote, words))


def quoted(text: str) -> str:
    """Text as a quoted value of a Hydra override."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


@cache
def overrides_of(signed: str, dataset: str, model: str) -> list[str] | None:
    """Overrides that compose to a signed configuration (as JSON) except for its seed; None if there are none.

    First options of config groups are chosen, as far as each brings the configuration nearer; then single keys are set.
    The result is composed once more and compared, so that only correct commands are shown.
    """
    wanted = {key: value for key, value in json.loads(signed).items() if key != "seed"}

    def left(words: list[str]) -> set[str]:
        own = signed_config(compose_config(words))
        keys = own.keys() | wanted.keys()
        return {key for key in keys - {"seed"} if wanted.get(key, NEUTRAL.get(key)) != own.get(key, NEUTRAL.get(key))}

    try:
        words = [f"dataset={dataset}"] if dataset in options("dataset") else []
        words += [f"model={model}"] if model in set(options("model")) - {"capsnet"} else []
        words += [f"num_routing={wanted['model.num_routing']}"] if "model.num_routing" in wanted else []
        differing = left(words)
        for group, start in (
            *(("backbone", "model.backbone."), ("capsules", "model.capsules."), ("routing", "model.routing.")),
            ("training", "training."),
        ):
            if any(key.startswith(start) for key in differing):
                for option in _of_class(group, wanted.get(f"{start}_target_")):
                    try:
                        nearer = left([*words, f"{group}={option}"])
                    except ValueError:
                        continue
                    if len(nearer) < len(differing):
                        words = [*(word for word in words if not word.startswith(f"{group}=")), f"{group}={option}"]
                        differing = nearer
        words += [f"{_key(key)}={_value(wanted.get(key, NEUTRAL.get(key)))}" for key in sorted(differing)]
        return None if differing and left(words) else words
    except ValueError:
        return None


def _of_class(group: str, target: Any) -> list[str]:
    """The options of a group for a class, as it is signed, and those that name none; composing each takes a while."""
    found = read_options(CONF_DIR / group)
    classes = {name: found.get(name, {}).get(group, {}).get("_target_") for name in options(group)}
    return [name for name, own in classes.items() if own is None or FIRST_SPELLING.get(own, own) == target]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def _key(signed: str) -> str:
    """The spelling of a signed key on the command line."""
    short = signed.removeprefix("model.")
    return short if short.startswith(IN_MODEL) else signed


def _value(value: Any) -> str:
    """A value in Hydra's syntax. Raises ValueError for text that is not a single word, since run folders may be
    forged."""
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if not re.fullmatch(r"[A-Za-z][\w.-]*", str(value), re.ASCII):
        raise ValueError(f"{value} is not a word")
    return str(value)
