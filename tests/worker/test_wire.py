"""The codec by itself: what goes in comes out, what cannot travel is named."""

from __future__ import annotations

import datetime as dt
import enum
import math
import sys
from collections import OrderedDict, UserDict
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.worker.wire import DecodingError, EncodingError, RawTensor, decode, encode

DTYPES = [
    "|b1", "|i1", "|u1", "<i2", "<i4", "<i8", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", ">i2", ">i4", ">i8",
    ">u4", ">f2", ">f4", ">f8", ">c16", "<M8[s]", "<M8[ns]", "<M8[25s]", "<M8[D]", "<M8", ">M8[us]", "<m8[ms]", "<m8[Y]",
    "<m8", "|S1", "|S7", "|S0", "<U1", "<U5", ">U3", "<U0",
]  # fmt: skip
SHAPES = [(), (0,), (1,), (7,), (0, 3), (3, 0, 2), (2, 3), (2, 3, 4), (1, 1, 1, 5)]


def through(value):
    """Once through the codec: by a joined buffer, and by one that was written to; both must agree."""
    encoded = encode(value)
    if encoded.table is None:
        return decode(encoded.body)
    buffer = np.full(encoded.nbytes, 0xAB, np.uint8)
    encoded.write(buffer)
    joined = encoded.join()
    assert len(joined) == encoded.nbytes
    first, second = decode(encoded.body, encoded.table, buffer), decode(encoded.body, encoded.table, joined)
    assert same(first, second)
    return first


