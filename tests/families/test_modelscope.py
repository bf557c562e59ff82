"""Two ModelScope pairs side by side, and the library's own pipeline where its published example runs."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from orchestrator.errors import LoadError, RemoteError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEXTS = ["杰尼龟", "妙蛙种子", "小火龙", "皮卡丘"]


@pytest.fixture(scope="module")
def base_folder(tiny):
    return tiny("modelscope_clip", "modelscope-clip-base")


@pytest.fixture(scope="module")
def base(orchestrator, base_folder):
    return orchestrator.load("modelscope-clip", checkpoint=base_folder, name="base")


@pytest.fixture(scope="module")
def pipeline(orchestrator, base_folder):
    return orchestrator.load(
        "modelscope-pipeline", checkpoint=base_folder, task="multi_modal_embedding", name="published"
    )


def test_two_pairs_answer_side_by_side_and_each_gives_its_memory_back(orchestrator, tiny, base, pictures):
    large_folder = tiny("modelscope_clip", "modelscope-clip-large")
    with orchestrator.load("modelscope-clip", checkpoint=large_folder, name="large") as large:
        pid = pid_of(orchestrator, "large")
        assert pid != pid_of(orchestrator, "base")
        for model, dimensions in ((base, 24), (large, 40)):
            assert model.embed_images(pictures).shape == (5, dimensions)
            assert model.embed_texts(TEXTS).shape == (4, dimensions)
            shares = model.match(pictures, TEXTS)
            assert shares.shape == (5, 4)
            np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
            for row, ranked in zip(shares, model.rank(pictures, TEXTS), strict=True):
                assert [entry["label"] for entry in ranked] == [TEXTS[i] for i in np.argsort(-row)]
                assert ranked[0]["score"] == pytest.approx(row.max())
        assert large.environment.id == base.environment.id
    assert not psutil.pid_exists(pid)  # with the process all its memory is gone, on every device
    assert "large" not in [deployment.name for deployment in orchestrator.status().deployments]
    assert base.embed_texts(TEXTS[:1]).shape == (1, 24)


def test_the_published_example_answers_what_our_own_preprocessing_answers(base, pipeline, pictures):
    image = pipeline.forward({"img": pictures[0]})["img_embedding"]
    text = pipeline.forward({"text": TEXTS})["text_embedding"]
    np.testing.assert_allclose(image, base.embed_images(pictures[:1]), atol=1e-6)
    np.testing.assert_allclose(text, base.embed_texts(TEXTS), atol=1e-6)
    several = pipeline.forward({"img": pictures})["img_embedding"]
    np.testing.assert_allclose(several, base.embed_images(pictures), atol=1e-6)
    assert pipeline.attribute("model.temperature") == pytest.approx(base.temperature(), abs=1e-6)


def test_the_pipeline_runs_at_its_known_good_pin_and_says_what_it_stood_in_for(pipeline):
    assert pipeline.environment.versions["modelscope"] == "1.0.4"
    assert "fairseq" not in pipeline.environment.versions
    assert "fairseq.modules.LayerNorm" in pipeline.report["stand_ins"]


def test_a_text_task(orchestrator, tiny):
    folder = tiny("modelscope_clip", "modelscope-text-classification")
    with orchestrator.load(
        "modelscope-pipeline", checkpoint=folder, task="text-classification", name="sentiment"
    ) as model:
        single = model.run("我们大家在一起")
        assert set(single["labels"]) == {"negative", "positive"}
        assert sum(single["scores"]) == pytest.approx(1, abs=1e-5)
        several = model.batch(["我们大家在一起", "不好的天"])
        assert several[0] == single
        assert several[1] != single
        assert model.batch("我们大家在一起") == [single]


def test_rows_keep_their_order_and_do_not_depend_on_the_batch(base, pictures):
    together = base.embed_images(pictures)
    np.testing.assert_allclose(base.embed_images(pictures[::-1], batch_size=2), together[::-1], atol=1e-6)
    np.testing.assert_allclose(base.embed_texts(TEXTS[2])[0], base.embed_texts(TEXTS)[2], atol=1e-6)
    assert base.embed_texts(["长" * 200]).shape == (1, 24)
    assert base.embed_images([]).shape == (0, 24)
    np.testing.assert_allclose(base.embed_images(pictures[2]), together[2:3], atol=1e-6)
    with pytest.raises(RemoteError, match=r"images\[1\]: there is no file none\.png"):
        base.rank([pictures[0], "none.png"], TEXTS)


def test_half_precision_is_near_and_another_dtype_is_refused(orchestrator, base_folder, base, pictures):
    with orchestrator.load("modelscope-clip", checkpoint=base_folder, dtype="float16", name="half") as half:
        difference = np.abs(half.embed_images(pictures) - base.embed_images(pictures)).max()
    assert 0 < difference < 0.01
    with pytest.raises(LoadError, match="float32 or float16, not bfloat16"):
        orchestrator.load("modelscope-clip", checkpoint=base_folder, dtype="bfloat16", name="brain")


def test_a_folder_that_is_no_pair_is_refused_by_the_names_of_its_missing_files(orchestrator, tiny):
    folder = tiny("modelscope_clip", "modelscope-text-classification", "no_pair")
    with pytest.raises(LoadError, match=r"it has no vision_model_config\.json, text_model_config\.json"):
        orchestrator.load("modelscope-clip", checkpoint=folder, name="no-pair")


def test_private_attributes_stay_private(pipeline):
    with pytest.raises(RemoteError, match="private"):
        pipeline.attribute("model.__class__")


def test_the_self_tests_know_their_numbers(base, pipeline):
    for model in (base, pipeline):
        result = model.self_test()
        assert result["ok"], result


def pid_of(orchestrator, name):
    deployment = next(entry for entry in orchestrator.status().deployments if entry.name == name)
    return deployment.replicas[0].pid
