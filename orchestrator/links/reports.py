"""What a worker tells about itself and about what it loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["LoadReport", "WorkerInfo"]


@dataclass(frozen=True)
class WorkerInfo:
    """The contents of a worker's hello. `times` are seconds: interpreter, bootstrap, wire."""

    pid: int
    python: str
    versions: Mapping[str, str]
    capabilities: tuple[str, ...]
    protocol: int
    times: Mapping[str, float] = field(default_factory=dict)

    @property
    def numpy(self) -> str:
        """numpy's version in the worker's environment."""
        return self.versions.get("numpy", "")


@dataclass(frozen=True)
class LoadReport:
    """What came of a load.

    Attributes:
        methods: each public method, and whether it is called or streams.
        report: what the family says of it (`self.report`): its dtype, notes …
        devices: where its torch modules are, by their path in the family's instance: `{"model": "cuda:0"}`.
        memory: bytes by device: `model` of parameters and buffers, `used` by the worker, `free`, `total`.
        seconds: of the load, as the worker saw it.
        times: seconds of the start: interpreter, bootstrap, wire, numpy, family (its imports), load (the rest).
    """

    methods: Mapping[str, Literal["call", "stream"]]
    report: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    times: Mapping[str, float] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
    memory: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
