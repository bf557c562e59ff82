"""Placement: what a model needs, where it goes, why, and who has reserved what."""

from orchestrator.placement.estimate import estimate_from_config
from orchestrator.placement.ledger import Ledger, Reservation, measured_memory
from orchestrator.placement.needs import Block, Needs, needs_of
from orchestrator.placement.picture import picture
from orchestrator.placement.place import Placement, Share, place, place_replicas, threads_for
from orchestrator.placement.shapes import SHAPES, shape

__all__ = [
    "Block", "Needs", "needs_of", "estimate_from_config", "SHAPES", "shape",
    "Placement", "Share", "place", "place_replicas", "threads_for", "picture",
    "Ledger", "Reservation", "measured_memory",
]  # fmt: skip
