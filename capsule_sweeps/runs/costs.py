"""How long runs take, by the epochs measured so far."""

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

    Where no run with the same model, data, batch size and precision was measured, runs of the same stack on the same
    data count, whatever their routing, augmentation, batch size and precision.
    """

    def __init__(self, measured: Iterable[tuple[dict[str, Any], float]]) -> None:
        """`measured`: signed configurations with seconds per epoch."""
        self._like: dict[str, list[float]] = defaultdict(list)
        for flat, seconds in measured:
            for key in _keys(flat):
                self._like[key].append(seconds)

    @classmethod
    def of(cls, records: Iterable[dict[str, Any]]) -> Rates:
        """The rates that records of runs (run.json) hold."""
        done = [record for record in records if record.get("epochs_done") and record.get("seconds")]
        return cls((record.get("signed_config", {}), record["seconds"] / record["epochs_done"]) for record in done)

    def seconds(self, flat: dict[str, Any]) -> float | None:
        """The median seconds per epoch of runs like the signed configuration `flat`; None where none was measured."""
        found = next((self._like[key] for key in _keys(flat) if key in self._like), None)
        return median(found) if found else None


def _keys(flat: dict[str, Any]) -> list[str]:
    """What the cost of an epoch depends on: exactly, and without settings that change it less than the stack does."""
    exact = ("model.", "dataset.", "training.batch_size", "training.amp")
    alike = {key: value for key, value in flat.items() if key.startswith(exact)}
    stack = {
        key: value
        for key, value in alike.items()
        if not key.startswith((*ROUTING, *AUGMENTATION, "training.", "model.capsules.dropout"))
    }
    return [f"{name} {json.dumps(part, sort_keys=True)}" for name, part in (("exact", alike), ("stack", stack))]
