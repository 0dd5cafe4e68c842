"""Which code the files of a configuration may make Hydra run, such as callbacks and log handlers."""

import os
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

SWITCH = "CAPSULE_SWEEPS_TRUST_FILES"
PLUGINS = ("hydra_plugins.", "hydra._internal.core_plugins.")  # packages of installed launchers and sweepers
PARTS = (*PLUGINS, "optuna.")  # of which a sweeper's settings may build objects
HANDLERS = ("logging.StreamHandler", "logging.NullHandler", "logging.FileHandler", "colorlog.ColoredFormatter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
LOG_FILE = "${hydra.runtime.output_dir}/"  # where Hydra itself puts log files


def check_hydra(hydra: DictConfig) -> None:
    """Raises ValueError for callbacks, and for launchers, sweepers and log handlers that are no plugins, in the part
    `hydra` of a composed configuration, unless the user's environment trusts the files that it comes from."""
    if os.environ.get(SWITCH) == "1":
        return
    values: Any = OmegaConf.to_container(hydra, resolve=False)
    for key, value in _forbidden(values):
        raise ValueError(
            f"hydra.{key}={value} would run arbitrary code, and a file of the configuration sets it: remove "
            f"it there, or set {SWITCH}=1 in the environment if you know what it does"
        )


def _forbidden(hydra: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, value) of each setting that is not allowed."""
    for name, callback in (hydra.get("callbacks") or {}).items():
        yield f"callbacks.{name}", callback.get("_target_") if isinstance(callback, dict) else callback
    for part in ("launcher", "sweeper"):
        for key, value in _leaves(hydra.get(part), part):
            name = key.rpartition(".")[2]
            allowed = PLUGINS if key == f"{part}._target_" else PARTS
            if (name == "_target_" and not str(value).startswith(allowed)) or (name == "custom_search_space" and value):
                yield key, value
    for part in ("job_logging", "hydra_logging"):
        for key, value in _leaves(hydra.get(part), part):
            name, text = key.rpartition(".")[2], str(value)
            known = text in HANDLERS or text.startswith("capsule_sweeps.console.")
            if (name in ("class", "()") and not known) or (text.startswith("ext://") and text not in STREAMS):
                yield key, value
            if name == "filename" and not (text.startswith(LOG_FILE) and ".." not in text):
                yield key, value


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{prefix}.{key}")
    else:
        yield prefix, value
