"""This project, through its public client: a worker on numpy 1.26, this client on numpy 2."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from _driver import serve

from orchestrator import Orchestrator

ECHO = "class Echo:\n    def echo(self, value):\n        return value\n"


class Product:
    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        source = Path(self.folder.name) / "echo.py"
        source.write_text(ECHO)
        self.orchestrator = Orchestrator()
        self.model = self.orchestrator.load(f"{source}:Echo", with_=["numpy==1.26.4"])
        self.echo = self.model.echo

    def close(self) -> Any:
        self.orchestrator.close()
        self.folder.cleanup()


serve(Product)
