"""Python processes of our own. They import our code and nothing from the current folder, as launch.py does not."""

from __future__ import annotations

import os
import sys

from capsule_sweeps.runs.provenance import ROOT


def command(module: str) -> list[str]:
    """`python -m module`, without the current folder on its import path."""
    return [sys.executable, "-P", "-m", module]


def import_path(environment: dict[str, str] | os._Environ[str] = os.environ) -> list[str]:
    """PYTHONPATH as a list. An empty part would mean the current folder, and is left out."""
    return [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]


def child_environment(**more: str) -> dict[str, str]:
    """The environment of such a process, whose import path begins with this code."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *import_path()]), "PYTHONSAFEPATH": "1", **more}
