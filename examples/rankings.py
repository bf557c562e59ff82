"""How well two rankings of the same labels agree. A step of `modelscope_clip_pair.yaml`, plain Python."""

from __future__ import annotations

from typing import Any


class Rankings:
    """Compares what two models put first."""

    def agreement(self, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> dict[str, Any]:
        """Whether both put the same label first, and Spearman's correlation of the two orders (1 equal, -1 reversed)."""
        places = {entry["label"]: place for place, entry in enumerate(second)}
        count = len(first)
        squares = sum((place - places[entry["label"]]) ** 2 for place, entry in enumerate(first))
        spearman = 1.0 if count < 2 else 1 - 6 * squares / (count * (count**2 - 1))
        return {"same_best": first[0]["label"] == second[0]["label"], "spearman": spearman}
