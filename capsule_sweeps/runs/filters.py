"""Filters such as dataset=CIFAR10 or num_routing=1,2, which select rows of `load_runs`.

Values are parsed by Hydra's own grammar, so 5e-4, null, [3,5], 0,1,2, range(3) and glob(em*) have the same meaning as
for launch.py. The option of a config group that is not a column, such as training=fast, stands for all values in its
file, except for keys that another filter names.
"""

import difflib
import fnmatch
import re
from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from capsule_sweeps.config.compose import CONF_DIR, compose_config
from capsule_sweeps.config.points import MAX_RUNS, num_values
from capsule_sweeps.display import counted, listed
from capsule_sweeps.runs.neutral import setting
from capsule_sweeps.runs.signature import NEUTRAL, flatten

HIDDEN = ("signed_config", "folder", "sweeps", "classes", "note", "tags")  # columns that are no filters
TAGS = ("tag", "tags")
SHOWN = 12  # values listed in a message


def fit(runs: pd.DataFrame, word: str, words: Sequence[str] = ()) -> np.ndarray:
    """For each run, of at least one, whether it fits the filter `word`; `words`: all filters of the command.

    Raises ValueError for a key that no run has.
    """
    key, _, text = word.partition("=")
    if key in TAGS:
        return np.array([bool({*tags.split()} & {*text.split(",")}) for tags in runs.tags], bool)
    if key == "note":
        return np.array([text.casefold() in str(note).casefold() for note in runs.note], bool)
    accepts = _reader(key, text)
    if (column := _column(runs, key)) is not None:
        return np.array([accepts(value) for value in column], bool)
    if signed := signed_key(runs, key):
        return np.array([accepts(value) for value in values(runs, signed)], bool)
    others = {other.partition("=")[0].removeprefix("model.") for other in words if other != word}
    options = [_option(key, name) for name in text.split(",")]
    if all(options):
        return np.array([any(_as_option(one, option, others) for option in options) for one in runs.signed_config])
    raise ValueError(f"{word}: {unknown(runs, key)}")


def values(runs: pd.DataFrame, key: str) -> list[Any]:
    """The value of a signed key in each run, including neutral values, which are not signed; NaN for a missing key."""
    return [setting(signed, key, np.nan) for signed in runs.signed_config]


def signed_key(runs: pd.DataFrame, key: str) -> str | None:
    """The signed key for a key as spelled for launch.py (backbone.channels), in full, or by an end that no other key
    has, or none in which runs differ (lr, as columns of tables are headed); None if it is unknown."""
    known = _signed(runs)
    if found := next((name for name in (key, f"model.{key}") if name in known), None):
        return found
    ends = _ending(runs, key)
    if len(ends) > 1:
        ends = [name for name in ends if len(set(map(str, values(runs, name))) - {"nan"}) > 1]
    return ends[0] if len(ends) == 1 else None


def _ending(runs: pd.DataFrame, key: str) -> list[str]:
    return sorted(name for name in _signed(runs) if name.endswith(f".{key}"))


def without_runs(runs: pd.DataFrame, word: str, words: Sequence[str]) -> str:
    """Of a filter with several values that some runs fit: a sentence about the values that none has; empty if none.

    Of a range and of a glob it is not expected that runs have every value.
    """
    key, _, text = word.partition("=")
    if key in (*TAGS, "note") or "range(" in text or len(asked := parsed(key, text)) < 2:
        return ""
    found = _found(runs, key)
    each = runs if found is None else runs[~pd.Series(list(map(repr, found)), index=runs.index).duplicated()]
    single = [f"{key}={as_typed(value)}" for value in asked if not isinstance(value, _Glob | list)]
    missing = [one for one in single if not fit(each, one, words).any()]
    if not missing:
        return ""
    return none_fits(runs, word, words).replace(word, listed(missing, SHOWN), 1)


def none_fits(runs: pd.DataFrame, word: str, words: Sequence[str], what: str = "run") -> str:
    """A sentence about a filter that no run fits, with the existing values; `what`: what a row of `runs` is."""
    key = word.partition("=")[0]
    earlier = list(words[: list(words).index(word)])
    of = counted(len(runs), what) + (f" that fit {' '.join(earlier)}" if earlier else "")
    if key == "note":
        return f"{word} is in the note of none of the {of}"
    if key in TAGS:
        found = [tag for tags in runs.tags for tag in tags.split()]
        if not found:
            return f"{word} fits none of the {of}: none has a tag"
    elif (known := _found(runs, key)) is not None:
        found = known
    else:
        return f"{word} fits none of the {of}: none has the values that conf/{key} sets for it"
    return f"{word} fits none of the {of}; {key} is {_listed(found)}"


def _found(runs: pd.DataFrame, key: str) -> list[Any] | None:
    """The value of a column or a signed key in each run; None for another key."""
    if (column := _column(runs, key)) is not None:
        return list(column)
    signed = signed_key(runs, key)
    return values(runs, signed) if signed else None


def _column(runs: pd.DataFrame, key: str) -> pd.Series | None:
    """The values of a column that is a filter; not_learned is true for runs that did not."""
    if key == "not_learned" and key in runs:
        return runs[key].notna()
    return runs[key] if key in runs and key not in HIDDEN else None


