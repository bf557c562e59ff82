"""Which weights are read, from where, and what is refused."""

import json
import os
import pickle
import shutil
from pathlib import Path

import inside
import numpy as np
import torch

PROMPT = "What is in the picture?"


def forward(folder, **options):
    return inside.load(folder, **options).forward(images=inside.picture(), prompt=PROMPT)


def edit(folder, **values):
    """Change keys of config.json; None removes one."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config.update(values)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def tensors_of(folder):
    weights = inside.part("weights")
    found = weights.Tensors(weights.checkpoint_files(Path(folder)))
    targets = {name: torch.empty(entry.shape) for name, entry in found.entries.items()}
    found.fill({name: (lambda value=value: value) for name, value in targets.items()})
    return targets


def refused(error, *words, call):
    inside.refused(call, *words, error=error)


def tower_folder(folder, start):
    return next((Path(folder) / "model_zoo" / "OpenAI").glob(start + "*"))


def check_shards_without_index_and_pytorch_files_give_the_same():
    folder = inside.make("minigemini-7b")
    expected = forward(folder)["logits"]
    (folder / "model.safetensors.index.json").unlink()
    assert np.array_equal(forward(folder)["logits"], expected)
    values = tensors_of(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({name: value.bfloat16() for name, value in values.items()}, str(folder / "pytorch_model.bin"))
    assert np.array_equal(forward(folder)["logits"], expected)
    torch.save(
        {name: value.bfloat16() for name, value in values.items()},
        str(folder / "pytorch_model.bin"),
        _use_new_zipfile_serialization=False,
    )
    assert np.array_equal(forward(folder)["logits"], expected)
    (folder / "pytorch_model.bin").unlink()
    refused(FileNotFoundError, "no weights", "model.safetensors", call=lambda: inside.load(folder))


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def check_pickles_are_never_run():
    folder = inside.make("minigemini-7b")
    sprung = folder.parent / "sprung"
    (folder / "training_args.bin").write_bytes(pickle.dumps(Trap(str(sprung))))
    (folder / "trainer_state.json").write_text("not json")
    forward(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save({"model.norm.weight": Trap(str(sprung))}, str(folder / "pytorch_model.bin"))
    refused(Exception, call=lambda: inside.load(folder))
    assert not sprung.exists()


def check_towers_where_they_may_be():
    """In the checkpoint, beside it, above it, given as an option; the checkpoint's own CLIP when there is no folder."""
    folder = inside.make("minigemini-7b")
    expected = forward(folder)["logits"]
    zoo = folder.parent.parent / f"{folder.parent.name}-zoo"
    shutil.move(str(folder / "model_zoo"), str(folder.parent / "model_zoo"))
    assert np.array_equal(forward(folder)["logits"], expected)
    shutil.move(str(folder.parent / "model_zoo"), str(zoo))
    here = os.getcwd()
    os.environ["HF_HUB_OFFLINE"] = "1"
    refused(ValueError, "attention heads", "vision_tower=", call=lambda: inside.load(folder))
    clip = next((zoo / "OpenAI").glob("clip*"))
    options = {"vision_tower": str(clip), "vision_tower_aux": str(next((zoo / "OpenAI").glob("openclip*")))}
    assert np.array_equal(forward(folder, **options)["logits"], expected)
    try:
        zoo.rename(zoo.parent / "model_zoo")
        os.chdir(zoo.parent)
        assert np.array_equal(forward(folder)["logits"], expected)
    finally:
        os.chdir(here)
        shutil.rmtree(zoo.parent / "model_zoo")
    refused(FileNotFoundError, "/nowhere", call=lambda: inside.load(folder, vision_tower="/nowhere"))


