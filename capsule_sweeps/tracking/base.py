"""The base class of trackers. A new one is a class in this folder and an option in conf/tracking with its
`_target_`."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from capsule_sweeps.console import missing_package
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signals import Interrupted

log = logging.getLogger(__name__)

ROOM = "capsule_sweeps.tracking."
OFF = {"_target_": f"{ROOM}base.Tracker", "name": "none"}
BEFORE_TARGETS = {"wandb": f"{ROOM}wandb.WandbTracker"}  # by name, in run folders from before `_target_`


class Tracker:
    """Tracks one run from the start of an attempt to its end. This class does nothing: tracking=none.

    `rows` are the epochs that metrics.jsonl already has. A tracker must show each epoch once, however often the run was
    killed and resumed. Any exception after the start of a run is logged once per attempt and does not end the run.
    """

    title = "tracking"  # in messages
    remedy = ""  # how to send data that the tracker missed
    packages: tuple[str, ...] = ()  # whose versions are recorded

    @classmethod
    def prepare(cls, configs: Sequence[DictConfig]) -> None:
        """Called once per command, before any of these runs starts. May decide settings `tracking.*`, in place.

        Raises ValueError if the runs cannot be tracked.
        """

    @classmethod
    def distrust(cls, configs: Sequence[DictConfig]) -> None:
        """Called with configurations that were read from run folders, which may be forged.

        May change settings `tracking.*`, in place, so that nothing is sent to a place that the user did not choose.
        """

    @classmethod
    def check(cls, config: DictConfig) -> str:
        """How a run of this config would be tracked, for `doctor`. Raises ValueError when that is not possible."""
        return "off"

    @classmethod
    def nothing_to_train(cls, runs: Sequence[tuple[DictConfig, Run]]) -> None:
        """Called instead of `prepare` if each run of a command is finished or held by another process."""

    @classmethod
    def identity(cls, config: DictConfig, run: Run) -> dict[str, Any]:
        """Fields of run.json under which the run is found in the tracker."""
        return {}

    def __init__(self, config: DictConfig, run: Run, sweep: str, rows: Sequence[dict[str, Any]]) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        """Another epoch: a row of metrics.jsonl."""

    def summary(self, values: dict[str, Any]) -> None:
        """The run is finished: the content of summary.json."""

    def close(self, outcome: str) -> None:
        """The attempt has ended: finished, interrupted or failed."""

    def located(self) -> dict[str, Any]:
        """Fields of run.json that are known since the tracker has started, such as an address."""
        return {}


def tracker_class(config: DictConfig) -> type[Tracker]:
    """The class that a checked config names. Raises ValueError if it is not a tracker in this folder."""
    tracking = config.tracking
    if tracking.name == "none":
        return Tracker
    target = str(tracking.get("_target_") or BEFORE_TARGETS.get(tracking.name))
    module, _, name = target.rpartition(".")
    try:
        if not module.startswith(ROOM):
            raise ImportError(f"only classes of {ROOM}* are used")
        found = getattr(import_module(module), name)
    except Exception as error:  # whatever the code of a new file in this folder raises
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"tracking._target_={target} is not available ({what}); use tracking=none") from error
    if not (isinstance(found, type) and issubclass(found, Tracker)):
        raise ValueError(f"tracking._target_={target} is not a subclass of {Tracker.__module__}.Tracker")
    return found


def prepare(configs: Sequence[DictConfig]) -> None:
    classes = [tracker_class(config) for config in configs]
    for cls in dict.fromkeys(classes):
        cls.prepare([config for config, own in zip(configs, classes, strict=True) if own is cls])


def distrust(configs: Sequence[DictConfig]) -> None:
    for cls in dict.fromkeys(map(tracker_class, configs)):
        cls.distrust([config for config in configs if tracker_class(config) is cls])


def nothing_to_train(runs: Sequence[tuple[DictConfig, Run]]) -> None:
    classes = [tracker_class(config) for config, _ in runs]
    for cls in dict.fromkeys(classes):
        cls.nothing_to_train([run for run, own in zip(runs, classes, strict=True) if own is cls])


@contextmanager
def track(config: DictConfig, run: Run, sweep: str, rows: Sequence[dict[str, Any]]) -> Iterator[Tracker]:
    """The run's tracker for the time of a `with`, which ends as the `with` ends."""
    tracker = Shield(config, run, sweep, rows)
    try:
        yield tracker
    except (Interrupted, KeyboardInterrupt):
        tracker.close("interrupted")
        raise
    except BaseException:
        tracker.close("failed")
        raise
    tracker.close("finished")


class Shield(Tracker):
    """The tracker that a config names, whose exceptions are logged once and never reach the run."""

    def __init__(self, config: DictConfig, run: Run, sweep: str, rows: Sequence[dict[str, Any]]) -> None:
        self._class, self._quiet, self._tracker = tracker_class(config), False, Tracker(config, run, sweep, rows)
        with self._ignore_errors():
            self._tracker = self._class(config, run, sweep, rows)

    def log(self, row: dict[str, Any]) -> None:
        with self._ignore_errors():
            self._tracker.log(row)

    def summary(self, values: dict[str, Any]) -> None:
        with self._ignore_errors():
            self._tracker.summary(values)

    def close(self, outcome: str) -> None:
        with self._ignore_errors():
            self._tracker.close(outcome)

    def located(self) -> dict[str, Any]:
        with self._ignore_errors():
            return self._tracker.located()
        return {}

    @contextmanager
    def _ignore_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._quiet:
                remedy = f"; {self._class.remedy}" if self._class.remedy else ""
                log.warning("%s: %s; the run continues%s", self._class.title, one_line(error), remedy)
            self._quiet = True


def one_line(error: BaseException) -> str:
    """The message of an error without secrets: user and password of a URL, and the key of W&B."""
    if isinstance(error, ModuleNotFoundError):
        return missing_package(error)
    text = re.sub(r"://[^/@\s]*@", "://", " ".join(str(error).split()))
    if key := os.environ.get("WANDB_API_KEY"):
        text = text.replace(key, "…")
    return text or type(error).__name__


def own_folder(run: Run, name: str) -> Path:
    """`<run folder>/<name>`, in which a tracker may write and remove files. Raises ValueError if it is a link."""
    path = run.folder / name
    if path.is_symlink():
        raise ValueError(f"{path} is a link, and nothing is written through links; remove it")
    return path
