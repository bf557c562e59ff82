"""A mixed load with random faults: what is lost, doubled, or left behind. Anything but 0 is a failure (exit code 1).

python benchmarks/soak.py [--seconds 60] [--seed 1] [--json]

Several threads call, submit, stream, cancel, load and unload models in two environments (numpy 1 and 2), while others
kill, stop and interrupt workers and keepers, and end whole client processes with SIGKILL. Every call has a number that
its worker writes to a file before it answers. In the end

- *lost* are calls without an answer and without a typed error, or with the answer of another;
- *doubled* are calls whose number stands in the file twice though they were not declared idempotent;
- *leaked* is what exists afterwards and did not before: processes, threads, descriptors, shared segments, socket
  folders, held locks, places in the ledger.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from soak_account import Tally, adopt, close_account, present, show

from orchestrator import Model, Orchestrator
from orchestrator.errors import OrchestratorError
from orchestrator.settings import load_settings

MODEL = f"{Path(__file__).with_name('soak_model.py')}:Soaked"
NUMPY = (["numpy==1.26.4"], ["numpy==2.2.6"])
MISBEHAVIOURS = (
    "raise", "sys_exit", "exit_0", "exit_3", "segfault", "flood", "close_outputs", "fork", "grandchild", "thread",
    "ignore_sigterm", "hold_the_lock", "unsendable", "unknown_dtype",
)  # fmt: skip
PATIENCE = 90.0
"""Seconds that a call may take when the machine is busy; one that has nothing to say by then is lost."""
CLIENT = """
import sys
from orchestrator import Orchestrator
with Orchestrator() as orc:
    model = orc.load(sys.argv[1], with_=["numpy==2.2.6"], effects=sys.argv[2], orphans=sys.argv[3])
    model.misbehave("client", "grandchild")
    print("ready", flush=True)
    while True:
        model.echo(b"x" * 100_000)
