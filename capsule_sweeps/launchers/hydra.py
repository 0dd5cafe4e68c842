"""The sweeper and launchers that Hydra finds through hydra_plugins. Imported at every start: no heavy imports."""

import inspect
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from capsule_sweeps.config.compose import CONF_DIR, compose_points, store_settings
from capsule_sweeps.config.errors import one_sentence, unknown
from capsule_sweeps.config.points import MAX_RUNS, sweep_points
from capsule_sweeps.config.trust import check_hydra
from capsule_sweeps.config.yaml_files import check_files, check_spelling
from capsule_sweeps.console import missing_package
from capsule_sweeps.display import terminal, write_any_text
from capsule_sweeps.launchers.launch import Launcher as RunLauncher
from capsule_sweeps.launchers.launch import find_launcher, launch
from capsule_sweeps.launchers.seed_units import MAX_SEEDS, MIN_SEEDS, Procedure
from capsule_sweeps.launchers.seeds import group_seeds, launch_seeds
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.run import Busy, Run
from capsule_sweeps.runs.signature import run_name, signature, signed_config

log = logging.getLogger(__name__)

for kind, cls in (("local", "LocalLauncher"), ("slurm", "SlurmLauncher")):
    store_settings(kind, f"hydra_plugins.capsule_sweeps.{cls}", Policy, find_launcher(kind))


class NotFinished(RuntimeError):
    """The result of a run without an accuracy, for sweepers that learn from results."""


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


