"""One method over many items: chunks of like length for all replicas of a model, one result in the items' order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from orchestrator.errors import Cancelled, ConfigError, OrchestratorError, Overloaded, RemoteError, WorkerDied
from orchestrator.events import Event, Listener
from orchestrator.scheduling import SLOTS, Call
from orchestrator.waiting import next_of
from orchestrator.worker.interrupts import undisturbed

__all__ = ["Spread", "Spreadable"]

NAMED = 8  # items that an error names; it counts the others


class Spreadable(Protocol):
    """What is needed of a deployment."""

    @property
    def name(self) -> str: ...
    @property
    def replicas(self) -> Sequence[object]: ...
    def submit(self, call: Call) -> Future[Any]: ...


@dataclass(eq=False)
class Chunk:
    """The items of one call, by their places, and how often a worker died that had it."""

    places: list[int]
    deaths: int = 0


class Spread:
    """A method over a list of items. `run` gives the result, in the caller's thread; `cancel` ends it from any other.

    A chunk whose worker died goes to another replica, up to `retries` times. Of such chunks one is under way at a time:
    a chunk that shared a worker with the one that kills it is not taken for the killer the next time.
    """

    def __init__(
        self,
        deployment: Spreadable,
        call: Call,
        items: Iterable[Any],
        chunk_size: int,
        key: Callable[[Any], float] | None,
        listener: Listener,
    ) -> None:
        self.deployment, self.call, self.listener = deployment, call, listener
        self.items = _indexable(items)
        if chunk_size < 1:
            raise ConfigError(f"chunk_size must be 1 or more, not {chunk_size}")
        places = _by_length(self.items, key)
        cuts = range(
            0, max(1, len(places)), chunk_size
        )  # no items: one call all the same, for its empty result
        self._fresh = deque(Chunk(places[start : start + chunk_size]) for start in cuts)
        self._suspects: deque[Chunk] = deque()
        self._under_way: dict[Future[Any], Chunk] = {}
        self._news: SimpleQueue[Future[Any] | None] = SimpleQueue()
        self._result: Any = None
        self._done = 0

    def run(self) -> Any:
        """Makes the calls and joins what they give.

        Raises:
            RemoteError, WorkerDied, DeadlineExceeded …: what a call raised, with the items that it was about; calls
                under way are cancelled. Cancelled: `cancel` was called. ConfigError: the results are not one an item.
        """
        with undisturbed:
            try:
                self._send()
                while self._under_way:
                    self._take(next_of(self._news))
                    self._send()
            finally:
                for future in list(self._under_way):
                    future.cancel()
        return self._result

    def cancel(self) -> bool:
        """Ends `run`, which cancels every call under way."""
        self._news.put(None)
        return True

    def _send(self) -> None:
        """Keeps every replica busy: one call runs there, the next one's items wait."""
        while len(self._under_way) < SLOTS * len(self.deployment.replicas):
            suspect = bool(self._suspects) and not any(chunk.deaths for chunk in self._under_way.values())
            queue = self._suspects if suspect else self._fresh
            if not queue:
                return
            chunk = queue[0]
            call = Call(
                self.call.method, (_of(self.items, chunk.places), *self.call.args), self.call.kwargs,
                self.call.deadline,
            )  # fmt: skip
            try:
                future = self.deployment.submit(call)
            except Overloaded:
                if not self._under_way:
                    raise
                return  # other callers fill the queue: there is room again when a call of ours is over
            except OrchestratorError as error:
                raise self._about(error, chunk) from None
            queue.popleft()
            self._under_way[future] = chunk
            future.add_done_callback(self._news.put)

    def _take(self, future: Future[Any] | None) -> None:
        if future is None:
            raise Cancelled(f"{self._what} was cancelled after {self._done} of {len(self.items)} items")
        chunk = self._under_way.pop(future)
        try:
            value = future.result()
        except WorkerDied as death:
            chunk.deaths += 1
            if chunk.deaths > self.call.retries:
                raise self._about(death, chunk) from None
            self._suspects.append(chunk)
            self._tell("a worker died; its items go to another")
        except CancelledError:
            raise Cancelled(f"{self._what} was cancelled") from None
        except OrchestratorError as error:
            raise self._about(error, chunk) from None
        else:
            self._keep(chunk, value)

    def _keep(self, chunk: Chunk, value: Any) -> None:
        if not chunk.places:
            self._result = value
            return
        try:
            self._result = scatter(self._result, chunk.places, value, len(self.items))
        except ValueError as reason:
            raise ConfigError(
                f"{self._what}: {reason}",
                hint="map needs a method that gives one result for each item of a list",
            ) from None
        self._done += len(chunk.places)
        self._tell("map")

    def _tell(self, message: str) -> None:
        total = len(self.items)
        subject = f"{self.deployment.name}.{self.call.method}"  # what a worker tells goes by the model's name
        self.listener(Event("call", subject, message, self._done, total, "items", self._done == total))

    def _about(self, error: OrchestratorError, chunk: Chunk) -> OrchestratorError:
        """The error with the items that it is about."""
        places = sorted(chunk.places)
        more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
        named = ", ".join(map(str, places[:NAMED]))
        error.message = f"{error.message} (items {named}{more}, of {len(self.items)}, counted from 0)"
        if isinstance(error, RemoteError):
            error.details["items"] = places
        return error

    @property
    def _what(self) -> str:
        return f"{self.deployment.name}.map({self.call.method!r})"


