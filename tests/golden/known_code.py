"""Record what an edit of code means for finished runs, in capsule_sweeps/runs/known_code.json.

    python tests/golden/known_code.py                       # list the modules whose code is not recorded
    python tests/golden/known_code.py same routing.em       # every number of a training on a CPU is as before
    python tests/golden/known_code.py changed routing.em    # numbers differ: runs made before are stale

`all` stands for all modules that the first command lists. A test fails as long as it lists any.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from capsule_sweeps.runs import provenance


def modules() -> dict[str, str]:
    """Module → fingerprint, for all modules that determine numbers."""
    package = provenance.ROOT / "capsule_sweeps"
    paths = [
        path.relative_to(package) for room in provenance.NUMBERS for path in sorted((package / room).rglob("*.py"))
    ]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}
    names -= {*provenance.NUMBERS, *provenance.EXCEPT}  # __init__ files of rooms have no code
    return {name: str(provenance.fingerprint(name)) for name in sorted(names)}


def unrecorded() -> list[str]:
    equal = json.loads(provenance.KNOWN_CODE.read_text())["equal"]
    return [name for name, now in modules().items() if now not in equal.get(name, ())]


def main(meaning: str = "", *names: str) -> None:
    if not meaning:
        print("\n".join(unrecorded()))
        return
    assert meaning in ("same", "changed") and names, __doc__
    table, now = json.loads(provenance.KNOWN_CODE.read_text()), modules()
    for name in unrecorded() if names == ("all",) else names:
        before = table["equal"].get(name, []) if meaning == "same" else []
        table["equal"][name] = [*(known for known in before if known != now[name]), now[name]]
    provenance.KNOWN_CODE.write_text(_one_line_per_module(table))


def _one_line_per_module(table: dict[str, dict[str, Any]]) -> str:
    parts = []
    for part, entries in sorted(table.items()):
        lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(entries.items())]
        parts.append(f"{json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{" + ",\n".join(parts) + "}\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
