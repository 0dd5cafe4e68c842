"""Build objects from configuration nodes with a `_target_`."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import Any

from omegaconf import OmegaConf

from capsule_sweeps.config.moved import PRESENT_SPELLING

TARGETS = ("capsule_sweeps.", "torch.")  # a config may name classes of these packages, and of no other


def build(node: Any, *args: Any, **kwargs: Any) -> Any:
    """An object of the class that `node._target_` names, made with the node's other keys (except `name`).

    Raises ValueError for a class outside this package and torch, and for keys the class does not take.
    """
    options: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
    target = str(options.pop("_target_", None))
    target = PRESENT_SPELLING.get(target, target)
    name = options.pop("name", target)
    if not target.startswith(TARGETS):
        raise ValueError(f"_target_={target} is not allowed: only classes of capsule_sweeps and torch are built")
    module, _, attribute = target.rpartition(".")
    try:
        cls = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"_target_={target} is unknown ({error}); check its spelling") from error
    from torch.nn import Module

    if not (isinstance(cls, type) and issubclass(cls, Module) and cls.__module__.startswith(TARGETS)):
        raise ValueError(f"_target_={target} is not allowed: it is no torch.nn.Module of capsule_sweeps or torch")
    taken = signature(cls.__init__).parameters
    if unknown := [key for key in options if key not in taken and "kwargs" not in taken]:
        raise ValueError(f"{name} ({target}) has no setting {unknown[0]}: remove {unknown[0]}={options[unknown[0]]}")
    try:
        return cls(*args, **kwargs, **options)
    except TypeError as error:
        raise ValueError(f"{name} ({target}) cannot be made with {options}: {error}") from error
