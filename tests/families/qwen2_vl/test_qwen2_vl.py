"""Qwen2-VL, 2.5 and 3 in their own environments on tiny random checkpoints, against the library's own answers."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import Model, Orchestrator, Settings
from orchestrator.environments import Catalog, Environment, EnvironmentStore
from orchestrator.errors import LoadError, RemoteError

from .pictures import PROMPT, clip, picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
STYLES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
A, B = picture(56, 84, 0), picture(112, 112, 1)


@pytest.fixture(scope="module")
def orc(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings=settings) as orchestrator:
        yield orchestrator


@pytest.fixture(scope="module")
def models(orc: Orchestrator) -> dict[str, Model]:
    return {
        style: orc.load("qwen2-vl", checkpoint=f"tiny:{style}", dtype="float32", name=f"tiny-{style}")
        for style in STYLES
    }


@pytest.fixture(scope="module", params=STYLES)
def model(request: pytest.FixtureRequest, models: dict[str, Model]) -> Model:
    return models[request.param]


@pytest.fixture(scope="module")
def torchvision(store: EnvironmentStore, catalog: Catalog) -> Environment:
    """The registry's torchvision beside a CPU build of torch: it does not import, so nothing may probe it."""
    return store.ensure(replace(catalog.get("qwen2-vl", ["torchvision==0.28.0"]), probe=("torch",)))


@pytest.fixture(scope="module")
def library(
    torchvision: Environment,
    models: dict[str, Model],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What the library itself answers, torchvision and all."""
    found = {}
    for style, model in models.items():
        out = tmp_path_factory.mktemp(style) / "answers.npz"
        command = [torchvision.python, "-I", HERE / "library_answers.py", model.checkpoint.path, out]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found[style] = np.load(out)
    return found


CASES: dict[str, dict[str, Any]] = {
    "words": {"prompt": PROMPT},
    "picture": {"images": [A], "prompt": PROMPT},
    "pictures": {"images": [A, B], "prompt": PROMPT},
    "clip": {"videos": [clip(6, 90, 60)], "prompt": PROMPT},
    "odd clip": {"videos": [clip(5, 400, 300)], "prompt": PROMPT},
    "both": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": B},
                    {"type": "video", "video": clip(8, 84, 56)},
                    {"type": "text", "text": PROMPT},
                ],
            }
        ],
        "video_fps": 4.0,
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("style", STYLES)
def test_answers_are_the_library_s_own(
    style: str, case: str, models: dict[str, Model], library: dict[str, Any]
) -> None:
    theirs = library[style]
    answer = json.loads(str(theirs["answers"]))[case]
    seen = models[style].forward(**CASES[case])
    assert seen["prompt"] == answer["prompt"]
    np.testing.assert_array_equal(seen["input_ids"], theirs[f"{case} ids"])
    assert seen["logits"].dtype == np.float32
    # Qwen3-VL's 32-pixel grid makes both pictures need resizing, where PIL and torchvision differ by a step of 8 bits
    resized = style == "qwen3-vl" and case in ("picture", "pictures", "both")
    np.testing.assert_allclose(seen["logits"], theirs[f"{case} logits"], atol=1e-2 if resized else 1e-5)
    tokens = models[style].generate(**CASES[case], max_new_tokens=10, return_ids=True)["token_ids"]
    assert tokens == answer["tokens"]


def test_forward_and_generate_agree_and_features_fill_the_placeholders(model: Model) -> None:
    seen = model.forward(images=[A, B], prompt=PROMPT)
    answer = model.generate(images=[A, B], prompt=PROMPT, max_new_tokens=1, return_ids=True)
    assert answer["token_ids"] == [int(seen["logits"][-1].argmax())]
    assert answer["finish_reason"] in ("length", "stop")
    assert seen["logits"].shape[0] == seen["input_ids"].shape[0]
    pads = np.bincount(seen["input_ids"]).max()  # the placeholder is by far the most frequent token
    assert sum(len(features) for features in seen["image_features"]) == pads
    assert len(seen["image_features"]) == 2
    other = model.forward(images=[B, A], prompt=PROMPT)
    np.testing.assert_allclose(other["image_features"][1], seen["image_features"][0], atol=1e-5)
    assert (
        np.abs(other["logits"][-1] - seen["logits"][-1]).max() > 1e-3
    )  # the pictures and their order matter


def test_streaming_gives_the_same_text_in_several_pieces(model: Model) -> None:
    for options in ({}, {"temperature": 1.0, "seed": 5}):
        request = {"images": [A], "prompt": PROMPT, "max_new_tokens": 16, **options}
        pieces = list(model.stream("generate_stream", **request))
        assert "".join(pieces) == model.generate(**request)
        assert len(pieces) > 1


def test_a_batch_gives_what_single_calls_give(model: Model) -> None:
    requests = [
        {"images": [A, B], "prompt": PROMPT, "max_new_tokens": 8},
        {"prompt": "hello", "max_new_tokens": 3},
        {"images": [B], "videos": [clip(4, 56, 84)], "video_fps": 2.0, "prompt": "What?"},
        {"prompt": "hi", "temperature": 1.0, "seed": 3},
    ]
    together = model.generate_batch(requests, return_ids=True, max_new_tokens=6, batch_size=2)
    assert together == [
        model.generate(**{"max_new_tokens": 6, **request}, return_ids=True) for request in requests
    ]


def test_seeds_are_reproducible_and_different(model: Model) -> None:
    def sampled(seed: int, **options: Any) -> list[int]:
        answer = model.generate(
            prompt=PROMPT, temperature=1.0, seed=seed, max_new_tokens=12, return_ids=True, **options
        )
        return list(answer["token_ids"])

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    greedy = model.generate(prompt=PROMPT, max_new_tokens=12, return_ids=True)["token_ids"]
    assert sampled(1, top_k=1) == greedy
    assert sampled(1) != greedy  # the checkpoint's own top_k of 1 would make every sample greedy


def test_a_call_leaves_nothing_behind_for_the_next(model: Model) -> None:
    before = model.generate(prompt=PROMPT, max_new_tokens=8, return_ids=True)
    model.generate(images=[A, B], prompt=PROMPT, max_new_tokens=8)
    assert model.generate(prompt=PROMPT, max_new_tokens=8, return_ids=True) == before


def png(array: np.ndarray) -> bytes:
    """The file of a picture; the tests' own interpreter has no Pillow."""
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.tobytes() for row in array)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_every_form_of_a_picture_gives_the_same(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["qwen2-vl"]
    file = tmp_path / "a.png"
    file.write_bytes(png(A))
    address = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    wanted = model.forward(images=A, prompt=PROMPT)["logits"]
    for form in (str(file), file.read_bytes(), address):
        np.testing.assert_array_equal(model.forward(images=[form], prompt=PROMPT)["logits"], wanted)
    parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": PROMPT}]
    inline = model.forward(messages=[{"role": "user", "content": parts}])
    np.testing.assert_array_equal(inline["logits"], wanted)
    after = model.forward(messages=[{"role": "user", "content": parts[::-1]}])
    assert after["prompt"].index("Describe") < after["prompt"].index("<|image_pad|>")


def test_pictures_beside_messages_stand_before_the_first_user_message(models: dict[str, Model]) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "second"},
    ]
    prompt = models["qwen2-vl"].forward(images=[A], messages=messages)["prompt"]
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert "user\n<|vision_start|><|image_pad|><|vision_end|>first<|im_end|>" in prompt
    assert prompt.endswith("user\nsecond<|im_end|>\n<|im_start|>assistant\n")