def same(a, b):
    """Equal to the bit, type for type."""
    if isinstance(a, np.ndarray):
        return (
            type(b) is np.ndarray
            and a.dtype.str == b.dtype.str
            and a.shape == b.shape
            and a.tobytes("A") == b.tobytes("A")
        )
    if isinstance(a, np.generic):
        return type(a) is type(b) and a.dtype.str == b.dtype.str and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return type(b) is float and (a == b or (math.isnan(a) and math.isnan(b)))
    if isinstance(a, RawTensor):
        return type(b) is RawTensor and a.dtype == b.dtype and same(a.data, b.data)
    if isinstance(a, list):
        return type(b) is list and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def sample(spelling, shape, seed=0):
    dtype = np.dtype(spelling)
    if not dtype.itemsize:
        return np.ndarray(shape, dtype)
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    data = bytearray(np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes())
    if dtype.kind == "b":
        data = bytearray(b & 1 for b in data)
    if dtype.kind == "U":
        data = bytearray(
            np.random.default_rng(seed).integers(1, 60_000, count // 4).astype(dtype.str[0] + "u4").tobytes()
        )
    return np.ndarray(shape, dtype, data)


@pytest.mark.parametrize("spelling", DTYPES)
def test_every_dtype_in_every_shape(spelling):
    arrays = [sample(spelling, shape, k) for k, shape in enumerate(SHAPES)]
    assert same(through(arrays), arrays)
    assert same(through(arrays * 3), arrays * 3)
    assert same(through([arrays[3]] * 5 + [arrays[0]] * 4), [arrays[3]] * 5 + [arrays[0]] * 4)


@pytest.mark.parametrize("spelling", ["<f4", ">i8", "|u1", "<U3"])
def test_layouts(spelling):
    base = sample(spelling, (6, 8, 5))
    views = [
        base[::2], base[:, ::-1], base.T, base[1:3, 2:7], base[..., 0], base.transpose(1, 0, 2), base[::-1, ::-1, ::-1],
        np.broadcast_to(base[0, 0], (4, 5)), np.asfortranarray(base), base[2, 3, 4, ...],
    ]  # fmt: skip
    for view in views:
        got = through(view)
        assert got.dtype.str == view.dtype.str
        assert got.shape == view.shape
        assert got.tobytes() == view.tobytes()
    fortran = np.asfortranarray(base)
    assert through([fortran, fortran])[1].flags.f_contiguous
    assert not through(fortran).flags.c_contiguous
    assert through(base).flags.c_contiguous


def test_arrays_are_writable_aligned_and_apart():
    arrays = [np.arange(3, dtype=np.uint8), np.arange(5.0), np.arange(70, dtype=np.int16)]
    got = through(arrays)
    for array in got:
        assert array.flags.writeable
        assert array.__array_interface__["data"][0] % 16 == 0
    got[0][:] = 255
    assert same(got[1:], arrays[1:])


def test_special_floats_keep_their_bits():
    values = np.array(
        [0x7FF80000DEADBEEF, 0xFFF8000000000001, 0x8000000000000000, 0x7FF0000000000000], np.uint64
    )
    assert through(values.view(np.float64)).view(np.uint64).tolist() == values.tolist()


def test_numpy_scalars():
    scalars = [
        np.float32(1.5), np.float64(2.5), np.float16(3), np.int8(-1), np.uint64(2**64 - 1), np.bool_(True), np.complex64(1j),
        np.str_("äöü"), np.bytes_(b"x\0y"), np.datetime64("2020-02-02T02:02", "ms"), np.timedelta64(5, "D"), np.str_(""),
        np.datetime64("NaT", "s"),
    ]  # fmt: skip
    assert same(through(scalars), scalars)


def test_plain_values():
    values = [
        None, True, False, 0, -1, 2**63, -(2**63), 2**64 - 1, 1.5, float("inf"), float("nan"), "", "ä\0\U0001f600", b"", b"\xff",
        [], {}, {"": [{}]}, {1: 2, -5: {"x": None}}, "x" * 70_000, b"y" * 70_000,
    ]  # fmt: skip
    assert same(through(values), values)


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


def test_what_becomes_plain():
    value = [(1, (2,)), Point(1, 2), OrderedDict(a=1), UserDict(b=2), Colour.RED, Level.HIGH, bytearray(b"z")]
    assert through(value) == [[1, [2]], [1, 2], {"a": 1}, {"b": 2}, "red", 3, b"z"]


def test_dates_with_and_without_zone():
    zone = dt.timezone(dt.timedelta(hours=5, minutes=45))
    values = [
        dt.datetime(2026, 11, 21, 1, 2, 3, 456789), dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, tzinfo=dt.UTC),
        dt.datetime(2026, 1, 1, tzinfo=zone), dt.date(2026, 2, 28),
    ]  # fmt: skip
    assert same(through(values), values)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"x": [np.array([None])]}, r'args\[0\]\["x"\]\[0\] is an array of objects'),
        (np.zeros(2, "i4,f4"), r"args\[0\] is an array of records"),
        (np.zeros(2, "V5"), r"args\[0\] is an array of \|V5: view it as uint8"),
        (np.zeros(2, np.longdouble), r"extended precision"),
        (np.clongdouble(1), r"extended precision"),
        (np.ma.array([1, 2], mask=[0, 1]), r"masked array"),
        (np.array(["a"], np.dtypes.StringDType()), r"StringDType"),
        ([1, 2**64], r"args\[0\]\[1\] is an integer of 65 bits"),
        ({"a": {1.5: 2}}, r'args\[0\]\["a"\] is a dict with a key of type float'),
        ({"a": {True: 2}}, r"key of type bool"),
        ({np.str_("a"): 2}, r"key of type str_"),
        (OrderedDict([((1,), 2)]), r"key of type tuple"),
        ({1, 2}, r"args\[0\] is a builtins.set: send a list"),
        (Path("x"), r"PosixPath: send str\(path\)"),
        (object(), r"args\[0\] is a builtins.object"),
        (SimpleNamespace, r"args\[0\] is a builtins.type"),
        (len, r"builtin_function_or_method"),
        (1j, r"builtins.complex"),
        ("\udc80", r"lone surrogate"),
        ({"\udc80": 1}, r"lone surrogate"),
        ([dt.timedelta(1)], r"datetime.timedelta"),
    ],
)
def test_what_cannot_travel_is_named(value, words):
    with pytest.raises(EncodingError, match=words):
        encode(["method", [value], {}], ("method", "args", "kwargs"))


def test_cycles_and_depth_are_refused_and_the_codec_goes_on():
    cycle: list = [1]
    cycle.append({"again": cycle})
    deep: list = []
    for _ in range(120):
        deep = [deep]
    for value in (cycle, deep):
        with pytest.raises(EncodingError, match="nested deeper than 100"):
            encode(value)
    ok: list = [1]
    for _ in range(90):
        ok = [ok]
    assert through(ok) == ok


def test_a_failure_leaves_no_array_behind_for_the_next_value():
    with pytest.raises(EncodingError):
        encode([np.arange(3), object()])
    assert encode([1]).table is None
    assert same(through([np.arange(4)]), [np.arange(4)])


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
    | st.binary(max_size=20) | st.datetimes() | st.dates(),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.text(max_size=8) | st.integers(-(2**63), 2**63), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip
