"""What a command asks for, and what of it is still to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from capsule_sweeps.config import check
from capsule_sweeps.progress import console
from capsule_sweeps.store import Run, find_runs, run_name, science, signature

ACTIONS = {"new": "run", "interrupted": "resume", "failed": "retry", "running": "leave", "finished": "skip"}


@dataclass
class Point:
    """One run that was asked for; `label` shows the overrides by which it differs from the others."""

    config: DictConfig
    run: Run
    label: str
    state: str

    @property
    def action(self) -> str:
        return ACTIONS[self.state]


def compose_points(loader: Any, master: DictConfig, points: Sequence[Sequence[str]]) -> list[DictConfig]:
    """The checked config of each point, a list of overrides.

    Composing is slow (tens of milliseconds), so each choice of groups is composed once and plain values are set on a
    copy of it. Raises ValueError or Hydra's own exceptions for the first point that is wrong.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

    def plain(override: Override) -> bool:
        return (
            not (override.is_add() or override.is_force_add() or override.is_delete())
            and override.package is None
            and not override.key_or_group.startswith("hydra")
            and not loader.list_groups(override.key_or_group)
            and not loader.get_group_options(override.key_or_group)
        )

    parser = OverridesParser.create(config_loader=loader)
    parsed = {text: parser.parse_override(text) for text in dict.fromkeys(text for point in points for text in point)}
    simple = {text: plain(override) for text, override in parsed.items()}
    composed: dict[tuple[str, ...], DictConfig] = {}
    configs = []
    for point in points:
        choices = tuple(text for text in point if not simple[text])
        if choices not in composed:
            composed[choices] = loader.load_sweep_config(master, list(choices))
        config = OmegaConf.masked_copy(composed[choices], [str(key) for key in composed[choices] if key != "hydra"])
        loader._apply_overrides_to_config([parsed[text] for text in point if simple[text]], config)
        configs.append(check(config))
    return configs


def make_plan(configs: Sequence[DictConfig], overrides: Sequence[Sequence[str]]) -> list[Point]:
    """A point for every signature, in the order asked for.

    Raises ValueError when a folder holds different science under a signature that is asked for.
    """
    common = set.intersection(*(set(point) for point in overrides)) if len(overrides) > 1 else set()
    plan: dict[str, Point] = {}
    known = {str(config.runs_dir): find_runs(Path(config.runs_dir)) for config in configs}
    for config, point in zip(configs, overrides, strict=True):
        identity = signature(science(config))
        if identity in plan:
            continue
        run = known[str(config.runs_dir)].get(identity) or Run(Path(config.runs_dir) / run_name(config))
        run.compare(config)
        label = " ".join(text for text in point if text not in common)
        plan[identity] = Point(config, run, label or "(as configured)", run.state())
    return list(plan.values())


def show_plan(plan: Sequence[Point], asked: int) -> None:
    """One screen before anything starts."""
    table = Table(title="Plan", title_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("differs by", overflow="fold")
    table.add_column("state")
    table.add_column("action")
    for point in plan:
        table.add_row(point.run.folder.name, point.label, point.state, point.action)
    console().print(table, markup=False)
    counts = Counter(point.action for point in plan)
    totals = ", ".join(f"{count} to {action}" for action, count in counts.items())
    same = f" ({asked} points, some with the same signature)" if asked > len(plan) else ""
    console().print(f"{len(plan)} runs{same}: {totals}", markup=False, highlight=False)
