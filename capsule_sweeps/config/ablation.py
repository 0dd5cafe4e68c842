"""The changes that an ablation makes, and whether all of them are in the configuration of a run."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

Change = tuple[str, str, Any]  # ablation, key, value


def ablation_changes(runtime: DictConfig, given: Any) -> list[Change]:
    """The settings of the chosen options of conf/ablation: the `given` ones, or those in hydra.runtime."""
    chosen = given or runtime.choices.get("ablation") or []
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    found = []
    for name in [chosen] if isinstance(chosen, str) else chosen:
        files = [folder / "ablation" / f"{name}.yaml" for folder in folders]
        for path in [path for path in files if path.is_file()][:1]:
            content = OmegaConf.to_container(OmegaConf.load(path))
            found += [(name, key, value) for key, value in _leaves(content) if not key.startswith("defaults")]
    return found


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif "${" not in repr(value):
        yield prefix, value


def check_ablation(config: DictConfig, changes: Sequence[Change], overrides: Sequence[str]) -> None:
    """Raises ValueError if the config has another value for a key than its ablation: the run would be something else,
    under the name of that ablation."""
    for name, key, value in changes:
        found = OmegaConf.select(config, key)
        if found == value:
            continue
        above = accumulate(key.split("."), "{}.{}".format)  # the key and all keys that it is below
        same = rf"\+*({'|'.join(map(re.escape, above))})="
        cause = next((text for text in reversed(overrides) if re.match(same, text)), f"{key}={found}")
        wanted = value if isinstance(value, str) else json.dumps(value)
        raise ValueError(f"{cause} cancels ablation={name}, which sets {key}={wanted}: leave out one of them")
