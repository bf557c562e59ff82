"""What families share: batches in order, the out-of-memory ladder, self-tests, files made without torch."""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from orchestrator.worker import inference
from orchestrator.worker.inference import compare, map_batches, texts_of
from orchestrator.worker.tiny import Weights, load_styles, tiny_checkpoint, write_safetensors
from orchestrator.worker.torch_file import write_torch_file

MAKERS = Path(__file__).parents[2] / "workers" / "tiny_checkpoints"


@pytest.fixture
def no_torch(monkeypatch):
    """The coordinator's environment has no torch; what gives memory back is counted instead."""
    released = []
    monkeypatch.setattr(inference, "release_memory", lambda: released.append(1))
    return released


def test_rows_come_back_in_the_order_of_the_items_though_batches_are_sorted_by_length():
    seen = []

    def function(batch):
        seen.append([len(item) for item in batch])
        return [item.upper() for item in batch]

    items = ["a", "bbbb", "cc", "ddddd", "", "fff"]
    assert map_batches(function, items, 2, length=len) == [item.upper() for item in items]
    assert seen == [[5, 4], [3, 2], [1, 0]]


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost_or_doubled(no_torch):
    done = []

    def function(batch):
        if len(batch) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        done.extend(batch)
        return batch

    assert map_batches(function, list(range(11)), 8) == list(range(11))
    assert sorted(done) == list(range(11))
    assert len(no_torch) == 3  # the cache is freed, 8 -> 4 -> 2


def test_one_item_that_does_not_fit_raises_what_torch_said(no_torch):
    def function(batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        map_batches(function, [1, 2, 3], 2)


def test_another_error_is_not_taken_for_a_lack_of_memory():
    calls = []

    def function(batch):
        calls.append(batch)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        map_batches(function, [1, 2, 3, 4], 4)
    assert len(calls) == 1


def test_a_batch_that_answers_too_little_is_an_error():
    with pytest.raises(RuntimeError, match="a batch of 2 texts gave 1 results"):
        map_batches(lambda batch: batch[:1], [1, 2], 2, what="texts")


def test_a_cancelled_call_stops_between_batches(monkeypatch):
    batches = []
    monkeypatch.setattr(inference, "cancelled", lambda: len(batches) == 2)
    with pytest.raises(CancelledError):
        map_batches(lambda batch: batches.append(batch) or batch, list(range(9)), 2)
    assert batches == [[0, 1], [2, 3]]


def test_a_single_text_is_not_taken_for_its_letters():
    assert texts_of("cat") == ["cat"]
    with pytest.raises(TypeError, match=r"texts\[1\] is a int"):
        texts_of(["cat", 3])


@pytest.mark.parametrize(
    ("got", "ok"), [([0.5, 1.0], True), ([0.5, 1.1], False), ([0.5], False), ([0.5, float("nan")], False)]
)
def test_a_self_test_fails_on_a_difference_a_missing_number_and_a_nan(got, ok):
    assert compare({"x": got}, {"x": [0.5, 1.0]}, 1e-3)["ok"] is ok


def test_a_self_test_that_compares_nothing_is_not_ok():
    assert compare({}, {}, 1.0)["ok"] is False


def test_safetensors_files_hold_what_was_written(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(7, np.int64),
        "c": np.ones(3, np.float16),
    }
    write_safetensors(tmp_path / "m.safetensors", arrays)
    data = (tmp_path / "m.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    assert (8 + size) % 8 == 0
    for name, array in arrays.items():
        start, end = header[name]["data_offsets"]
        kept = np.frombuffer(data[8 + size + start : 8 + size + end], array.dtype).reshape(
            header[name]["shape"]
        )
        assert np.array_equal(kept, array)


def test_torch_files_name_only_what_weights_only_loading_allows(tmp_path):
    write_torch_file(tmp_path / "m.bin", {"x.weight": np.ones((2, 3), np.float16)}, nested_under="state_dict")
    with zipfile.ZipFile(tmp_path / "m.bin") as archive:
        assert archive.read("archive/data/0") == np.ones(6, np.float16).tobytes()
        opcodes = list(pickletools.genops(archive.read("archive/data.pkl")))
    globals_ = {argument for code, argument, _ in opcodes if code.name == "GLOBAL"}
    assert globals_ == {"torch HalfStorage", "torch._utils _rebuild_tensor_v2", "collections OrderedDict"}


def test_a_seed_means_the_same_weights():
    first, second, other = Weights(3), Weights(3), Weights(4)
    for weights in (first, second, other):
        weights.linear("layer", 4, 8)
    assert np.array_equal(first.arrays["layer.weight"], second.arrays["layer.weight"])
    assert not np.array_equal(first.arrays["layer.weight"], other.arrays["layer.weight"])


@pytest.mark.parametrize("makers", ["clip", "bert_mnli", "gte", "modelscope_clip"])
def test_every_style_makes_a_folder_and_the_block_removes_it(makers):
    path = MAKERS / f"{makers}.py"
    for style in load_styles(path):
        with tiny_checkpoint(path, style, folder="some.dotted-name") as folder:
            assert Path(folder).name == "some.dotted-name"
            files = {item.name for item in Path(folder).iterdir()}
            assert files & {"model.safetensors", "pytorch_model.bin"}
            assert sum(item.stat().st_size for item in Path(folder).rglob("*")) < 4_000_000
        assert not Path(folder).exists()
