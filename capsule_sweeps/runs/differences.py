"""Where two runs differ: configuration, code, versions, machine, data and numbers."""

from typing import Any

from capsule_sweeps.config import selection_rules
from capsule_sweeps.runs.frame import runs_frame
from capsule_sweeps.runs.metrics import read_metrics
from capsule_sweeps.runs.neutral import setting
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import NEUTRAL

NUMBERS = ["state", "parameters", "multiply_adds", "epochs_done", "seconds", "peak_memory_mb"]
NUMBERS += selection_rules.columns()
MACHINE = ("host", "processor", "gpu")
TIMES = ("seconds", "images_per_second")  # the only numbers of an epoch in which equal runs differ


def facts(run: Run) -> dict[str, dict[str, Any]]:
    """The compared values: part → key → value; None if unknown."""
    record = run.record()
    columns = runs_frame([run]).astype(object).iloc[0]
    columns = columns.where(columns.notna(), None)
    signed = columns.signed_config
    attempt = ([{}, *record.get("attempts", [])])[-1]
    return {
        "configuration": {**{key: setting(signed, key) for key in NEUTRAL}, **signed},
        "code": _dict(attempt.get("code")),
        "versions": {"python": attempt.get("python"), **_dict(attempt.get("versions"))},
        "machine": {**{key: attempt.get(key) for key in MACHINE}, **record.get("execution", {})},
        "data": {"data_sha256": record.get("data_sha256")},
        "numbers": {key: columns[key] for key in NUMBERS},
    }


def first_different_epoch(one: Run, other: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The records of both runs of the first epoch in which they differ, bit by bit."""

    def named(row: dict[str, Any]) -> dict[str, Any]:
        return {f"{key} of epoch {row.get('epoch')}": value for key, value in row.items() if key not in TIMES}

    pairs = zip(read_metrics(one)[0], read_metrics(other)[0], strict=False)
    return next(((named(a), named(b)) for a, b in pairs if named(a) != named(b)), ({}, {}))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}  # records come from others


def differences(here: Run, there: Run) -> str:
    """How two runs with different numbers differ, in words: accuracies, code, versions and machine."""
    ours, theirs = facts(here), facts(there)
    differing = {
        part: [(key, own.get(key), theirs[part].get(key)) for key in own if own.get(key) != theirs[part].get(key)]
        for part, own in ours.items()
    }
    accuracies = [(key, *map(_percent, pair)) for key, *pair in differing["numbers"] if key.startswith("accuracy_")]
    pairs = [*accuracies[:1], *differing["versions"], *differing["machine"]]
    words = [f"{key} {one} here and {other} there" for key, one, other in pairs]
    words += [] if accuracies else ["numbers of an epoch differ"]
    code = [module for module, _, _ in differing["code"]]
    words += [f"code differs in {', '.join(code[:3])}"] if code else []
    return "; ".join([*words, *(["the images differ"] if differing["data"] else [])])


def _percent(value: Any) -> str:
    return f"{value:.2%}" if isinstance(value, int | float) else "unknown"
