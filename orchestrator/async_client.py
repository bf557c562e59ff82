"""The client for asyncio: the same models, loads and calls awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.client import Model, Orchestrator
from orchestrator.events import Listener, ignore
from orchestrator.settings import Settings
from orchestrator.status import Status

__all__ = ["AsyncModel", "AsyncOrchestrator"]


class AsyncModel:
    """A loaded model for asyncio: `await model.embed([…])`, `async for piece in model.stream("generate", …)`."""

    def __init__(self, model: Model) -> None:
        self.sync = model

    def __repr__(self) -> str:
        return f"<Async{repr(self.sync)[1:]}"

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.sync.methods})

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(f"an AsyncModel has no attribute {method!r}", name=method, obj=self)
        getattr(self.sync, method)  # raises where there is none
        if self.sync.methods[method] == "stream":
            return lambda *args, **kwargs: self.stream(method, *args, **kwargs)
        return lambda *args, **kwargs: self.call(method, *args, **kwargs)

    async def call(
        self, method: str, *args: Any, timeout: float | None = None, retries: int = 0, **kwargs: Any
    ) -> Any:
        """Calls a method; cancelling the task cancels the call."""
        future = self.sync.submit(method, *args, timeout=timeout, retries=retries, **kwargs)
        return await asyncio.wrap_future(future)

    async def map(self, method: str, items: Iterable[Any], *args: Any, **options: Any) -> Any:
        """`Model.map`; cancelling the task cancels every call under way."""
        spread = self.sync.spread(method, items, *args, **options)
        try:
            return await asyncio.to_thread(spread.run)
        except asyncio.CancelledError:
            spread.cancel()
            raise

    async def stream(
        self, method: str, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Yields what a generator method yields; leaving the loop cancels the rest."""
        values = self.sync.stream(method, *args, timeout=timeout, **kwargs)
        end = object()
        try:
            while (value := await asyncio.to_thread(next, values, end)) is not end:
                yield value
        finally:
            await asyncio.to_thread(values.close)

    async def unload(self) -> None:
        """Ends its workers."""
        await asyncio.to_thread(self.sync.unload)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.unload()


class AsyncOrchestrator:
    """The asyncio face of `Orchestrator`: the same arguments, loads and calls awaited."""

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        project: str | Path | None = None,
        listener: Listener = ignore,
    ) -> None:
        self.sync = Orchestrator(settings=settings, project=project, listener=listener)

    def __repr__(self) -> str:
        return f"<Async{repr(self.sync)[1:]}"

    async def load(self, family: str, **arguments: Any) -> AsyncModel:
        """Loads a model; arguments as for `Orchestrator.load`."""
        return AsyncModel(await asyncio.to_thread(self.sync.load, family, **arguments))

    def status(self) -> Status:
        """What runs now."""
        return self.sync.status()

    async def close(self) -> None:
        """Ends every worker."""
        await asyncio.to_thread(self.sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
