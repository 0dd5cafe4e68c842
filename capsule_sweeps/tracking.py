"""Weights & Biases, a mirror of the run folder: no training waits for it or dies of it. The one user of wandb."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


def reachable(config: DictConfig) -> str:
    """How runs of this config are tracked. Raises ValueError when they are to be online and the server is not there."""
    mode = os.environ.get("WANDB_MODE") or config.tracking.mode
    if config.tracking.name == "none" or mode == "disabled":
        return "off"
    import wandb

    if mode == "offline":
        return f"wandb {wandb.__version__}, offline: upload with `wandb sync {config.runs_dir}/*/wandb/offline-run-*`"
    server = urlsplit(wandb.setup().settings.base_url)
    port = server.port or (443 if server.scheme == "https" else 80)
    try:
        socket.create_connection((str(server.hostname), port), 5).close()
    except OSError as error:
        raise ValueError(f"{server.hostname}:{port} does not answer ({error}); set tracking.mode=offline") from error
    return f"wandb {wandb.__version__}, {server.hostname} answers"


@contextmanager
def tracker(config: DictConfig, folder: Path, signature: str, sweep: str) -> Iterator[Tracker]:
    """A tracker for the time of a `with`; an exception in it marks the W&B run as failed."""
    mode = os.environ.get("WANDB_MODE") or config.tracking.mode
    started = None
    if config.tracking.name == "wandb" and mode != "disabled":
        with aside():
            started = start(config, folder, signature, sweep, mode)
    mirror = Tracker(started)
    try:
        yield mirror
    except BaseException:
        mirror.close(exit_code=1)
        raise
    mirror.close(exit_code=0)


class Tracker:
    """Passes one run's metrics on, or nothing when W&B is off or could not be started."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, metrics: dict[str, Any]) -> None:
        if self._run is not None:
            with aside():
                self._run.log(metrics)

    def summary(self, values: dict[str, Any]) -> None:
        if self._run is not None:
            with aside():
                self._run.summary.update(values)

    def close(self, exit_code: int) -> None:
        if self._run is not None:
            with aside():
                self._run.finish(exit_code=exit_code)


@contextmanager
def aside() -> Iterator[None]:
    """W&B's troubles are said, and are not the run's."""
    try:
        yield
    except Exception as error:
        log.warning("W&B: %s; the run goes on, its folder has everything", " ".join(str(error).split()))


def start(config: DictConfig, folder: Path, signature: str, sweep: str, mode: Any) -> Any:
    """The W&B run of a run folder: id = signature, so that every attempt goes on in the same one."""
    import wandb

    settings = wandb.Settings(
        init_timeout=30,
        finish_timeout=60,  # without it `finish` waits for ever when the server went away
        x_transaction_log_flush_interval=2,  # what is not flushed is lost when the process is killed
        reinit="finish_previous",  # several runs in one process
        console="off",
        silent=True,
        disable_git=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    resolved: Any = OmegaConf.to_container(config)
    run = wandb.init(
        mode=mode,
        project=config.tracking.project,
        entity=config.tracking.entity,
        id=signature,
        name=folder.name,
        group=sweep,
        config=resolved,
        dir=str(folder),
        resume="allow",
        settings=settings,
    )
    run.define_metric("*", step_metric="epoch")
    return run
