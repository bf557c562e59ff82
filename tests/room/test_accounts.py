"""What a worker tells of a shortage or of two devices, also when what it tells is nonsense; and the counting of batches."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import DeviceMismatch, OutOfMemory, RemoteError
from orchestrator.links.remote import remote_error
from orchestrator.worker.memory import Shortages, is_out_of_memory, memory_now


def account(message: str = "it failed", **more: Any) -> dict[str, Any]:
    return {"kind": "remote", "type": "RuntimeError", "message": message, "traceback": "", **more}


def test_a_shortage_says_what_was_tried_and_what_there_was() -> None:
    told = account("CUDA out of memory.", tried=["freed the cache (batches of 2)", "batches of 1"], memory={
        "cuda:0": {"used": 21 << 30, "free": 1 << 29, "total": 24 << 30}})  # fmt: skip
    error = remote_error(told, {}, "embedder")
    assert isinstance(error, OutOfMemory)
    error.add("another replica")
    error.hint = "use less"
    assert str(error).splitlines() == [
        "embedder: RuntimeError: CUDA out of memory.",
        "tried: freed the cache (batches of 2), then batches of 1, then another replica",
        "memory then, cuda:0: 21.00 GiB used, 0.50 GiB free, 24.00 GiB total",
        "hint: use less",
    ]


def test_two_devices_are_in_the_message() -> None:
    error = remote_error(account(devices=["cuda:0", "cpu"], module="model.layers.3"), {}, "llm")
    assert isinstance(error, DeviceMismatch)
    assert error.message == "llm: RuntimeError: it failed (in model.layers.3: tensors on cuda:0 and cpu)"


@pytest.mark.parametrize("more", [
    {"devices": 5}, {"devices": ["cpu"]}, {"devices": [1, None]}, {"memory": 7}, {"memory": {"cpu": 3}},
    {"memory": {"cpu": {"used": "much"}}, "tried": {"a": 1}}, {"memory": {}, "tried": [None]},
])  # fmt: skip
def test_nonsense_is_an_error_all_the_same(more: dict[str, Any]) -> None:
    error = remote_error(account(**more), {}, "odd")
    assert isinstance(error, RemoteError)
    assert "it failed" in str(error)


@pytest.mark.parametrize(
    ("error", "short"),
    [(MemoryError(), True), (RuntimeError("CUDA out of memory. Tried"), True), (ValueError("out of memory"), False),
     (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True), (RuntimeError("mat1 and mat2"), False),
     (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True)],
)  # fmt: skip
def test_a_shortage_is_recognised(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) is short


def test_shortages_come_where_they_were_asked_for() -> None:
    asked = Shortages("2, >8,call:2")
    outcomes = []
    for size in (4, 4, 9, 8):
        try:
            asked.batch(size)
            outcomes.append(True)
        except RuntimeError:
            outcomes.append(False)
    assert outcomes == [True, False, False, True]
    asked.call()
    with pytest.raises(RuntimeError, match="call 2"):
        asked.call()
    asked.call()
    Shortages("").batch(10**9)
    with pytest.raises(ValueError, match="'soon' is none of"):
        Shortages("soon")


def test_memory_of_this_process() -> None:
    seen = memory_now()["cpu"]
    assert 0 < seen["used"] < seen["total"]
    assert 0 < seen["free"] <= seen["total"]