def in_the_hubs_cache(name, folder=None):
    """A hub model as the hub's library keeps it; without `folder` only its config.json was ever fetched."""
    root = Path(os.environ["HOME"]) / ".cache" / "huggingface" / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    shutil.rmtree(root, ignore_errors=True)
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    if folder is None:
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({"vision_config": {"hidden_size": 1024}}))
    else:
        shutil.copytree(str(folder), str(snapshot))
    return root


def check_towers_in_the_hubs_cache():
    """By the hub id that config.json names; a cache that holds no weights does not hide the checkpoint's own."""
    folder = inside.make("minigemini-7b")
    expected = forward(folder)["logits"]
    kept = folder.parent / "kept"
    shutil.move(str(folder / "model_zoo"), str(kept))
    clip, convnext = (next(kept.glob(f"OpenAI/{start}*")) for start in ("clip", "openclip"))
    edit(folder, mm_vision_tower="someone/their-clip", mm_vision_tower_aux="someone/their-convnext")
    caches = [in_the_hubs_cache("someone/their-clip", clip)]
    try:
        caches.append(in_the_hubs_cache("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"))
        model = inside.load(folder)
        assert model.report["towers"]["convnext"] == ["checkpoint"]
        caches.append(in_the_hubs_cache("someone/their-convnext", convnext))
        assert "someone--their-convnext" in inside.load(folder).report["towers"]["convnext"][0]
        assert np.array_equal(forward(folder)["logits"], expected)
        shutil.rmtree(str(caches.pop(0)))
        caches.append(in_the_hubs_cache("openai/clip-vit-large-patch14-336"))
        refused(ValueError, "attention heads", "vision_tower=", call=lambda: inside.load(folder))
    finally:
        for cache in caches:
            shutil.rmtree(str(cache))


def rewrite(folder, change):
    """Every shard with its tensors changed by `change(name, tensor)`; None drops one, a tuple moves it to a shard."""
    from safetensors.torch import load_file, save_file

    for file in sorted(Path(folder).glob("*.safetensors")):
        changed = {name: change(name, value) for name, value in load_file(str(file)).items()}
        save_file(
            {name: value.contiguous() for name, value in changed.items() if value is not None}, str(file)
        )


def check_the_checkpoints_clip_wins_over_its_folder():
    folder = inside.make("minigemini-7b")
    before = forward(folder)["logits"]
    state = torch.load(str(tower_folder(folder, "clip") / "pytorch_model.bin"), weights_only=True)
    torch.save(
        {name: value * 2 for name, value in state.items()},
        str(tower_folder(folder, "clip") / "pytorch_model.bin"),
    )
    model = inside.load(folder)
    assert model.report["towers"]["clip"] == "checkpoint"
    assert np.array_equal(forward(folder)["logits"], before)
    rewrite(folder, lambda name, value: None if "vision_tower.vision_tower." in name else value)
    model = inside.load(folder)
    assert model.report["towers"]["clip"].endswith("clip-vit-large-patch14-336")
    assert not np.allclose(forward(folder)["logits"], before, atol=1e-3)


def check_a_tower_that_is_nowhere_is_told():
    """With its option, and the hub's name for what has to be fetched."""
    folder = inside.make("minigemini-7b")
    shutil.rmtree(str(tower_folder(folder, "openclip")))
    rewrite(folder, lambda name, value: None if "vision_tower_aux." in name else value)
    aux = ("ConvNeXt", "vision_tower_aux=", "'hf:laion/CLIP-convnext_large_d_320")
    refused(FileNotFoundError, *aux, call=lambda: inside.load(folder))
    shutil.rmtree(str(folder / "model_zoo"))
    rewrite(folder, lambda name, value: None if "vision_tower." in name else value)
    clip = ("CLIP", "vision_tower=", "'hf:openai/clip-vit-large-patch14-336'")
    refused(FileNotFoundError, *clip, call=lambda: inside.load(folder))


