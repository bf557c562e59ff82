"""Where each tensor of the checkpoint goes in the language model of the transformers version at hand."""

from __future__ import annotations

import re
from typing import Any, Dict, Set, Tuple

from .weights import Tensors

__all__ = ["stored_names"]

Place = Tuple[str, Tuple[Any, ...]]

EXPERT = re.compile(r"(model\.layers\.\d+\.)block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight$")
ROUTER = re.compile(r"(model\.layers\.\d+\.)block_sparse_moe\.gate\.weight$")


def stored_names(wanted: Set[str], tensors: Tensors) -> Dict[str, Place]:
    """Stored name -> (parameter, index into it).

    Up to transformers 4.57 the names are equal; from 5 on Mixtral's experts are joined: `gate_up_proj` (experts, 2 x
    inner, hidden) holds w1 above w3, `down_proj` (experts, hidden, inner) holds w2.
    """
    places: Dict[str, Place] = {name: (name, ()) for name in wanted if name in tensors}
    if not any(name.endswith("experts.gate_up_proj") for name in wanted):
        return places
    for name in tensors.entries:
        router, expert = ROUTER.match(name), EXPERT.match(name)
        if router:
            places[name] = (router.group(1) + "mlp.gate.weight", ())
        elif expert:
            layer, number, part = expert.groups()
            inner = tensors.shape(name)[0]
            rows = {"w1": slice(0, inner), "w3": slice(inner, 2 * inner), "w2": slice(None)}[part]
            target = "mlp.experts.down_proj" if part == "w2" else "mlp.experts.gate_up_proj"
            places[name] = (layer + target, (int(number), rows))
    return places
