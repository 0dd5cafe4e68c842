"""The one reader of the configurations in run folders: config.yaml, and that of a queue entry.

Stored configurations were resolved and checked before they were written, so they are never interpolated, and a file
that has anchors or tags or is too large is damaged.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.check import check
from capsule_sweeps.runs.files import read_file

MAX_BYTES = 2**18
NOT_OURS = (yaml.AnchorToken, yaml.AliasToken, yaml.TagToken)


def read_config(path: Path) -> DictConfig:
    """A stored configuration as written. Raises ValueError naming the file if it is damaged."""
    try:
        return load_config(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); move the folder away") from error


def load_config(path: Path) -> DictConfig:
    """The same, with an error that says only what is wrong."""
    try:
        text = read_file(path, MAX_BYTES).decode()
        if any(isinstance(token, NOT_OURS) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise ValueError("it has anchors or tags, which stored configurations never have")
        return plain_config(OmegaConf.create(text))
    except Exception as error:
        raise ValueError(_sentence(error)) from error


def plain_config(stored: Any) -> DictConfig:
    """A stored configuration, from any container. Raises ValueError for one that has interpolations."""
    config = stored if OmegaConf.is_config(stored) else None
    if "${" in repr(stored if config is None else OmegaConf.to_container(config)):
        raise ValueError("it has an interpolation, ${…}, which stored configurations never have")
    config = OmegaConf.create(stored) if config is None else config
    if not isinstance(config, DictConfig):
        raise ValueError("it is not an object")
    return config


def digest(stored: Any) -> str:
    """A hash of a stored configuration, by which a job recognizes the one that it was submitted with."""
    as_read = json.loads(json.dumps(stored))  # keys that are numbers become text
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def checked_config(path: Path) -> DictConfig:
    """`read_config` checked by the schema. Raises ValueError naming the file for missing or invalid values."""
    try:
        return check(read_config(path))
    except ValueError as error:
        reason = str(error)
        raise error if reason.startswith(str(path)) else ValueError(f"{path} is damaged ({reason})") from error


def _sentence(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
