"""Warnings of a plan about misleading comparisons, shown before training starts."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from omegaconf import DictConfig

from capsule_sweeps.config.compose import CONF_DIR
from capsule_sweeps.config.milestones import as_epochs
from capsule_sweeps.config.yaml_files import read_options
from capsule_sweeps.display import counted

RATIO = 2  # warn if one model has at least this many times the parameters of another
SHAPE = [0.43, 0.71]  # milestones of the published recipe as fractions of the run
UNUSED = ("schedule", "density")  # settings of routings that one iteration does not use
SAME_SIZE = ("model.num_routing", "model.routing.schedule", "model.capsules.dropout")  # no parameter depends on these
SHOWN = 5  # groups of coinciding points that are listed


class Point(Protocol):
    """The attributes of a `plan.PlannedRun` that are needed here."""

    config: DictConfig
    signed: dict[str, Any]
    label: str
    same_labels: list[str]
    parameters: int | None


def plan_warnings(plan: Sequence[Point]) -> list[str]:
    found = [*_coinciding(plan), *_recipes(plan), _without_iterations(plan), _milestones(plan), size_warning(plan)]
    return [line for line in found if line]


def _coinciding(plan: Sequence[Point]) -> list[str]:
    """Warnings about points that are the same run, with the overrides in which they differ."""
    groups = [list(dict.fromkeys([point.label, *point.same_labels])) for point in plan if point.same_labels]
    lines = [
        f"{' and '.join(labels)} are one run: they differ only in settings that do not change its numbers."
        if len(labels) > 1
        else f"{labels[0]} is asked for more than once: it is one run."
        for labels in groups
    ]
    more = f"{counted(len(lines) - SHOWN, 'more group is', 'more groups are')} like this."
    return [*lines[:SHOWN], more] if len(lines) > SHOWN else lines


def _recipes(plan: Sequence[Point]) -> list[str]:
    """Notes about settings of the recipe that the option of a routing has made."""
    lines = []
    names = [str(point.config.model.routing.name) for point in plan if "routing" in point.config.model]
    for name in dict.fromkeys(names):
        made = read_options(CONF_DIR / "routing").get(name, {}).get("training", {})  # another folder may have it
        configs = [point.config for point in plan if point.config.model.get("routing", {}).get("name") == name]
        trained = [config.training for config in configs]
        kept = {key: made[key] for key in trained[0] if key in made and any(one[key] == made[key] for one in trained)}
        if kept:
            settings = ", ".join(f"training.{key}={json.dumps(value)}" for key, value in kept.items())
            lines.append(f"routing={name} trains with {settings}, from conf/routing/{name}.yaml.")
    return lines


def _without_iterations(plan: Sequence[Point]) -> str:
    """A warning about routings that iterate, whose first iteration only averages, with num_routing=1."""
    iterating = [point for point in plan if "model.routing.num_routing" not in point.signed]
    once = [point for point in iterating if point.signed.get("model.num_routing") == 1]
    if not once:
        return ""
    routings = list(dict.fromkeys(str(point.config.model.routing.name) for point in once))
    which = f" ({len(once)} of {counted(len(plan), 'run')})" if len(once) < len(plan) else ""
    line = f"num_routing=1 does not route{which}: its coefficients are uniform"
    if len(routings) > 1:
        line += f", so that runs with routing={','.join(routings)} do not compare how these route"
    elif same := [key for key in UNUSED if len({point.config.model.routing.get(key) for point in once}) > 1]:
        line += f", so that {' and '.join(f'routing.{key}' for key in same)} has no effect"
    return line + ". Set num_routing=2 or more to route."


def _milestones(plan: Sequence[Point]) -> str:
    """Warnings about milestones that no run reaches."""
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
    """A warning about models for the same dataset with very different known numbers of parameters; empty if none."""
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


def sizes_matter(plan: Sequence[Point]) -> bool:
    """Whether a plan has several models for one dataset, of which some have an unknown size."""
    pairs = {(point.signed.get("dataset.name"), architecture(point.signed)): point.parameters for point in plan}
    names = [name for name, _ in pairs]
    return any(size is None and names.count(name) > 1 for (name, _), size in pairs.items())


def architecture(flat: dict[str, Any]) -> str:
    """A key of the settings that the number of parameters depends on."""
    kept = ("model.", "dataset.num_classes", "dataset.channels", "dataset.image_size")
    chosen = {key: value for key, value in flat.items() if key.startswith(kept) and key not in SAME_SIZE}
    return json.dumps(chosen, sort_keys=True)


def known_sizes(records: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Architecture → its number of parameters, for architectures that were run."""
    known = [record for record in records if record.get("parameters")]
    return {architecture(record.get("signed_config", {})): record["parameters"] for record in known}
