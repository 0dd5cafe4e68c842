"""Weights & Biases, a mirror of the run folder: W&B never blocks or ends a run.

A W&B step is an epoch, and every attempt first sends what W&B lacks of the epochs in metrics.jsonl. So no epoch is
there twice or missing, however often a run was killed, resumed, or changed between online and offline.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig

from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.runs.run import Run
from capsule_sweeps.tracking.base import one_line, own_folder
from capsule_sweeps.tracking.wandb_client import (
    FINISH_SECONDS,
    end_service,
    find,
    init,
    make_settings,
    obstacle,
    settings,
)
from capsule_sweeps.tracking.wandb_send import (
    DELETED,
    SEND_SECONDS,
    Folder,
    Sender,
    agent_id,
    facts_of,
    following,
    home,
    is_foreign,
    place,
    send,
    wandb_id,
)

log = logging.getLogger(__name__)

MODES = {name: name for name in ("auto", "online", "offline", "disabled")} | {"dryrun": "offline", "run": "online"}
HOW_TO_SYNC = "later: python -m capsule_sweeps sync --runs-dir {}"


class WandbTracker(Sender):
    """Sends a run while it is trained: online where that is possible, else to files that `sync` sends later."""

    packages = ("wandb",)

    @classmethod
    def prepare(cls, configs: Sequence[DictConfig]) -> None:
        """Decide for all runs of a sweep, in place: tracking.mode becomes online, offline or disabled.

        WANDB_MODE counts, else tracking.mode, else wandb's settings files; auto and online mean online where there is
        no obstacle, else offline, said in one line. tracking.entity and tracking.project get wandb's values when they
        are null. Raises ValueError for an unknown WANDB_MODE, and when W&B's agent started more than one run.
        """
        if agent_id() and len(configs) > 1:
            raise ValueError(
                f"W&B's agent follows one run, not {len(configs)}; set every parameter to one value, without -m"
            )
        modes = [requested_mode(config) for config in configs]
        trouble = obstacle() if {"auto", "online"} & {*modes} else None
        if trouble:
            log.warning("W&B: offline, %s; %s", trouble, HOW_TO_SYNC.format(configs[0].runs_dir))
        for config, mode in zip(configs, modes, strict=True):
            online = "offline" if trouble else "online"
            config.tracking.mode = online if mode in ("auto", "online") else mode
            if mode != "disabled":
                config.tracking.entity, config.tracking.project = home(config)
                check_settings(config)

    @classmethod
    def distrust(cls, configs: Sequence[DictConfig]) -> None:
        """Runs whose folder names another place than the user's own configuration are tracked offline."""
        mine, said = place(compose_config(["tracking=wandb"])), set()
        for config in configs:
            if (named := place(config)) == mine or requested_mode(config) == "disabled":
                continue
            config.tracking.mode = "offline"
            trouble = f"W&B: offline, a run folder names {named} and your own configuration {mine}"
            if requested_mode(config) != "offline":
                raise ValueError(f"{trouble}, so WANDB_MODE={os.environ['WANDB_MODE']} has no effect: unset it")
            if trouble not in said:
                log.warning("%s; `sync --to %s` sends it", trouble, named if "/" in named else f"ENTITY/{named}")
            said.add(trouble)

    @classmethod
    def check(cls, config: DictConfig) -> str:
        mode = requested_mode(config)
        if mode == "disabled":
            return "off"
        check_settings(config)
        trouble = obstacle() if mode != "offline" else None
        if mode == "online" and trouble:
            raise ValueError(f"{trouble}; set tracking.mode=offline")
        if mode == "offline" or trouble:
            return f"offline{', ' + trouble if trouble else ''}; {HOW_TO_SYNC.format(config.runs_dir)}"
        return "online, the server answers"

    @classmethod
    def nothing_to_train(cls, runs: Sequence[tuple[DictConfig, Run]]) -> None:
        """W&B's agent waits for a run of its own: a finished one is copied for it."""
        if agent_id():
            cls.prepare([config for config, _ in runs])
            try:
                for config, run in runs:
                    if config.tracking.mode == "online":
                        send(Folder.read(run), str(agent_id()), home(config))
            except Exception as error:
                log.warning("W&B: %s; %s", one_line(error), cls.remedy)
            finally:
                end_service(SEND_SECONDS)

    @classmethod
    def identity(cls, config: DictConfig, run: Run) -> dict[str, Any]:
        return {"wandb_id": wandb_id(run)}

    def __init__(self, config: DictConfig, run: Run, sweep: str, rows: Sequence[dict[str, Any]]) -> None:
        if config.tracking.mode == "auto":  # no launcher decided
            self.prepare([config])
        try:
            super().__init__(None if config.tracking.mode == "disabled" else start(config, run, sweep))
            for row in rows:
                self.log(row)
        except BaseException:
            end_service(FINISH_SECONDS)
            raise

    def close(self, outcome: str, seconds: float = FINISH_SECONDS) -> None:
        try:
            super().close(outcome, seconds)
        finally:
            end_service(FINISH_SECONDS)


def check_settings(config: DictConfig) -> None:
    """Raises ValueError for a project or entity that W&B cannot have. Nothing is checked where wandb is missing."""
    entity, project = home(config)
    with suppress(ImportError):
        make_settings(entity=entity, project=project)


def requested_mode(config: DictConfig) -> str:
    """The mode that is asked for: WANDB_MODE, else tracking.mode, else that of `wandb offline` and `wandb disabled`."""
    said = os.environ.get("WANDB_MODE")
    if said and said not in MODES:
        raise ValueError(f"WANDB_MODE={said} is unknown; unset it, or use online, offline or disabled")
    mode = MODES[said or config.tracking.mode]
    if mode == "auto":
        stored = MODES.get(getattr(settings(), "mode", None) or "auto", "auto")
        mode = stored if stored in ("offline", "disabled") else "auto"
    return mode


def start(config: DictConfig, run: Run, sweep: str) -> Any:
    """The W&B run of a run folder; offline if online is requested but not possible."""
    identity, record, to = wandb_id(run), run.record(), home(config)
    folder, facts = own_folder(run, "wandb"), facts_of(record)
    known_there = bool(agent_id()) or (record.get("wandb_url") and record.get("wandb_id") == identity)
    resumed = len(record.get("attempts") or []) > 1
    if config.tracking.mode == "online":
        trouble = obstacle()
        while trouble is None:
            try:
                taken = None if known_there else find(*to, identity)
                if taken is not None and is_foreign(taken, record, resumed):
                    other, identity = identity, following(identity)
                    log.warning("W&B: %s is the run of another run folder; this run is sent as %s", other, identity)
                    continue
                return init("online", config, run.folder, identity, sweep, to, facts)
            except Exception as error:
                if DELETED in str(error):
                    deleted, identity, known_there = identity, following(identity), False
                    log.warning("W&B: the run %s was deleted there; this run is sent as %s", deleted, identity)
                    continue
                trouble = one_line(error)
                end_service(5)  # it would say that the run's id is in use
        log.warning("W&B: this run is offline, %s; %s", trouble, HOW_TO_SYNC.format(config.runs_dir))
    for old in folder.glob(f"offline-run-*-{identity}"):
        if not any(old.glob("*.synced")):  # the log that begins now has all that this one has
            shutil.rmtree(old, ignore_errors=True)
    return init("offline", config, run.folder, identity, sweep, to, facts)
