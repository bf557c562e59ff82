"""The states of a replica, and every way between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

__all__ = ["TRANSITIONS", "ReplicaState"]


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    COLD = "cold"  # nothing runs; the next call starts it
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # it takes no new calls; those that it has may finish
    BACKOFF = "backoff"  # it died; it is started again after a pause
    QUARANTINED = "quarantined"  # it died or failed too often; a new request for the model replaces it
    CLOSED = "closed"


TRANSITIONS: Mapping[ReplicaState, frozenset[ReplicaState]] = {
    state: frozenset(ReplicaState[name] for name in following.split())
    for state, following in {
        ReplicaState.COLD: "STARTING CLOSED",
        ReplicaState.STARTING: "READY COLD BACKOFF QUARANTINED CLOSED",
        ReplicaState.READY: "DRAINING BACKOFF QUARANTINED",
        ReplicaState.DRAINING: "COLD CLOSED",
        ReplicaState.BACKOFF: "STARTING QUARANTINED CLOSED",
        ReplicaState.QUARANTINED: "CLOSED",
        ReplicaState.CLOSED: "",
    }.items()
}
"""Every change of a replica's health; each is one log record, one line in the worker's log and one event."""
