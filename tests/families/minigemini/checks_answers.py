"""Prompts, tokens and answers against the library's own generation, and against each other."""

import inside
import numpy as np
import torch

PROMPT = "What is in the picture?"
HAS_GEMMA = inside.part("variants").knows("gemma")
STYLES = ("7b", "13b", "34b", "8b", "8x7b", *(("2b",) if HAS_GEMMA else ()))


def model_of(style):
    if style not in MODELS:
        MODELS[style] = inside.load(inside.make(f"minigemini-{style}"))
    return MODELS[style]


MODELS = {}


def check_answers_equal_the_librarys_generate():
    """transformers' own `generate` over the same embeddings, for every language model at hand."""
    for style in STYLES:
        model = model_of(style)
        question = model._question({"images": [inside.picture()], "prompt": PROMPT, "messages": None}, {})
        embeddings = model._embeddings(question, model._features(question)).unsqueeze(0)
        ids = model.loaded.language.generate(
            inputs_embeds=embeddings, attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long), max_new_tokens=12,
            do_sample=False, eos_token_id=model.loaded.stops, pad_token_id=0, bos_token_id=model.loaded.tokenizer.bos_token_id,
        )[0].tolist()  # fmt: skip
        answer = model.generate(images=[inside.picture()], prompt=PROMPT, max_new_tokens=12, return_ids=True)
        assert ids[-len(answer["token_ids"]) :] == answer["token_ids"], (style, ids, answer)
        assert len(ids) - len(answer["token_ids"]) in (0, 1)  # 4.36 puts one BOS in front


def check_logits_equal_the_librarys_forward():
    for style in STYLES:
        model = model_of(style)
        question = model._question({"images": [inside.picture()], "prompt": PROMPT, "messages": None}, {})
        with torch.no_grad():
            embeddings = model._embeddings(question, model._features(question)).unsqueeze(0)
            expected = model.loaded.language(inputs_embeds=embeddings).logits[0].float().numpy()
        found = model.forward(images=[inside.picture()], prompt=PROMPT)
        assert np.allclose(found["logits"], expected, atol=1e-5), style
        assert found["logits"].dtype == np.float32
        assert found["input_ids"].dtype == np.int64
        assert (found["input_ids"] == -200).sum() == 1
        place = int(np.argmax(found["input_ids"] == -200))
        picture = embeddings[0, place : place + 16].numpy()
        assert np.array_equal(found["image_features"][0], picture), style


def check_streams_equal_answers():
    for style in STYLES:
        model = model_of(style)
        for seed in range(6):
            options = {"prompt": PROMPT, "images": [inside.picture()], "max_new_tokens": 30, "seed": seed}
            options["temperature"] = 1.5 if seed else 0.0
            pieces = list(model.generate_stream(**options))
            assert "".join(pieces) == model.generate(**options), (style, seed)
            assert len(pieces) > 1
            assert all(pieces)


def check_batches_equal_single_answers():
    for style in STYLES:
        model = model_of(style)
        requests = [
            {"images": [inside.picture()], "prompt": PROMPT},
            {"prompt": "Hello"},
            {"images": [inside.picture(30, 90, 3)], "prompt": "A cat? " * 9, "max_new_tokens": 4},
            {"prompt": "Tell me", "temperature": 1.2, "seed": 5},
        ]
        single = [
            model.generate(**{"max_new_tokens": 10, **request}, return_ids=True) for request in requests
        ]
        for size in (4, 3, 1):
            together = model.generate_batch(requests, batch_size=size, max_new_tokens=10, return_ids=True)
            assert together == single, (style, size, together, single)
    assert model.generate_batch([], max_new_tokens=3) == []


def check_seeds_repeat_and_differ():
    model = model_of("7b")

    def draw(**options):
        return model.generate(prompt=PROMPT, max_new_tokens=20, return_ids=True, **options)["token_ids"]

    assert draw(temperature=1.0, seed=1) == draw(temperature=1.0, seed=1) != draw(temperature=1.0, seed=2)
    assert draw(temperature=1.0) != draw(temperature=1.0)
    assert draw(temperature=1.0, top_k=1, seed=3) == draw() == draw(temperature=1.0, top_p=1e-6, seed=4)


def check_top_p_keeps_the_smallest_sufficient_set():
    nucleus = inside.part("decoding").nucleus
    scores = torch.tensor([0.1, 0.5, 0.05, 0.35]).log()
    assert torch.isfinite(nucleus(scores, 0.8)).tolist() == [False, True, False, True]
    assert torch.isfinite(nucleus(scores, 0.86)).tolist() == [True, True, False, True]
    assert torch.isfinite(nucleus(scores, 0.01)).tolist() == [False, True, False, False]


def check_an_answer_ends_at_its_mark():
    model = model_of("7b")
    free = model.generate(prompt=PROMPT, max_new_tokens=12, return_ids=True)
    assert free["finish_reason"] == "length"
    assert len(free["token_ids"]) == 12
    mark = free["token_ids"][4]
    kept = model.loaded
    model.loaded = kept._replace(stops=[mark])
    try:
        ended = model.generate(prompt=PROMPT, max_new_tokens=12, return_ids=True, return_timings=True)
    finally:
        model.loaded = kept
    assert ended["finish_reason"] == "stop"
    assert ended["token_ids"] == free["token_ids"][: free["token_ids"].index(mark) + 1]
    assert ended["timings"]["total"] > 0


def check_stops_are_the_tokenizers():
    marks = {
        "7b": ["</s>"],
        "34b": ["<|im_end|>"],
        "8b": ["<|end_of_text|>", "<|eot_id|>"],
        "8x7b": ["</s>"],
        "2b": ["<eos>"],
    }
    for style in [style for style in STYLES if style in marks]:
        loaded = model_of(style).loaded
        assert loaded.tokenizer.convert_ids_to_tokens(loaded.stops) == marks[style]


def check_one_bos_and_text_between_pictures():
    """Each piece is tokenised on its own, its BOS dropped but for the first."""
    for style in STYLES:
        tokenizer = model_of(style).loaded.tokenizer
        text = "one<image>two <image>\nthree"
        ids = inside.part("prompts").image_token_ids(text, tokenizer)
        assert [i for i in ids if i == -200] == [-200, -200]
        assert ids.count(tokenizer.bos_token_id) == (0 if style == "34b" else 1), (style, ids)
        pieces = [tokenizer(piece, add_special_tokens=False).input_ids for piece in text.split("<image>")]
        assert [i for i in ids if i not in (-200, tokenizer.bos_token_id)] == sum(pieces, []), style  # noqa: RUF017


def check_repetition_penalty_of_the_checkpoint():
    import json

    folder = inside.make("minigemini-7b")
    plain = inside.load(folder).generate(prompt="Hello", max_new_tokens=30, return_ids=True)["token_ids"]
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 50.0}))
    fresh = inside.load(folder).generate(prompt="Hello", max_new_tokens=30, return_ids=True)["token_ids"]
    assert len(set(fresh)) == 30 > len(set(plain))


def check_self_test():
    result = inside.MODEL.self_test()
    assert result["ok"], result
    assert result["max_abs"] < 1e-5
