"""What a wheel holds beside the package; an editable install reads it from the checkout."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLUGINS = {"hydra_plugins/capsule_sweeps.py": "hydra_plugins/capsule_sweeps.py"}  # a namespace package: Hydra's own
DATA = {"conf": "capsule_sweeps/conf", "analysis/published.yaml": "capsule_sweeps/analysis/published.yaml"}


class Hook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build_data["force_include_editable"] = PLUGINS
        build_data["force_include"] = PLUGINS | DATA
