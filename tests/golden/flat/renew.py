"""Record the current fingerprints of the modules that took over from those of the flat layout.

    python tests/golden/flat/renew.py

Run this after an edit of a module that leaves every number of a training as it was. After an edit that changes
numbers, do not run it: runs made before the edit are then stale, which is right.
"""

from __future__ import annotations

import json

from capsule_sweeps.runs import provenance


def main() -> None:
    table = json.loads(provenance.FLAT_CODE.read_text())
    for _, heirs in table.values():
        heirs.update({name: current for name in heirs if (current := provenance.fingerprint(name))})
        for name in [name for name in heirs if not provenance.fingerprint(name)]:
            del heirs[name]
    provenance.FLAT_CODE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
