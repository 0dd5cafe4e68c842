"""The plan of a command: the runs it asks for, their states, and the action for each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from capsule_sweeps.config.compose import no_collection
from capsule_sweeps.config.match_width import matched
from capsule_sweeps.config.selection_rules import find_rule
from capsule_sweeps.console import console, duration, short_name, tell
from capsule_sweeps.display import counted, listed, rich
from capsule_sweeps.runs.costs import Rates
from capsule_sweeps.runs.folders import find_runs
from capsule_sweeps.runs.learned import SHOWN, find_not_learned
from capsule_sweeps.runs.metrics import with_newer_rules
from capsule_sweeps.runs.plan_warnings import architecture, known_sizes, plan_warnings
from capsule_sweeps.runs.provenance import changed_code
from capsule_sweeps.runs.record import read_summary
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import run_name, signature, signed_config

RETRY = ("all", "oom", "nan", "none")


@dataclass(frozen=True)
class Policy:
    """How to treat existing runs: the settings `hydra.launcher.<name>`.

    `retry` selects the failed runs that are tried again: all, out of memory (oom), loss not finite (nan), or none.
    `force` runs everything from scratch and moves the old folders aside; `dry_run` only shows the plan.
    """

    dry_run: bool = False
    retry: str = "all"
    force: bool = False

    def __post_init__(self) -> None:
        if self.retry not in RETRY:
            raise ValueError(f"hydra.launcher.retry={self.retry} is unknown: it must be one of {', '.join(RETRY)}")
        for name in ("dry_run", "force"):  # Hydra checks the types of our own launchers' settings only
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"hydra.launcher.{name}={getattr(self, name)} must be true or false")

    def action(self, state: str, failure: str | None) -> str:
        if state in ("running", "queued"):
            return "leave"
        if self.force:
            return "run" if state == "new" else "rerun"
        if state == "failed":
            return "retry" if self.retry in ("all", failure) else "leave"
        return {"new": "run", "interrupted": "resume", "finished": "skip", "stale": "leave"}[state]


@dataclass
class PlannedRun:
    """A run that a command asks for.

    `label`: the overrides in which it differs from the other runs; `changed`: the modules whose code has changed since
    it was made; `seconds`: the estimated time left (None if no similar run was measured); `same`: the configurations of
    other points with the same signature, and `same_labels` their overrides; `parameters`: the number of weights if a
    run with this model was made; `not_learned`: why a finished run did not learn; `signed`: the signed configuration.
    """

    config: DictConfig
    run: Run
    label: str
    state: str
    action: str
    changed: list[str] = field(default_factory=list)
    seconds: float | None = None
    same: list[DictConfig] = field(default_factory=list)
    same_labels: list[str] = field(default_factory=list)
    parameters: int | None = None
    not_learned: str | None = None
    signed: dict[str, Any] = field(default_factory=dict)

    @property
    def signature(self) -> str:
        return self.run.signature

    def put_old_aside(self) -> None:
        """Move the old folder of a run aside if it runs from scratch; called right before it starts."""
        if self.action == "rerun":
            self.run.put_aside()

    @property
    def to_do(self) -> bool:
        return self.action in ("run", "rerun", "resume", "retry")


def accuracy(planned: PlannedRun) -> float | None:
    """The accuracy (a fraction) of a finished run under its selection rule."""
    summary, column = read_summary(planned.run.folder), find_rule(planned.config.selection_rule).column
    if summary and column not in summary:
        summary = with_newer_rules(planned.run, planned.run.record())
    return summary.get(column)


@no_collection()
def make_plan(configs: Sequence[DictConfig], overrides: Sequence[Sequence[str]], policy: Policy) -> list[PlannedRun]:
    """One planned run per signature, in the given order.

    Raises ValueError if a run folder has one of these signatures and a different signed config.
    """
    common = set.intersection(*(set(point) for point in overrides)) if len(overrides) > 1 else set()
    known = {runs_dir: find_runs(Path(runs_dir)) for runs_dir in {str(config.runs_dir) for config in configs}}
    records = [run.record() for runs in known.values() for run in runs.values()]
    rates, sizes = Rates.of(records), known_sizes(records)
    plan: dict[str, PlannedRun] = {}
    for config, point in zip(configs, overrides, strict=True):
        flat = signed_config(config)
        identity = signature(flat)
        label = " ".join(text for text in point if text not in common) or "(as configured)"
        if identity in plan:
            plan[identity].same.append(config)
            plan[identity].same_labels.append(label)
            continue
        run = known[str(config.runs_dir)].get(identity) or Run(Path(config.runs_dir) / run_name(config, identity))
        record = run.record()
        run.compare(flat, record)
        state, changed = run.state(record), changed_code(record)
        state = "stale" if state == "finished" and changed else state
        action = policy.action(state, record.get("failure"))
        size = sizes.get(architecture(flat)) or (found.parameters if (found := matched(config)) else None)
        planned = PlannedRun(config, run, label, state, action, changed, parameters=size, signed=flat)
        if state in ("finished", "stale") and not policy.force:
            planned.not_learned = find_not_learned(run, record)
        if planned.to_do and (seconds := rates.seconds(flat)) is not None:
            done = 0 if action == "rerun" else record.get("epochs_done", 0)
            planned.seconds = (config.training.epochs - done) * seconds
        plan[identity] = planned
    return list(plan.values())


def show_plan(plan: Sequence[PlannedRun], asked: int, parallel: int) -> None:
    rows = [(point.run.folder.name, point.label, point.state, point.action) for point in plan]
    heads = ("run", "differs by", "state", "action")
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    frame = sum(widths[2:]) + 13  # with state and action
    least = 30 if console().width < 120 else widths[0]  # names are whole in logs, whose lines are long
    name = min(widths[0], max(least, console().width - widths[1] - frame))
    label = min(widths[1], max(10, console().width - name - frame))
    table = Table(title="Plan", title_justify="left", width=name + label + frame)
    for head, width in zip(heads, (name, label, *widths[2:]), strict=True):
        table.add_column(head, overflow="fold", width=width)
    for run, *others in rows:
        table.add_row(rich(short_name(run, name)), *map(rich, others))
    console().print(table, crop=False)
    counts = Counter(point.action for point in plan)
    totals = ", ".join(f"{count} to {action}" for action, count in counts.items())
    same = f" ({asked} points)" if asked > len(plan) else ""
    say = [f"{counted(len(plan), 'run')}{same}: {totals}{_estimate(plan, parallel)}."]
    queued = sum(point.state == "queued" for point in plan)
    if queued:
        cancel = "`python -m capsule_sweeps cancel` takes runs out of the queue"
        say.append(f"{queued} queued: left to the queue; {cancel}.")
    stale = [point for point in plan if point.state == "stale"]
    if stale:
        modules = ", ".join(sorted({module for point in stale for module in point.changed}))
        say.append(
            f"{len(stale)} stale: the code has changed since they finished ({modules}). Their numbers are shown and "
            "marked; hydra.launcher.force=true runs them from scratch and keeps the old folders in .superseded."
        )
    unlearned = [f"{point.run.folder.name} ({point.not_learned})" for point in plan if point.not_learned]
    if unlearned:
        say.append(f"{len(unlearned)} finished and did not learn: {listed(unlearned, SHOWN)}.")
    mixed = [point for point in plan if point.changed and point.action in ("resume", "retry")]
    if mixed:
        modules = ", ".join(sorted({module for point in mixed for module in point.changed}))
        say.append(
            f"{len(mixed)} began with other code ({modules} changed since) and would end as stale; "
            "hydra.launcher.force=true runs them from scratch."
        )
    say += [f"model.width=match: {found}." for found in dict.fromkeys(matched(point.config) for point in plan) if found]
    say += plan_warnings(plan)
    tell("\n".join(say))


def _estimate(plan: Sequence[PlannedRun], parallel: int) -> str:
    todo = [point for point in plan if point.to_do]
    if not todo:
        return ""
    known = [point.seconds for point in todo if point.seconds is not None]
    if not known:
        return "; no estimate yet"
    seconds = sum(known) / max(1, min(parallel, len(todo)))
    missing = f" and {len(todo) - len(known)} without an estimate yet" if len(known) < len(todo) else ""
    return f"; about {duration(seconds)}{missing}"
