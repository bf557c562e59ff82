"""Puts `envs/` and `workers/` into wheels as package data; an editable install finds them in the checkout."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PackageData(BuildHookInterface):  # type: ignore[type-arg]
    """A static `force-include` would also go into editable installs, and hide the package behind its data."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the two folders to a standard wheel."""
        if version != "editable":
            build_data["force_include"].update(
                envs="orchestrator/_data/envs", workers="orchestrator/_data/workers"
            )
