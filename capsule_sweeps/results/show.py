"""Details of one run, and how it differs from similar runs."""

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd

from capsule_sweeps.display import terminal
from capsule_sweeps.results.columns import as_typed, setting
from capsule_sweeps.results.render import render
from capsule_sweeps.runs.files import last_lines
from capsule_sweeps.runs.frame import load_runs
from capsule_sweeps.runs.labels import read_labels
from capsule_sweeps.runs.metrics import read_metrics
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.where import queue_log

BLOCKS = "▁▂▃▄▅▆▇█"
NUM_RELATIVES = 5
LOG_LINES = 10


def show(run: Run, form: str) -> str:
    """Columns, attempts with their provenance, accuracy curve, last log lines, the error of a run, and `why`.

    Accuracies are in percent in tables for display, and fractions in csv and json. JSON is one object, in which the key
    `why` has the result of `why`.
    """
    entry = run.queue_entry()  # the only source before a run starts
    record = {**entry.get("columns", {}), "signed_config": entry.get("signed_config", {}), **run.record()}
    attempts = record.pop("attempts", [])
    signed = record.pop("signed_config", {})
    rows, damage = read_metrics(run)
    found = read_labels(run.folder)
    labels = {**({"tags": list(found.tags)} if found.tags else {}), **({"note": found.note} if found.note else {})}
    facts = {**record, **labels, "state": run.state(record)}
    if form == "json":
        more = {"signed_config": signed, "attempts": attempts, "metrics": rows, "why": json.loads(why(run, form))}
        return json.dumps({**facts, **more}, indent=1)
    parts = [_pairs(_dated({**facts, "folder": run.folder}), form, run.folder.name)]
    for number, attempt in enumerate(attempts, 1):
        shown = _dated({key: value for key, value in attempt.items() if key not in ("code", "versions", "execution")})
        for entries in (attempt.get(key) for key in ("versions", "execution")):
            shown |= entries if isinstance(entries, dict) else {}
        parts.append(_pairs(shown, form, f"Attempt {number}"))
    if accuracies := [row["test_accuracy"] for row in rows if "test_accuracy" in row]:
        parts.append(f"Test accuracy by epoch, {min(accuracies):.1%} to {max(accuracies):.1%}\n{sparkline(accuracies)}")
    parts += [damage] if damage else []
    for path in (run.folder / "log.txt", queue_log(run), run.folder / "error.txt"):
        if path is not None and (lines := last_lines(path, LOG_LINES)):
            block = ["", *("    " + text for text in lines)] if form == "md" else lines  # in a page, code
            parts.append("\n".join([f"{path}, last lines:", *block]))
    return terminal("\n\n".join([*parts, why(run, form)]))


def sparkline(values: list[float], width: int = 80) -> str:
    """Values as blocks of eight heights, at most `width` of them."""
    step = max(1, -(-len(values) // width))
    values = values[::step]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BLOCKS[min(7, int(8 * (value - low) / span))] for value in values)


def why(run: Run, form: str) -> str:
    """The signed configuration of a run, and how it differs from the most similar runs in the same folder."""
    signed = run.record().get("signed_config") or run.queue_entry().get("signed_config", {})
    runs = load_runs(run.folder.parent)
    relatives = []
    for name, theirs in zip(runs.run, runs.signed_config, strict=True):
        if name != run.folder.name:
            keys = sorted(key for key in signed.keys() | theirs.keys() if signed.get(key) != theirs.get(key))
            relatives.append((len(keys), name, {key: (setting(signed, key), setting(theirs, key)) for key in keys}))
    nearest = sorted(relatives, key=lambda relative: relative[:2])[:NUM_RELATIVES]
    pairs = [(name, key, *pair) for _, name, differences in nearest for key, pair in differences.items()]
    frame = pd.DataFrame(pairs, columns=["relative", "key", "here", "there"])
    if form == "json":
        return json.dumps({"signed_config": signed, "relatives": json.loads(render(frame, "json"))}, indent=1)
    head = _pairs(signed, form, f"{run.folder.name}: hashed to {run.signature}")
    shown = as_typed(frame, ["here", "there"])  # never rounded
    return f"{head}\n\n{render(shown, form, title='Nearest relatives')}"


def _dated(values: dict[str, Any]) -> dict[str, Any]:
    """The same with started and ended, in seconds, as dates."""
    times = {key: values[key] for key in ("started", "ended") if isinstance(values.get(key), int | float)}
    dates = {key: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) for key, seconds in times.items()}
    return {**values, **dates}


def _pairs(values: dict[str, Any], form: str, title: str) -> str:
    people = form in ("table", "md")
    texts = [_text(key, value) if people else _exact(value) for key, value in values.items()]
    return render(pd.DataFrame({"key": list(values), "value": texts}), form, title=title)


def _text(key: str, value: Any) -> str:
    if isinstance(value, float) and key.startswith("accuracy_"):
        return f"{100 * value:.2f} %"
    return f"{value:.1f}" if isinstance(value, float) and key == "seconds" else _exact(value)


def _exact(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value, default=str)
