"""What a plan warns of before hours are spent: comparisons that would not compare what they seem to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from omegaconf import DictConfig

from capsule_sweeps.config.milestones import as_epochs

RATIO = 2  # models differ much in size when one has so many times the parameters of another
SHAPE = [0.43, 0.71]  # of the published recipe: milestones as fractions of the run
SHOWN = 5  # groups of points that coincide


class Point(Protocol):
    """What is looked at of a `plan.PlannedRun`."""

    config: DictConfig
    signed: dict[str, Any]
    label: str
    same_labels: list[str]
    parameters: int | None


def plan_warnings(plan: Sequence[Point]) -> list[str]:
    """One line for each warning."""
    found = [*_coinciding(plan), _without_iterations(plan), _milestones(plan), size_warning(plan)]
    return [line for line in found if line]


def _coinciding(plan: Sequence[Point]) -> list[str]:
    """Points that are one run, by the overrides in which they differ."""
    groups = [list(dict.fromkeys([point.label, *point.same_labels])) for point in plan if point.same_labels]
    lines = [
        f"{' and '.join(labels)} are one run: they differ in nothing that changes its numbers."
        if len(labels) > 1
        else f"{labels[0]} is asked for more than once: it is one run."
        for labels in groups
    ]
    more = f"So are {len(lines) - SHOWN} more groups of points."
    return [*lines[:SHOWN], more] if len(lines) > SHOWN else lines


def _without_iterations(plan: Sequence[Point]) -> str:
    """A routing that iterates does nothing in its first pass but average."""
    once = [point for point in plan if _iterations(point.signed) == 1]
    if not once:
        return ""
    routings = list(dict.fromkeys(str(point.config.model.routing.name) for point in once))
    which = f" ({len(once)} of {len(plan)} runs)" if len(once) < len(plan) else ""
    line = f"num_routing=1 does not route{which}: its coefficients are uniform"
    if len(routings) > 1:
        line += f", so that runs with routing={','.join(routings)} do not compare how these route"
    return line + ". Set num_routing=2 or more to route."


def _iterations(signed: dict[str, Any]) -> int | None:
    """None for a model or a routing that has no iterations."""
    return None if "model.routing.num_routing" in signed else signed.get("model.num_routing")


def _milestones(plan: Sequence[Point]) -> str:
    """Epochs that no run reaches."""
    for point in plan:
        milestones, epochs = point.signed.get("training.milestones", []), point.signed.get("training.epochs", 0)
        late = [milestone for milestone in milestones if milestone >= epochs]
        if late:
            one = len(late) == 1
            return (
                f"training.milestones={milestones}: {', '.join(map(str, late))} "
                f"{'is' if one else 'are'} beyond the last step of training.epochs={epochs} and never "
                f"{'applies' if one else 'apply'}. Set fractions of the run: training.milestones={SHAPE} is "
                f"{as_epochs(SHAPE, epochs)} here."
            )
    return ""


def size_warning(plan: Sequence[Point]) -> str:
    """Models for the same data set with very different numbers of parameters, of those that are known."""
    for dataset in dict.fromkeys(point.signed.get("dataset.name") for point in plan):
        known = [(point.parameters, point.label) for point in plan if point.signed.get("dataset.name") == dataset]
        sizes = sorted((size, label) for size, label in known if size)
        if sizes and sizes[-1][0] >= RATIO * sizes[0][0]:
            (small, smaller), (large, larger) = sizes[0], sizes[-1]
            return (
                f"{larger} has {large:,} parameters and {smaller} has {small:,}: the difference between their "
                "accuracies is also one of size."
            )
    return ""


def architecture(flat: dict[str, Any]) -> str:
    """What the number of parameters depends on, and little more."""
    kept = ("model.", "dataset.num_classes", "dataset.channels", "dataset.image_size")
    return json.dumps({key: value for key, value in flat.items() if key.startswith(kept)}, sort_keys=True)


def known_sizes(records: Iterable[dict[str, Any]]) -> dict[str, int]:
    """The number of parameters of each architecture that ran."""
    return {
        architecture(record.get("signed_config", {})): record["parameters"]
        for record in records
        if record.get("parameters")
    }
