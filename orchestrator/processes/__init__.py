"""Worker processes: started in their environment, watched, ended, and their end put into words."""

from orchestrator.processes.sandbox import require_bubblewrap
from orchestrator.processes.worker_process import WorkerProcess

__all__ = ["WorkerProcess", "require_bubblewrap"]
