"""What a model needs: its modules with their sizes, what must be first, and an allowance for running it.

Everything comes from the checkpoint's own files and its config.json; every number carries its words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from orchestrator.checkpoint_json import read_object
from orchestrator.errors import ConfigError
from orchestrator.placement.allowance import Allowance, allowance_of, shape_of
from orchestrator.placement.amount import NOTHING, Amount, Term, dtype_name
from orchestrator.placement.files import Tensor, tensors_of, weight_files
from orchestrator.placement.gguf import config_of_gguf
from orchestrator.placement.towers import own_part, towers_of

__all__ = ["Block", "Kind", "Needs", "assemble", "blocks_of", "needs_of", "stored_dtype", "ties_head"]

Kind = Literal["embedding", "tower", "projector", "layer", "norm", "head", "other"]

TOWER = re.compile(
    r"(^|\.)(vision_tower(_aux)?|vision_model|visual|vision_encoder|audio_tower|image_encoder)(\.|$)"
)
PROJECTOR = re.compile(
    r"(^|\.)(mm_projector|multi_modal_projector|vlm_uni_\w+|connector|merger|projector)(\.|$)"
)
EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|word_embeddings|wte|wpe|embeddings?|embed_in|embed_positions|patch_embed)(\.|$)"
)
HEAD = re.compile(r"(^|\.)(lm_head|output_projection|embed_out|classifier|score|cls|pooler|qa_outputs)(\.|$)")
NORM = re.compile(
    r"(^|\.)(norm|ln_f|final_layer_norm|final_layernorm|layer_?norm|ln_post|post_layernorm)(\.|$)"
)
RANK: Mapping[Kind, int] = {
    "tower": 0, "projector": 1, "embedding": 2, "other": 3, "layer": 4, "norm": 5, "head": 6,
}  # fmt: skip
WEIGHTS = "weights"  # the first term of every bill
FIRST: frozenset[Kind] = frozenset({"tower", "projector", "embedding"})


@dataclass(frozen=True)
class Block:
    """The smallest thing that goes onto one device whole: a layer with its residual connection, a leaf module."""

    name: str
    kind: Kind
    weights: Amount
    state: Amount = NOTHING
    """What running the block keeps beside it: its KV cache, a head's logits, a tower's maps of a picture."""
    parameters: int = 0
    tied: bool = False
    """Shares another block's weights (a head tied to the embeddings): free, and never parted from it."""

    @property
    def first(self) -> bool:
        """Whether it must be on the first device, where the inputs arrive."""
        return self.kind in FIRST or self.tied


@dataclass(frozen=True)
class Needs:
    """What one replica needs. Sizes are for `dtype`; `as_dtype` gives them for another."""

    name: str
    blocks: tuple[Block, ...]
    dtype: str = "float32"
    workspace: Amount = NOTHING
    """Activations: needed once on each device that computes."""
    terms: tuple[Term, ...] = ()
    notes: tuple[str, ...] = ()
    quantised: str | None = None

    def weights(self, blocks: Iterable[Block] | None = None) -> int:
        """Bytes of the weights, of all blocks or of some."""
        return sum(b.weights.bytes(self.dtype) for b in (self.blocks if blocks is None else blocks))

    def state(self, blocks: Iterable[Block] | None = None) -> int:
        """Bytes of KV cache, logits and picture maps, of all blocks or of some."""
        return sum(b.state.bytes(self.dtype) for b in (self.blocks if blocks is None else blocks))

    def size(self, block: Block) -> int:
        """Bytes of one block: its weights and its state."""
        return block.weights.bytes(self.dtype) + block.state.bytes(self.dtype)

    @property
    def total(self) -> int:
        """Bytes on one device that carries it all, the runtime's own share not counted."""
        return self.weights() + self.state() + self.workspace.bytes(self.dtype)

    @property
    def parameters(self) -> int:
        """How many parameters the files hold."""
        return sum(b.parameters for b in self.blocks)

    def as_dtype(self, dtype: str) -> Needs:
        """The same needs for weights loaded in another dtype."""
        return replace(self, dtype=dtype_name(dtype))

    def quantised_to(self, bits: int) -> Needs:
        """A rough figure for the layers' weights at `bits` each (scales and zeros: half a bit a weight)."""
        blocks = tuple(
            replace(b, weights=Amount(0, int(b.weights.floats * (bits + 0.5) / 8) + b.weights.fixed))
            if b.kind == "layer"
            else b
            for b in self.blocks
        )
        weights = sum((b.weights for b in blocks), NOTHING)
        terms = tuple(
            replace(t, amount=weights, words=f"{t.words}, layers in {bits} bits") if t.name == WEIGHTS else t
            for t in self.terms
        )
        return replace(self, blocks=blocks, terms=terms, quantised=f"{bits}-bit")


