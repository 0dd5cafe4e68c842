"""Build objects from configuration nodes with a `_target_`."""

import os
from importlib import import_module
from inspect import signature
from typing import Any

from omegaconf import OmegaConf

from capsule_sweeps.config.moved import PRESENT_SPELLING

SWITCH = "CAPSULE_SWEEPS_TRUST_PACKAGES"  # other packages whose classes a config may name, with commas between them


def build(node: Any, *args: Any, **kwargs: Any) -> Any:
    """An object of the class that `node._target_` names, made with the node's other keys (except `name`).

    Raises ValueError for a class outside of this package and those that the user's environment trusts, before anything
    of another is imported, and for keys the class does not take.
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
    taken = signature(cls.__init__).parameters
    if unknown := [key for key in options if key not in taken and "kwargs" not in taken]:
        raise ValueError(f"{name} ({target}) has no setting {unknown[0]}: remove {unknown[0]}={options[unknown[0]]}")
    try:
        return cls(*args, **kwargs, **options)
    except TypeError as error:
        raise ValueError(f"{name} ({target}) does not take {options}: {error}") from error


def trusted(target: str) -> bool:
    """Whether a dotted name lies in capsule_sweeps or in a package that SWITCH names. A record cannot set it."""
    packages = ("capsule_sweeps", *filter(None, map(str.strip, os.environ.get(SWITCH, "").split(","))))
    return target.startswith(tuple(f"{package}." for package in packages))
