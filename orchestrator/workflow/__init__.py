"""Workflows: a YAML file that runs models over items, each in its own environment."""

from orchestrator.workflow.run import Execution, Run, Workflow

__all__ = ["Execution", "Run", "Workflow"]
