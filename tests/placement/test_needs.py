"""What a checkpoint needs: blocks by name, dtypes, towers, allowances with their words; published shapes."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_checkpoints import write_gguf, write_safetensors

from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.placement import SHAPES, estimate_from_config, needs_of, shape
from orchestrator.placement.allowance import allowance_of
from orchestrator.placement.files import Tensor
from orchestrator.placement.needs import blocks_of

unhurried = settings(
    deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)  # on any machine


def test_blocks_are_in_the_order_of_the_model_not_of_the_file(llama):
    needs = needs_of(llama())
    names = [b.name for b in needs.blocks]
    assert names == ["model.embed_tokens", *(f"model.layers.{i}" for i in range(12)), "model.norm", "lm_head"]
    assert [b.kind for b in needs.blocks[:2]] == ["embedding", "layer"]
    assert [b.name for b in needs.blocks if b.first] == ["model.embed_tokens"]
    assert needs.dtype == "float16"


def test_bytes_by_the_dtype_of_the_target(llama):
    half = needs_of(llama())
    assert half.weights() == 2 * half.parameters
    assert half.as_dtype("fp32").weights() == 4 * half.parameters
    assert needs_of(llama("F32", "other"), dtype="bfloat16").weights() == half.weights()


def test_auto_is_what_config_or_files_say(llama):
    assert needs_of(llama("F32", torch_dtype="bfloat16")).dtype == "bfloat16"
    assert needs_of(llama("F32", "b", torch_dtype=None)).dtype == "float32"
    assert (
        needs_of(llama("BF16", "c", torch_dtype=None, dtype="float16")).dtype == "float16"
    )  # 5.x writes `dtype`


def test_the_allowance_is_the_kv_cache_of_this_shape(llama):
    needs = needs_of(llama(), batch=3, context=100)
    terms = {t.name: t for t in needs.terms}
    cache = 2 * 12 * 2 * 16 * 3 * 100 * 2  # K and V, layers, kv heads, head size, batch, tokens, bytes
    assert terms["KV cache"].amount.bytes("float16") == cache
    assert terms["KV cache"].words == "2 (K, V) x 12 layers x 2 heads x 16 x 3 x 100 tokens"
    assert sum(b.state.bytes("float16") for b in needs.blocks if b.kind == "layer") == cache
    assert terms["logits"].amount.bytes("float16") == 3 * 100 * 1000 * 6
    assert needs.blocks[-1].state.bytes("float16") == 3 * 100 * 1000 * 6
    assert needs.total == sum(t.amount.bytes("float16") for t in needs.terms)  # every byte is in the bill


def test_a_model_that_generates_nothing_has_no_cache(llama):
    needs = needs_of(llama(architectures=["LlamaModel"]))
    assert [t.name for t in needs.terms] == ["weights", "activations"]
    assert needs.state() == 0


def test_a_tied_head_is_free_and_stays_with_the_embeddings(llama):
    plain, tied = needs_of(llama()), needs_of(llama(name="tied", tie_word_embeddings=True))
    head = next(b for b in tied.blocks if b.name == "lm_head")
    assert (head.tied, head.first, head.weights.bytes("float16")) == (True, True, 0)
    assert plain.weights() - tied.weights() == 2 * 1000 * 64
    assert head.state.bytes("float16") > 0  # the logits are there


def test_packed_weights_keep_their_size(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {
        "model.layers.0.q.qweight": ("I32", (10,)), "model.layers.0.q.scales": ("F16", (10,)),
        "model.layers.0.k.weight": ("F8_E4M3", (10,))})  # fmt: skip
    needs = needs_of(tmp_path)
    assert needs.weights() == 40 + 20 + 10
    assert needs.as_dtype("float32").weights() == 40 + 40 + 10


def test_towers_in_folders_of_their_own(llama, tmp_path):
    tower = tmp_path / "clip-large"
    tower.mkdir()
    write_safetensors(tower / "model.safetensors", {"vision_model.encoder.layers.0.w": ("F32", (100,))})
    plain = needs_of(llama())
    given_ = needs_of(tmp_path / "tiny-llama", towers=[tower])
    assert given_.weights() - plain.weights() == 200
    assert given_.blocks[0].name == "clip-large.vision_model.encoder.layers.0"
    assert given_.blocks[0].first
    named = needs_of(
        llama(name="mgm", mm_vision_tower="model_zoo/OpenAI/clip-large")
    )  # beside it, as people do
    assert named.weights() == given_.weights()


def test_a_tower_is_found_where_the_worker_will_find_it(llama, tmp_path, monkeypatch):
    """In the checkpoint's folder, above it, in the working folder, in the hub's cache; only the side that sees."""
    named = "model_zoo/OpenAI/clip-vit-large-patch14-336"
    places = [tmp_path / "mgm" / named, tmp_path / named, tmp_path / "cwd" / named]
    hub = tmp_path / "hf" / "hub" / "models--openai--clip-vit-large-patch14-336"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    folder = llama(name="mgm", mm_vision_tower=named)
    lacking = needs_of(folder)
    assert "not counted" in lacking.notes[0]
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("abc")
    for place in [hub / "snapshots" / "abc", *reversed(places)]:  # each wins over those before
        place.mkdir(parents=True)
        size = 100 + len(str(place))
        write_safetensors(
            place / "model.safetensors",
            {
                "vision_model.encoder.layers.0.w": ("F32", (size,)),
                "text_model.encoder.layers.0.w": ("F32", (9999,)),
            },
        )
        found = needs_of(folder)
        assert found.weights() - lacking.weights() == 2 * size
        assert found.blocks[0].kind == "tower"
    other = tmp_path / "other"
    other.mkdir()
    write_safetensors(other / "model.safetensors", {"visual.trunk.w": ("F16", (7,))})
    replaced = needs_of(folder, towers={"mm_vision_tower": other})
    assert replaced.weights() - lacking.weights() == 14


def test_a_gguf_counts_as_what_it_is_converted_to(llama, tmp_path):
    write_gguf(tmp_path / "model.gguf")
    plain = needs_of(llama("F32", torch_dtype="float32"))
    ours = needs_of(tmp_path / "model.gguf")
    assert [(b.name, b.weights, b.state) for b in ours.blocks] == [
        (b.name, b.weights, b.state) for b in plain.blocks
    ]
    assert (ours.dtype, ours.total) == (plain.dtype, plain.total)


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_a_gguf_that_is_cut_short_is_an_error(tmp_path, cut):
    write_gguf(tmp_path / "model.gguf", cut=cut)
    with pytest.raises(CheckpointError, match="cut short"):
        needs_of(tmp_path / "model.gguf")


def test_towers_inside_are_not_counted_twice(llama, tmp_path):
    folder = llama(mm_vision_tower="clip-large")
    write_safetensors(folder / "extra.safetensors", {"model.vision_tower.vision_tower.w": ("F16", (100,))})
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    (tmp_path / "clip-large").mkdir()
    write_safetensors(tmp_path / "clip-large" / "model.safetensors", {"w": ("F16", (100,))})
    towers = [b for b in needs_of(folder).blocks if b.kind == "tower"]
    assert [b.name for b in towers] == ["model.vision_tower.vision_tower"]


def test_no_checkpoint_needs_nothing_known():
    assert needs_of(None).total == 0


@pytest.mark.parametrize("options", [{"dtype": "float17"}, {"dtype": "int8"}, {"batch": 0}, {"context": 0}])
def test_wrong_options(llama, options):
    with pytest.raises(ConfigError):
        needs_of(llama(), **options)


PARTS = st.sampled_from(["self_attn.q", "mlp.up", "norm", "experts.0.w1", "experts.1.w1", "blocks.3.x"])
NAMES = st.one_of(
    st.builds("model.layers.{}.{}.weight".format, st.integers(0, 12), PARTS),
    st.builds("encoder.block.{}.{}".format, st.integers(0, 12), PARTS),
    st.builds(
        "model.{}.weight".format, st.sampled_from(["embed_tokens", "norm", "mm_projector.0", "a.b.c", "a"])
    ),
    st.sampled_from(["lm_head.weight", "a", "x.bias", "x.y.bias", "logit_scale"]),
)


@unhurried
@given(st.sets(NAMES, min_size=1))
def test_every_tensor_is_in_one_block_and_layers_stay_whole(names):
    tensors = [Tensor(name, "float32", 2**i, 4 * 2**i) for i, name in enumerate(sorted(names))]
    blocks = blocks_of(tensors)
    assert sum(b.parameters for b in blocks) == sum(t.count for t in tensors)
    assert len({b.name for b in blocks}) == len(blocks)
    for tensor in tensors:
        inside = [b.name for b in blocks if b.parameters & tensor.count]  # counts are powers of two
        assert len(inside) == 1
        if ".layers." in tensor.name or ".block." in tensor.name:
            number = 3
            assert inside[0] == ".".join(tensor.name.split(".")[:number])


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("llama-7b", 13.477), ("llama-13b", 26.032), ("llama-34b", 68.778), ("mixtral-8x7b", 93.406),
     ("gemma-2b", 5.012), ("qwen2-vl-2b", 4.418), ("qwen2-vl-7b", 16.583), ("mgm-7b", 14.53)],
)  # fmt: skip
def test_published_shapes_have_their_published_sizes(name, gigabytes):
    needs = estimate_from_config(SHAPES[name], "float16")
    assert needs.weights() / 1e9 == pytest.approx(gigabytes, abs=0.005)


def test_an_estimate_equals_what_the_files_say(llama):
    folder = llama()
    config = json.loads((folder / "config.json").read_text())
    read, computed = needs_of(folder, batch=2), estimate_from_config(config, batch=2)
    assert [(b.name, b.weights, b.state) for b in read.blocks] == [
        (b.name, b.weights, b.state) for b in computed.blocks
    ]
    assert read.total == computed.total


def test_a_damaged_config_is_not_taken_for_none(llama):
    """Without it nothing would be counted for running the model."""
    folder = llama()
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: .*line 1 column 16") as caught:
        needs_of(folder)
    assert caught.value.hint == "fetch the checkpoint again"


def test_an_unknown_kind_of_model_says_that_it_is_a_guess():
    needs = estimate_from_config(
        {"hidden_size": 8, "num_hidden_layers": 2, "model_type": "strange", "vocab_size": 9}
    )
    assert "as if it were a Llama" in needs.notes[0]
    with pytest.raises(ConfigError, match="hidden_size"):
        estimate_from_config({"model_type": "strange"})


def test_a_published_shape_by_a_wrong_name():
    with pytest.raises(ConfigError, match="llama-13b"):
        shape("llama-13")


def test_the_shape_of_a_multimodal_config_is_its_language_part():
    text = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 9}
    config = {"architectures": ["XForConditionalGeneration"], "text_config": text, "hidden_size": 5}
    assert allowance_of(config, context=10).cache.floats == 2 * 3 * 2 * 4 * 10
    assert allowance_of({}).terms == ()


def test_a_minigeminis_picture_maps_are_on_the_first_device_and_hd_reads_longer_prompts():
    plain = estimate_from_config(SHAPES["mgm-7b"], "float16")
    maps = 3 * 2880 * (768 // 4) ** 2
    assert plain.blocks[0].state.floats == maps
    assert next(t for t in plain.terms if t.name == "picture maps").amount.floats == maps
    tiled = {"image_grid": 2, "image_size_aux": 1536, "tokenizer_model_max_length": 4096}
    hd = estimate_from_config({**SHAPES["mgm-7b"], **tiled}, "float16")
    assert hd.blocks[0].state.floats == 4 * maps
    for place in (-1, -3):  # the head and the last layer
        assert hd.state([hd.blocks[place]]) == 2 * plain.state([plain.blocks[place]])
    assert allowance_of({**SHAPES["mgm-7b"], **tiled}, context=100).cache.floats == 2 * 32 * 32 * 128 * 100
