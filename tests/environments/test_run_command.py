"""Programs that we run: their words, their end, and the end of all that they started."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from orchestrator.environments.commands import cancel, cancellable, run_command

SLEEPER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"


@pytest.fixture
def run(tmp_path):
    def call(code, **options):
        options.setdefault("say", lambda _: None)
        return run_command([sys.executable, "-c", code], environ=os.environ, cwd=tmp_path, **options)

    return call


def alive():
    return [
        child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE
    ]


def test_output_code_and_words(run):
    said = []
    done = run("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)", say=said.append)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
    assert said == ["err"]


def test_much_output_does_not_block(run):
    done = run("import sys; sys.stderr.write('e' * 3_000_000); sys.stdout.write('o' * 3_000_000)", timeout=30)
    assert (len(done.stdout), len(done.stderr)) == (3_000_000, 3_000_000)


def test_a_timeout_ends_the_whole_group(run):
    with pytest.raises(subprocess.TimeoutExpired):
        run(SLEEPER, timeout=0.7)
    assert not alive()


def test_one_that_ignores_sigterm_is_killed(run):
    with pytest.raises(subprocess.TimeoutExpired):
        run("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", timeout=0.7)
    assert not alive()


def test_cancelling_reaches_other_threads(run):
    signal = threading.Event()
    ended = []

    def work():
        with cancellable(signal):
            for _ in range(2):
                try:
                    run(SLEEPER)
                except KeyboardInterrupt:
                    ended.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    while not alive():
        time.sleep(0.01)
    time.sleep(0.2)
    cancel(signal)
    thread.join(10)
    assert len(ended) == 2  # what was running, and what was about to start
    assert not alive()


def test_a_grandchild_that_keeps_the_pipe_does_not_hold_us(run):
    started = time.monotonic()
    done = run("import subprocess, sys; subprocess.Popen(['sleep', '8']); print('done')")
    assert done.stdout == "done\n"
    assert time.monotonic() - started < 7
    for child in psutil.process_iter(["cmdline"]):
        if child.info["cmdline"] == ["sleep", "8"]:
            child.kill()
