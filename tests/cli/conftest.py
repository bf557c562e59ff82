from __future__ import annotations

from pathlib import Path

import pytest
from command_line import MODEL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL)
    return path
