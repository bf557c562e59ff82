"""An answer that a worker gave is not lost, however the worker ends."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from conditions import LONG
from house import House


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_an_answer_on_its_way_survives_the_worker(
    house: House, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The worker has answered and is killed before this side has read the answer."""
    model = house.load()
    replica = model._deployment.replicas[0]
    link, process = replica.link, replica.process
    assert link is not None
    assert process is not None
    channel = link.channel
    monkeypatch.setattr(link, "silence", lambda: 0.0)  # no ping: what comes is the answer
    model.echo()  # and the answer to an earlier ping has come
    with channel._io:  # nobody reads
        answer = link.submit("zeros", [size])
        channel._flush()
        assert channel._transport._socket.poll(LONG * 1000), "no answer came"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(LONG) == -signal.SIGKILL
    assert np.array_equal(answer.result(LONG), np.zeros(size, np.uint8))
