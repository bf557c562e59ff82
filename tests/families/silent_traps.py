"""Springs traps that raise nothing, in whatever environment it runs in, and prints what was seen as JSON.

usage: python silent_traps.py NAME [QWEN2_VL_FOLDER]
"""

import json
import sys

import torch

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def bos():
    """What generate gives for embeddings, and for the ids that they are of."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **SMALL)).eval()
    ids = torch.tensor([[3, 7, 9]])
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    embeddings = model.get_input_embeddings()(ids)
    mask = torch.ones_like(ids)
    return {
        "embeddings": model.generate(inputs_embeds=embeddings, attention_mask=mask, **options)[0].tolist(),
        "ids": model.generate(input_ids=ids, attention_mask=mask, **options)[0, 3:].tolist(),
    }


def tower():
    """How much of a CLIP tower with the published names changes when it is loaded with strict=False."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    model = CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=8, patch_size=4))
    prefix = "vision_model."
    published = {
        prefix + name.removeprefix(prefix): torch.zeros_like(value)
        for name, value in model.state_dict().items()
    }
    published.pop(prefix + "embeddings.position_ids", None)
    model.load_state_dict(published, strict=False)
    return sum(bool(value.abs().sum()) for value in model.parameters())


def qwen():
    """A tiny Qwen2-VL and a picture between words."""
    from transformers import Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(sys.argv[2]).float().eval()
    vision, start = model.config.vision_config, model.config.vision_start_token_id
    height = width = 8
    rows = torch.randn(
        height * width, 3 * 2 * vision.patch_size**2, generator=torch.Generator().manual_seed(0)
    )
    picture = (
        [start] + [model.config.image_token_id] * (height * width // 4) + [model.config.vision_end_token_id]
    )
    ids = torch.tensor([[20, 21, *picture, 22, 23, 24]])
    return model, {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": rows,
        "image_grid_thw": torch.tensor([[1, height, width]]),
    }


def positions():
    """How far a bare forward is off, and what generate computes at its first step."""
    model, inputs = qwen()
    where = model.get_rope_index(
        inputs["input_ids"], inputs["image_grid_thw"], None, inputs["attention_mask"]
    )[0]
    with torch.inference_mode():
        bare = model(**inputs).logits[0, -1]
        right = model(**inputs, position_ids=where).logits[0, -1]
    return {
        "bare": float((bare - right).abs().max()),
        "generate": float((first(model, inputs) - right).abs().max()),
    }


def types():
    """How far generate is off when one of the processor's keys is left out."""
    model, inputs = qwen()
    kinds = (inputs["input_ids"] == model.config.image_token_id).int()
    return float((first(model, inputs) - first(model, {**inputs, "mm_token_type_ids": kinds})).abs().max())


def first(model, inputs):
    """The logits of generate's first step."""
    options = {
        "max_new_tokens": 1,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    return model.generate(**inputs, **options).logits[0][0]


print(json.dumps({"bos": bos, "tower": tower, "positions": positions, "types": types}[sys.argv[1]]()))
