"""Weights & Biases, a mirror of the run folder: no training waits for it or dies of it. The one who starts W&B runs.

A W&B step is an epoch, and every attempt first sends what W&B lacks of the epochs in metrics.jsonl. So no epoch is
there twice or missing, however often a run was killed, went on, or changed between online and offline.
"""

from __future__ import annotations

import logging
import netrc
import os
import queue
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config import selection_rules
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signals import Interrupted
from capsule_sweeps.runs.signature import columns

log = logging.getLogger(__name__)

# What runs log of an epoch and, finished, in their summary; val only where dataset.val_size holds images out, ema only
# where training.ema averages weights
METRICS = (
    *("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"),
    *("ema_val_loss", "ema_val_accuracy", "ema_test_loss", "ema_test_accuracy"),
    *("lr", "seconds", "images_per_second"),
)


def summary_keys() -> list[str]:
    """What a finished run's summary holds."""
    return [*selection_rules.summary_keys(), "parameters", "seconds"]


ANSWER_SECONDS = 5.0
FINISH_SECONDS = 15.0
HOW_TO_SYNC = "later: python -m capsule_sweeps sync --runs-dir {}"


def choose_mode(configs: Sequence[DictConfig]) -> None:
    """Decide for all runs of a sweep, in place: tracking.mode becomes online, offline or disabled.

    WANDB_MODE counts, else tracking.mode; auto and online mean online where there is no obstacle, else offline, said in
    one line. Raises ValueError for a WANDB_MODE that is none, and when W&B's agent started more than one run.
    """
    tracked = [config for config in configs if config.tracking.name == "wandb"]
    if agent_id() and len(tracked) > 1:
        raise ValueError(f"W&B's agent follows one run, not {len(tracked)}; give every parameter one value, without -m")
    wishes = {wish(config) for config in tracked} & {"auto", "online"}
    trouble = obstacle() if wishes else None
    if trouble:
        log.warning("W&B: offline, %s; %s", trouble, HOW_TO_SYNC.format(tracked[0].runs_dir))
    for config in tracked:
        mode = wish(config)
        config.tracking.mode = mode if mode not in wishes else "offline" if trouble else "online"


def wish(config: DictConfig) -> str:
    """The mode that is asked for: WANDB_MODE, else tracking.mode."""
    mode = os.environ.get("WANDB_MODE") or config.tracking.mode
    if mode not in ("auto", "online", "offline", "disabled"):
        raise ValueError(f"WANDB_MODE={mode} is unknown here; unset it, or use online, offline or disabled")
    return str(mode)


def obstacle() -> str | None:
    """Why no run can be online: no key, or no server that answers within seconds. Without a key nobody is asked."""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if not (os.environ.get("WANDB_API_KEY") or path.exists()):
        return "no API key is set (`wandb login`, or WANDB_API_KEY)"
    host = "the W&B server"
    try:
        url = server_url()
        host = urlsplit(url).netloc
        if not os.environ.get("WANDB_API_KEY") and not netrc.netrc(path).authenticators(host):
            return f"no API key is set for {host} (`wandb login`, or WANDB_API_KEY)"
        within(ANSWER_SECONDS, lambda: _ask(url))
    except Exception as error:
        return f"{host} does not answer ({_line(error)})"
    return None


def server_url() -> str:
    """Where the server is, by environment and wandb's files; `wandb.setup` would start a service, for children too."""
    from wandb.sdk import wandb_setup

    settings = wandb_setup.singleton().settings
    settings.silent = True
    return str(settings.base_url)


def _ask(url: str) -> None:
    """Raises OSError when there is no answer, or one that says that the server is down."""
    from urllib import error, request

    try:
        request.urlopen(url.rstrip("/") + "/healthz", timeout=ANSWER_SECONDS).close()
    except error.HTTPError as answer:
        answer.close()
        if answer.code >= 500:
            raise


def reachable(config: DictConfig) -> str:
    """How runs of this config are tracked. Raises ValueError when they are asked to be online and cannot."""
    mode = wish(config)
    if config.tracking.name == "none" or mode == "disabled":
        return "off"
    trouble = obstacle() if mode != "offline" else None
    if mode == "online" and trouble:
        raise ValueError(f"{trouble}; set tracking.mode=offline")
    if mode == "offline" or trouble:
        return f"offline{', ' + trouble if trouble else ''}; {HOW_TO_SYNC.format(config.runs_dir)}"
    return "online, the server answers"