kinds = (
    hnp.integer_dtypes(endianness="?") | hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)) | hnp.boolean_dtypes()
    | hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)) | hnp.datetime64_dtypes(endianness="?")
    | hnp.timedelta64_dtypes(endianness="?") | hnp.byte_string_dtypes() | hnp.unicode_string_dtypes()
)  # fmt: skip
arrays = kinds.flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
mixed = st.recursive(
    plain | arrays,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)


@settings(max_examples=80, deadline=None)
@given(mixed)
def test_any_value_comes_back_to_the_bit(value):
    assert same(through(value), value)


@settings(max_examples=60, deadline=None)
@given(arrays, st.data())
def test_any_view_of_any_array_keeps_its_elements(array, data):
    view = array[tuple(data.draw(st.slices(side)) for side in array.shape)]
    view = view.transpose(data.draw(st.permutations(range(view.ndim))))
    got = through([view, view])
    assert got[1].dtype.str == view.dtype.str
    assert got[1].tobytes() == view.tobytes()


# -- tensors -------------------------------------------------------------------------------------------------------------


def test_raw_tensors_go_there_and_back():
    half = RawTensor("bfloat16", np.array([[0x3F80, 0xC000]], np.uint16))
    got = through([half, RawTensor("float8_e4m3fn", np.array(7, np.uint8))])
    assert [type(t) for t in got] == [RawTensor, RawTensor]
    assert got[0].dtype == "bfloat16"
    assert got[0].shape == (1, 2)
    assert got[0].float32().tolist() == [[1.0, -2.0]]
    assert got[1].data.shape == ()
    with pytest.raises(ValueError, match="only bfloat16"):
        got[1].float32()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("float32", np.zeros(1, np.uint16)),
        ("bfloat16", np.zeros(1, np.uint8)),
        ("bfloat16", np.zeros(1, ">u2")),
    ],
)
def test_raw_tensors_that_are_none(name, data):
    with pytest.raises(ValueError, match="float"):
        RawTensor(name, data)


class FakeTensor:
    """As much of torch.Tensor as the codec asks for."""

    layout = "strided"
    device = SimpleNamespace(type="cpu")

    def __init__(self, dtype, bits):
        self.dtype = dtype
        self.bits = bits

    def __getattr__(self, name):
        if name in {"detach", "cpu", "contiguous", "resolve_conj", "resolve_neg"}:
            return lambda: self
        raise AttributeError(name)

    def view(self, carrier):
        return FakeTensor(carrier, self.bits.view(carrier[6:]))

    def numpy(self):
        return self.bits


