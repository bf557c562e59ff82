"""Tiny seeded checkpoints, made by the project's own makers, and the same as newer libraries would save them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.environments.catalog import builtin_root
from orchestrator.worker.tiny import load_styles


def make(style: str, folder: Path, seed: int = 0) -> Path:
    """Writes a checkpoint of `style` ("llama", "sentence-bert" …) into a new folder."""
    folder.mkdir(parents=True)
    for makers in sorted((builtin_root() / "workers" / "tiny_checkpoints").glob("*.py")):
        styles = load_styles(makers)
        if style in styles:
            styles[style](folder, seed)
            return folder
    raise LookupError(style)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites a JSON file; `change` edits the document in place."""
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), "utf-8")


def lose_rope_base(folder: Path) -> None:
    """config.json as transformers 5 saves it: the base of RoPE in `rope_parameters` alone."""
    edit(folder / "config.json", lambda config: [config.pop(key) for key in ("rope_theta", "rope_scaling")])


def lose_tokenizer_class(folder: Path) -> None:
    """tokenizer_config.json with the class that only transformers 5 has."""
    edit(folder / "tokenizer_config.json", lambda t: t.update(tokenizer_class="TokenizersBackend"))


def pair_merges(folder: Path) -> None:
    """tokenizer.json with merges as newer tokenizers write them."""
    edit(
        folder / "tokenizer.json",
        lambda t: t["model"].update(merges=[m.split(" ") for m in t["model"]["merges"]]),
    )


def move_template(folder: Path) -> None:
    """The chat template in a file of its own, where transformers before 4.47 does not look."""

    def take(settings: dict[str, Any]) -> None:
        (folder / "chat_template.jinja").write_text(settings.pop("chat_template"), "utf-8")

    edit(folder / "tokenizer_config.json", take)


def as_saved_by_5(folder: Path) -> Path:
    """All of it: what `save_pretrained` of transformers 5 leaves."""
    for change in (lose_rope_base, lose_tokenizer_class, pair_merges, move_template):
        change(folder)
    edit(
        folder / "config.json",
        lambda config: (config.pop("torch_dtype"), config.update(transformers_version="5.23.0")),
    )
    return folder
