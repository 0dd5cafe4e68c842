"""Adds seeds to a sweep until its intervals are narrow: Stein's two-stage procedure, planned from what is finished.

A group is a point of the sweep without its seed. Its seeds are those that `seed=…` names, then the numbers that follow
the largest of them. The first `min_seeds` tell how many are needed (results/stein.py); with `resolve`, what is counted
is the difference of two groups, seed by seed. Every call computes everything from the run folders, so the same command
continues where the last one, or the queue, left off, and does nothing when all is narrow.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from capsule_sweeps.config.selection_rules import find_rule
from capsule_sweeps.console import console, duration, tell
from capsule_sweeps.display import counted, rich
from capsule_sweeps.launchers.launch import Launcher, launch
from capsule_sweeps.launchers.seed_units import Group, Point, Procedure, Unit
from capsule_sweeps.runs.plan import PlannedRun, Policy, accuracy, make_plan
from capsule_sweeps.runs.signature import columns, signature, signed_config
from capsule_sweeps.runs.sweep import first_seeds, record_seeds

MOST_SEED = 2**31 - 1
Points = Sequence[Sequence[str]]
Asked = tuple[tuple[str, ...], int, list[str]]  # words of a group, a seed, both together


def launch_seeds(
    points: Points,
    compose: Callable[[Points], list[DictConfig]],
    policy: Policy,
    launcher: Launcher,
    procedure: Procedure,
) -> tuple[list[list[str]], list[DictConfig], list[float | None]]:
    """`launch` for as many seeds of each point as the procedure asks for, in two rounds where the launcher waits.

    Returns the groups' overrides, a config of each, and the mean accuracies (fractions), None where a run of the
    group is not finished. Raises ValueError as `launch`, and for settings that do not fit the sweep.
    """
    asked, configs = compose_seeds(points, compose, policy, procedure)

    def look() -> tuple[list[Group], list[Unit]]:
        plan = make_plan(configs, [point for _, _, point in asked], policy)
        groups = make_groups(asked, configs, {planned.signature: planned for planned in plan})
        return groups, make_units(groups, procedure)

    groups, units = look()
    check_begun(groups, procedure)
    done: set[str] = set()
    while True:
        show_units(units, procedure)
        wanted = chosen_runs(units)
        once = replace(policy, retry="none") if done else policy  # what failed in this command is not tried twice
        launch_chosen(groups, wanted, once, launcher, procedure)
        if policy.dry_run:
            break
        done |= wanted
        groups, units = look()
        if not launcher.waits or done >= chosen_runs(units):
            break

    if procedure.resolve and not policy.dry_run and (launcher.waits or all(unit.complete for unit in units)):
        show_differences(units, procedure, str(configs[0].selection_rule))
    return (
        [list(group.words) for group in groups],
        [group.first.config for group in groups],
        [None if policy.dry_run else mean_accuracy(group, units) for group in groups],
    )


def compose_seeds(
    points: Points, compose: Callable[[Points], list[DictConfig]], policy: Policy, procedure: Procedure
) -> tuple[list[Asked], list[DictConfig]]:
    """Every seed that each point may have, with its config. Raises ValueError where nothing can be planned from."""
    if policy.force:
        raise ValueError(
            "hydra.launcher.force=true runs everything again, and hydra.sweeper.half_width plans from what is "
            "finished: leave one of them out"
        )
    sequences = group_seeds(points, procedure)
    asked = [(words, seed, [*words, f"seed={seed}"]) for words, seeds in sequences.items() for seed in seeds]
    configs = compose([point for _, _, point in asked])
    if any(config.debug for config in configs):
        raise ValueError("debug=true leaves no runs to plan from: leave out hydra.sweeper.half_width")
    return asked, configs


def chosen_runs(units: Sequence[Unit]) -> set[str]:
    """The signatures of the runs of all chosen seeds."""
    return {run.signature for unit in units for one in unit.chosen for run in one.runs}


def launch_chosen(
    groups: Sequence[Group], wanted: set[str], policy: Policy, launcher: Launcher, procedure: Procedure
) -> None:
    """`launch` for the wanted runs, of which the sweep records the procedure; one sentence if there is none."""
    points = [point for group in groups for point in group.points.values() if point.planned.signature in wanted]

    def record(plan: Sequence[PlannedRun]) -> None:
        names: dict[Path, set[str]] = {}
        for planned in plan:
            names.setdefault(planned.run.folder.parent, set()).add(str(columns(planned.config)["group"]))
        for runs_dir, found in names.items():
            record_seeds(runs_dir, asdict(procedure), sorted(found))

    if points:
        launch([point.config for point in points], [point.words for point in points], policy, launcher, record)
    else:
        tell(
            f"No seed is left to run: with hydra.launcher.retry={policy.retry} failed runs are passed over, and "
            f"hydra.sweeper.max_seeds={procedure.max_seeds} allows no other seeds. Set one of them."
        )


def group_seeds(points: Points, procedure: Procedure) -> dict[tuple[str, ...], list[int]]:
    """Words of each group → the seeds that it may have, in the order in which they are run.

    Raises ValueError for a seed that is no number, and for more of them than max_seeds.
    """
    named: dict[tuple[str, ...], set[int]] = {}
    for point in points:
        words = tuple(word for word in point if _key(word) != "seed")
        seeds = [word.partition("=")[2] for word in point if _key(word) == "seed"]
        if bad := [seed for seed in seeds if not (seed.isascii() and seed.isdigit())]:
            raise ValueError(f"seed={bad[0]} is out of range: it must be a whole number from 0 to {MOST_SEED}")
        named.setdefault(words, set()).update(map(int, seeds))
    found = {}
    for words, numbers in named.items():
        if len(numbers) > procedure.max_seeds:
            raise ValueError(
                f"seed names {len(numbers)} seeds, more than hydra.sweeper.max_seeds={procedure.max_seeds}: "
                f"set hydra.sweeper.max_seeds={len(numbers)}"
            )
        following, more = max(numbers, default=-1) + 1, procedure.max_seeds - len(numbers)
        if following + more > MOST_SEED + 1:
            raise ValueError(
                f"seed={following - 1} is out of range: {counted(more, 'more seed follows', 'more seeds follow')} "
                f"it with hydra.sweeper.max_seeds={procedure.max_seeds}, and the largest "
                f"seed is {MOST_SEED}: set seed to a smaller number"
            )
        found[words] = [*sorted(numbers), *range(following, following + more)]
    return found


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def make_groups(asked: Sequence[Asked], configs: Sequence[DictConfig], plan: dict[str, PlannedRun]) -> list[Group]:
    """The groups of a sweep; of points that are the same runs (routing=uniform with any num_routing), the first."""
    groups: dict[tuple[str, ...], Group] = {}
    for (words, seed, point), config in zip(asked, configs, strict=True):
        own = groups.setdefault(words, Group(words, str(columns(config)["group"]), {}))
        own.points[seed] = Point(config, point, plan[signature(signed_config(config))])
    return list({group.name: group for group in reversed(groups.values())}.values())[::-1]


def check_begun(groups: Sequence[Group], procedure: Procedure) -> None:
    """Raises ValueError where a smaller number of first seeds chose the seeds of a group before.

    A larger one may have been set because of what was seen, and its interval would not keep the coverage.
    """
    known: dict[Path, dict[str, int]] = {}
    for group in groups:
        runs_dir = group.first.planned.run.folder.parent
        known.setdefault(runs_dir, first_seeds(runs_dir))
        if (begun := known[runs_dir].get(group.name, procedure.min_seeds)) < procedure.min_seeds:
            raise ValueError(
                f"hydra.sweeper.min_seeds={procedure.min_seeds} is more than the {counted(begun, 'first seed')} with "
                f"which the number of seeds of {' '.join(group.words) or 'these runs'} was chosen before, and which "
                f"its interval is made of: set hydra.sweeper.min_seeds={begun}"
            )


def make_units(groups: Sequence[Group], procedure: Procedure) -> list[Unit]:
    """What gets an interval. Raises ValueError when `resolve` names no key of which the sweep has two values."""
    common = set.intersection(*(set(group.words) for group in groups))
    labels = {id(g): " ".join(word for word in g.words if word not in common) or "(as configured)" for g in groups}
    if procedure.resolve is None:
        return [Unit([group], labels[id(group)], procedure) for group in groups]
    key = procedure.resolve
    families: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        others = tuple(word for word in group.words if _key(word) != key)
        families.setdefault(others, []).append(group)
    units, paired = [], set()
    for others, family in families.items():
        name = " ".join(word for word in others if word not in common)
        for base, other in pairwise(family):
            values = [next((w.partition("=")[2] for w in g.words if _key(w) == key), "default") for g in (base, other)]
            units.append(Unit([base, other], f"{name} {key}: {values[0]} → {values[1]}".strip(), procedure))
            paired |= {base.name, other.name}
    if not units:
        raise ValueError(
            f"hydra.sweeper.resolve={key} has nothing to compare: give {key} several values in this sweep that make "
            "different runs"
        )
    alone = [group for group in groups if group.name not in paired]
    return units + [Unit([group], f"{labels[id(group)]} (no neighbor)", procedure) for group in alone]


def mean_accuracy(group: Group, units: Sequence[Unit]) -> float | None:
    """The mean over the chosen seeds of a group (a fraction); None while a run of these is not finished."""
    seeds = {one.seed for unit in units if group in unit.groups for one in unit.chosen}
    found = [accuracy(group.points[seed].planned) for seed in seeds]
    known = [value for value in found if value is not None]
    return fmean(known) if known and len(known) == len(found) else None


def show_units(units: Sequence[Unit], procedure: Procedure) -> None:
    table = Table(title="Seeds", title_justify="left")
    table.add_column("runs", overflow="fold")
    for name in ("n", "half-width so far", "still needed", "time"):
        table.add_column(name, justify="right", overflow="fold")
    for unit in units:
        width, left = unit.half_width(), unit.seconds()
        cells = [str(len(unit.values)), "–" if math.isnan(width) else f"±{width:.2f}", unit.still_needed()]
        table.add_row(*map(rich, [unit.label, *cells, "–" if left is None else duration(left)]))
    console().print(table)
    what = f"the difference between neighboring values of {procedure.resolve}" if procedure.resolve else "each group"
    tell(
        f"Stein's two-stage procedure: the first {procedure.min_seeds} seeds tell how many the 95 % interval of {what} "
        f"needs to be ±{procedure.half_width:g} points, at most {procedure.max_seeds}."
    )


def show_differences(units: Sequence[Unit], procedure: Procedure, rule: str) -> None:
    """The table at the end for `resolve`: each difference with the procedure's interval."""
    import pandas as pd

    from capsule_sweeps.results.render import render

    rows: list[dict[str, Any]] = []
    for unit in (unit for unit in units if len(unit.groups) == 2):
        known = {"difference": fmean(unit.values), "half_width": unit.half_width()} if unit.complete else {}
        rows.append({"runs": unit.label, "n": len(unit.values), **known})
    note = (
        f"Differences of {find_rule(rule).images} accuracy in percentage points, seed by seed, selection rule: {rule}. "
        f"The number of pairs n was chosen by Stein's two-stage procedure for ±{procedure.half_width:g}: half_width is "
        f"that of its 95 % interval, t(n0 − 1)·s0/√n with the deviation s0 of the first n0 = {procedure.min_seeds} "
        "differences."
    )
    if not all(unit.complete for unit in units if len(unit.groups) == 2):
        note += f" –: fewer than {procedure.min_seeds} pairs are finished."
    frame = pd.DataFrame(rows, columns=["runs", "n", "difference", "half_width"])
    print(render(frame, "table", title="Differences", note=note))
