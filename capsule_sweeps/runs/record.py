"""The one reader of the JSON files of a runs folder: checks types and bounds of everything that is used.

Run folders may come from others. Only regular files of bounded size are read. A value of the wrong type or out of
bounds is left out as if it were missing, and reported in one line: `<name>: damaged (<why>)`. Unknown keys are kept if
they are plain JSON of bounded depth.
"""

import logging
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from capsule_sweeps.runs.files import read_object

log = logging.getLogger(__name__)

MAX_NUMBER = 2**53  # larger integers are not exact as floats; every count here is far below
MAX_FLOAT = sys.float_info.max  # for settings: any finite learning rate is valid
MAX_SECONDS = 1e11  # for clocks and durations: 3,000 years
MAX_TEXT = 100_000  # characters of an error message
MAX_NAME = 1000  # characters
MAX_ATTEMPTS = 1000
MAX_DEPTH = 20

Check = Callable[[Any], str]  # returns what is wrong with a value, "" if nothing is


def text(longest: int = MAX_NAME, pattern: str = "") -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            return "is not text"
        if len(value) > longest:
            return f"has more than {longest:,} letters"
        if re.search("[\ud800-\udfff]", value):
            return "is not Unicode text"
        return "" if not pattern or re.fullmatch(pattern, value) else "is not an identifier"

    return check


def number(low: float = -MAX_FLOAT, high: float = MAX_FLOAT, kind: Any = int | float) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, kind) or isinstance(value, bool):
            return "is not a whole number" if kind is int else "is not a number"
        return "" if low <= value <= high else "is out of range"  # NaN is in no range

    return check


def count(high: int = MAX_NUMBER) -> Check:
    return number(0, high, int)


def flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "is not true or false"


def leaf(value: Any) -> str:
    """Check a value of a configuration: text, a number, true, false, or a list of these."""
    if isinstance(value, list):
        return next(filter(None, map(_scalar, value)), "")
    return _scalar(value)


def _scalar(value: Any, longest: int = MAX_NAME) -> str:
    if value is None or isinstance(value, bool):
        return ""
    return text(longest)(value) if isinstance(value, str) else number()(value)


def each(check: Check, most: int = 1_000_000) -> Check:
    def check_list(value: Any) -> str:
        if not isinstance(value, list):
            return "is not a list"
        if len(value) > most:
            return f"has more than {most:,} entries"
        return next((f"has an entry that {wrong}" for wrong in map(check, value) if wrong), "")

    return check_list


def table(known: Mapping[str, Check] | None = None, others: Check | None = None) -> Check:
    """A check of an object: `known` keys must pass their check or be null, all others must pass `others`."""

    def check(value: Any) -> str:
        if not isinstance(value, dict):
            return "is not an object"
        for key, item in value.items():
            own = (known or {}).get(key) or others or plain
            if wrong := text()(key) or (own(item) if item is not None else ""):
                return f"has {key[:80]!a}, which {wrong}"
        return ""

    return check


def plain(value: Any, depth: int = MAX_DEPTH) -> str:
    """Check the value of an unknown key."""
    if depth == 0:
        return "is nested too deeply"
    if isinstance(value, dict | list):
        keys, items = (value.keys(), value.values()) if isinstance(value, dict) else ((), value)
        wrong = filter(None, map(text(), keys))
        return next(wrong, "") or next(filter(None, (plain(item, depth - 1) for item in items)), "")
    return _scalar(value, MAX_TEXT)


CLOCK = number(0, MAX_SECONDS)
SHARE = number(0, 1)
IDENTIFIER = text(pattern=r"([A-Za-z0-9_][A-Za-z0-9_.-]*)?")  # safe as a file name and in a glob
SIGNED_CONFIG = table(others=leaf)
EXECUTION = table({"device": text(), "threads": count()}, others=leaf)
COLUMNS: dict[str, Check] = {
    **dict.fromkeys(("run", "signature", "group", "dataset", "model", "backbone", "routing", "schedule"), text()),
    **dict.fromkeys(("num_routing", "seed", "epochs", "epochs_done", "parameters", "multiply_adds"), count()),
    "seconds": CLOCK,
    "peak_memory_mb": number(0, MAX_NUMBER),
}
ATTEMPT: dict[str, Check] = {
    **dict.fromkeys(("commit", "python", "host", "processor", "gpu", "job"), text()),
    **dict.fromkeys(("snapshot", "submission"), IDENTIFIER),
    **dict.fromkeys(("pid", "restart", "steps_done"), count()),
    "started": CLOCK,
    "dirty": flag,
    "code": table(others=text()),
    "versions": table(others=text()),
    "execution": EXECUTION,
}
RECORD: dict[str, Check] = {  # run.json and summary.json
    **COLUMNS,
    "state": text(),
    "failure": text(),
    "error": text(MAX_TEXT),
    "ended": CLOCK,
    "steps_done": count(),
    "not_learned": text(),
    "signed_config": SIGNED_CONFIG,
    "execution": EXECUTION,
    "attempts": each(table(ATTEMPT), MAX_ATTEMPTS),
    "data_sha256": text(),
    "sweep": text(),
    "wandb_id": IDENTIFIER,
    "classes": each(text()),
    "normalization": table(others=each(number())),
    "imported": table(),
}
NO_NULL = ("signed_config", "execution", "attempts", "epochs_done", "steps_done", "seconds", "data_sha256", "imported")
QUEUE_ENTRY: dict[str, Check] = {  # queued.json
    "queue": text(),
    "submission": text(),
    "user": text(),
    "config": table(),
    "columns": table(COLUMNS),
    "signed_config": SIGNED_CONFIG,
    "attempts": count(),
}
SWEEP: dict[str, Check] = {
    "sweep": text(),
    "command": each(text(MAX_TEXT)),
    "signatures": each(text()),
    "runs": each(text(4096)),
    "started": CLOCK,
}
SEEDS: dict[str, Check] = {  # .sweeps/seeds-*.json
    **dict.fromkeys(("min_seeds", "max_seeds"), count(10**6)),
    "half_width": number(0, 100),
    "resolve": text(),
    "groups": each(text()),
}
FORMER_KEYS = {"science": "signed_config"}  # names before version 0.2.0
JOB: dict[str, Check] = {"queue": text(), "runs": each(text(4096)), "snapshot": text(4096), "settings": table()}