"""
NEXT = "from orchestrator.processes.folder import make_folder, remove_folder; remove_folder(make_folder())"


class Soak:
    """One run. `work` holds the file of effects, the sockets' folders and the pids of grandchildren."""

    def __init__(self, seed: int, work: Path) -> None:
        self.seed, self.work = seed, work
        self.effects, self.orphans = work / "effects", work / "orphans"
        self.effects.touch()
        self.orphans.touch()
        self.tally = Tally()
        self.numbers = itertools.count(1)
        self.over = threading.Event()
        self.models: dict[str, Model] = {}
        settings = dataclasses.replace(
            load_settings(), heartbeat_timeout=4.0, stop_grace=1.0, queue_depth=200, load_timeout=PATIENCE
        )
        self.orc = Orchestrator(settings=settings)

    def load(self, name: str, replicas: int = 1) -> Model:
        return self.orc.load(
            MODEL, with_=NUMPY[len(name) % 2], name=name, replicas=replicas,
            effects=str(self.effects), orphans=str(self.orphans),
        )  # fmt: skip

    def run(self, seconds: float) -> None:
        for name, replicas in (("a", 2), ("bb", 1), ("ccc", 1)):
            self.models[name] = self.load(name, replicas)
        jobs = [
            self.callers,
            self.callers,
            self.callers,
            self.streamers,
            self.loaders,
            self.breakers,
            self.clients,
        ]
        threads = [
            threading.Thread(target=self._guarded, args=(job, random.Random(self.seed * 100 + number)), name=job.__name__)
            for number, job in enumerate(jobs)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        self.over.wait(seconds)
        self.over.set()
        end = time.monotonic() + PATIENCE + 30
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0))
            if thread.is_alive():
                self.tally.lost.append(f"the thread {thread.name} hangs")
        if self.tally.lost:
            import faulthandler

            faulthandler.dump_traceback(all_threads=True)
        self.orc.close()

    def _guarded(self, job: Callable[[random.Random], None], rng: random.Random) -> None:
        try:
            while not self.over.is_set():
                job(rng)
        except BaseException as error:
            self.tally.lost.append(f"{job.__name__}: {type(error).__name__}: {error}")
            raise

    # -- the load --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def counted(self, kind: str) -> Iterator[int]:
        """One call with its number: what it raises is counted; an error that is not ours is a loss."""
        number = next(self.numbers)
        tally = self.tally
        tally.add(tally.calls, kind)
        try:
            yield number
        except (OrchestratorError, CancelledError) as error:
            tally.add(tally.errors, type(error).__name__)
        except (Exception, FutureTimeout) as error:
            tally.lost.append(f"{kind} {number}: {type(error).__name__}: {error}")
        else:
            tally.add(tally.answers, kind)
            tally.answered.add(number)

    def check(self, kind: str, number: int, found: Any, wanted: Any) -> None:
        if not (np.array_equal(found, wanted)):
            self.tally.lost.append(f"{kind} {number}: the answer of another call")

    def callers(self, rng: random.Random) -> None:
        model = self.models[rng.choice(list(self.models))]
        size = rng.choice((1, 1000, 100_000, 3_000_000, 20_000_000))
        kind = rng.choice(
            ("call", "call", "deadline", "submit", "cancel", "retries", "misbehave", "stubborn")
        )
        with self.counted(kind) as number:
            wanted = np.full(size, number % 251, np.uint8)
            if kind == "call":
                self.check(kind, number, model.call("effect", number, size, rng.random() * 0.1), wanted)
            elif kind == "deadline":
                self.check(
                    kind, number, model.call("effect", number, size, 0.2, timeout=rng.random()), wanted
                )
            elif kind == "submit":
                self.check(kind, number, model.submit("effect", number, size).result(PATIENCE), wanted)
            elif kind == "cancel":
                future = model.submit("effect", number, size, 0.3)
                time.sleep(rng.random() * 0.2)
                future.cancel()
                self.check(kind, number, future.result(PATIENCE), wanted)
            elif kind == "retries":
                self.tally.repeatable.add(number)
                self.check(kind, number, model.call("effect", number, size, 0.1, retries=3), wanted)
            elif kind == "stubborn" and rng.random() < 0.1:
                model.call("misbehave", number, "stubborn", timeout=0.5)
            else:
                how = rng.choice(MISBEHAVIOURS)
                self.check(kind, number, model.call("misbehave", number, how, timeout=PATIENCE), how)
        self.reload(model)
        time.sleep(rng.random() * 0.02)

    def streamers(self, rng: random.Random) -> None:
        model = self.models[rng.choice(list(self.models))]
        kind = rng.choice(("stream", "stream closed", "stream of one that dies"))
        with self.counted(kind) as number:
            die_at = 20 if kind == "stream of one that dies" and rng.random() < 0.2 else -1
            stream = model.stream("count", number, 50, die_at)
            for expected, piece in enumerate(stream):
                self.check(kind, number, piece, np.full(1000, expected % 251, np.uint8))
                if kind == "stream closed" and expected == 10:
                    stream.close()  # type: ignore[attr-defined]
                    return
            if expected != 49:
                self.tally.lost.append(f"{kind} {number}: {expected + 1} of 50 pieces")
        time.sleep(rng.random() * 0.05)

    def loaders(self, rng: random.Random) -> None:
        name = "load" + "x" * rng.randrange(2)
        with self.counted("load"), self.load(name) as model:
            future = model.submit("effect", number := next(self.numbers), 1000)
            if rng.random() < 0.5:
                model.unload()  # it drains
            self.check("load", number, future.result(PATIENCE), np.full(1000, number % 251, np.uint8))
        time.sleep(rng.random() * 0.5)

    def reload(self, model: Model) -> None:
        """A quarantined model is asked for again, by whoever sees it first."""
        refusal = model._deployment.refusal()
        if refusal is None or self.over.is_set():
            return
        with contextlib.suppress(OrchestratorError):
            self.models[model.name] = self.load(model.name, len(model._deployment.replicas))
            self.tally.add(self.tally.faults, "quarantined, and loaded again")

    # -- the faults ------------------------------------------------------------------------------------------------------

    def breakers(self, rng: random.Random) -> None:
        time.sleep(0.3 + rng.random() * 1.5)
        deployment = self.models[rng.choice(list(self.models))]._deployment
        processes = [replica.process for replica in deployment.replicas]
        pids = [process.pid for process in processes if process is not None]
        if not pids:
            return
        fault = rng.choice(
            (
                "kill",
                "kill",
                "kill all",
                "kill the keeper",
                "terminate",
                "interrupt",
                "stop",
                "pause",
                "evict",
            )
        )
        self.tally.add(self.tally.faults, fault)
        with contextlib.suppress(OSError, psutil.Error):
            if fault == "kill all":
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            elif fault == "kill the keeper":
                os.kill(psutil.Process(pids[0]).ppid(), signal.SIGKILL)
            elif fault == "pause":
                os.kill(pids[0], signal.SIGSTOP)
                time.sleep(1)
                os.kill(pids[0], signal.SIGCONT)
            elif fault == "evict":
                deployment.evict(1.0)
            else:
                numbers = {
                    "kill": signal.SIGKILL,
                    "terminate": signal.SIGTERM,
                    "interrupt": signal.SIGINT,
                    "stop": signal.SIGSTOP,
                }
                os.kill(pids[0], numbers[fault])

    def clients(self, rng: random.Random) -> None:
        """A whole client process that ends in the middle of its calls."""
        command = [sys.executable, "-c", CLIENT, MODEL, str(self.effects), str(self.orphans)]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        with client.stdout:
            if rng.random() < 0.5:
                client.stdout.readline()  # it is ready, and calls
            self.over.wait(rng.random() * 2)
            client.send_signal(rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
            client.wait()
        self.tally.add(self.tally.faults, "a client's end")
        self.over.wait(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the account as JSON")
    arguments = parser.parse_args()
    adopt()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        work = Path(folder)
        (work / "run").mkdir(mode=0o700)
        os.environ["XDG_RUNTIME_DIR"] = str(work / "run")  # where the sockets' folders are made
        with Orchestrator() as orc:  # what is made once: environments, the watcher, zmq's context
            for requirements in NUMPY:
                orc.load(
                    MODEL, with_=requirements, effects=str(work / "warm"), orphans=str(work / "warm")
                ).unload()
        gc.collect()
        time.sleep(0.5)
        before = present(work)
        soak = Soak(arguments.seed, work)
        soak.run(arguments.seconds)
        tally = soak.tally
        soak.models.clear()
        soak.orc = None  # type: ignore[assignment]
        # A client that is killed in the millisecond between a folder and its keeper leaves it to the next client.
        subprocess.run([sys.executable, "-c", NEXT], check=True)
        close_account(tally, soak.effects, before, work)
    show(tally, arguments.seconds, arguments.seed, as_json=arguments.json)
    sys.exit(0 if tally.clean else 1)


if __name__ == "__main__":
    main()
