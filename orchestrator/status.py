"""What a coordinator runs, as plain values: for `Orchestrator.status()` and `orchestrator ps`."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.deployments import Deployment
from orchestrator.replicas import Replica

__all__ = ["DeploymentStatus", "ReplicaStatus", "Status", "status_of"]


@dataclass(frozen=True)
class ReplicaStatus:
    """One worker: `memory` is its resident bytes, `last_error` the first line of the latest, `log` its last life's file."""

    name: str
    state: str
    pid: int | None
    device: str | None
    in_flight: int
    restarts: int
    memory: int | None
    last_error: str | None
    log: str | None


@dataclass(frozen=True)
class DeploymentStatus:
    """One model: what it is, what it runs in and how its replicas do.

    `recovered` counts the calls that ran out of memory and came to their result all the same.
    """

    name: str
    family: str
    environment: str
    checkpoint: str | None
    queued: int
    idle_seconds: float
    replicas: tuple[ReplicaStatus, ...]
    recovered: int = 0


@dataclass(frozen=True)
class Status:
    """Everything that a coordinator runs."""

    deployments: tuple[DeploymentStatus, ...]

    def __str__(self) -> str:
        lines = []
        for deployment in self.deployments:
            for replica in deployment.replicas:
                memory = "" if replica.memory is None else f", {replica.memory / 2**20:.0f} MiB"
                lines.append(
                    f"{replica.name}: {replica.state} on {replica.device or '-'} "
                    f"({deployment.family}, environment {deployment.environment}, pid {replica.pid or '-'}{memory})"
                )
        return "\n".join(lines) or "nothing is loaded"


def status_of(deployment: Deployment) -> DeploymentStatus:
    """One deployment, now."""
    what = deployment.specification
    replicas = tuple(_status_of(replica) for replica in deployment.replicas)
    return DeploymentStatus(
        name=what.name,
        family=what.family.label,
        environment=what.environment.id,
        checkpoint=what.checkpoint.spec if what.checkpoint is not None else None,
        queued=len(deployment.scheduler.waiting),
        idle_seconds=round(deployment.idle_for(), 1),
        replicas=replicas,
        recovered=deployment.scheduler.recovered,
    )


def _status_of(replica: Replica) -> ReplicaStatus:
    process = replica.process  # once: another thread may be taking it down
    return ReplicaStatus(
        name=replica.name,
        state=str(replica.state),
        pid=process.pid if process is not None else None,
        device=replica.placement.device if replica.placement is not None else None,
        in_flight=replica.in_flight,
        restarts=replica.restarts,
        memory=process.memory() if process is not None else None,
        last_error=str(replica.last_error).splitlines()[0] if replica.last_error is not None else None,
        log=str(replica.log) if replica.log is not None else None,
    )