def read_typed(path: Path, known: Mapping[str, Check], nulls: bool = False) -> dict[str, Any]:
    """The valid part of the object in a JSON file; {} if the file does not exist. Logs one line about damaged parts.

    Keys whose value is null are kept only with `nulls`. Damaged attempts keep their valid keys, so that their number
    stays the same.
    """
    try:
        value = read_unchecked(path)
    except (OSError, ValueError) as error:
        say_damaged(path.parent.name, f"{path.name}: {getattr(error, 'strerror', None) or error}", path)
        return {}
    wrong = {key: problem for key, item in value.items() if (problem := _problem(key, item, known))}
    if wrong:
        problems = "; ".join(f"{key[:80]!a} {problem}" for key, problem in list(wrong.items())[:3])
        say_damaged(path.parent.name, f"{path.name}: {problems}", path)
    kept = {key: item for key, item in value.items() if key not in wrong and (nulls or item is not None)}
    return {**kept, "attempts": _valid_attempts(value["attempts"])} if known is RECORD and "attempts" in wrong else kept


def read_unchecked(path: Path) -> dict[str, Any]:
    """The object in a JSON file, with former names of keys replaced. Raises as `read_object`."""
    value = read_object(path)
    former = {key: value[old] for old, key in FORMER_KEYS.items() if old in value}
    return former | {key: item for key, item in value.items() if key not in FORMER_KEYS}


def _valid_attempts(value: Any) -> list[dict[str, Any]]:
    """All attempts, at most MAX_ATTEMPTS, with their valid keys."""
    attempts = [one if isinstance(one, dict) else {} for one in (value if isinstance(value, list) else [value])]
    wrong, last = table(ATTEMPT), attempts[-MAX_ATTEMPTS:]
    return [{key: item for key, item in one.items() if not wrong({key: item})} for one in last]


def _problem(key: str, value: Any, known: Mapping[str, Check]) -> str:
    if value is None:
        return ""
    rule = re.fullmatch("(accuracy|epoch)_[a-z0-9_]+", key)
    check = known.get(key) or ((SHARE if rule[1] == "accuracy" else count()) if rule else plain)
    return text()(key) or check(value)


_said: set[tuple[str, str]] = set()


def say_damaged(name: str, why: str, path: Path) -> None:
    """Log `<name>: damaged (<why>)`, once per process, because a command may read a record several times."""
    if (line := (str(path.absolute()), why)) not in _said:
        _said.add(line)
        log.warning("%s: damaged (%s)", name if re.fullmatch(r"[!-~ ]+", name) else ascii(name), why)


def read_record(folder: Path) -> dict[str, Any]:
    """The valid part of run.json: the columns of `load_runs`, signed_config, provenance, execution, attempts."""
    record = read_typed(folder / "run.json", RECORD, nulls=True)
    return {key: value for key, value in record.items() if value is not None or key not in NO_NULL}


def left_out(path: Path, kept: Mapping[str, Any]) -> list[str]:
    """The keys of a JSON file whose values a reader refused, given what it `kept`."""
    stored = read_unchecked(path)
    return [key for key, value in stored.items() if value is not None and kept.get(key) != value]


def read_summary(folder: Path) -> dict[str, Any]:
    return read_typed(folder / "summary.json", RECORD)


def valid_row(row: Any) -> bool:
    """Whether a row of metrics.jsonl is valid, evaluated or not. Losses may be infinite or NaN."""
    if not (isinstance(row, dict) and row) or SHARE(row.get("test_accuracy", 0)) or count()(row.get("epoch", 0)):
        return False
    finite = [value for value in row.values() if not (isinstance(value, float) and not math.isfinite(value))]
    return not any(map(number(), finite))
