"""What runs inside every family's environment. Python 3.8, pyzmq, msgpack, numpy; nothing else of this project.

For families: `from orchestrator.worker import progress, cancelled, Placement`.
"""

from __future__ import annotations

from orchestrator.worker.context import Placement, cancelled, progress

__all__ = ["Placement", "cancelled", "progress"]