def check_clip_in_an_unread_shard_gives_way_to_its_folder():
    """The original reads only shards with patch-mining weights: CLIP tensors elsewhere do not count."""
    from safetensors.torch import load_file, save_file

    folder = inside.make("minigemini-7b")
    first, last = sorted(folder.glob("*.safetensors"))
    left, right = load_file(str(first)), load_file(str(last))
    for name in [name for name in right if "vision_tower.vision_tower." in name]:
        left[name] = right.pop(name) * 2
    save_file(left, str(first))
    save_file(right, str(last))
    model = inside.load(folder)
    assert model.report["towers"]["clip"] != "checkpoint"
    assert "does not read" in model.report["notes"][0]


def check_convnext_is_the_folders_unless_it_was_trained():
    folder = inside.make("minigemini-7b")
    before = forward(folder)["logits"]
    rewrite(folder, lambda name, value: value * 1.5 if "vision_stages" in name else value)
    assert np.array_equal(forward(folder)["logits"], before)
    edit(folder, optimize_vision_tower_aux=True)
    assert not np.allclose(forward(folder)["logits"], before, atol=1e-3)
    assert inside.load(folder).report["towers"]["convnext"] == ["checkpoint"]


def check_embeddings_follow_the_tokenizer():
    folder = inside.make("minigemini-7b")
    before = forward(folder)["logits"]

    def longer(name, value):
        more = (
            torch.ones(7, value.shape[1], dtype=value.dtype)
            if name in ("model.embed_tokens.weight", "lm_head.weight")
            else None
        )
        return value if more is None else torch.cat([value, more])

    rewrite(folder, longer)
    edit(folder, vocab_size=before.shape[1] + 7)
    assert np.array_equal(forward(folder)["logits"], before)
    edit(folder, mm_use_im_patch_token=None)  # counts as true: one token more
    after = forward(folder)["logits"]
    assert after.shape[1] == before.shape[1] + 1
    assert np.array_equal(after[:, :-1], before)
    assert inside.load(folder).loaded.tokenizer.convert_tokens_to_ids("<im_patch>") == before.shape[1]


def check_the_merged_sequence_is_cut():
    folder = inside.make("minigemini-7b")
    before = forward(folder)["logits"]
    edit(folder, tokenizer_model_max_length=40)
    assert np.allclose(forward(folder)["logits"], before[:40], atol=1e-5)
    words = inside.load(folder).forward(prompt=PROMPT * 12)
    assert words["logits"].shape[0] == len(words["input_ids"]) > 40  # text alone is never cut


def check_names_of_folder_and_model_type_do_not_matter():
    folder = inside.make("minigemini-8x7b")
    before = forward(folder)["logits"]
    moved = folder.with_name("mgm-7b-v2b")  # the original would take this for a Gemma
    folder.rename(moved)
    edit(moved, model_type="mini_gemini_mixtral", architectures=["MiniGeminiMixtralForCausalLM"])
    assert np.array_equal(forward(moved)["logits"], before)
    edit(moved, model_type=None, architectures=None)
    assert np.array_equal(forward(moved)["logits"], before)


def check_broken_checkpoints_are_told():
    folder = inside.make("minigemini-7b")
    last = max(folder.glob("*.safetensors"))
    whole = last.read_bytes()
    last.write_bytes(whole[:-100])
    refused(ValueError, "cut off", last.name, call=lambda: inside.load(folder))
    last.write_text("version https://git-lfs.github.com/spec/v1")
    refused(ValueError, "git-lfs", last.name, call=lambda: inside.load(folder))
    last.unlink()
    refused(FileNotFoundError, last.name, "incomplete", call=lambda: inside.load(folder))
    last.write_bytes(whole)
    rewrite(folder, lambda name, value: None if name == "model.layers.1.mlp.up_proj.weight" else value)
    refused(ValueError, "model.layers.1.mlp.up_proj.weight", call=lambda: inside.load(folder))
    rewrite(folder, lambda name, value: None if "vlm_uni" in name else value)
    refused(ValueError, "no MiniGemini", call=lambda: inside.load(folder))
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    for text in ("", "version https://git-lfs.github.com/spec/v1", "PK\3\4 cut off"):
        (folder / "pytorch_model.bin").write_text(text)
        refused(ValueError, "git-lfs", "pytorch_model.bin", call=lambda: inside.load(folder))
    (folder / "config.json").write_text("{broken")
    refused(ValueError, "config.json", "cannot be read", call=lambda: inside.load(folder))


