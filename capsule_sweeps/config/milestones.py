"""training.milestones: epochs, or fractions of the run, which keep the shape of a recipe in a run of another length."""

from collections.abc import Sequence
from typing import Any


def valid(milestones: Any) -> bool:
    """Rising whole epochs from 1, or fractions between 0 and 1."""
    if not isinstance(milestones, list) or any(isinstance(value, bool | str) for value in milestones):
        return False
    whole = [value for value in milestones if value >= 1]
    return (
        all(0 < value < 1 or (value >= 1 and value % 1 == 0) for value in milestones)
        and whole == sorted(set(whole))
        and milestones == sorted(set(milestones))
    )


def as_epochs(milestones: Sequence[float], epochs: int) -> list[int]:
    """Fractions become epochs of this run; those that round to its start, to its end or to each other are left out."""
    whole = {int(value) for value in milestones if value >= 1}
    rounded = {round(value * epochs) for value in milestones if value < 1}
    return sorted(whole | {epoch for epoch in rounded if 1 <= epoch < epochs})
