"""Makes known failures happen, in whatever environment it runs in, and prints their words as JSON.

usage: python spring_failures.py EMPTY_FOLDER
"""

import json
import pickle
import sys
import traceback
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer

ROOT = Path(sys.argv[1])
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENIZER = {
    "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
}  # fmt: skip
# numpy 2 writes numpy._core, which numpy 1 does not have; this is such a pickle, by hand
NEW_PICKLE = b"cnumpy._core.numeric\n_frombuffer\n."


def folder(name, config=None, **files):
    made = ROOT / name
    made.mkdir(parents=True, exist_ok=True)
    (made / "config.json").write_text(json.dumps(config or {}))
    for file, text in files.items():
        (made / file.replace("__", ".")).write_text(text if isinstance(text, str) else json.dumps(text))
    return str(made)


def unknown_type():
    AutoConfig.from_pretrained(folder("unknown", {"model_type": "qwen3_vl"}))


def tokenizer(name):
    where = folder(
        name,
        {"model_type": "llama"},
        tokenizer__json=TOKENIZER,
        tokenizer_config__json={"tokenizer_class": name},
    )
    AutoTokenizer.from_pretrained(where)


def pairs():
    model = {**TOKENIZER["model"], "merges": [["a", "b"]]}
    where = folder("pairs", None, tokenizer__json={**TOKENIZER, "model": model})
    transformers.PreTrainedTokenizerFast(tokenizer_file=where + "/tokenizer.json")


def token_type_ids():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **SMALL))
    model.generate(input_ids=torch.tensor([[1, 2]]), token_type_ids=torch.zeros(1, 2), max_new_tokens=1)


def remote(name, trust):
    where = folder(
        name,
        {"model_type": "mine", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "model.Model"}},
        own__py="from transformers import PretrainedConfig\nclass Config(PretrainedConfig):\n    model_type = 'mine'\n",
        model__py="from transformers import PreTrainedModel\nfrom .own import Config\n"
        "class Model(PreTrainedModel):\n    config_class = Config\n",
    )
    config = AutoConfig.from_pretrained(where, trust_remote_code=trust)
    AutoModel.from_config(config, trust_remote_code=trust)


def llama3_rope():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192, "rope_type": "llama3"}  # fmt: skip
    AutoConfig.from_pretrained(folder("rope", {"model_type": "llama", "rope_scaling": scaling}))


def pointer():
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 50, **SMALL}
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    transformers.LlamaForCausalLM.from_pretrained(folder("pointer", config, model__safetensors=text))


def dtype():
    config = {"model_type": "bert", "vocab_size": 50, **SMALL}
    where = folder("dtype", config)
    transformers.BertModel(transformers.BertConfig(**config)).save_pretrained(where)
    transformers.BertModel.from_pretrained(where, dtype=torch.float32)


def features():
    text = {"vocab_size": 50, "max_position_embeddings": 8, **SMALL}
    vision = {"image_size": 28, "patch_size": 14, **SMALL}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    found = transformers.CLIPModel(config).get_image_features(torch.zeros(1, 3, 28, 28))
    found / found.norm(dim=-1, keepdim=True)


def clip_keys():
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(image_size=28, patch_size=14, **SMALL))
    names = {
        "vision_model." + key.replace("vision_model.", "", 1): value
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(names)


def mm_token_types():
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1}
    text = {"vocab_size": 50, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}, **SMALL}
    config = Qwen2VLConfig(text_config={**text, "num_key_value_heads": 2}, vision_config=vision,
                           image_token_id=5, video_token_id=6, vision_start_token_id=7)  # fmt: skip
    ids = torch.tensor([[7, 5, 1]])
    pixels = torch.zeros(4, 3 * 2 * 14 * 14)
    Qwen2VLForConditionalGeneration(config)(
        input_ids=ids,
        pixel_values=pixels,
        image_grid_thw=torch.tensor([[1, 2, 2]]),
        attention_mask=torch.ones_like(ids),
    )


def video_processor():
    where = folder(
        "video",
        {"model_type": "qwen2_vl"},
        preprocessor_config__json={
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
        },
        tokenizer__json=TOKENIZER,
        tokenizer_config__json={"tokenizer_class": "PreTrainedTokenizerFast"},
    )
    transformers.AutoProcessor.from_pretrained(where)


def importing(statement):
    return lambda: exec(statement, {})


FAILURES = {
    "unknown type": unknown_type,
    "gemma tokenizer": lambda: tokenizer("GemmaTokenizer"),
    "backend": lambda: tokenizer("TokenizersBackend"),
    "pairs": pairs,
    "token type ids": token_type_ids,
    "meta": lambda: torch.nn.Linear(2, 2, device="meta").to("cpu"),
    "dotted": lambda: remote("gte-Qwen2-1.5B", True),
    "remote": lambda: remote("plain", False),
    "llama3 rope": llama3_rope,
    "pointer": pointer,
    "pickle": lambda: pickle.loads(NEW_PICKLE),
    "dtype": dtype,
    "features": features,
    "clip keys": clip_keys,
    "deepspeed": importing("import transformers.deepspeed"),
    "AdamW": importing("from transformers import AdamW"),
    "flash": importing("from transformers.models.llama.modeling_llama import LlamaFlashAttention2"),
    "mm token types": mm_token_types,
    "video processor": video_processor,
    "module": importing("import cv2"),
}
found = {}
for name, spring in FAILURES.items():
    try:
        spring()
        found[name] = None
    except Exception as error:
        found[name] = [
            f"{type(error).__module__}.{type(error).__qualname__}",
            str(error),
            traceback.format_exc(),
        ]
print()
print(json.dumps(found))
