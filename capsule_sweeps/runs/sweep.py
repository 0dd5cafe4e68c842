"""A sweep is the set of runs that one command asked for; `.sweeps/<name>.json` records which."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import Any

from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.plan import PlannedRun


def sweep_name(plan: Sequence[PlannedRun]) -> str:
    """The same for the same set of runs."""
    signatures = sorted(planned.signature for planned in plan)
    return "sweep-" + hashlib.sha256(" ".join(signatures).encode()).hexdigest()[:8]


def record_sweep(plan: Sequence[PlannedRun], launcher: dict[str, Any]) -> str:
    """Record which runs a sweep has and which process launches them, {} for none. Returns its name."""
    name, signatures = sweep_name(plan), sorted(planned.signature for planned in plan)
    folder = plan[0].run.folder.parent / ".sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {"sweep": name, "command": sys.argv, "signatures": signatures, **launcher})
    return name
