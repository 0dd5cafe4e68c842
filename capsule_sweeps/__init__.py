"""Sweeps and ablations of capsule networks with inverted dot-product attention routing.

The public functions are loaded when they are first used, so that importing the package does not import torch.
"""

import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if not (hasattr(signal, "SIGUSR2") and hasattr(os, "EX_TEMPFAIL")):  # how runs are stopped and jobs started again
    sys.exit("Error: capsule_sweeps runs on Linux and macOS; on Windows, install it in WSL: wsl --install")

if TYPE_CHECKING:
    from capsule_sweeps.config.compose import compose_config
    from capsule_sweeps.networks.build import build_model
    from capsule_sweeps.networks.published_weights import load_published_weights
    from capsule_sweeps.runs.frame import load_metrics, load_runs

__version__ = "0.2.0"

__all__ = ["build_model", "compose_config", "load_metrics", "load_published_weights", "load_runs"]

_HOMES = {
    "build_model": "networks.build",
    "compose_config": "config.compose",
    "load_published_weights": "networks.published_weights",
    "load_metrics": "runs.frame",
    "load_runs": "runs.frame",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
