"""Asks accelerate for its own device maps; runs in an environment that has it, on meta tensors, without a GPU.

Reads a JSON list of {name, config, budgets: [[bytes, …], …]} from stdin and writes to stdout what
`infer_auto_device_map` makes of each, as the place where each device begins:

    python tests/placement/accelerate_maps.py < requests.json > tests/placement/data/accelerate_maps.json
"""

import json
import sys
import warnings

import accelerate
import torch
import transformers
from accelerate import infer_auto_device_map
from accelerate.utils import compute_module_sizes


def build(config):
    config = {k: v for k, v in config.items() if k not in ("torch_dtype", "architectures")}
    name = {"llama": "Llama", "mixtral": "Mixtral", "gemma": "Gemma", "qwen2_vl": "Qwen2VL"}[
        config["model_type"]
    ]
    kind = "ForConditionalGeneration" if name == "Qwen2VL" else "ForCausalLM"
    if name == "Qwen2VL":
        config["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24], "rope_type": "default"}
    with torch.device("meta"):
        model = getattr(transformers, name + kind)(getattr(transformers, name + "Config")(**config))
    model.tie_weights()
    return model


def no_split(model):
    found = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        found |= set(getattr(module, "_no_split_modules", None) or ())
    return sorted(found)


def leaves(module, whole, prefix=""):
    """Names of the modules that accelerate does not split, in the order in which it takes them."""
    children = list(module.named_children())
    if not children or type(module).__name__ in whole:
        return [prefix]
    names = [f"{prefix}.{n}".lstrip(".") for n, _ in module.named_parameters(recurse=False)]
    for name, child in children:
        names += leaves(child, whole, f"{prefix}.{name}".lstrip("."))
    return names


def starts(names, placed):
    """[[first module, device], …] of a map by modules, which may name parents."""
    runs = []
    for name in names:
        key = max((k for k in placed if k in ("", name) or name.startswith(k + ".")), key=len)
        if not runs or runs[-1][1] != placed[key]:
            runs.append([name, placed[key]])
    return runs


def answer(request):
    model = build(request["config"])
    whole = no_split(model)
    sizes = compute_module_sizes(model, dtype=torch.float16)
    names = [name for name in leaves(model, whole) if sizes.get(name, 0) or name.endswith("lm_head")]
    maps = []
    for budgets in request["budgets"]:
        placed = infer_auto_device_map(
            model, max_memory=dict(enumerate(budgets)), no_split_module_classes=whole, dtype=torch.float16
        )
        maps.append({"budgets": budgets, "starts": starts(names, placed)})
    return {"name": request["name"], "modules": [[n, sizes.get(n, 0)] for n in names], "maps": maps}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    versions = {m.__name__: m.__version__ for m in (accelerate, transformers, torch)}
    answers = ",\n".join(json.dumps(answer(request)) for request in json.load(sys.stdin))
    sys.stdout.write(f'{{"versions": {json.dumps(versions)}, "answers": [\n{answers}\n]}}\n')
