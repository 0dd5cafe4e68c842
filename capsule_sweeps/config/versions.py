"""Differences between the supported versions of Hydra: 1.3 (with OmegaConf 2.3) and 1.4 (with 2.4)."""

from typing import Any

import hydra

# What initialize_config_dir needs, and beside it hydra.main: our own `trust` decides which code a file may name
BASE: dict[str, Any] = {"version_base": "1.3"}
MAIN = BASE

if not hydra.__version__.startswith("1.3."):
    BASE = {}
    MAIN = {"execution_whitelist": vars(hydra.utils)["UNSAFE_DISABLE_EXECUTION_CHECKS"]}