def needs_of(
    checkpoint: str | Path | None,
    *,
    dtype: str | None = None,
    batch: int = 1,
    context: int | None = None,
    towers: Sequence[str | Path] | Mapping[str, str | Path] = (),
) -> Needs:
    """What the checkpoint in a folder (or one file) needs; nothing is loaded, some milliseconds a shard.

    `dtype` is what the weights are loaded in; None or "auto" is what they are stored in. `batch` sequences of
    `context` tokens are allowed for. `towers` are further folders that go to the first device; as a mapping they
    replace what config.json names under these keys. Folders that it names are counted wherever they are found.

    Raises:
        CheckpointError: no such folder, or a damaged header or JSON file.
        ConfigError: an unknown dtype.
    """
    if checkpoint is None:
        return Needs("no checkpoint", (), dtype=dtype_name(dtype or "float32", auto="float32"))
    if batch < 1 or (context is not None and context < 1):
        raise ConfigError("batch and context must be at least 1")
    path = Path(checkpoint).expanduser()
    tensors, notes = tensors_of(path)
    config = read_object(path / "config.json") if path.is_dir() else {}
    if not config and (file := next((f for _, f in weight_files(path) if f.suffix == ".gguf"), None)):
        config = config_of_gguf(file)
    numbers = shape_of(config)
    blocks = blocks_of(tensors, tied=numbers is not None and numbers.generates and ties_head(config))
    given = towers if isinstance(towers, Mapping) else {}
    folders, lacking = towers_of(config, path, tensors, {key: Path(p) for key, p in given.items()})
    notes += lacking
    for tower in (*folders, *(() if given else map(Path, towers))):
        found, more = tensors_of(tower)
        named = [replace(t, name=f"{tower.name}.{t.name}") for t in own_part(found)]
        blocks += blocks_of(named, kind="tower")
        notes += [f"{tower.name}: a tower from a folder of its own", *more]
    allowance = allowance_of(config, batch=batch, context=context)
    return assemble(
        path.name, blocks, allowance, dtype_name(dtype or "auto", auto=stored_dtype(config, tensors)), notes
    )


def assemble(
    name: str, blocks: Sequence[Block], allowance: Allowance, dtype: str, notes: Sequence[str] = ()
) -> Needs:
    """Needs from blocks and an allowance: in order, with the state of towers, layers and head attached."""
    ordered = sorted(blocks, key=lambda b: RANK["other" if b.tied else b.kind])  # stable: names are in order
    layers = [b for b in ordered if b.kind == "layer"]
    heads = [b for b in ordered if b.kind == "head"] or layers[-1:]
    share = {b.name: allowance.cache.split(len(layers)) for b in layers}
    if heads:
        share[heads[-1].name] = share.get(heads[-1].name, NOTHING) + allowance.logits
    if ordered:
        share[ordered[0].name] = share.get(ordered[0].name, NOTHING) + allowance.maps
    placed = tuple(replace(b, state=share.get(b.name, NOTHING)) for b in ordered)
    weights = Amount(sum(b.weights.floats for b in placed), sum(b.weights.fixed for b in placed))
    words = f"{sum(b.parameters for b in placed):,} parameters in {len(placed)} blocks"
    terms = (Term(WEIGHTS, weights, words, "blocks"), *allowance.terms)
    return Needs(name, placed, dtype, allowance.workspace, terms, tuple(notes), allowance.quantised)


def blocks_of(tensors: Iterable[Tensor], *, kind: Kind | None = None, tied: bool = False) -> list[Block]:
    """Groups tensors into blocks by their names: numbered containers make layers, the rest leaf modules."""
    names = _module_names([t.name for t in tensors])
    groups: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(names[tensor.name], []).append(tensor)
    blocks = [_block(name, group, kind or _kind(name)) for name, group in groups.items()]
    if tied and any(b.kind == "embedding" for b in blocks):
        head = next((b.name for b in blocks if b.kind == "head"), "lm_head")
        blocks = [b for b in blocks if b.name != head]
        blocks.append(Block(head, "head", NOTHING, tied=True))
    return sorted(blocks, key=lambda b: (RANK[b.kind], _natural(b.name)))


def _block(name: str, group: Sequence[Tensor], kind: Kind) -> Block:
    floats = sum(t.count for t in group if t.floating)
    fixed = sum(t.stored for t in group if not t.floating)
    return Block(name, kind, Amount(floats, fixed), parameters=sum(t.count for t in group))


def _module_names(names: Iterable[str]) -> dict[str, str]:
    """For each tensor the block it belongs to."""
    prefixes: dict[str, str] = {}
    owners: set[str] = set()
    for name in names:
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts[:-1]) if part.isdigit() and i > 0), None)
        if number is not None and not PROJECTOR.search(".".join(parts[:number])):
            prefixes[name] = ".".join(parts[: number + 1])
            continue
        module = ".".join(parts[:number] if number is not None else parts[:-1]) or name
        prefixes[name] = module
        owners.add(module)
    result = {}
    for name, module in prefixes.items():
        parts = module.split(".")
        above = (".".join(parts[:i]) for i in range(1, len(parts)))
        result[name] = next((a for a in above if a in owners), module) if module in owners else module
    return result


def _kind(name: str) -> Kind:
    layer = re.search(r"\.\d+$", name) is not None
    for pattern, kind in ((TOWER, "tower"), (PROJECTOR, "projector")):
        if pattern.search(name):
            return kind  # type: ignore[return-value]
    if layer:
        return "layer"
    for pattern, kind in ((EMBEDDING, "embedding"), (HEAD, "head"), (NORM, "norm")):
        if pattern.search(name):
            return kind  # type: ignore[return-value]
    return "other"


def _natural(name: str) -> list[tuple[int, int | str]]:
    named = name.replace("encoder", "\0")  # an encoder comes before its decoder
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", named) if part]


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether the head shares the embeddings' weights; where a config does not say, Gemma's does."""
    text = config.get("text_config")
    tied = config.get(
        "tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else None
    )
    return bool(tied) or (tied is None and "gemma" in str(config.get("model_type", "")))


def stored_dtype(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    """The dtype of the weights on disk: as the config says, else that of most bytes, else `float32`."""
    named = config.get("dtype") or config.get("torch_dtype")
    if isinstance(named, str) and named.removeprefix("torch.") in (
        "float32",
        "float16",
        "bfloat16",
        "float64",
    ):
        return named.removeprefix("torch.")
    weight: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.floating:
            weight[tensor.dtype] += tensor.stored
    return weight.most_common(1)[0][0] if weight else "float32"
