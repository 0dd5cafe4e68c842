"""Attempts that got nowhere: what a run that is killed again and again has in common with a run that cannot finish."""

from __future__ import annotations

from typing import Any

KILLED = "it was killed, perhaps because it needs more memory than it is given"


def fruitless(record: dict[str, Any], first: int = 0) -> int:
    """How many attempts at the end of a record, not counting the `first` ones, ended where they had begun.

    Progress is a checkpoint beyond the one from which the attempt resumed, after an epoch or at a signal.
    """
    reached, number = record.get("steps_done", 0), 0
    for attempt in reversed(record.get("attempts", [])[first:]):
        if attempt.get("steps_done", -1) < reached:  # attempts of before have no such number
            break
        number += 1
    return number


def killed(record: dict[str, Any]) -> bool:
    """Whether the last attempt of a run on which nobody works ended without a word, as SIGKILL ends a process."""
    return record.get("state") == "running"
