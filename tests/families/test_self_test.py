"""What runs a family's self-test: answers that say nothing are refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.worker.family import import_family

SELF_TEST = Path(__file__).parents[2] / "workers" / "self_test.py"


def run(folder: Path, answer: str) -> dict[str, object]:
    file = folder / "mine.py"
    file.write_text(f"import numpy as np\n\nclass Mine:\n    self_test = staticmethod(lambda: {answer})\n")
    result: dict[str, object] = import_family(str(SELF_TEST), "SelfTest")(str(file), "Mine").run()
    return result


@pytest.mark.parametrize("answer", ["None", "{}", "True", "3"])
def test_an_answer_that_says_nothing_is_refused(tmp_path: Path, answer: str) -> None:
    with pytest.raises(
        TypeError, match=r"returned .*, no dict with 'ok'; orchestrator\.worker\.inference\.compare"
    ):
        run(tmp_path, answer)


def test_numpys_truth_is_a_plain_one(tmp_path: Path) -> None:
    assert run(tmp_path, "{'ok': np.bool_(False)}") == {"ok": False}
    assert not isinstance(run(tmp_path, "{'ok': np.bool_(True)}")["ok"], np.bool_)
