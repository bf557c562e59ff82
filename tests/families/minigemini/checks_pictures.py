"""Every way to give a picture, every way to place it, and what is refused."""

import base64
import io
from pathlib import Path

import inside
import numpy as np
from inside import refused
from PIL import Image

from orchestrator.worker.images import load_image, parse_messages

PIXELS = inside.picture(20, 30)
MODELS = {}


def model_of(style):
    if style not in MODELS:
        MODELS[style] = inside.load(inside.make(f"minigemini-{style}"))
    return MODELS[style]


def encoded():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def check_kinds_of_pictures():
    path = inside.scratch / "picture.png"
    path.write_bytes(encoded())
    url = "data:image/png;base64," + base64.b64encode(encoded()).decode()
    for value in (
        PIXELS,
        Image.fromarray(PIXELS),
        str(path),
        Path(path),
        encoded(),
        bytearray(encoded()),
        url,
    ):
        image = load_image(value)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), PIXELS), type(value)
    grey = load_image(PIXELS[:, :, 0])
    assert np.array_equal(np.asarray(grey), np.stack([PIXELS[:, :, 0]] * 3, -1))
    assert load_image(Image.fromarray(PIXELS).convert("RGBA")).mode == "RGB"


def check_unreadable_pictures():
    broken = inside.scratch / "broken.png"
    broken.write_bytes(encoded()[:60])
    refused(lambda: load_image(str(broken), "images[3]"), "images[3]", "broken.png", "cannot be read")
    refused(lambda: load_image(b"nonsense"), "cannot be read")
    refused(lambda: load_image(str(inside.scratch / "missing.png")), "no file")
    refused(lambda: load_image("https://example.org/a.png"), "network")
    refused(lambda: load_image("data:image/png;base64,*"), "base64")
    refused(lambda: load_image(PIXELS.astype(np.float32)), "float32", "uint8")
    refused(lambda: load_image(PIXELS[:, :, :2]), "(20, 30, 2)")
    refused(lambda: load_image(7), "int")


def check_places_of_pictures():
    """Beside plain text, as parts with and without their own picture, and as <image> in the text."""
    model = model_of("7b")
    text = {"type": "text", "text": "What is this?"}
    expected = model.forward(images=[PIXELS], prompt="What is this?")
    assert "USER: <image>\nWhat is this? ASSISTANT:" in expected["prompt"]
    for content in (
        {"images": [PIXELS], "messages": [{"role": "user", "content": "What is this?"}]},
        {"images": PIXELS, "messages": [{"role": "user", "content": [{"type": "image"}, text]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": PIXELS}, text]}]},
        {"images": [PIXELS], "prompt": "<image>\nWhat is this?"},
    ):
        found = model.forward(**content)
        assert found["prompt"] == expected["prompt"], content
        assert np.array_equal(found["logits"], expected["logits"])


def check_several_pictures_are_numbered():
    model = model_of("7b")
    two = model.forward(images=[PIXELS, inside.picture(40, 20, 9)], prompt="Which?")
    assert "USER: Image 1:<image>\nImage 2:<image>\nWhich? ASSISTANT:" in two["prompt"]
    assert (two["input_ids"] == -200).sum() == 2
    assert two["logits"].shape[0] == len(two["input_ids"]) - 2 + 32
    swapped = model.forward(images=[inside.picture(40, 20, 9), PIXELS], prompt="Which?")
    assert np.allclose(swapped["image_features"][1], two["image_features"][0], atol=1e-6)


def check_conversations():
    """Pictures given beside a conversation stand before its first user message."""
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "What is this?"},
    ]
    found = model_of("7b").forward(images=[PIXELS], messages=talk)
    assert found["prompt"] == "Be brief. USER: <image>\nHi ASSISTANT: Hello</s>USER: What is this? ASSISTANT:"
    refused(lambda: model_of("7b").forward(messages=talk[:3]), "last message")
    refused(lambda: model_of("7b").forward(messages=[talk[1], talk[1]]), "take turns")
    refused(
        lambda: model_of("7b").forward(messages=[{"role": "tool", "content": "x"}]),
        "tool",
        "system, user, assistant",
    )


def check_counts_and_shapes_are_refused_with_their_place():
    model, hd = model_of("7b"), model_of("7b-hd")
    refused(lambda: hd.generate(images=[PIXELS, PIXELS], prompt="x"), "HD", "2 are given")
    refused(lambda: model.generate(prompt="What is <image>?"), "<image> 1 time(s)", "0 image(s)")
    part = {"role": "user", "content": [{"type": "image"}]}
    refused(lambda: model.generate(messages=[part]), "1 image(s) open", "0 image(s)")
    refused(lambda: model.generate(images=[PIXELS, PIXELS], messages=[part]), "1 image(s) open", "2 image(s)")
    refused(lambda: model.generate(prompt="x", messages=[part]), "not both")
    refused(model.generate, "prompt= or messages=")
    refused(lambda: parse_messages(messages=[]), "no user message")
    refused(lambda: parse_messages(messages=[{"role": "user"}]), "messages[0]", "content")
    refused(
        lambda: parse_messages(messages=[{"role": "user", "content": [{"type": "sound"}]}]),
        "messages[0].content[0]",
    )
    refused(
        lambda: parse_messages(
            messages=[{"role": "assistant", "content": [{"type": "image", "image": PIXELS}]}]
        ),
        "only user",
    )
    video = {"role": "user", "content": [{"type": "video", "video": [PIXELS]}]}
    refused(lambda: model.generate(messages=[video]), "not a video")
    refused(lambda: model.generate_batch([{"prompt": "a"}, {"prompt": 3}]), "requests[1]")
    for option, value in (("max_new_tokens", 0), ("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.5)):
        refused(lambda option=option, value=value: model.generate(prompt="x", **{option: value}), option)
