"""The rows of metrics.jsonl."""

from __future__ import annotations

import json
from typing import Any

from capsule_sweeps.runs.run import Run


def read_metrics(run: Run) -> tuple[list[dict[str, Any]], str]:
    """The rows of metrics.jsonl up to the first damaged one, and a sentence about it."""
    path = run.folder / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            float(row["test_accuracy"])
        except (ValueError, KeyError, TypeError):
            return rows, f"{path} is damaged in line {number}"
        rows.append(row)
    return rows, ""
