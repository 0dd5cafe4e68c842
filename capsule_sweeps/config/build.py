"""Build objects from configuration nodes with a `_target_`."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from capsule_sweeps.config.moved import PRESENT_SPELLING
from capsule_sweeps.display import raised_by

SWITCH = "CAPSULE_SWEEPS_TRUST_PACKAGES"  # other packages whose classes a config may name, with commas between them


def build(node: Any, **kwargs: Any) -> Any:
    """An object of the class that `node._target_` names, made with the node's other keys (except `name`).

    Raises ValueError for a class outside of this package and those that the user's environment trusts, before anything
    of another is imported, for keys the class does not take, and for what its constructor raises.
    """
    options: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
    target = str(options.pop("_target_", None))
    target = PRESENT_SPELLING.get(target, target)
    name = options.pop("name", target)
    if not trusted(target):
        package = target.partition(".")[0]
        raise ValueError(
            f"_target_={target} is not allowed, since building it runs code outside of capsule_sweeps: set "
            f"{SWITCH}={package} in the environment if you trust the package"
        )
    module, _, attribute = target.rpartition(".")
    try:
        cls = getattr(import_module(module), attribute)
    except Exception as error:  # whatever the code of a module of the user raises
        where = "" if target.startswith("capsule_sweeps.") else ", and that its package is installed or in PYTHONPATH"
        if isinstance(error, ImportError | AttributeError):
            raise ValueError(f"_target_={target} is unknown ({error}); check its spelling{where}") from error
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"_target_={target}: importing {module} failed ({what}); fix this module") from error
    from torch.nn import Module

    if not (isinstance(cls, type) and issubclass(cls, Module) and trusted(f"{cls.__module__}.")):
        raise ValueError(f"_target_={target} is not allowed: it is not a torch.nn.Module of a package that you trust")
    _check_settings(f"{name} ({target})", cls, options, kwargs)
    shown = {key: value for key, value in options.items() if not isinstance(value, dict)}  # not those of its parts
    with user_code(f"{name} ({target}){f' with {shown}' if shown else ''}"):
        return cls(**kwargs, **options)


def _check_settings(what: str, cls: type, options: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises ValueError if the constructor of a class has no parameter for one of its settings or of the values that a
    network gives to it, or if a parameter would get no value, or not the one that its YAML file seems to set."""
    taken = signature(cls).parameters
    anything = any(entry.kind is Parameter.VAR_KEYWORD for entry in taken.values())
    named = {key: entry for key, entry in taken.items() if entry.kind not in (entry.VAR_KEYWORD, entry.VAR_POSITIONAL)}
    if both := sorted(options.keys() & given.keys()):
        raise ValueError(f"{what} gets {both[0]} from the network: remove {both[0]}={options[both[0]]}")
    if unknown := [key for key in options if key not in named and not anything]:
        own = [key for key in named if key not in given]
        raise ValueError(
            f"{what} has no setting {unknown[0]}: remove {unknown[0]}={options[unknown[0]]} (its settings are "
            f"{', '.join(own) or 'none'})"
        )
    if unknown := [key for key in given if key not in named and not anything]:
        raise ValueError(f"{what} has no parameter {unknown[0]}: its constructor must take {', '.join(given)}")
    if left := [key for key in named if named[key].default is Parameter.empty and key not in {**options, **given}]:
        if held := [key for key in ("name", "schedule", "num_routing") if key in left]:
            raise ValueError(f"{what} has a parameter {held[0]}, which gets no value from a YAML file: rename it")
        raise ValueError(f"{what} needs a value for {left[0]}: set it in the YAML file")


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """While open, an error that a class of the user may raise becomes a ValueError of one sentence that names its line.

    Others pass: errors with a sentence of their own, missing packages and too little memory.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)  # of torch
        if memory or _is_sentence(error):
            raise
        raise ValueError(f"{what} failed ({in_words(error)}); fix the class or its settings") from error


def _is_sentence(error: Exception) -> bool:
    """Whether a `raise` statement of this package or of one that the user trusts says what is wrong: a ValueError or an
    OSError, and none that Python or a library found in the code of a class."""
    return isinstance(error, ValueError | OSError) and bool(str(error)) and trusted(f"{raised_by(error)}.")


def in_words(error: Exception) -> str:
    """An error in one line: its message, and its type and the line of a class if it has no sentence of its own."""
    text = " ".join(str(error).split())
    if _is_sentence(error):
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ") + where(error)


def where(error: Exception) -> str:
    """The innermost line of a network's class, and not one of torch, that raised an error; empty if there is none, and
    for an error with a sentence of its own."""
    found = ""
    if _is_sentence(error):
        return found
    for frame, number in traceback.walk_tb(error.__traceback__):
        ours = frame.f_globals.get("__name__", "").partition(".")[0] != "torch"
        if ours and hasattr(type(frame.f_locals.get("self")), "named_parameters"):
            found = f", in {Path(frame.f_code.co_filename).name}, line {number}"
    return found


def trusted(target: str) -> bool:
    """Whether a dotted name lies in capsule_sweeps or in a package that SWITCH names. A record cannot set it."""
    packages = ("capsule_sweeps", *filter(None, map(str.strip, os.environ.get(SWITCH, "").split(","))))
    return target.startswith(tuple(f"{package}." for package in packages))
