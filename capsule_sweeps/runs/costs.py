"""Estimates how long runs take, from the epochs measured so far."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Any

ROUTING = ("model.routing.", "model.num_routing")
AUGMENTATION = ("dataset.crop_", "dataset.flip", "dataset.mean", "dataset.std")


class Rates:
    """Measured seconds per epoch.

    If no run with the same model, data, batch size and precision was measured, runs of the same stack on the same data
    count, with any routing, augmentation, batch size and precision.
    """

    def __init__(self, measured: Iterable[tuple[dict[str, Any], float]]) -> None:
        """`measured`: signed configurations with seconds per epoch."""
        self._like: dict[str, list[float]] = defaultdict(list)
        for flat, seconds in measured:
            for key in _keys(flat):
                self._like[key].append(seconds)

    @classmethod
    def of(cls, records: Iterable[dict[str, Any]]) -> Rates:
        done = [record for record in records if record.get("epochs_done") and record.get("seconds")]
        return cls((record.get("signed_config", {}), record["seconds"] / record["epochs_done"]) for record in done)

    def seconds(self, flat: dict[str, Any]) -> float | None:
        """The median seconds per epoch of runs like the signed configuration `flat`; None if there are none."""
        found = next((self._like[key] for key in _keys(flat) if key in self._like), None)
        return median(found) if found else None


def _keys(flat: dict[str, Any]) -> list[str]:
    """The cost keys of a run: all settings that the cost of an epoch depends on, and only those of stack and data."""
    exact = ("model.", "dataset.", "training.batch_size", "training.amp")
    alike = {key: value for key, value in flat.items() if key.startswith(exact)}
    free = (*ROUTING, *AUGMENTATION, "training.", "model.capsules.dropout")
    stack = {key: value for key, value in alike.items() if not key.startswith(free)}
    return [f"{name} {json.dumps(part, sort_keys=True)}" for name, part in (("exact", alike), ("stack", stack))]