def _listed(found: list[Any]) -> str:
    present = [value for value in found if not (isinstance(value, float) and np.isnan(value))]
    try:
        unique = sorted({value if isinstance(value, int | float) else as_typed(value) for value in present})
    except TypeError:  # numbers and words
        unique = sorted({as_typed(value) for value in present})
    words = [as_typed(value) for value in unique]
    return listed(words, SHOWN) or "unknown for all of them"


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None or value is pd.NA:
        return "null"
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value).replace(" ", "")


def _reader(key: str, text: str) -> Any:
    """A function that returns whether a value is among those in `text`."""
    asked = parsed(key, text)
    literal = text.strip().lower()

    def accepts(found: Any) -> bool:
        if found is None or found is pd.NA or (isinstance(found, float) and np.isnan(found)):
            return None in asked or literal in ("none", "nan")
        if isinstance(found, list):
            return any(isinstance(one, list) and [*map(_plain, one)] == [*map(_plain, found)] for one in asked)
        return str(found).lower() == literal or any(_same(found, one) for one in asked)

    return accepts


def _same(found: Any, asked: Any) -> bool:
    if isinstance(asked, _Glob):
        return asked.matches(str(found))
    truth = isinstance(found, bool) or isinstance(asked, bool)
    if not truth and isinstance(found, int | float | np.number) and isinstance(asked, int | float):
        return bool(found == asked)
    return str(found).lower() == str(asked).lower()


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | list) or value is None else str(value)


class _Glob:
    def __init__(self, include: list[str], exclude: list[str]) -> None:
        self.include, self.exclude = include, exclude

    def matches(self, text: str) -> bool:
        included = any(fnmatch.fnmatchcase(text, pattern) for pattern in self.include)
        return included and not any(fnmatch.fnmatchcase(text, pattern) for pattern in self.exclude)


def parsed(key: str, text: str) -> list[Any]:
    """The values in a text, parsed by Hydra; if that fails, the words between commas.

    Raises ValueError for a range without values or without an end, and for another function that is invalid.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, Transformer
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    try:
        override = parser.parse_override(f"key={text}")
        found = override.value()
    except (HydraException, ValueError, TypeError, AssertionError, RecursionError) as error:
        if re.fullmatch(r"\w+\(.*,.*\)", text.strip()):  # its words are not values: range(1,2,x)
            raise ValueError(f"{key}={text} is invalid; use values such as 1,2,3 or range(1,4)") from error
        return [None if word in ("null", "none") else word for word in text.lower().split(",")]
    if isinstance(found, Glob):
        return [_Glob(found.include, found.exclude)]
    if override.is_sweep_override():
        override.input_line = f"{key}={text}"
        if not any(isinstance(one, Glob) for one in getattr(found, "list", [])):  # a filter may have globs among values
            num_values(override)
        # As many as a sweep may have
        each = islice(override.sweep_iterator(transformer=Transformer.identity), MAX_RUNS)
        return [
            _Glob(one.include, one.exclude)
            if isinstance(one, Glob)
            else parser.parse_override(f"key={Transformer.encode(one)}").value()
            for one in each
        ]
    return [str(found) if type(found).__name__ == "QuotedString" else found]


@cache
def _option(group: str, name: str) -> dict[str, Any]:
    """The values that conf/<group>/<name>.yaml sets, with its defaults; {} if there is no such file."""
    folders = {folder.name: folder for folder in CONF_DIR.iterdir()}
    if group not in folders or name not in {path.stem for path in folders[group].glob("*.yaml")}:
        return {}
    config = OmegaConf.select(compose_config([f"{group}={name}"]), group)
    return dict(flatten(config, group)) if config is not None else {}


def _as_option(signed: dict[str, Any], option: dict[str, Any], others: set[str]) -> bool:
    """Whether a run has the values of an option, except for keys that other filters name."""
    if "training.epochs" in others:  # milestones may be fractions of the run
        others = others | {"training.milestones"}
    keys = [(name, key) for key in option for name in (key, f"model.{key}") if name in signed or name in NEUTRAL]
    free = [(name, key) for name, key in keys if key not in others]
    return bool(keys) and all(signed.get(name, NEUTRAL.get(name)) == option[key] for name, key in free)


def _signed(runs: pd.DataFrame) -> set[str]:
    return NEUTRAL.keys() | {name for signed in runs.signed_config for name in signed}


def unknown(runs: pd.DataFrame, key: str) -> str:
    """A sentence about a key that no run has, with the most similar key."""
    if key == "runs_dir":
        return "it is no filter; set --runs-dir to the folder of the runs"
    if key == "ablation":
        return "runs do not record their ablation; `results --ablation` compares those that it finds"
    if len(ends := _ending(runs, key)) > 1:
        return f"several keys end in {key}: use the whole key, {' or '.join(ends)}"
    columns = [column for column in runs.columns if column not in HIDDEN]
    signed = [name.removeprefix("model.") for name in _signed(runs)]
    close = difflib.get_close_matches(key, [*columns, *signed, *_signed(runs)], 1, 0.75)
    if close:
        return f"no run has a key {key}; did you mean {close[0]}?"
    return (
        f"no run has a key {key}; give a key of the configuration, such as training.lr, or one of "
        f"{', '.join(columns)}, sweep"
    )
