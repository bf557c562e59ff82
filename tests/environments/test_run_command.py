"""Programs that we run: their words, their end, and the end of all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conditions import gone, until

from orchestrator.environments.commands import cancel, cancellable, parallel, run_command
from orchestrator.waiting import result_of

SLEEPER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"


@pytest.fixture
def run(tmp_path):
    def call(code, **options):
        options.setdefault("say", lambda _: None)
        return run_command([sys.executable, "-c", code], environ=os.environ, cwd=tmp_path, **options)

    return call


@pytest.fixture
def alive():
    """The programs that this test started and that still run; other tests may have left some."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    def look():
        pids = {child.pid for child in psutil.Process().children(recursive=True)} - before
        return [pid for pid in pids if not gone(pid)]

    return look


def test_output_code_and_words(run):
    said = []
    done = run("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)", say=said.append)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
    assert said == ["err"]


def test_much_output_does_not_block(run):
    done = run(
        "import sys; sys.stderr.write('e' * 3_000_000); sys.stdout.write('o' * 3_000_000)", timeout=120
    )
    assert (len(done.stdout), len(done.stderr)) == (3_000_000, 3_000_000)


def test_a_timeout_ends_the_whole_group(run, alive):
    with pytest.raises(subprocess.TimeoutExpired):
        run(SLEEPER, timeout=0.7)
    until(lambda: not alive())


def test_one_that_ignores_sigterm_is_killed(run, alive):
    with pytest.raises(subprocess.TimeoutExpired):
        run(
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)", timeout=0.7
        )
    until(lambda: not alive())


def test_cancelling_reaches_other_threads(run, alive):
    stop = threading.Event()
    ended = []

    def work():
        with cancellable(stop):
            for _ in range(2):
                try:
                    run(SLEEPER)
                except KeyboardInterrupt:
                    ended.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    until(alive)
    time.sleep(0.2)  # more often than not it has started one of its own by then
    cancel(stop)
    thread.join(60)
    assert len(ended) == 2  # what was running, and what was about to start
    until(lambda: not alive())


def test_cancelling_reaches_what_the_threads_of_a_thread_run(run, alive):
    stop = threading.Event()
    ended = []

    def work():
        try:
            with cancellable(stop), parallel(1) as submit:
                result_of(submit(run, SLEEPER))
        except KeyboardInterrupt:
            ended.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    until(alive)
    cancel(stop)
    thread.join(60)
    assert ended
    until(lambda: not alive())


def test_a_grandchild_that_keeps_the_pipe_does_not_hold_us(run):
    done = run("import subprocess; print(subprocess.Popen(['sleep', '600']).pid)")
    pid = int(done.stdout)
    assert not gone(pid)
    os.kill(pid, signal.SIGKILL)
