"""A replica: one worker process of a model, over all its lives: it starts, dies and comes back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.backoff import Backoff
from orchestrator.devices import CPU
from orchestrator.errors import (
    ConfigError,
    LoadError,
    OrchestratorError,
    PlacementError,
    Quarantined,
    WorkerDied,
    WorkerError,
    WorkerStartError,
)
from orchestrator.events import Event, Listener, ignore
from orchestrator.links import LoadReport, WorkerLink
from orchestrator.placement import Placement, Reservation, measured_memory
from orchestrator.processes import WorkerProcess
from orchestrator.settings import Settings
from orchestrator.specification import Room, Specification
from orchestrator.states import TRANSITIONS, ReplicaState
from orchestrator.waiting import taken

__all__ = ["Replica"]

log = logging.getLogger(__name__)

INTERRUPT_AFTER = 1.0  # seconds that a cancelled call has to end by itself
LAST_GRACE = 2.0  # seconds at most between SIGTERM and SIGKILL, after it was asked in vain
INTERRUPT_EVERY = 0.5  # seconds; one that comes between two steps of ours is lost
DRAIN_PAUSE = 0.02  # seconds between two looks whether those that have a slot have made their calls


class Replica:
    """One worker process of a deployment, over all its lives."""

    def __init__(
        self,
        specification: Specification,
        index: int,
        settings: Settings,
        room: Room,
        changed: Callable[[Replica], None],
        listener: Listener = ignore,
    ) -> None:
        self.specification = specification
        self.index = index
        self.settings = settings
        self.room = room
        self.changed = changed
        self.listener = listener
        self.name = specification.name if specification.replicas == 1 else f"{specification.name}.{index}"
        self.state = ReplicaState.COLD
        self.process: WorkerProcess | None = None
        self.ready_link: WorkerLink | None = None
        self.placement: Placement | None = None
        self.report: LoadReport | None = None
        self.in_flight = 0
        self.restarts = 0
        self.last_error: OrchestratorError | None = None
        self.log: Path | None = None
        """The log file of the present life, or of the last one."""
        self.no_room: PlacementError | None = None
        """Why the last start that nobody waited for found no place."""
        self._backoff = Backoff()
        self._reservation: Reservation | None = None
        self._moved: tuple[Placement, Reservation] | None = None
        """Where the next life begins, if that is settled already."""
        self._link: WorkerLink | None = None  # from hello to the end; `ready_link` is what gets calls
        self._lock = threading.RLock()
        self._starting = threading.Lock()
        self._woken = False  # a thread is on its way to start it
        self._stopping = threading.Lock()
        self._closed = threading.Event()

    @property
    def alive(self) -> bool:
        """Whether it holds a place: a worker runs or is being started."""
        return self._reservation is not None

    @property
    def link(self) -> WorkerLink | None:
        """The link while the replica is ready, else None; a link that has just died is none, before we are told."""
        link = self.ready_link
        return link if link is not None and link.alive else None

    def refusal(self) -> OrchestratorError | None:
        """Why this replica is never ready again by itself, or None."""
        if self._closed.is_set():
            return self._unloaded()
        if self.state is ReplicaState.QUARANTINED:
            return Quarantined(
                f"{self.name} is quarantined: {self.last_error}",
                hint="mend the cause, then load the model again",
            )
        return None

    def _unloaded(self) -> WorkerError:
        return WorkerError(f"{self.specification.name} was unloaded", hint="load the model again")

    def wake(self) -> None:
        """Starts a cold replica in the background."""
        with self._lock:
            if self.state is not ReplicaState.COLD or self._woken:
                return
            self._woken = True
        try:
            threading.Thread(target=self._start_quietly, name=f"start {self.name}", daemon=True).start()
        except RuntimeError:  # no more threads
            self._woken = False
            raise

    def start(self, listener: Listener) -> None:
        """Places, spawns and loads a cold replica; returns when it is ready. One in another state is left alone.

        Raises:
            PlacementError, WorkerStartError, WorkerDied, LoadError: as the step that failed.
            WorkerError: it was unloaded.
        """
        with taken(self._starting):
            found = self.state
            if found not in (ReplicaState.COLD, ReplicaState.CLOSED):
                return
            try:
                self._live(listener)
            except BaseException:
                with self._lock:
                    if self.state is ReplicaState.STARTING:
                        self._become(ReplicaState.COLD)
                raise

    def refuse(self) -> None:
        """Takes no more calls, for good; those that the worker has may finish. `stop` ends it."""
        self._closed.set()
        with self._lock:
            self.ready_link = None
            link = self._link if self.state is ReplicaState.READY else None
        if link is not None:
            link.bye()

    def stop(self, grace: float) -> None:
        """Ends the worker for good: what it has to do may finish in `grace` seconds; then SIGTERM, then SIGKILL."""
        self._closed.set()
        with taken(self._stopping):
            with self._lock:
                if self.state is ReplicaState.CLOSED:
                    return
                drains = self.state is ReplicaState.READY
                if drains:
                    self._become(ReplicaState.DRAINING)
            try:
                self._take_down(grace, drains=drains)
            finally:
                self._become(ReplicaState.CLOSED)

    def rest(self, grace: float) -> bool:
        """Ends the worker of a ready replica as `stop` does, until a call starts it again; False if it was not ready.

        The caller sees to it that it gets no new calls meanwhile.
        """
        with taken(self._stopping):
            with self._lock:
                if self.state is not ReplicaState.READY:
                    return False
                self._become(ReplicaState.DRAINING)
            try:
                self._take_down(grace, drains=True)
            finally:
                self._become(ReplicaState.COLD)
        return True

    def move(self) -> bool:
        """Starts the worker, which has no calls, anew on other accelerators; False where it must stay, or has gone.

        Raises:
            PlacementError, WorkerStartError, WorkerDied, LoadError: it has left, and did not arrive.
        """
        before = self.placement
        if before is None or before.device == CPU:
            return False
        try:
            placement, reservation = self.room.reserve(self.specification, self.index, away=before.devices)
        except PlacementError:
            return False
        self._moved = placement, reservation
        try:
            # A CPU, a hundred times slower, is not what was asked for.
            if placement.device != CPU and self.rest(self.settings.stop_grace):
                self.start(self.listener)
        finally:
            if stays := self._next_place() is not None:
                reservation.close()
        return not stays

    def check_health(self) -> None:
        """Ends what hangs: a cancelled call that goes on is interrupted, then its worker replaced; so is a silent one."""
        link, process = self._link, self.process
        if link is None or process is None or self.state not in (ReplicaState.STARTING, ReplicaState.READY):
            return
        silence, overrun = link.silence(), link.overrun()
        if silence > self.settings.heartbeat_timeout:
            # An import may hold the interpreter's lock for minutes; what is stopped will not end it.
            if self.state is ReplicaState.STARTING and not process.stopped:
                return
            log.warning("%s gave no sign of life for %.0f s; it is killed", self.name, silence)
            process.kill()
        elif overrun > INTERRUPT_AFTER + self.settings.stop_grace:
            log.warning("%s goes on with a cancelled call; it is replaced", self.name)
            link.replaced = True
            process.kill()
        elif overrun > INTERRUPT_AFTER:
            link.recall()
            process.interrupt()

    def _next_place(self) -> tuple[Placement, Reservation] | None:
        """Where the next life begins if that is settled; whoever asks has it."""
        with self._lock:
            place, self._moved = self._moved, None
        return place

    # -- one life ---------------------------------------------------------------------------------------

    def _bring_up(self, listener: Listener) -> None:
        what = self.specification
        listener(Event("worker", self.name, "finding a place"))
        placement, reservation = self._next_place() or self.room.reserve(what, self.index)
        self.placement, self._reservation = placement, reservation
        listener(Event("worker", self.name, f"starting on {placement.device}"))
        self.process = process = WorkerProcess.spawn(
            what.environment,
            worker_file=what.family.worker_file,
            worker_class=what.family.worker_class,
            name=self.name,
            settings=self.settings,
            variables=what.family.environment,
            placement=placement,
            sandbox=what.family.sandbox,
            readable=what.files,
        )
        self.log = process.log_path
        if self._closed.is_set():  # `stop` may have looked before there was a process
            raise self._unloaded()
        link = WorkerLink(process)
        if self.listener is not ignore:
            link.watch(self.listener, self.name)
        link.hello(self.settings.start_timeout)
        self._link = link
        process.note(
            f"pid {process.pid} on {placement.device}, environment {what.environment.id} ({what.family.label})"
        )
        listener(Event("worker", self.name, f"ready, pid {process.pid}", finished=True))
        listener(Event("load", self.name, "loading"))
        self.report = link.load(
            None if what.checkpoint is None else str(what.checkpoint.path),
            placement.for_worker(),
            dict(what.options),
            timeout=self.settings.load_timeout,
            listener=listener,
            subject=self.name,
        )
        measured = measured_memory(process.pid, placement, self.report.memory)
        reservation.correct(measured, worker=process.pid)
        listener(Event("load", self.name, f"loaded in {self.report.seconds:.1f} s", finished=True))

    def _live(self, listener: Listener) -> None:
        """One start: ready, or taken down again and the error raised."""
        with self._lock:
            if self._closed.is_set():
                raise self._unloaded()
            self.no_room = None
            self._become(ReplicaState.STARTING)
        try:
            self._bring_up(listener)
            with self._lock:
                if self._closed.is_set():
                    raise self._unloaded()
                self.ready_link = link = self._link
                process = self.process
                self._become(ReplicaState.READY)
        except BaseException as error:
            if isinstance(error, OrchestratorError):
                self.last_error = error
            self._take_down(grace=0.0)
            if isinstance(error, WorkerError) and self._closed.is_set():
                raise self._unloaded() from None
            raise
        if process is not None and link is not None:
            link.on_death(lambda death: self._died(process, death))

    def _take_down(self, grace: float, *, drains: bool = False) -> None:
        with self._lock:
            self.ready_link = None
            link, self._link = self._link, None
            process, self.process = self.process, None
            reservation, self._reservation = self._reservation, None
        try:
            if link is not None and process is not None and drains:
                self._drain(link, process, grace)
                grace = min(grace, LAST_GRACE)
            if process is not None:
                process.stop(grace)
        except BaseException:  # Ctrl-C: then at once
            if process is not None:
                process.kill()
            raise
        finally:
            if link is not None:
                link.close(0)
            if reservation is not None:
                reservation.close()

    def _drain(self, link: WorkerLink, process: WorkerProcess, grace: float) -> None:
        """Asks the worker to end when those that have a slot have made their calls; it finishes what it has."""
        end = time.monotonic() + grace
        while process.alive and (left := end - time.monotonic()) > 0:
            if not self.in_flight:
                link.bye()
            if link.overrun() and not link.in_flight:
                process.interrupt()  # it goes on with what nobody waits for
            process.wait(min(DRAIN_PAUSE if self.in_flight else INTERRUPT_EVERY, left))

    def _died(self, process: WorkerProcess, death: WorkerDied) -> None:
        with self._lock:
            if self.process is not process or self.state is not ReplicaState.READY:
                return  # it was stopped on purpose
            ours = self._link is not None and self._link.replaced  # it was we who ended it
            self._fell(death, counts=not ours)

    def _fell(self, error: OrchestratorError, *, counts: bool = True) -> None:
        """A life ended, or did not begin: there is another one after a pause, unless there were too many."""
        self.last_error = error
        self._backoff.note(counts=counts)
        hopeless = isinstance(error, LoadError | ConfigError) or self._backoff.exhausted
        self._become(ReplicaState.QUARANTINED if hopeless else ReplicaState.BACKOFF)
        threading.Thread(target=self._come_back, name=f"restart {self.name}", daemon=True).start()

    def _come_back(self) -> None:
        self._take_down(grace=0.0)
        if self.state is not ReplicaState.BACKOFF or self._closed.wait(self._backoff.pause):
            return
        self.restarts += 1
        self._start_quietly()

    def _start_quietly(self) -> None:
        """Starts without anybody waiting for the outcome: a failure counts as a death."""
        with self._starting:
            self._woken = False
            found = self.state
            if found not in (ReplicaState.COLD, ReplicaState.BACKOFF):
                return
            try:
                self._live(self.listener)
            except PlacementError as error:  # no fault of its own: there may be room for the next call
                self.no_room = error
                with self._lock:
                    if self.state is ReplicaState.STARTING:
                        self._become(ReplicaState.COLD)
            except OrchestratorError as error:
                self._failed_to_start(error)
            except Exception as error:
                # Of the machine, or a fault of ours: who waits for a slot must be told.
                log.exception("%s could not be started", self.name)
                words = f"{self.name} could not be started: {type(error).__name__}: {error}"
                self._failed_to_start(WorkerStartError(words, hint=f"see {self.log or self.settings.logs}"))

    def _failed_to_start(self, error: OrchestratorError) -> None:
        with self._lock:
            if self.state is ReplicaState.STARTING:
                self._fell(error)

    def _become(self, state: ReplicaState) -> None:
        with self._lock:
            if state not in TRANSITIONS[self.state]:
                raise RuntimeError(f"{self.name}: no way from {self.state} to {state}")
            before, self.state = self.state, state
            if state is not ReplicaState.READY:
                self.ready_link = None
        bad = state in (ReplicaState.BACKOFF, ReplicaState.QUARANTINED)
        reason = f": {str(self.last_error).splitlines()[0]}" if bad and self.last_error is not None else ""
        words = f"{before} -> {state}{reason}"
        log.log(logging.WARNING if bad else logging.INFO, "%s: %s", self.name, words)
        if self.process is not None:
            self.process.note(words)
        self.listener(Event("state", self.name, words, finished=True, state=state))
        self.changed(self)
