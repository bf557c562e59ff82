"""Every dtype both ways between numpy 2 here and another numpy there, judged by raw bytes and not by the wire."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.errors import RemoteError
from orchestrator.worker.wire import RawTensor

DTYPES = [
    "|b1", "|i1", "|u1", "<i2", "<i4", "<i8", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", ">i2", ">i4", ">i8",
    ">u2", ">u4", ">u8", ">f2", ">f4", ">f8", ">c8", ">c16", "<M8[s]", "<M8[ns]", "<M8[25s]", "<M8[D]", "<M8", ">M8[us]",
    "<m8[ms]", "<m8[Y]", "<m8", "|S1", "|S7", "|S0", "<U1", "<U5", ">U3", "<U0",
]  # fmt: skip
SHAPES = [(), (0,), (1,), (7,), (0, 3), (2, 3), (2, 3, 4), (40, 50, 30)]
VERSIONS = ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"]


def sample(spelling: str, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    dtype = np.dtype(spelling)
    if not dtype.itemsize:
        return np.ndarray(shape, dtype)
    count = int(np.prod(shape, dtype=int))
    random = np.random.default_rng(count)
    if dtype.kind == "U":
        data = random.integers(1, 55_000, count * (dtype.itemsize // 4)).astype(dtype.str[0] + "u4").tobytes()
    else:
        data = random.integers(0, 2 if dtype.kind == "b" else 256, count * dtype.itemsize, np.uint8).tobytes()
    return np.ndarray(shape, dtype, bytearray(data), order=order)


def facts(array: np.ndarray) -> list:
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return [array.dtype.str, list(array.shape), order, array.tobytes("A"), True]


def check(link, spelling: str) -> None:
    arrays = [sample(spelling, shape) for shape in SHAPES] + [sample(spelling, (4, 5, 6), "F")]
    for array in arrays:
        assert link.call("bits", [array]) == facts(array), "to the worker"
        sent = [array.dtype.str, list(array.shape), array.tobytes("A"), facts(array)[2]]
        made = link.call("make", sent) if array.dtype.itemsize else link.call("echo", [array])
        assert facts(made)[:4] == facts(array)[:4], "from the worker"
        assert made.flags.writeable
    back = link.call("echo", [arrays])
    assert [facts(a) for a in back] == [facts(a) for a in arrays]


@pytest.mark.parametrize("spelling", DTYPES)
def test_every_dtype_to_numpy_1_and_back(shared, spelling):
    check(shared, spelling)


def test_the_two_sides_have_different_numpys(shared):
    assert shared.call("versions")[1] == "1.26.4"
    assert np.__version__.startswith("2.")


def test_layouts_to_numpy_1_and_back(shared):
    base = sample(">f4", (6, 8, 5))
    for view in (
        base[::2],
        base[:, ::-1],
        base.T,
        base[..., 0],
        base.transpose(1, 0, 2),
        np.broadcast_to(base[0, 0], (9, 5)),
    ):
        got = shared.call("echo", [view])
        assert (got.dtype, got.shape, got.tobytes()) == (view.dtype, view.shape, view.tobytes())


def test_scalars_and_dates_keep_their_type(shared):
    import datetime as dt

    values = [
        np.float16(1.5), np.float64(2), np.int32(3), np.bool_(True), np.datetime64("2020-01-01", "ns"), np.str_("x"),
        dt.datetime(2026, 1, 2, 3, 4, 5, 6), dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=-3))), dt.date(2026, 1, 2),
    ]  # fmt: skip
    back = shared.call("echo", [values])
    assert [type(v) for v in back] == [type(v) for v in values]
    assert back == values
    assert shared.call("types", [values])[:2] == ["numpy.float16", "numpy.float64"]


def test_a_dtype_that_the_worker_makes_and_the_wire_does_not_carry(shared):
    with pytest.raises(RemoteError, match=r"result is an array of .*V8"):
        shared.call("make", ["V8", [1], bytes(8)])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "F", "I", "CMYK"])
def test_images_of_a_worker_that_has_pillow(shared, mode):
    """There they are images; here, without Pillow, arrays of pixels."""
    size = {"1": 2, "L": 12, "RGB": 36, "RGBA": 48, "CMYK": 48, "F": 48, "I": 48}[mode]
    data = bytes(range(size)) if mode != "1" else b"\xa0\x40\xf0"
    got = shared.call("image", [mode, (4, 3), data])
    assert got.shape[:2] == (3, 4)
    if mode != "1":
        assert got.tobytes() == data
    else:
        assert got.astype(int).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]]


def test_raw_tensors_come_back_from_a_worker_without_torch(shared):
    got = shared.call("echo", [RawTensor("bfloat16", np.array([1, 2], np.uint16))])
    assert type(got) is RawTensor
    assert got.data.tolist() == [1, 2]


@pytest.mark.parametrize(
    "version", [pytest.param(v, marks=[] if v in {"3.8", "3.13"} else [pytest.mark.slow]) for v in VERSIONS]
)
def test_every_python_that_a_family_may_need(start, environment_of, version):
    toy = start(environment=environment_of(version))
    assert toy.info.python.startswith(f"{version}.")
    for spelling in DTYPES if version == "3.8" else DTYPES[::4]:
        check(toy.link, spelling)
    assert list(toy.link.stream("count", [40], buffer=3)) == list(range(40))
    assert [f.result(60) for f in [toy.link.submit("echo", [k]) for k in range(50)]] == list(range(50))
    with pytest.raises(RemoteError, match="ValueError: no"):
        toy.link.call("fail")
    future = toy.link.submit("patient", [30])
    assert toy.link.silence() == 0
    assert future.cancel()
    toy.link.close(60)
    assert toy.process.returncode == 0


# -- what a worker is shut off from ---------------------------------------------------------------------------------------


def test_nothing_of_the_host_leaks_in(start, monkeypatch, tmp_path):
    (tmp_path / "leaked.py").write_text("raise SystemExit")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    toy = start(variables={"MINE": "given"})
    link = toy.link
    assert "No module named 'orchestrator.links'" in link.call("try_import", ["orchestrator.links"])
    assert "No module named 'leaked'" in link.call("try_import", ["leaked"])
    assert all(m == "orchestrator" or m.startswith("orchestrator.worker") for m in link.call("modules"))
    here = str(toy.process.environment.path)
    assert not any(
        "tests/links" in p or p == str(tmp_path) or (p and "site-packages" in p and here not in p)
        for p in link.call("path")
    )
    variables = link.call("variables")
    assert variables["HF_HOME"] == "/somewhere"
    assert variables["TOKENIZERS_PARALLELISM"] == "false"
    assert variables["MINE"] == "given"
    assert variables["HF_MODULES_CACHE"] == str(toy.process.environment.modules_cache)
    assert not {"HF_TOKEN", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"} & set(variables)


@pytest.mark.parametrize(("file", "name"), [("folder", "InFolder"), ("folder/worker.py", "InFolder")])
def test_a_family_of_several_files(start, file, name):
    assert start(file, name).link.call("secret") == 42


def test_a_module_of_functions_and_a_plain_class(start):
    assert start("toy.py", "").link.call("twice", [21]) == 42
    assert start("toy.py", "Plain").link.call("hello") == "hello"
