"""What coordinators publish about themselves, and who tidies up after those that are gone."""

from __future__ import annotations

import json
import os
from pathlib import Path

from orchestrator.running import Presence, running
from orchestrator.settings import Settings


def test_requests_reach_a_live_coordinator_once(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    presence = Presence(settings)
    presence.publish([{"name": "a"}])
    (found,) = running(settings)
    assert (found.pid, found.deployments) == (os.getpid(), ({"name": "a"},))
    found.request_stop("a/b c")
    assert presence.stop_requests() == ["a/b c"]
    assert presence.stop_requests() == []
    presence.withdraw()
    assert running(settings) == []
    assert presence.stop_requests() == []
    assert list(presence.folder.iterdir()) == []


def test_the_files_of_coordinators_that_are_gone_are_removed_whatever_they_hold(tmp_path: Path) -> None:
    folder = tmp_path / "coordinators"
    folder.mkdir()
    for name, content in {
        "gone": {"pid": os.getpid(), "started": 0},
        "odd": [],
        "bare": {"pid": os.getpid()},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
        (folder / f"{name}.stop" / "inside").mkdir(parents=True)
    assert running(Settings(home=tmp_path)) == []
    assert list(folder.iterdir()) == []
