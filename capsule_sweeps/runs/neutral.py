"""Values of settings, also of those that are not signed because they have the value that means "as before"."""

import re
from functools import cache
from typing import Any

from capsule_sweeps.config.compose import CONF_DIR
from capsule_sweeps.config.moved import FIRST_SPELLING
from capsule_sweeps.config.yaml_files import read_options
from capsule_sweeps.runs.signature import NEUTRAL


def setting(signed: dict[str, Any], key: str, missing: Any = None) -> Any:
    """The value of a key in a signed configuration, neutral values included; `missing` if its model has no such
    setting: density is a setting of EM routing, and a CNN has no routing at all."""
    if key in signed:
        return signed[key]
    neutral = re.sub(r"\.\d+\.", ".", key)  # without the number of a layer
    return NEUTRAL[neutral] if neutral in NEUTRAL and _has_part(signed, key) else missing


def _has_part(signed: dict[str, Any], key: str) -> bool:
    part, _, name = key.rpartition(".")
    part = "model.capsules" if key == "model.head" else part
    if part.startswith("model.") and not any(other.startswith(f"{part}.") for other in signed):
        return False
    settings = routing_settings().get(str(signed.get("model.routing._target_")))
    return part != "model.routing" or settings is None or name in settings  # the class of another package may have it


@cache
def routing_settings() -> dict[str, set[str]]:
    """The class of a routing, as it is signed → its settings: all keys of the options in conf/routing that have it."""
    found: dict[str, set[str]] = {}
    for option in read_options(CONF_DIR / "routing").values():
        if "_target_" in (chosen := option["routing"]):
            target = str(chosen["_target_"])
            found.setdefault(FIRST_SPELLING.get(target, target), set()).update(chosen)
    return found
