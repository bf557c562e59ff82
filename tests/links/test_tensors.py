"""Tensors of a real torch, to and from a side without it."""

from __future__ import annotations

import numpy as np
import pytest
from small_environments import small_environment

from orchestrator.errors import RemoteError
from orchestrator.worker.wire import RawTensor

pytestmark = pytest.mark.slow

NATIVE = [
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
]
RAW = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]


@pytest.fixture(scope="module")
def torch_environment():
    try:
        return small_environment("3.11", "numpy==1.26.4", "torch==2.13.0+cpu")
    except RuntimeError as error:
        pytest.skip(f"no CPU build of torch here: {str(error)[-200:]}")


@pytest.fixture
def tensors(start, torch_environment):
    return start("tensors.py", "Tensors", environment=torch_environment).link


def test_tensors_of_every_dtype_and_form(tensors):
    for dtype in NATIVE:
        made = tensors.call("make", [dtype, [2, 3]])
        assert type(made) is np.ndarray
        assert (made.dtype.name, made.shape) == (dtype, (2, 3))
    for dtype in RAW:
        for shape in ([2, 3], [], [0]):
            made = tensors.call("make", [dtype, shape])
            assert type(made) is RawTensor
            assert (made.dtype, list(made.shape)) == (dtype, shape)
            assert tensors.call("facts", [made]) == [dtype, shape, made.data.tobytes()], (
                "sent back, it is a tensor again"
            )
    assert tensors.call("make", ["bfloat16", [5]]).float32().tolist() == [0, 1, 2, 3, 4]


def test_forms(tensors):
    parameter, transposed, strided, conjugate, scalar, empty, loss = tensors.call("kinds")
    assert parameter.float32().tolist() == [[1, 1], [1, 1]]
    assert transposed.tolist() == np.arange(12.0).reshape(3, 4).T.tolist()
    assert strided.tolist() == [0, 2, 4, 6, 8, 10]
    assert conjugate.tolist() == [1 - 2j]
    assert scalar.shape == ()
    assert empty.shape == (0, 3)
    assert loss["loss"].tolist() == [2.0]


def test_large_tensors_come_in_shared_memory(tensors):
    made = tensors.call("make", ["bfloat16", [1000, 1000]])
    assert made.shape == (1000, 1000)
    back = tensors.call("echo", [[made, made]])
    assert all(np.array_equal(made.data, other.data) for other in back)


def test_tensors_that_cannot_travel(tensors):
    with pytest.raises(RemoteError, match="sparse"):
        tensors.call("sparse")
    with pytest.raises(RemoteError, match="meta"):
        tensors.call("meta")
