"""The base class of trackers. A new one is a class in this folder and an option in conf/tracking with its
`_target_`."""

import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from capsule_sweeps.config.build import SWITCH, trusted, user_code
from capsule_sweeps.console import missing_package
from capsule_sweeps.runs.record import RECORD
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signals import Interrupted

log = logging.getLogger(__name__)

ROOM = "capsule_sweeps.tracking."
OFF = {"_target_": f"{ROOM}base.Tracker", "name": "none"}
BEFORE_TARGETS = {"wandb": f"{ROOM}wandb.WandbTracker"}  # by name, in run folders from before `_target_`


class Tracker:
    """Tracks one run from the start of an attempt to its end. This class does nothing: tracking=none.

    `rows` are the epochs that metrics.jsonl already has. A tracker must show each epoch once, however often the run was
    killed and resumed. Any exception after the start of a run is logged once per attempt and does not end the run; a
    method that never returns does end it, so a tracker that waits for a server needs its own time limit. What a tracker
    gets is a copy.
    """

    title = ""  # in messages; empty: tracking=<name>
    remedy = ""  # how to send data that the tracker missed
    packages: tuple[str, ...] = ()  # without which it does not work, and whose versions are recorded

    @classmethod
    def prepare(cls, configs: Sequence[DictConfig]) -> None:
        """Called once per command, before any of these runs starts. May decide settings `tracking.*`, in place.

        Raises ValueError if tracking is not available: by default, if one of `packages` is not installed.
        """
        for package in cls.packages:
            try:
                version(package)
            except PackageNotFoundError as error:
                raise ValueError(
                    f"tracking={configs[0].tracking.name} needs the package {package}: pip install {package}, or set "
                    "tracking=none"
                ) from error

    @classmethod
    def distrust(cls, configs: Sequence[DictConfig]) -> None:
        """Called with configurations that were read from run folders, which may be forged.

        May change settings `tracking.*`, in place, so that nothing is sent to a place that the user did not choose.
        Only the class knows which of its settings name a place, so here the runs are not tracked.
        """
        if cls is not Tracker:
            for config in configs:
                config.tracking._target_, config.tracking.name = OFF["_target_"], OFF["name"]
            log.warning("%s: off for settings of run folders; define %s.distrust to use them", cls.title, cls.__name__)

    @classmethod
    def check(cls, config: DictConfig) -> str:
        """How a run of this config would be tracked, for `doctor`. Raises ValueError when that is not possible."""
        cls.prepare([config])
        return "off" if config.tracking.name == OFF["name"] else f"tracking={config.tracking.name}"

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
    """The class that a checked config names. Raises ValueError if it is not a tracker in this folder or in a package
    that the user trusts."""
    tracking = config.tracking
    target = str(tracking.get("_target_") or BEFORE_TARGETS.get(tracking.name) or "")
    if tracking.name == OFF["name"]:
        if target not in ("", OFF["_target_"]):
            raise ValueError(
                f"tracking.name={tracking.name} means no tracking, but tracking._target_={target}: give it another "
                "name, `name: …` in its YAML file, or set tracking=none"
            )
        return Tracker
    if not target:
        raise ValueError(f"tracking._target_ has no value: set it in the YAML file of tracking={tracking.name}")
    module, _, name = target.rpartition(".")
    if target.startswith("capsule_sweeps.") and not module.startswith(ROOM):
        raise ValueError(f"tracking._target_={target} is not available: trackers are classes of {ROOM}*")
    if not trusted(target):
        raise ValueError(
            f"tracking._target_={target} is not available: only classes of {ROOM}* and of the packages in {SWITCH} are "
            f"used; set {SWITCH}={module.partition('.')[0]} in the environment if you trust it, or tracking=none"
        )
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # whatever the code of the user raises
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"tracking._target_={target} is not available ({what}); use tracking=none") from error
    if not (isinstance(found, type) and issubclass(found, Tracker)):
        raise ValueError(f"tracking._target_={target} is not a subclass of {Tracker.__module__}.Tracker")
    return found