def check_a_parameter_on_meta_is_named():
    model = inside.load(inside.make("minigemini-7b")).loaded.language
    model.model.norm.weight = torch.nn.Parameter(torch.empty(64, device="meta"))
    refused(
        RuntimeError,
        "model.norm.weight",
        "meta",
        call=lambda: inside.part("memory").check_nothing_on_meta(model),
    )


def check_several_devices_give_the_same():
    """Layers on two devices by name (both the CPU: hooks move every input all the same)."""
    from types import SimpleNamespace

    folder = inside.make("minigemini-34b", layers=3)
    before = forward(folder)["logits"]
    device_map = {"model.layers.0": "cpu", "model.layers.1": "cpu:0", "lm_head": "cpu:0", "": "cpu"}
    placement = SimpleNamespace(device="cpu", device_map=device_map, max_memory={}, dtype="float32")
    model = inside.MODEL(str(folder), placement=placement, allow_offload=True)
    assert model.report["device_map"] == {"first-0": "cpu", "1": "cpu:0", "2": "cpu", "last": "cpu:0"}
    assert np.array_equal(model.forward(images=inside.picture(), prompt=PROMPT)["logits"], before)
    layers = model.loaded.language.model.layers
    assert len(layers[1]._forward_pre_hooks) == 1
    tables = [getattr(layer.self_attn, "rotary_emb", None) for layer in layers]
    if hasattr(tables[0], "cos_cached"):
        assert tables[0] is tables[2] is not tables[1]  # one for each device, not for each layer
    placement.device_map = {**device_map, "model.layers.1": "disk"}
    refused(
        ValueError, "disk", call=lambda: inside.MODEL(str(folder), placement=placement, allow_offload=True)
    )


def check_dtypes():
    from types import SimpleNamespace

    folder = inside.make("minigemini-7b")
    full = forward(folder)["logits"]
    for name, stored in (("bfloat16", "bfloat16"), ("float16", "float16"), ("auto", "bfloat16")):
        placement = SimpleNamespace(device="cpu", device_map="cpu", max_memory={}, dtype=name)
        model = inside.MODEL(str(folder), placement=placement)
        kinds = {
            p.dtype for module in (model.loaded.language, model.loaded.images) for p in module.parameters()
        }
        assert kinds == {getattr(torch, stored)}, (name, kinds)
        logits = model.forward(images=inside.picture(), prompt=PROMPT)["logits"]
        assert logits.dtype == np.float32
        assert 0 < np.abs(logits - full).max() < 0.3, name
    placement.dtype = "int8"
    refused(ValueError, "int8", "float16", call=lambda: inside.MODEL(str(folder), placement=placement))


def check_loading_needs_little_more_than_the_weights():
    """Peak resident memory, in a process of its own that has loaded a tiny model before."""
    import subprocess
    import sys

    folder = inside.make("minigemini-7b", blank=True, heads=16, kv_heads=16, head=64, inner=4096, layers=6)
    command = [
        sys.executable,
        str(Path(__file__).with_name("memory_use.py")),
        str(inside.root),
        str(inside.make("minigemini-7b")),
        str(folder),
        "bfloat16",
        "float32",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [dtype for dtype, _, _ in seen] == command[-2:]
    allowance = 24e6  # allocator and rotation tables, whatever the size of the model
    for dtype, weights, peak in seen:
        assert weights < peak < 1.15 * weights + allowance, (dtype, weights, peak)
