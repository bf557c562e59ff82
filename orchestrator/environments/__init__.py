"""Environments: which families there are, what each needs, and the folders in which they are installed."""

from orchestrator.environments.catalog import Catalog
from orchestrator.environments.environment import Environment
from orchestrator.environments.family import Family
from orchestrator.environments.store import EnvironmentStore

__all__ = ["Catalog", "Environment", "EnvironmentStore", "Family"]
