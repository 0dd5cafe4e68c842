"""The content of a run folder for Weights & Biases, its id there, and how it is sent."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig

from capsule_sweeps.config import selection_rules
from capsule_sweeps.config.check import check
from capsule_sweeps.runs.files import read_json
from capsule_sweeps.runs.labels import Labels, read_labels
from capsule_sweeps.runs.metrics import read_metrics
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.stored import load_config
from capsule_sweeps.tracking.base import Tracker, one_line
from capsule_sweeps.tracking.wandb_client import FINISH_SECONDS, end_service, init, settings, with_timeout

# What runs log of an epoch and, finished, in their summary; val only where dataset.val_size holds images out, ema only
# where training.ema averages weights
METRICS = (
    *("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"),
    *("ema_val_loss", "ema_val_accuracy", "ema_test_loss", "ema_test_accuracy"),
    *("lr", "seconds", "images_per_second"),
)
EXIT_CODES = {"finished": 0, "running": 0, "failed": 1, "interrupted": 143, "queued": 143}
SEND_SECONDS = 120.0
DELETED = "previously created and deleted"  # in the server's answer


def summary_keys() -> list[str]:
    return [*selection_rules.summary_keys(), "parameters", "seconds"]


class Sender(Tracker):
    """Passes a run's metrics on to a W&B run that has been started, or to none."""

    title = "W&B"
    remedy = "`python -m capsule_sweeps sync` sends what is missing there"

    def __init__(self, run: Any) -> None:
        self._run = run
        self._known = run.starting_step if run is not None else 0  # W&B has the epochs below

    def log(self, row: dict[str, Any]) -> None:
        if self._run is not None and row["epoch"] >= self._known:
            self._run.log(row, step=row["epoch"], commit=True)

    def summary(self, values: dict[str, Any]) -> None:
        if self._run is not None:
            self._run.summary.update({key: value for key, value in values.items() if value is not None})

    def close(self, outcome: str, seconds: float = FINISH_SECONDS) -> None:
        if self._run is None:
            return
        try:
            if outcome in ("interrupted", "queued"):
                self._run.mark_preempting()
        finally:
            try:
                with_timeout(seconds + 5, lambda: self._run.finish(exit_code=EXIT_CODES[outcome]))
            except BaseException:
                end_service(0)
                raise

    def located(self) -> dict[str, Any]:
        if self._run is None:
            return {}
        keys = ("id", "entity", "project", *(() if self._run.offline else ("url",)))  # offline, wandb warns of `url`
        place = {f"wandb_{key}": getattr(self._run, key) for key in keys}
        return {key: value for key, value in place.items() if value}


@dataclass
class Folder:
    """The content of a run folder; `identity` is its id in W&B, `home` the entity (None: own) and project that it
    names."""

    run: Run
    config: DictConfig
    state: str
    record: dict[str, Any]
    identity: str
    home: tuple[str | None, str]
    sweep: str | None
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    labels: Labels

    @classmethod
    def read(cls, run: Run) -> Folder:
        path, record = run.folder / "config.yaml", run.record()
        try:
            config = check(load_config(path))
        except Exception as error:
            raise ValueError(f"{path} is not usable: {one_line(error)}") from error
        entity, project = home(config)
        place = (record.get("wandb_entity") or entity, record.get("wandb_project") or project)
        rows, damage = read_metrics(run)
        if damage:
            raise ValueError(damage)
        stored = read_json(run.folder / "summary.json")
        summary = {key: stored[key] for key in summary_keys() if stored.get(key) is not None}
        labels, state = read_labels(run.folder), run.state(record)
        return cls(run, config, state, record, wandb_id(run), place, record.get("sweep"), rows, summary, labels)


def send(folder: Folder, identity: str, home: tuple[str | None, str]) -> None:
    """Append the missing epochs and summary of a folder to a W&B run, and end it as the folder's run ended."""
    running = folder.state == "running"
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        more = {"finish_timeout": SEND_SECONDS, "x_update_finish_state": not running}
        more["x_disable_stats"] = True  # the use of this machine is not that of the run
        facts = facts_of(folder.record)
        started = init("online", folder.config, Path(scratch), identity, folder.sweep, home, facts, **more)
        sender = Sender(started)
        for row in folder.rows:
            sender.log(row)
        sender.summary(folder.summary)
        sender.close(folder.state, SEND_SECONDS)


def home(config: DictConfig) -> tuple[str | None, str]:
    """Entity (None: the account's own) and project of a config's runs; wandb's settings count where a key is null."""
    tracking, known = config.tracking, settings()
    project = tracking.get("project") or getattr(known, "project", None) or "capsule_sweeps"
    return tracking.get("entity") or getattr(known, "entity", None), project


def place(config: DictConfig) -> str:
    """`home` as ENTITY/PROJECT, or PROJECT alone in the account's own entity."""
    return "/".join(filter(None, home(config)))


def agent_id() -> str | None:
    """The id that W&B's own agent gives the run that it starts."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def wandb_id(run: Run) -> str:
    """The id of a run in W&B: its signature, `<signature>-2` if it is run from scratch again, or that of W&B's agent.

    Once in run.json it stays. A new one counts on from the folders that were put aside."""
    signature = run.signature
    known = str(agent_id() or run.record().get("wandb_id"))
    if known != "None" and re.fullmatch("[A-Za-z0-9_-]{1,128}", known):  # it becomes part of a path
        return known
    before = [Run(path) for path in (run.folder.parent / ".superseded").glob(f"{run.folder.name}.*")]
    numbers = [re.fullmatch(rf"{signature}-(\d+)", str(old.record().get("wandb_id"))) for old in before]
    latest = max([len(before), *(int(found[1]) for found in numbers if found)])
    return f"{signature}-{latest + 1}" if latest else signature


def facts_of(record: dict[str, Any]) -> dict[str, Any]:
    """Facts about a run for W&B besides its configuration.

    `origin` is the same for all attempts in one run folder, also when the folder is moved or copied, and another for
    every other run folder: two people, or two trees of images of one name, share a signature.
    """
    first = (record.get("attempts") or [{}])[0]
    begun = [record.get("data_sha256"), *(first.get(key) for key in ("host", "pid", "started"))]
    origin = hashlib.sha256(json.dumps(begun).encode()).hexdigest()[:12] if first else None
    return {"origin": origin, "data_sha256": record.get("data_sha256")}


def is_foreign(remote: Any, record: dict[str, Any], resumed: bool) -> bool:
    """Whether a run in W&B is that of another run folder.

    Runs from before `origin` existed belong to a folder that was `resumed`: one that has had an attempt before.
    """
    theirs, ours = remote.config.get("origin"), facts_of(record)["origin"]
    return bool(theirs != ours if theirs and ours else not resumed)


def following(identity: str) -> str:
    """<id>-2 for <id>, <id>-3 for <id>-2."""
    name, _, number = identity.rpartition("-")
    return f"{name}-{int(number) + 1}" if name and number.isdigit() else f"{identity}-2"
