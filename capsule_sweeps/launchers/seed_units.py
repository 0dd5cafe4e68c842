"""What gets an interval in a sweep that chooses its seeds: the accuracy of a group, or a difference of two groups."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import NamedTuple

from omegaconf import DictConfig

from capsule_sweeps.runs.plan import PlannedRun, accuracy

MIN_SEEDS, MAX_SEEDS = 5, 20


@dataclass(frozen=True)
class Procedure:
    """The settings `hydra.sweeper.<name>`; half_width is in percentage points."""

    half_width: float
    min_seeds: int = MIN_SEEDS
    max_seeds: int = MAX_SEEDS
    resolve: str | None = None

    def __post_init__(self) -> None:
        wrong, wanted = "", self.half_width
        if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 < wanted < 100:
            wrong = f"half_width={wanted} is out of range: it must be percentage points, greater than 0"
        for name, least in (("min_seeds", 2), ("max_seeds", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                wrong = f"{name}={value} is out of range: it must be a whole number of at least {least}"
        if not wrong and self.max_seeds < self.min_seeds:
            wrong = f"max_seeds={self.max_seeds} is less than hydra.sweeper.min_seeds={self.min_seeds}"
        if self.resolve is not None and not isinstance(self.resolve, str):
            wrong = f"resolve={self.resolve} must be the name of a key of the sweep, such as num_routing"
        if wrong:
            raise ValueError(f"hydra.sweeper.{wrong}")


class Point(NamedTuple):
    """A run of a sweep. `words` are its overrides."""

    config: DictConfig
    words: list[str]
    planned: PlannedRun


@dataclass
class Group:
    """The runs of one point, by seed. `words` are its overrides without the seed."""

    words: tuple[str, ...]
    name: str  # the column `group` of its runs
    points: dict[int, Point]

    @property
    def first(self) -> Point:
        return next(iter(self.points.values()))


@dataclass
class Entry:
    """One seed of a unit: its runs (two for a difference) and its value in percentage points, None if not known yet."""

    seed: int
    runs: list[PlannedRun]
    value: float | None
    passed_over: bool  # a run of it is not going to have a value: the next seed takes its place


class Unit:
    """What gets an interval: the accuracy of a group, or the difference between two groups."""

    def __init__(self, groups: Sequence[Group], label: str, procedure: Procedure) -> None:
        self.groups, self.label, self.procedure = groups, label, procedure
        seeds = [seed for seed in groups[0].points if all(seed in group.points for group in groups)]
        self.entries = [entry(seed, [group.points[seed].planned for group in groups]) for seed in seeds]
        self._usable = [one for one in self.entries if not one.passed_over]
        self._first = self._usable[: procedure.min_seeds]
        known = [one.value for one in self._first if one.value is not None]
        self.complete = len(known) == procedure.min_seeds
        self._std = stdev(known) if self.complete else math.nan
        self.asked = self._asked() if self.complete else procedure.min_seeds

    def _asked(self) -> int:
        from capsule_sweeps.results.stein import num_seeds

        return int(num_seeds(self._std, self.procedure.min_seeds, self.procedure.half_width))

    @property
    def chosen(self) -> list[Entry]:
        """The seeds that are to be run, those that are finished among them."""
        return self._usable[: min(self.asked, self.procedure.max_seeds)]

    @property
    def values(self) -> list[float]:
        return [one.value for one in self.chosen if one.value is not None]

    def half_width(self) -> float:
        """That of the procedure; before the first seeds are finished, of those that are."""
        from capsule_sweeps.results.intervals import half_width
        from capsule_sweeps.results.stein import two_stage_half_width

        n = len(self.values)
        if self.complete:
            return float(two_stage_half_width(self._std, self.procedure.min_seeds, n))
        return float(half_width(stdev(self.values), n)) if n > 1 else math.nan

    def still_needed(self) -> str:
        left, limit = len(self.chosen) - len(self.values), self.procedure.max_seeds
        if not self.complete:
            short = self.procedure.min_seeds - len(self._first)
            return f"{left} of the first {self.procedure.min_seeds}" + (f", {short} not available" if short else "")
        wanted = f" of {self.asked - len(self.values)}, max_seeds={limit}" if self.asked > len(self.chosen) else ""
        return f"{left}{wanted}"

    def seconds(self) -> float | None:
        """The seconds of what is left of the runs to do, None where nothing like them ran yet."""
        todo = [run.seconds for one in self.chosen for run in one.runs if run.to_do]
        return None if None in todo else sum(seconds or 0.0 for seconds in todo)


def entry(seed: int, runs: list[PlannedRun]) -> Entry:
    found = [accuracy(run) if run.state in ("finished", "stale") else None for run in runs]
    passed_over = any(
        (run.state == "failed" and run.action == "leave") or (run.state in ("finished", "stale") and value is None)
        for run, value in zip(runs, found, strict=True)
    )
    known = [100 * value for value in found if value is not None]
    return Entry(seed, runs, known[-1] - sum(known[:-1]) if len(known) == len(runs) else None, passed_over)
