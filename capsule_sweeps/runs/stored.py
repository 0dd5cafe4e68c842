"""The one reader of the configurations in run folders: config.yaml, and that of a queue entry.

What is stored was resolved and checked before it was written, so nothing in it is ever interpolated, and a file with
anchors, tags or of a size that no configuration has is damaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.check import check
from capsule_sweeps.runs.files import read_file

MAX_BYTES = 2**18
NOT_OURS = (yaml.AnchorToken, yaml.AliasToken, yaml.TagToken)


def read_config(path: Path) -> DictConfig:
    """A stored configuration as it was written. Raises ValueError that names the file when it is damaged."""
    try:
        text = read_file(path, MAX_BYTES).decode()
        if any(isinstance(token, NOT_OURS) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise ValueError("it has anchors or tags, which no stored configuration has")
        return plain_config(OmegaConf.create(text))
    except Exception as error:
        raise ValueError(f"{path} is damaged ({_sentence(error)}); move the folder away") from error


def plain_config(stored: Any) -> DictConfig:
    """A stored configuration, from any container. Raises ValueError for one that has interpolations."""
    config = stored if OmegaConf.is_config(stored) else None
    if "${" in repr(stored if config is None else OmegaConf.to_container(config)):
        raise ValueError("it has an interpolation, ${…}, which no stored configuration has")
    config = OmegaConf.create(stored) if config is None else config
    if not isinstance(config, DictConfig):
        raise ValueError("it holds no object")
    return config


def checked_config(path: Path) -> DictConfig:
    """`read_config` under the schema. Raises ValueError that names the file for what is missing or out of range."""
    try:
        return check(read_config(path))
    except ValueError as error:
        told = str(error)
        raise error if told.startswith(str(path)) else ValueError(f"{path} is damaged ({told})") from error


def _sentence(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