def test_bounds_of_the_area_change_the_number_of_tokens(orc: Orchestrator) -> None:
    with orc.load("qwen2-vl", checkpoint="tiny:qwen2-vl", dtype="float32", max_pixels=28 * 28 * 8) as small:
        features = small.forward(images=[picture(280, 280, 0)], prompt=PROMPT)["image_features"]
        assert len(features[0]) <= 8
    with orc.load("qwen2-vl", checkpoint="tiny:qwen2-vl", dtype="float32", min_pixels=28 * 28 * 100) as large:
        features = large.forward(images=[picture(56, 56, 0)], prompt=PROMPT)["image_features"]
        assert len(features[0]) >= 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": "What is <|image_pad|>?"}, r"<\|image_pad\|> 1 times for 0 image"),
        ({"prompt": "x", "max_new_tokens": 0}, "max_new_tokens must be 1 or more"),
        ({"prompt": "x", "temperature": -1.0}, "temperature must be 0"),
        ({"prompt": "x", "temperature": 1.0, "top_p": 2.0}, "top_p must be over 0"),
        ({"videos": [[A, B]], "prompt": "x"}, "frames of a video must have one size"),
        ({"videos": [clip(4, 56, 56)], "video_fps": [1.0, 2.0], "prompt": "x"}, "2 rates for 1 videos"),
    ],
)
def test_wrong_arguments_are_refused_in_words(
    models: dict[str, Model], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(RemoteError, match=words):
        models["qwen2-vl"].generate(**arguments)


def test_a_wrong_request_of_a_batch_is_named(models: dict[str, Model]) -> None:
    for wrong, words in (("a text", " is a str, not a mapping"), ({"prompt": 3}, ": prompt is a int")):
        with pytest.raises(RemoteError, match=rf"ValueError: requests\[1\]{words}"):
            models["qwen2-vl"].generate_batch([{"prompt": "a"}, wrong])


def test_timings_and_report(models: dict[str, Model]) -> None:
    model = models["qwen2-vl"]
    answer = model.generate(images=[A], prompt=PROMPT, max_new_tokens=4, return_timings=True)
    steps = answer["timings"]
    assert set(steps) == {"prepare", "first_token", "decode", "total", "tokens_per_second"}
    assert steps["total"] == pytest.approx(
        steps["prepare"] + steps["first_token"] + steps["decode"], abs=1e-2
    )
    assert model.report["device_map"] == {"": "cpu"}
    assert model.report["dtype"] == "float32"
    assert model.report["image_backend"] == "pil"


@pytest.mark.parametrize(
    ("version", "styles"), [("5.23.0", STYLES), ("4.57.6", STYLES), ("4.45.2", ("qwen2-vl",))]
)
def test_versions_give_the_recorded_numbers(orc: Orchestrator, version: str, styles: tuple[str, ...]) -> None:
    with orc.load(
        "qwen2-vl", checkpoint="tiny:qwen2-vl", with_=[f"transformers=={version}"], dtype="float32"
    ) as model:
        outcome = model.self_test()
        assert outcome["ok"], outcome
        assert {name.split()[0] for name in outcome["differences"]} == set(styles)
        seen = model.forward(images=[A, B], prompt=PROMPT)  # 4.45.2 makes no positions of its own here
        answer = model.generate(images=[A, B], prompt=PROMPT, max_new_tokens=1, return_ids=True)
        assert answer["token_ids"] == [int(seen["logits"][-1].argmax())]


def test_an_older_transformers_is_told_by_its_diagnosis(orc: Orchestrator) -> None:
    with pytest.raises((LoadError, RemoteError)) as caught:
        orc.load("qwen2-vl", checkpoint="tiny:qwen3-vl", with_=["transformers==4.45.2"], dtype="float32")
    assert "transformers>=4.57" in (caught.value.hint or "")


def test_a_checkpoint_with_a_missing_weight_is_refused(
    orc: Orchestrator, models: dict[str, Model], tmp_path: Path
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(models["qwen2-vl"].checkpoint.path, broken)
    file = broken / "model.safetensors"
    data = file.read_bytes()
    assert data.count(b"model.norm.weight") == 1
    file.write_bytes(data.replace(b"model.norm.weight", b"model.nope.weight"))
    with pytest.raises(LoadError, match=r"missing: \S*norm.weight"):
        orc.load("qwen2-vl", checkpoint=broken, dtype="float32")


@pytest.mark.parametrize(
    "options",
    [{"load_in_4bit": True}, {"load_in_8bit": True}, {"quantization_config": {"load_in_4bit": True}}],
)
def test_bits_need_the_extra(orc: Orchestrator, options: dict[str, Any]) -> None:
    with pytest.raises(LoadError, match=r"with_=\['quantization'\]"):
        orc.load("qwen2-vl", checkpoint="tiny:qwen2-vl", name="small", **options)


def test_another_kind_of_checkpoint_is_refused(orc: Orchestrator) -> None:
    with pytest.raises(LoadError, match="llama checkpoint; this family serves"):
        orc.load("qwen2-vl", checkpoint="tiny:llama")


def test_a_broken_torchvision_in_the_environment_does_no_harm(
    torchvision: Environment, models: dict[str, Model], tmp_path: Path
) -> None:
    model, out = models["qwen2-vl"], tmp_path / "logits.npy"
    command = [torchvision.python, "-I", HERE / "beside_torchvision.py", ROOT, model.checkpoint.path, out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = model.forward(images=[picture(75, 100, 2)], prompt=PROMPT)["logits"]
    np.testing.assert_allclose(np.load(out), wanted, atol=1e-6)


def test_auto_chooses_the_family(models: dict[str, Model], catalog: Catalog) -> None:
    from orchestrator.pins import family_for

    assert {family_for(model.checkpoint.path, catalog) for model in models.values()} == {"qwen2-vl"}
