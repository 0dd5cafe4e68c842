"""Values of settings, also of those that are not signed because they have the value that means "as before"."""

import re
from typing import Any

from capsule_sweeps.config.moved import FIRST_SPELLING
from capsule_sweeps.runs.signature import NEUTRAL

ROUTINGS = {first for present, first in FIRST_SPELLING.items() if present.startswith("capsule_sweeps.routing.")}
TAKERS = {  # settings of model.routing that only some of these classes have
    "density": ("EM",),
    "per_share": ("EM",),
    "bias": ("SelfRouting",),
    "class_logits": ("Dynamic", "EM", "SelfRouting"),
    "norm": ("Attention", "InvertedAttention", "SelfRouting", "Uniform"),
}


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
    kind = str(signed.get(f"{part}._target_"))
    return kind not in ROUTINGS or name not in TAKERS or kind.rpartition(".")[2] in TAKERS[name]
