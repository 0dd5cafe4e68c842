"""Commands for our own Python processes, which import our code and, like launch.py, nothing from the current folder."""

import os
import sys

from capsule_sweeps.runs.provenance import ROOT


def command(module: str) -> list[str]:
    """`python -m module`, without the current folder on its import path."""
    return [sys.executable, "-P", "-m", module]


def import_path() -> list[str]:
    """PYTHONPATH as a list without empty entries, which would mean the current folder."""
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def child_environment(**more: str) -> dict[str, str]:
    """The environment of such a process, with this code first on the import path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *import_path()]), "PYTHONSAFEPATH": "1", **more}
