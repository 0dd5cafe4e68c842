"""Attempts without progress, by which runs that can never finish are recognized."""

from typing import Any

KILLED = "it was killed, perhaps because it needs more memory than it has"


def fruitless(record: dict[str, Any], first: int = 0) -> int:
    """The number of attempts at the end of a record, not counting the `first` ones, that made no progress.

    Progress is a checkpoint beyond the one from which the attempt resumed, after an epoch or at a signal.
    """
    reached, number = record.get("steps_done", 0), 0
    for attempt in reversed(record.get("attempts", [])[first:]):
        if attempt.get("steps_done", -1) < reached:  # attempts of older versions have no such number
            break
        number += 1
    return number