def scatter(into: Any, places: list[int], value: Any, count: int) -> Any:
    """`into` with the rows of `value` at their places: an array, a list, or a mapping of such; None is made by the first.

    Raises:
        ValueError: `value` has not one row for each place, or is of another kind than those before.
    """
    if isinstance(value, Mapping):
        if into is not None and into.keys() != value.keys():
            raise ValueError(f"one call gave the keys {sorted(value)}, another {sorted(into)}")
        return {
            key: scatter(None if into is None else into[key], places, row, count)
            for key, row in value.items()
        }
    if isinstance(value, list):
        _one_each(len(value), places)
        if into is None:
            into = [None] * count
        if not isinstance(into, list):
            raise ValueError(f"one call gave a list, another a {type(into).__name__}")
        for place, row in zip(places, value, strict=True):
            into[place] = row
        return into
    if not hasattr(value, "shape") or not value.shape:
        raise ValueError(f"{len(places)} items gave a {type(value).__name__}")
    return _scatter_array(into, places, value, count)


def _scatter_array(into: Any, places: list[int], value: Any, count: int) -> Any:
    """The same for numpy arrays, torch tensors and `RawTensor`s, which are all (rows, …)."""
    _one_each(value.shape[0], places)
    if into is None:
        into = _room(value, count)
    shapes = [tuple(array.shape[1:]) for array in (into, value)]
    if type(into) is not type(value) or shapes[0] != shapes[1] or into.dtype != value.dtype:
        raise ValueError(
            f"one call gave rows of {into.dtype}, {shapes[0]}, another of {value.dtype}, {shapes[1]}:"
            " they cannot be one array"
        )
    rows, more = (getattr(array, "data", array) if _is_raw(array) else array for array in (into, value))
    rows[places] = more
    return into


def _room(value: Any, count: int) -> Any:
    import numpy as np

    shape = (count, *value.shape[1:])
    if isinstance(value, np.ndarray):
        return np.empty(shape, value.dtype)
    if _is_raw(value):
        return type(value)(value.dtype, np.empty(shape, value.data.dtype))
    return value.new_empty(shape)


def _is_raw(value: Any) -> bool:
    from orchestrator.worker.values import RawTensor

    return isinstance(value, RawTensor)


def _one_each(rows: int, places: list[int]) -> None:
    if rows != len(places):
        raise ValueError(f"{len(places)} items gave {rows} results")


def _indexable(items: Iterable[Any]) -> Any:
    """The items as a list; an array (rows, …) stays one, and is sent as one."""
    if isinstance(items, str | bytes | Mapping):
        raise ConfigError(f"map takes a list of items, not one {type(items).__name__}")
    return items if hasattr(items, "shape") else list(items)


def _of(items: Any, places: list[int]) -> Any:
    return [items[place] for place in places] if isinstance(items, list) else items[places]


def _by_length(items: Any, key: Callable[[Any], float] | None) -> list[int]:
    """The items' places, longest first (a lack of memory shows at once, the end is even); as they come without a key."""
    order = list(range(len(items)))
    if key is None and isinstance(items, list) and all(isinstance(item, str) for item in items):
        key = len
    if key is None:
        return order
    lengths = [float(key(item)) for item in items]
    if not all(map(math.isfinite, lengths)):
        raise ConfigError("key= gave a length that is not a finite number")
    return sorted(order, key=lambda place: -lengths[place])
