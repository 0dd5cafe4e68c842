"""The rows of metrics.jsonl."""

import json
from typing import Any

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
