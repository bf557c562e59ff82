"""How soon a worker that died comes back, by a clock of the test's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orchestrator import backoff


def test_each_death_doubles_the_pause_until_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(backoff, "time", SimpleNamespace(monotonic=lambda: clock.now))
    lives = backoff.Backoff()
    pauses = []
    for _ in range(backoff.DEATHS_ALLOWED):
        lives.note(counts=True)
        lives.note(counts=False)
        pauses.append(lives.pause)
        assert not lives.exhausted
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0]
    lives.note(counts=True)
    assert lives.exhausted
    clock.now += backoff.DEATHS_WINDOW + 1
    lives.note(counts=True)
    assert (lives.exhausted, lives.pause) == (False, 0.25)
