"""Headers of weight files: what is read, what is chosen, what is refused; nothing is ever executed."""

import json
import pickle
import struct
import zipfile

import pytest
from made_checkpoints import llama_tensors, write_safetensors

from orchestrator.errors import CheckpointError
from orchestrator.placement.files import read_safetensors, read_torch_file, tensors_of, weight_files


def names(path):
    return [file.name for _, file in weight_files(path)]


def test_safetensors_header(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"x.weight": ("BF16", (3, 4)), "x.ids": ("I32", (5,))})
    weight, ids = read_safetensors(tmp_path / "a.safetensors")
    assert (weight.name, weight.dtype, weight.count, weight.stored, weight.shape) == (
        "x.weight",
        "bfloat16",
        12,
        24,
        (3, 4),
    )
    assert weight.floating
    assert (ids.dtype, ids.stored, ids.floating) == ("int32", 20, False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(p.read_bytes()[:5]),
        lambda p: p.write_bytes(struct.pack("<Q", 2**40) + p.read_bytes()[8:]),
        lambda p: p.write_bytes(p.read_bytes()[:-1]),  # a download cut short
        lambda p: p.write_bytes(struct.pack("<Q", 4) + b"nope"),
        lambda p: p.write_bytes(struct.pack("<Q", 13) + b'{"x": [1, 2]}'),
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    ],
)
def test_a_damaged_header_names_its_file(tmp_path, damage):
    file = tmp_path / "model.safetensors"
    write_safetensors(file, {"x.weight": ("F32", (3,))})
    damage(file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        tensors_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("modules.json", "{", r"modules\.json cannot be read: .*line 1 column 2"),
        ("model_index.json", "{", r"model_index\.json cannot be read"),
        ("model_index.json", "[" * 100_000, r"model_index\.json cannot be read"),
        ("model.safetensors.index.json", '{"weight_map": ["a"]}', "index.json has no weight_map"),
        ("pytorch_model.bin.index.json", '{"weight_map": ', "index.json cannot be read"),
    ],
)
def test_a_damaged_list_of_files_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        tensors_of(tmp_path)


@pytest.mark.parametrize("name", ["modules.json", "model_index.json"])
def test_a_list_of_parts_that_holds_something_else_names_none(tmp_path, name):
    (tmp_path / name).write_text("5")
    write_safetensors(tmp_path / "model.safetensors", {"x.weight": ("F32", (3,))})
    assert names(tmp_path) == ["model.safetensors"]


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        tensors_of(tmp_path / "missing")
    assert tensors_of(tmp_path) == ([], [])


def test_one_format_of_several_is_counted(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"x.weight": ("F32", (3,))})
    for name in ("pytorch_model.bin", "training_args.bin", "consolidated.safetensors", "flax_model.msgpack"):
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == ["model.safetensors"]


def test_an_index_decides_and_misses_nothing(tmp_path):
    for shard in ("m-1.safetensors", "m-2.safetensors", "consolidated.safetensors"):
        write_safetensors(tmp_path / shard, {f"{shard}.weight": ("F32", (3,))})
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert names(tmp_path) == ["m-1.safetensors", "m-2.safetensors"]
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"m-2\.safetensors"):
        list(weight_files(tmp_path))


def test_parts_of_a_pipeline_and_of_a_sentence_transformer(tmp_path):
    for part in ("unet", "text_encoder", "unused"):
        (tmp_path / part).mkdir()
        write_safetensors(tmp_path / part / "model.safetensors", {"conv.weight": ("F16", (4,))})
    (tmp_path / "model_index.json").write_text(json.dumps(
        {"_class_name": "P", "unet": ["d", "U"], "text_encoder": ["t", "C"]}))  # fmt: skip
    assert {t.name for t in tensors_of(tmp_path)[0]} == {"unet.conv.weight", "text_encoder.conv.weight"}
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "unused"}]))
    assert {t.name for t in tensors_of(tmp_path)[0]} == {"unused.conv.weight"}


def torch_file(path, state, sizes):
    """A torch zip file as torch writes it, without torch. `state`: name -> (storage key, class, shape) or a number."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled(state) + b".")
        for key, size in sizes.items():
            archive.writestr(f"archive/data/{key}", b"\0" * size)


def pickled(value):
    """The opcodes of protocol 2 for what a state dict holds, the attribute that torch gives it included."""
    if isinstance(value, dict):
        items = b"(" + b"".join(word(k) + pickled(v) for k, v in value.items()) + b"u"
        return b"ccollections\nOrderedDict\n)R" + items + b"}(" + word("_metadata") + b"}ub"
    if isinstance(value, int):
        return b"K" + bytes([value])
    key, kind, shape = value
    storage = b"(" + word("storage") + f"ctorch\n{kind}\n".encode() + word(key) + word("cpu") + b"K\x00tQ"
    sizes = b"(" + b"".join(b"K" + bytes([n]) for n in shape) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + sizes + b"(t\x89}tR"


def word(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def test_torch_file_by_its_pickle(tmp_path):
    torch_file(
        tmp_path / "m.bin",
        {"a.weight": ("0", "HalfStorage", (3, 4)), "b.ids": ("1", "LongStorage", (2,)),
         "tied.weight": ("0", "HalfStorage", (3, 4)), "steps": 7},
        {"0": 24, "1": 16},
    )  # fmt: skip
    found = list(read_torch_file(tmp_path / "m.bin"))
    assert [(t.name, t.dtype, t.count, t.stored) for t in found] == [
        ("a.weight", "float16", 12, 24),
        ("b.ids", "int64", 2, 16),
    ]


def test_a_wrapped_state_dict_keeps_its_names(tmp_path):
    state = {"a.weight": ("0", "FloatStorage", (2,))}
    torch_file(tmp_path / "m.pth", {"state_dict": state, "epoch": 3}, {"0": 8})
    assert [t.name for t in read_torch_file(tmp_path / "m.pth")] == ["a.weight"]


def test_a_pickle_that_wants_to_run_something_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            import os

            return os.mkdir, (str(tmp_path / "owned"),)

    with zipfile.ZipFile(tmp_path / "evil.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Evil()}))
        archive.writestr("archive/data/0", b"\0" * 24)
    list(read_torch_file(tmp_path / "evil.bin"))
    assert not (tmp_path / "owned").exists()
    pickle.loads(zipfile.ZipFile(tmp_path / "evil.bin").read("archive/data.pkl"))
    assert (tmp_path / "owned").exists()  # it would have, by an ordinary unpickler


def test_a_broken_pickle_leaves_the_storages_sizes(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02nonsense")
        archive.writestr("archive/data/0", b"\0" * 24)
    assert [t.stored for t in read_torch_file(tmp_path / "m.bin")] == [24]


def test_a_file_without_a_header_that_we_read_counts_as_it_is(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"GGUF" + b"\0" * 100)
    tensors, notes = tensors_of(tmp_path / "model.onnx")
    assert [t.stored for t in tensors] == [104]
    assert "size on disk" in notes[0]


def test_a_legacy_torch_file_counts_as_it_is(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}) + b"\0" * 50)
    tensors, _ = tensors_of(tmp_path)
    assert tensors[0].stored == (tmp_path / "pytorch_model.bin").stat().st_size


def test_a_shard_takes_milliseconds(tmp_path):
    import time

    write_safetensors(tmp_path / "model.safetensors", llama_tensors())
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        tensors_of(tmp_path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5  # 111 tensors; 2 ms on an idle machine