@pytest.fixture
def torch(monkeypatch):
    fake = SimpleNamespace(
        Tensor=FakeTensor, strided="strided", int16="torch.int16", uint8="torch.uint8", bfloat16="torch.bfloat16",
        from_numpy=lambda array: FakeTensor(f"torch.{array.dtype.name}", array),
    )  # fmt: skip
    fake.bfloat16 = "torch.bfloat16"
    FakeTensor.view = lambda self, to: FakeTensor(
        to, self.bits.view("i2" if to == "torch.int16" else self.bits.dtype)
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def test_tensors_are_tensors_where_torch_is_imported_and_arrays_elsewhere(torch, monkeypatch):
    encoded = encode(
        [FakeTensor("torch.float32", np.ones(3, np.float32)), FakeTensor("torch.bfloat16", np.ones(2, "i2"))]
    )
    buffer = np.empty(encoded.nbytes, np.uint8)
    encoded.write(buffer)
    plain, half = decode(encoded.body, encoded.table, buffer)
    assert (type(plain), plain.dtype, type(half), half.dtype) == (
        FakeTensor,
        "torch.float32",
        FakeTensor,
        "torch.bfloat16",
    )
    monkeypatch.delitem(sys.modules, "torch")
    plain, half = decode(encoded.body, encoded.table, buffer)
    assert type(plain) is np.ndarray
    assert type(half) is RawTensor
    assert half.data.tolist() == [1, 1]


def test_tensors_that_cannot_travel(torch):
    odd = FakeTensor("torch.quint8", np.zeros(1, np.uint8))
    with pytest.raises(EncodingError, match="a tensor of quint8"):
        encode(odd)
    meta = FakeTensor("torch.float32", np.zeros(1, np.float32))
    meta.device = SimpleNamespace(type="meta")
    with pytest.raises(EncodingError, match="has data"):
        encode({"x": meta})


# -- what does not come from our encoder -----------------------------------------------------------------------------------

BODY = msgpack.packb(msgpack.ExtType(1, b""))


@pytest.mark.parametrize(
    "table",
    [
        [["|O8", [1], 1, 0]], [["<f16", [1], 1, 0]], [["<V8", [1], 1, 0]], [["i4,f4", [1], 1, 0]], [["O", [1], 1, 0]],
        [["<f4", [-1], 1, 0]], [["<f4", [True], 1, 0]], [["<f4", [1 << 62], 1, 0]], [["<f4", [1 << 61, 8], 1, 0]],
        [["<f4", "1", 1, 0]], [["<f4", [1], 0, 0]], [["<f4", [1], 1, 2]], [["<f4", [1], 1 << 60, 0]], [["<f4", [1]]],
        [["<f4", [1], 2, 0]], [["<f4", [100], 1, 0]], [["<f4", [1] * 65, 1, 0]], [["<U999999999", [1], 1, 0]], [[4, [1], 1, 0]],
        "x", [5], [["<M8[no]", [1], 1, 0]], [], [[["<f4"], [1], 1, 0]],
    ],
)  # fmt: skip
def test_tables_that_lie(table):
    with pytest.raises(DecodingError):
        decode(BODY, table, np.zeros(64, np.uint8))


def test_a_run_of_empty_arrays_costs_nothing_before_it_is_asked_for():
    with pytest.raises(DecodingError, match="more arrays than places"):
        decode(BODY, [["<f4", [0], 1 << 60, 0]], np.zeros(64, np.uint8))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xc1", b"\x91", BODY + b"\x00", msgpack.packb(msgpack.ExtType(99, b"")), b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 5000 + b"\x00", b"\x81\x90\x00", b"\xa1\xff",
        msgpack.packb(msgpack.ExtType(5, b"yesterday")), msgpack.packb(msgpack.ExtType(2, b"")),
        msgpack.packb(msgpack.ExtType(2, msgpack.packb(["|O8", b"12345678"]))),
        msgpack.packb(msgpack.ExtType(2, msgpack.packb(["<f8", b"1234"]))),
        msgpack.packb(msgpack.ExtType(3, b"float32")), msgpack.packb(msgpack.ExtType(1, b"")), msgpack.packb(msgpack.ExtType(4, b"\x90")),
    ],
)  # fmt: skip
def test_bodies_that_are_none(body):
    with pytest.raises(DecodingError):
        decode(body)


@pytest.mark.parametrize(
    ("code", "data", "row"),
    [
        (3, b"float32", ["<f8", [2], 1, 0]), (3, b"bfloat16", ["<f4", [2], 1, 0]), (3, b"os.system", ["<f4", [2], 1, 0]),
        (3, b"float32", [">f4", [2], 1, 0]), (4, msgpack.packb(["RGB", 5, 5, {}]), ["|u1", [3], 1, 0]),
        (4, msgpack.packb(["RGB", -1, -1, {}]), ["|u1", [3], 1, 0]), (4, msgpack.packb(["eval", 1, 1, {}]), ["|u1", [3], 1, 0]),
        (4, msgpack.packb(["L", 1 << 40, 1 << 40, {}]), ["|u1", [3], 1, 0]), (4, msgpack.packb(["L", 1, 3, 0]), ["|u1", [3], 1, 0]),
    ],
)  # fmt: skip
def test_extensions_that_lie(code, data, row):
    with pytest.raises(DecodingError):
        decode(msgpack.packb(msgpack.ExtType(code, data)), [row], np.zeros(64, np.uint8))


def test_images_where_there_is_no_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    pixels = np.arange(24, dtype=np.uint8)
    table = [["|u1", [24], 1, 0]]

    def image(mode, width, height):
        body = msgpack.packb(msgpack.ExtType(4, msgpack.packb([mode, width, height, {}])))
        return decode(body, table, np.concatenate([pixels, np.zeros(40, np.uint8)]))

    assert image("RGB", 4, 2).shape == (2, 4, 3)
    assert image("L", 4, 6).shape == (6, 4)
    assert image("F", 3, 2).dtype == np.float32
    assert image("1", 9, 12).shape == (12, 9)
    assert image("1", 9, 12).dtype == bool
