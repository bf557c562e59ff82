"""Runs in an environment with torchvision: the library's own processor and generate, for comparison.

usage: python library_answers.py CHECKPOINT OUT.npz     (the pictures and clips are those of `pictures.py`)
"""

import json
import sys
from pathlib import Path

import torch

# the registry's torchvision does not fit a CPU torch: its operators must exist, nothing calls them
operators = torch.library.Library("torchvision", "DEF")
operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from pictures import PROMPT, clip, picture  # noqa: E402

checkpoint, out = sys.argv[1:]
processor = AutoProcessor.from_pretrained(checkpoint)
model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
text = {"type": "text", "text": PROMPT}
pair = [Image.fromarray(picture(56, 84, 0)), Image.fromarray(picture(112, 112, 1))]
cases = {
    "words": ([text], {}),
    "picture": ([{"type": "image"}, text], {"images": pair[:1]}),
    "pictures": ([{"type": "image"}, {"type": "image"}, text], {"images": pair}),
    "clip": ([{"type": "video"}, text], {"videos": [clip(6, 90, 60)]}),
    "odd clip": ([{"type": "video"}, text], {"videos": [clip(5, 400, 300)]}),
    "both": (
        [{"type": "image"}, {"type": "video"}, text],
        {
            "images": pair[1:],
            "videos": [clip(8, 84, 56)],
            "video_metadata": [{"fps": 4.0, "total_num_frames": 8}],
        },
    ),
}
answers, arrays = {}, {}
for name, (parts, media) in cases.items():
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=[prompt], return_tensors="pt", **media)
    inputs.pop("video_metadata", None)
    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=10)[
            0, inputs["input_ids"].shape[1] :
        ]
        arrays[name + " logits"] = model(**inputs).logits[0].numpy()
    arrays[name + " ids"] = inputs["input_ids"][0].numpy()
    answers[name] = {"tokens": tokens.tolist(), "prompt": prompt}
np.savez(out, answers=json.dumps(answers), **arrays)