class GridSweeper(Sweeper):
    """Every combination of the values given, in one batch. Unlike Hydra's own it writes no files of its own.

    `params` and `points` (hydra.sweeper.params and points, which an experiment sets): see `sweep_points`.
    """

    def __init__(
        self,
        params: Any = None,
        points: Any = None,
        max_runs: int = MAX_RUNS,
        half_width: float | None = None,
        min_seeds: int = MIN_SEEDS,
        max_seeds: int = MAX_SEEDS,
        resolve: str | None = None,
    ) -> None:
        self.params, self.points, self.max_runs = plain(params or {}), plain(points or []), max_runs
        self.half_width = half_width
        self.more: dict[str, Any] = {"min_seeds": min_seeds, "max_seeds": max_seeds, "resolve": resolve}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader = hydra_context.config_loader
        self.launcher: SweepLauncher = Plugins.instance().instantiate_launcher(  # type: ignore[assignment]
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        with user_errors():
            points = sweep_points(arguments, self.params, self.points, self.loader, self.max_runs)
            experiments = {word for point in points for word in point if word.lstrip("+").startswith("experiment=")}
            if len(experiments) > 1:
                raise ValueError("experiment takes one name: each experiment is a sweep of its own")
            self.launcher.procedure = procedure = self.procedure()
            if procedure and (runs := len(group_seeds(points, procedure)) * procedure.max_seeds) > self.max_runs:
                raise ValueError(
                    f"this sweep may have {runs} runs with hydra.sweeper.max_seeds={procedure.max_seeds}, more than "
                    f"hydra.sweeper.max_runs={self.max_runs}: set one of them to another number"
                )
        jobs = self.launcher.launch(points, initial_job_idx=0)
        if any(job.status == JobStatus.FAILED for job in jobs):
            sys.exit(1)
        return jobs

    def procedure(self) -> Procedure | None:
        """The procedure that chooses the number of seeds; None for the seeds of the sweep. Raises ValueError."""
        if self.half_width is not None:
            return Procedure(self.half_width, **self.more)
        for name, value in self.more.items():
            if value != {"min_seeds": MIN_SEEDS, "max_seeds": MAX_SEEDS}.get(name):
                raise ValueError(f"hydra.sweeper.{name}={value} has no effect: set hydra.sweeper.half_width=… as well")
        return None


class SweepLauncher(Launcher):
    """Composes and checks the points of a sweep, then hands over to `launch`.

    `kind` says where they run: launchers/<kind>.py, or launchers/<kind>/ for a queue.
    """

    kind = "local"
    procedure: Procedure | None = None  # a sweeper may set how many seeds each point gets

    def __init__(self, **settings: Any) -> None:
        self.settings = {key: plain(value) for key, value in settings.items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.master = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        HydraConfig.instance().set_config(self.master)
        configure_log(self.master.hydra.job_logging, self.master.hydra.verbose)
        if callbacks := list(self.master.hydra.get("callbacks") or {}):
            log.warning(
                "hydra.callbacks.%s: a sweep calls on_multirun_start and on_multirun_end, no callback of its jobs",
                callbacks[0],
            )
        with user_errors(), env_override(self.master.hydra.job.env_set):
            policy, launcher = make_launcher(self.settings, self.kind)
            compose = partial(compose_points, self.loader, self.master)
            sweeper = str(self.master.hydra.sweeper._target_)
            if not launcher.waits and not sweeper.endswith("GridSweeper"):
                raise ValueError(f"{sweeper} learns from results: set hydra.launcher.wait=true")
            if self.procedure:
                job_overrides, configs, accuracies = launch_seeds(
                    job_overrides, compose, policy, launcher, self.procedure
                )
            else:
                configs = compose(job_overrides)
                accuracies = launch(configs, job_overrides, policy, launcher)
        if policy.dry_run:
            sys.exit(0)  # a sweeper has nothing to learn from it
        missing = JobStatus.FAILED if launcher.waits else JobStatus.UNKNOWN
        ended = []
        for overrides, config, accuracy in zip(job_overrides, configs, accuracies, strict=True):
            result: Any = NotFinished(unfinished(config)) if accuracy is None else accuracy
            status = missing if accuracy is None else JobStatus.COMPLETED
            ended.append(JobReturn(overrides=overrides, cfg=config, status=status, _return_value=result))
        return ended


class LocalLauncher(SweepLauncher):
    """Runs the missing runs of a sweep on this machine, in this process or, with `parallel`, in a pool of processes."""


class SlurmLauncher(SweepLauncher):
    """Submits the missing runs of a sweep to SLURM and returns, or follows them with `wait`."""

    kind = "slurm"


def unfinished(config: DictConfig) -> str:
    """Why a run has no accuracy, for sweepers that learn from results."""
    signed = signed_config(config)
    run = Run(Path(config.runs_dir) / run_name(config, signature(signed)))
    record = run.record()
    why = " ".join(str(record.get("error") or record.get("failure") or "").split()[:40])
    return f"{run.folder.name} is {run.state(record)}" + (f": {why}" if why else "")


def make_launcher(settings: dict[str, Any], kind: str = "") -> tuple[Policy, RunLauncher]:
    """The policy and the launcher of the settings `hydra.launcher`; `_target_` names the launcher if `kind` does not.

    Raises ValueError for an unknown setting.
    """
    settings = dict(settings)
    chosen = find_launcher(kind or cast(type[SweepLauncher], get_class(settings.pop("_target_"))).kind)
    names = {entry.name for entry in fields(Policy)}
    own = {entry.name for entry in fields(chosen)}
    if others := sorted(settings.keys() - names - own):
        known = ", ".join(sorted(names | own))
        raise ValueError(f"hydra.launcher.{others[0]} is unknown; settings are {known}")
    policy = Policy(**{name: value for name, value in settings.items() if name in names})
    return policy, chosen(**{name: value for name, value in settings.items() if name in own})


def launch_one(config: DictConfig) -> float | None:
    """One run: its accuracy under config.selection_rule. Ends the program when the run does not finish."""
    hydra = HydraConfig.get()
    with user_errors():
        launcher = hydra.runtime.choices["hydra/launcher"]
        if launcher != "local":
            raise ValueError(f"hydra/launcher={launcher} is for sweeps: add -m behind launch.py")
        if named := [key for key in ("params", "points", "half_width") if hydra.sweeper.get(key) not in (None, {}, [])]:
            raise ValueError(
                f"hydra.sweeper.{named[0]}={hydra.sweeper[named[0]]} is for sweeps: add -m behind launch.py"
            )
        policy = Policy(**{entry.name: hydra.launcher[entry.name] for entry in fields(Policy)})
        loader, master = GlobalHydra.instance().config_loader(), cast(DictConfig, HydraConfig.instance().cfg)
        words = plain(hydra.overrides.task)
        configs = compose_points(loader, master, [words])  # as a sweep of one point
        (accuracy,) = launch(configs, [words], policy, find_launcher("local")())
    if accuracy is None and not policy.dry_run:
        sys.exit(1)
    return accuracy


@contextmanager
def user_errors() -> Iterator[None]:
    """While open, errors that the user can fix end the program with one sentence, and so does Ctrl-C."""
    try:
        with one_sentence():
            yield
    except ModuleNotFoundError as error:
        sys.exit(f"Error: {missing_package(error)}")
    except (ValueError, OSError, Busy) as error:
        sys.exit(f"Error: {terminal(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


def look(arguments: Sequence[str]) -> None:
    """Check the configuration that these arguments of launch.py select, before Hydra runs code that its files name.

    Settings `hydra.` on the command line itself are not checked. Raises ValueError.
    """
    # Private: there is no public way to read a command line and to compose before hydra.main does
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path, get_args_parser

    asked = get_args_parser().parse_intermixed_args(arguments)
    if asked.help or asked.hydra_help or asked.shell_completion:
        return
    main = Path(CONF_DIR.parent, asked.config_path or CONF_DIR)
    given = [Path(asked.config_dir).absolute()] if asked.config_dir else []
    path = create_config_search_path(str(main))
    for folder in given:
        path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    loader, overrides = ConfigLoaderImpl(path), []
    for override in OverridesParser.create().parse_overrides(asked.overrides):
        if override.key_or_group == "hydra.searchpath":
            listed: Any = override.value()
            given += [Path(str(folder).removeprefix("file://")) for folder in listed if "pkg://" not in str(folder)]
        elif override.key_or_group.startswith("hydra."):
            continue
        overrides.append(str(override.input_line))
    check_files([main, *given])
    name = asked.config_name or "config"
    with one_sentence():
        hydra = loader.load_configuration(name, overrides, RunMode.MULTIRUN, validate_sweep_overrides=False).hydra
    check_hydra(hydra)
    check_spelling(hydra.runtime)
    settings = inspect.signature(GridSweeper).parameters
    if str(hydra.sweeper.get("_target_")).endswith(".GridSweeper"):
        for key in hydra.sweeper.keys() - {"_target_", *settings}:
            raise ValueError(unknown(f"hydra.sweeper.{key}", settings))
    target = str(hydra.launcher.get("_target_"))
    sweep = asked.multirun or hydra.get("mode") == RunMode.MULTIRUN
    if sweep and not _plans_sweeps(target):
        raise ValueError(
            f"hydra/launcher={hydra.runtime.choices['hydra/launcher']} is not available for sweeps: set "
            "hydra/launcher=local (hydra.launcher.parallel=N for N runs at once) or hydra/launcher=slurm"
        )


def _plans_sweeps(target: str) -> bool:
    """Whether a launcher is one of ours, which plan sweeps, or derived from them; others start jobs one by one."""
    module, _, name = target.rpartition(".")
    if not module.startswith("hydra_plugins."):  # Hydra has imported these already
        return False
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return False
    return isinstance(found, type) and issubclass(found, SweepLauncher)


@contextmanager
def hydra_errors() -> Iterator[None]:
    """The same for errors of Hydra before it calls us, unless HYDRA_FULL_ERROR=1 asks for tracebacks."""
    write_any_text()
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    with user_errors() if not full else nullcontext():
        look(sys.argv[1:])
    if full:
        yield
        return
    try:
        with env_override({"HYDRA_FULL_ERROR": "1"}), one_sentence():  # else Hydra prints it, in its own words
            yield
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has closed the pipe: launch.py --help | head
        sys.exit(1)
    except (NotFinished, ValueError) as error:
        of_hydra = isinstance(error.__cause__, HydraException | OmegaConfBaseException | YAMLError | RecursionError)
        if not (of_hydra or isinstance(error, NotFinished)):
            raise
        sys.exit(f"Error: {terminal(error)}")
