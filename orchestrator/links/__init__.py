"""The link to a worker: hello, load, call, stream, unload, bye."""

from orchestrator.links.link import WorkerLink
from orchestrator.links.pending import NotBegun, RemoteFuture
from orchestrator.links.reports import LoadReport, WorkerInfo

__all__ = ["LoadReport", "NotBegun", "RemoteFuture", "WorkerInfo", "WorkerLink"]
