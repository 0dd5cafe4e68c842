"""The rows of metrics.jsonl."""

import json
from typing import Any

from capsule_sweeps.config import selection_rules
from capsule_sweeps.runs.files import read_file
from capsule_sweeps.runs.record import valid_row
from capsule_sweeps.runs.run import Run

MAX_METRICS = 64 * 2**20  # bytes


def read_metrics(run: Run) -> tuple[list[dict[str, Any]], str]:
    """The rows of metrics.jsonl up to the first damaged one, and a sentence about the damage (empty if there is
    none)."""
    path = run.folder / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    try:
        lines = read_file(path, MAX_METRICS).decode(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    except (OSError, ValueError) as error:
        return rows, f"{path} cannot be read ({getattr(error, 'strerror', None) or error})"
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not valid_row(row):
            return rows, f"{path} is damaged in line {number}"
        rows.append(row)
    return rows, ""


def with_newer_rules(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """The record of a finished run, also with the accuracies of selection rules that are newer than the run, unless its
    metrics are damaged."""
    newer = [rule.needs for rule in selection_rules.RULES if rule.column not in record]
    signed = record.get("signed_config", {})
    if "imported" in record or not any(needs is None or signed.get(needs.key) for needs in newer):
        return record
    rows, damage = read_metrics(run)
    whole = not damage and rows and rows[-1].get("epoch") == record.get("epochs")
    return {**selection_rules.summarize(rows), **record} if whole else record
