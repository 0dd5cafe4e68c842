"""What launch.py does around Hydra: checks before it runs code that files name, one run, and errors in one sentence."""

import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import env_override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from capsule_sweeps.config.compose import CONF_DIR, compose_points
from capsule_sweeps.config.errors import one_sentence, unknown
from capsule_sweeps.config.trust import check_hydra
from capsule_sweeps.config.yaml_files import check_files, check_spelling
from capsule_sweeps.display import terminal, write_any_text
from capsule_sweeps.launchers.hydra import GridSweeper, NotFinished, SweepLauncher, plain, user_errors
from capsule_sweeps.launchers.launch import find_launcher, launch
from capsule_sweeps.runs.plan import Policy


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