def agent_id() -> str | None:
    """The id that W&B's own agent gives the run that it starts."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def wandb_id(run: Run) -> str:
    """A run's id in W&B: its signature, `<signature>-2` when it is made anew, or what W&B's agent gave it.

    Once in run.json it stays. A new one counts on from the folders that were put aside."""
    signature = run.folder.name[-8:]
    if known := agent_id() or run.record().get("wandb_id"):
        return str(known)
    before = [Run(path) for path in (run.folder.parent / ".superseded").glob(f"{run.folder.name}.*")]
    numbers = [re.fullmatch(rf"{signature}-(\d+)", str(old.record().get("wandb_id"))) for old in before]
    latest = max([len(before), *(int(found[1]) for found in numbers if found)])
    return f"{signature}-{latest + 1}" if latest else signature


@contextmanager
def tracker(config: DictConfig, run: Run, sweep: str, rows: Sequence[dict[str, Any]]) -> Iterator[Tracker]:
    """A tracker for the time of a `with`; `rows` are the epochs that the folder has already.

    An exception in it marks the W&B run as failed, Interrupted marks it as preempted.
    """
    if config.tracking.mode == "auto":  # no launcher decided
        choose_mode([config])
    if config.tracking.name == "none" or config.tracking.mode == "disabled":
        yield Tracker(None)
        return
    try:
        started = None
        with aside():
            started = start(config, run, sweep)
        with closing(Tracker(started), rows) as mirror:
            yield mirror
    finally:
        end_service(FINISH_SECONDS)


@contextmanager
def closing(mirror: Tracker, rows: Sequence[dict[str, Any]]) -> Iterator[Tracker]:
    """Tells W&B of these epochs first and, in the end, how the `with` ended."""
    for row in rows:
        mirror.log(row)
    try:
        yield mirror
    except (Interrupted, KeyboardInterrupt) as stopped:
        mirror.preempted()
        mirror.close(128 + getattr(stopped, "signum", 2))
        raise
    except BaseException:
        mirror.close(1)
        raise
    mirror.close(0)


class Tracker:
    """Passes one run's metrics on, or nothing when W&B is off or could not be started."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._known = run.starting_step if run is not None else 0  # W&B has the epochs below
        self._said = False

    def log(self, row: dict[str, Any]) -> None:
        if row["epoch"] >= self._known:
            self._tell(lambda: self._run.log(row, step=row["epoch"], commit=True))

    def summary(self, values: dict[str, Any]) -> None:
        self._tell(lambda: self._run.summary.update({k: v for k, v in values.items() if v is not None}))

    def preempted(self) -> None:
        self._tell(lambda: self._run.mark_preempting())

    def close(self, exit_code: int, seconds: float = 0.0) -> None:
        def finish() -> None:
            try:
                within(max(seconds, FINISH_SECONDS) + 5, lambda: self._run.finish(exit_code=exit_code))
            except BaseException:
                end_service(0)
                raise

        self._tell(finish)

    def _tell(self, call: Callable[[], Any]) -> None:
        with aside(quiet=self._said) as troubles:
            if self._run is not None:
                call()
        self._said = self._said or bool(troubles)


@contextmanager
def aside(quiet: bool = False) -> Iterator[list[Exception]]:
    """W&B's troubles are said, unless `quiet`, and are not the run's; the list has them at the end."""
    troubles: list[Exception] = []
    try:
        yield troubles
    except Exception as error:
        troubles.append(error)
        if not quiet:
            log.warning("W&B: %s; the run goes on, `sync` brings what is missing there", _line(error))


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """What the function returns or raises; TimeoutError when it takes longer, and it is left alone then."""
    ended: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            ended.put((function(), None))
        except Exception as error:
            ended.put((None, error))
        except SystemExit as error:  # wandb leaves the program when its service was killed
            ended.put((None, RuntimeError(f"exit code {error.code}")))

    threading.Thread(target=work, daemon=True, name="wandb").start()
    deadline = time.monotonic() + seconds
    while True:
        try:  # in short turns: a wait does not hear a second Ctrl-C
            value, error = ended.get(timeout=min(0.2, max(0.0, deadline - time.monotonic())))
            break
        except queue.Empty:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return value


def end_service(patience: float) -> None:
    """End W&B's service, by force after `patience` seconds: at its exit this process would wait for it without end.

    The next run gets another."""
    import psutil

    wandb = sys.modules.get("wandb")
    if wandb is None:
        return
    ended = False
    try:
        if patience:
            with suppress(Exception):
                within(patience, wandb.teardown)
                ended = True
    finally:  # Ctrl-C, too
        if not ended:
            with suppress(psutil.Error):
                for child in psutil.Process().children():
                    if child.name().startswith("wandb-core"):
                        child.kill()
    if not ended:
        with suppress(Exception):
            within(5, wandb.teardown)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def start(config: DictConfig, run: Run, sweep: str) -> Any:
    """The W&B run of a run folder, offline when it was to be online and that cannot be."""
    identity = wandb_id(run)
    if config.tracking.mode == "online":
        trouble = obstacle()
        if trouble is None:
            try:
                return init("online", config, run.folder, run.folder.name, identity, sweep)
            except Exception as error:
                trouble = _line(error)
        log.warning("W&B: this run is offline, %s; %s", trouble, HOW_TO_SYNC.format(config.runs_dir))
    for old in run.folder.glob(f"wandb/offline-run-*-{identity}"):
        if not any(old.glob("*.synced")):  # the log that begins now has all that this one has
            shutil.rmtree(old, ignore_errors=True)
    return init("offline", config, run.folder, run.folder.name, identity, sweep)


def init(mode: Any, config: DictConfig, folder: Path, name: str, identity: str, sweep: str | None, **more: Any) -> Any:
    """A W&B run whose own files lie in `folder`; `more` are settings of wandb."""
    import wandb

    settings = {
        "init_timeout": 15,
        "finish_timeout": FINISH_SECONDS,  # without it `finish` waits for ever when the server went away
        "finish_timeout_raises": True,
        "x_transaction_log_flush_interval": 1,  # what is not flushed is lost when the process is killed
        "reinit": "finish_previous",  # several runs in one process
        "console": "off",
        "silent": True,
        "disable_git": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
    }
    known, resolved = columns(config), OmegaConf.to_container(config)
    tags = dict.fromkeys(str(known[key])[:64] for key in ("dataset", "model", "backbone", "routing") if known[key])
    run = wandb.init(
        mode=mode,
        project=config.tracking.project,
        entity=config.tracking.entity,
        id=identity,
        name=name,
        group=sweep,
        job_type="train",
        tags=list(tags),
        config={**known, "resolved": resolved},
        dir=str(folder),
        resume="allow",
        settings=wandb.Settings(**{**settings, **more}),
    )
    run.define_metric("*", step_metric="epoch")
    return run
