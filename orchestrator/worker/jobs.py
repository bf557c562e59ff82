"""What the orders of a worker do: load, call, stream, unload."""

from __future__ import annotations

import inspect
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from orchestrator.worker import messages as m
from orchestrator.worker.context import Placement
from orchestrator.worker.family import call_with_known, check_options, import_family, methods_of, streams
from orchestrator.worker.limits import DecodingError
from orchestrator.worker.memory import release_memory, shortages
from orchestrator.worker.modules import (
    bring_inputs,
    check_memory,
    device_map,
    find_mismatch,
    modules_of,
    sizes,
)

__all__ = ["Jobs"]


class Jobs:
    """The family's instance and what can be done with it. Used by the main thread only."""

    def __init__(self, desk: Any, file: str, name: str, times: Dict[str, float]) -> None:
        self._desk = desk
        self._file = file
        self._class = name
        self._times = times
        self._instance: Any = None
        self._methods: Dict[str, Callable[..., Any]] = {}
        self._modules: Dict[str, Any] = {}

    def carry_out(self, box: List[m.Message]) -> Optional[List[Any]]:
        """Does what the order in `box` says; the frames of the answer, if there is one.

        The order comes in a box so that nothing above keeps its arrays: when they end with the call, their lease
        goes back with the answer.
        """
        order = box.pop()
        kind, ident = order.kind, order.ident
        if kind == m.BYE:
            self._desk.bye()
            return self._unload(ident, answer=False)
        value = order.value()
        del order
        if kind == m.CALL:
            draft = self._desk.post.draft(self._call(value), ("result",))
            del value
            return self._desk.post.seal(m.RESULT, ident, draft)  # type: ignore[no-any-return]
        if kind == m.STREAM:
            return self._stream(ident, value)
        if kind == m.LOAD:
            return self._load(ident, value)
        return self._unload(ident, answer=True)

    def _call(self, value: List[Any]) -> Any:
        function, args, kwargs = self._order(value, 3)
        value.clear()
        shortages.call()
        result = self._desk.run_family(function, *args, **kwargs)
        if inspect.isgenerator(result):
            return self._desk.run_family(list, result)
        return result

    def mismatch(self, error: BaseException) -> Dict[str, Any]:
        """The devices and the module of an error that is about tensors on two devices; {} for others."""
        return find_mismatch(error, self._modules) or {}

    def _order(self, value: Any, length: int) -> Tuple[Callable[..., Any], List[Any], Dict[str, Any]]:
        if type(value) is not list or len(value) != length:
            raise DecodingError("a call that is not [method, args, kwargs]")
        method, args, kwargs = value[:3]
        if type(method) is not str or type(args) is not list or type(kwargs) is not dict:
            raise DecodingError("a call that is not [method, args, kwargs]")
        function = self._methods.get(method)
        if function is None:
            known = ", ".join(sorted(self._methods)) or "nothing is loaded"
            raise AttributeError(f"there is no method {method!r}; there is: {known}")
        return function, args, kwargs

    def _stream(self, ident: int, value: Any) -> List[Any]:
        function, args, kwargs = self._order(value, 4)
        credit = value.pop()
        if type(credit) is not int or not 0 < credit < 1 << 32:
            raise DecodingError("a stream without credit")
        value.clear()
        desk = self._desk
        desk.open_stream(ident, credit)
        pieces = desk.run_family(function, *args, **kwargs)
        del args, kwargs
        pieces = iter(pieces) if hasattr(pieces, "__next__") else iter([pieces])
        sent = 0
        try:
            while True:
                desk.wait_for_credit(ident, sent)
                try:
                    draft = desk.post.draft(desk.run_family(next, pieces), ("item",))
                except StopIteration:
                    return desk.post.signal(m.END, ident)  # type: ignore[no-any-return]
                desk.channel.post(desk.post.seal(m.ITEM, ident, draft))
                sent += 1
        finally:
            if hasattr(pieces, "close"):
                desk.run_family(pieces.close)

    def _load(self, ident: int, value: Any) -> List[Any]:
        if type(value) is not dict or type(value.get("options")) is not dict:
            raise DecodingError("a load that is not {checkpoint, placement, options}")
        began = time.monotonic()
        try:
            report = self._desk.run_family(self._make, value)
        except BaseException as error:
            error.orchestrator_kind = "load"  # type: ignore[attr-defined]
            raise
        report["seconds"] = time.monotonic() - began
        return self._desk.post.compose(m.RESULT, ident, report)  # type: ignore[no-any-return]

    def _make(self, value: Dict[str, Any]) -> Dict[str, Any]:
        if self._instance is not None:
            raise RuntimeError("this worker has a model loaded already")
        clock = _Clock(self._times)
        from numpy import ndarray  # of a numpy whose files are gone, `import numpy` finds the folder

        del ndarray
        clock.split("numpy")
        family = import_family(self._file, self._class)
        clock.split("family")
        instance = family
        if inspect.isclass(family):
            check_options(family, value["options"])
            arguments = {**value["options"], "checkpoint": value.get("checkpoint")}
            arguments["placement"] = Placement(**(value.get("placement") or {}))
            instance = call_with_known(family, **arguments)
        clock.split("load")
        self._modules = modules_of(instance)
        check_memory(self._modules)
        bring_inputs(self._modules)
        self._instance = instance
        self._methods = methods_of(instance)
        return {
            "methods": {n: "stream" if streams(f) else "call" for n, f in self._methods.items()},
            "report": _report(instance),
            "devices": device_map(self._modules),
            "memory": sizes(self._modules),
            "times": self._times,
        }

    def _unload(self, ident: int, *, answer: bool) -> Optional[List[Any]]:
        instance, self._instance = self._instance, None
        self._methods, self._modules = {}, {}
        try:
            if hasattr(instance, "close") and callable(instance.close):
                self._desk.run_family(instance.close)
        finally:
            del instance
            if answer:
                release_memory()
        return self._desk.post.signal(m.RESULT, ident) if answer else None


class _Clock:
    def __init__(self, times: Dict[str, float]) -> None:
        self._times = times
        self._last = time.monotonic()

    def split(self, name: str) -> None:
        now = time.monotonic()
        self._times[name] = now - self._last
        self._last = now


def _report(instance: Any) -> Dict[str, Any]:
    report = getattr(instance, "report", None)
    return dict(report) if isinstance(report, dict) else {}
