"""Checkpoints: from a spec (a path, a package, a hub's id) to a local folder that every worker can read."""

from orchestrator.checkpoints.readable import Problem, check_readable
from orchestrator.checkpoints.spec import Checkpoint, Spec, parse_spec
from orchestrator.checkpoints.store import CheckpointStore

__all__ = ["Checkpoint", "CheckpointStore", "Problem", "Spec", "check_readable", "parse_spec"]
