"""Bring Weights & Biases to what run folders say: every epoch, the summary, the end. The server is asked what it has.

Only the folder is read, so a run that was offline, lost its server or is running right now is sent in the same way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.check import check
from capsule_sweeps.runs.files import read_json
from capsule_sweeps.runs.metrics import read_metrics
from capsule_sweeps.runs.run import Run
from capsule_sweeps.tracking.wandb import Tracker, agent_id, aside, end_service, init, obstacle, summary_keys, wandb_id

FINISH_SECONDS = 120.0
LOOK_AGAIN = (0.0, 1.0, 2.0, 4.0, 8.0)  # seconds; what has arrived is not always shown at once
EXIT_CODES = {"finished": 0, "running": 0, "failed": 1, "interrupted": 143, "queued": 143}  # queued to go on


@dataclass
class Folder:
    """What a run folder says; `identity` is the run's id in W&B."""

    run: Run
    config: DictConfig
    state: str
    identity: str
    sweep: str | None
    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    @classmethod
    def read(cls, run: Run) -> Folder:
        path, record = run.folder / "config.yaml", run.record()
        try:
            config = check(OmegaConf.create(OmegaConf.to_container(OmegaConf.load(path))))  # type: ignore[arg-type]
        except Exception as error:
            raise ValueError(f"{path} cannot be used: {' '.join(str(error).split())}") from error
        rows, damage = read_metrics(run)
        if damage:
            raise ValueError(damage)
        told = read_json(run.folder / "summary.json")
        summary = {key: told[key] for key in summary_keys() if told.get(key) is not None}
        return cls(run, config, run.state(record), wandb_id(run), record.get("sweep"), rows, summary)


def sync(runs: Sequence[Run], rebuild: bool) -> Iterator[tuple[str, bool, str]]:
    """(run, is all of it in W&B?, what was done or is missing), one run after the other.

    Runs that have not begun and imported ones, which have no epochs, are left out, and those with tracking=none unless
    `rebuild`, which also sends anew, under another id, what W&B has wrong.
    Raises ValueError when there is no key or no server.
    """
    trouble = obstacle()
    if trouble:
        raise ValueError(f"nothing can be sent: {trouble}")
    import wandb

    try:
        api = None
        for run in runs:
            if run.state() in ("new", "queued") and not (run.folder / "config.yaml").exists():
                continue
            if "imported" in run.record():
                continue
            try:
                folder = Folder.read(run)
                if folder.config.tracking.name == "none" and not rebuild:
                    continue
                api = api or wandb.Api(timeout=30)
                arrived, text = sync_folder(api, folder, rebuild)
            except Exception as error:
                arrived, text = False, " ".join(str(error).split()) or type(error).__name__
                api = None
                end_service(5)  # it may not answer any more: the next run gets another
            yield run.folder.name, arrived, text
    finally:
        end_service(FINISH_SECONDS)


def sync_folder(api: Any, folder: Folder, rebuild: bool) -> tuple[bool, str]:
    """Send what W&B lacks of one folder and look whether it arrived."""
    project = f"{folder.config.tracking.entity or api.default_entity}/{folder.config.tracking.project}"
    identity, signature = folder.identity, folder.run.folder.name[-8:]
    if folder.state == "running" and folder.config.tracking.mode == "online":
        return True, "is running online, its own process sends it"
    lacks, mendable = look(api, f"{project}/{identity}", folder)
    if not lacks:
        return True, "is there"
    if not mendable:
        others = list(api.runs(project, filters={"config.signature": signature}, lazy=False))
        for other in others:
            if not look(api, f"{project}/{other.id}", folder)[0]:
                return True, f"is there as {other.id}"
        if not rebuild:
            return False, f"{identity} in W&B {lacks} and takes no earlier epochs; `sync --rebuild` sends it anew"
        taken = {identity, *(other.id for other in others)}
        identity = next(name for n in range(2, 1000) if (name := f"{signature}-{n}") not in taken)
    send(folder, identity)
    for seconds in LOOK_AGAIN:
        time.sleep(seconds)
        lacks, _ = look(api, f"{project}/{identity}", folder)
        if not lacks:
            if folder.state != "running":
                for log in folder.run.folder.glob("wandb/*run-*/run-*.wandb"):
                    Path(f"{log}.synced").touch()  # so that `wandb sync` leaves it alone
            return True, f"sent, {len(folder.rows)} epochs are there as {identity}"
    return False, f"did not arrive: {identity} in W&B {lacks}"


def look(api: Any, path: str, folder: Folder) -> tuple[str, bool]:
    """In words what a W&B run lacks of a folder, empty for nothing; and whether sending on can mend that."""
    api.flush()  # it would answer from memory
    try:
        remote = api.run(path)
    except Exception as error:
        if not isinstance(getattr(error, "exc", None), ValueError):  # as which wandb wraps that there is none
            raise
        return "does not exist", True
    theirs = {
        int(row["epoch"]): row["test_accuracy"]
        for row in remote.scan_history(keys=["epoch", "test_accuracy"], use_cache=False)
    }
    ours = {row["epoch"]: row["test_accuracy"] for row in folder.rows}
    missing = sorted(ours.keys() - theirs.keys())
    wrong = sorted(epoch for epoch in ours.keys() & theirs.keys() if not math.isclose(ours[epoch], theirs[epoch]))
    unsaid = [key for key, value in folder.summary.items() if remote.summary.get(key) != value]
    words = [f"lacks epochs {_spans(missing)}"] if missing else []
    words += [f"has other numbers in epochs {_spans(wrong)}"] if wrong else []
    words += [f"lacks {', '.join(unsaid)} in its summary"] if unsaid else []
    if folder.state == "finished" and remote.state != "finished":
        words.append(f"is {remote.state}, not finished")
    return " and ".join(words), not wrong and (not missing or missing[0] > max(theirs, default=0))


def _spans(epochs: list[int]) -> str:
    """1–3, 7 for [1, 2, 3, 7]."""
    ends = [epoch for epoch in epochs if epoch + 1 not in epochs]
    starts = [epoch for epoch in epochs if epoch - 1 not in epochs]
    return ", ".join(f"{a}–{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))


def send(folder: Folder, identity: str) -> None:
    """Append to a W&B run what it lacks of a folder, and end it as the folder's run ended."""
    running = folder.state == "running"
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        more = {"finish_timeout": FINISH_SECONDS, "x_update_finish_state": not running}
        name = folder.run.folder.name
        mirror = Tracker(init("online", folder.config, Path(scratch), name, identity, folder.sweep, **more))
        for row in folder.rows:
            mirror.log(row)
        mirror.summary(folder.summary)
        if folder.state in ("interrupted", "queued"):
            mirror.preempted()
        mirror.close(EXIT_CODES[folder.state], FINISH_SECONDS)


def show_finished(config: DictConfig, run: Run) -> None:
    """Copy a finished run to the W&B run that the agent waits for."""
    identity = agent_id()
    if identity and config.tracking.name == "wandb" and config.tracking.mode == "online":
        try:
            with aside():
                send(Folder.read(run), identity)
        finally:
            end_service(FINISH_SECONDS)