def prepare(configs: Sequence[DictConfig]) -> None:
    classes = [tracker_class(config) for config in configs]
    for cls in dict.fromkeys(classes):
        with user_code(f"{cls.__name__}.prepare"):
            cls.prepare([config for config, own in zip(configs, classes, strict=True) if own is cls])


def distrust(configs: Sequence[DictConfig]) -> None:
    for cls in dict.fromkeys(map(tracker_class, configs)):
        with user_code(f"{cls.__name__}.distrust"):
            cls.distrust([config for config in configs if tracker_class(config) is cls])


def nothing_to_train(runs: Sequence[tuple[DictConfig, Run]]) -> None:
    classes = [tracker_class(config) for config, _ in runs]
    for cls in dict.fromkeys(classes):
        with user_code(f"{cls.__name__}.nothing_to_train"):
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
    """The tracker that a config names, whose exceptions are logged once and never reach the run. It gets copies of what
    it may see, so that it changes no number."""

    def __init__(self, config: DictConfig, run: Run, sweep: str, rows: Sequence[dict[str, Any]]) -> None:
        self._class, self._name, self._quiet = tracker_class(config), config.tracking.name, False
        self._tracker = Tracker(config, run, sweep, rows)
        with self._ignore_errors():
            self._tracker = self._class(config.copy(), run, sweep, [dict(row) for row in rows])

    def log(self, row: dict[str, Any]) -> None:
        with self._ignore_errors():
            self._tracker.log(dict(row))

    def summary(self, values: dict[str, Any]) -> None:
        with self._ignore_errors():
            self._tracker.summary(dict(values))

    def close(self, outcome: str) -> None:
        with self._ignore_errors():
            self._tracker.close(outcome)

    def located(self) -> dict[str, Any]:
        with self._ignore_errors():
            return own_fields(self._tracker.located())
        return {}

    @contextmanager
    def _ignore_errors(self) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            if not self._quiet:
                remedy = f"; {self._class.remedy}" if self._class.remedy else ""
                title = self._class.title or f"tracking={self._name}"
                log.warning("%s: %s; the run continues%s", title, one_line(error), remedy)
            self._quiet = True


def identity(config: DictConfig, run: Run) -> dict[str, Any]:
    """The `identity` of a run in its tracker; none, and a line in the log, if the tracker fails."""
    try:
        return own_fields(tracker_class(config).identity(config.copy(), run))
    except Exception as error:
        log.warning("tracking=%s: %s; the run continues", config.tracking.name, one_line(error))
        return {}


def own_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of run.json that a tracker sets, unchanged. Raises ValueError for those of the run itself, and for values
    that are not plain."""
    for key, value in fields.items():
        if key in (*RECORD, "attempt", "self") and key != "wandb_id":
            raise ValueError(f"{key} in run.json is the run's own: name this field differently")
        if not isinstance(key, str) or not key.isidentifier():
            raise ValueError(f"{key!r} is not a name for a field of run.json: use letters, digits and _")
        if not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{key} for run.json is {value!r:.50}: it must be text, a finite number or None")
    return fields


def one_line(error: BaseException) -> str:
    """The message of an error without secrets: user and password of a URL, and the key of W&B."""
    if isinstance(error, ModuleNotFoundError):
        return missing_package(error)
    text = re.sub(r"://[^/@\s]*@", "://", " ".join(str(error).split()))
    if key := os.environ.get("WANDB_API_KEY"):
        text = text.replace(key, "…")
    if isinstance(error, LookupError | TypeError | AttributeError | NameError | SystemExit):  # of code, not for people
        return f"{type(error).__name__}: {text}"
    return text or type(error).__name__


def own_folder(run: Run, name: str) -> Path:
    """`<run folder>/<name>`, in which a tracker may write and remove files. Raises ValueError if it is a link."""
    path = run.folder / name
    if path.is_symlink():
        raise ValueError(f"{path} is a link, and nothing is written through links; remove it")
    return path
