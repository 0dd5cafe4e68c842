"""Finished runs that did not learn; they are marked wherever their accuracy is shown."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from typing import TYPE_CHECKING, Any

from capsule_sweeps.display import listed
from capsule_sweeps.runs.metrics import read_metrics
from capsule_sweeps.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

SIGMAS = 3
IMAGES = 1000  # assumed number of test images for runs that did not record chance
GROWING = ("spread",)  # losses that grow while a run learns, because their margin grows
SHOWN = 3


def why_not_learned(
    signed: dict[str, Any], rows: Sequence[dict[str, Any]], chance: float | None = None, images: int = IMAGES
) -> str | None:
    """Why a finished run did not learn, judged by its epochs; None for a run that did.

    Either its last accuracy is within noise of chance, or its training loss is above that of the first epoch. `chance`:
    the accuracy of the best constant prediction on `images` test images; None means 1 / the number of possible labels.
    """
    if not rows or "test_accuracy" not in rows[-1]:
        return None
    if chance is None:
        classes, labels = signed.get("dataset.num_classes"), signed.get("dataset.labels_per_image", 1)
        if not isinstance(classes, int) or classes < 2:
            return None
        chance = 1 / comb(classes, labels)
    accuracy = rows[-1]["test_accuracy"]
    if accuracy <= chance + SIGMAS * sqrt(chance * (1 - chance) / images):
        return f"accuracy {accuracy:.1%} is within noise of chance, {chance:.1%}"
    first, last = rows[0].get("train_loss"), rows[-1].get("train_loss")
    if signed.get("training.loss") not in GROWING and first is not None and last is not None and last > first:
        return f"training loss rose from {first:.3g} to {last:.3g}"
    return None


def find_not_learned(run: Run, record: dict[str, Any]) -> str | None:
    """`why_not_learned` of a finished run: as recorded, or from its metrics if it was made by an older version. None
    for imported runs, which have no epochs."""
    if "not_learned" in record or "imported" in record:
        return record.get("not_learned")
    rows, _ = read_metrics(run)
    return why_not_learned(record.get("signed_config", {}), rows)


def not_learned_note(runs: pd.DataFrame) -> str:
    """The note under a table with runs that did not learn; empty if all did. Columns of `runs`: run, not_learned."""
    if "not_learned" not in runs:
        return ""
    pairs = zip(runs.run, runs.not_learned, strict=True)
    some = [f"{name} ({why})" for name, why in pairs if isinstance(why, str) and why]
    words = f"Not learned: {listed(some, SHOWN, '; ')}. Do not compare such runs; another training.lr may help."
    return words if some else ""
