"""From a checkpoint folder to a model on its devices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch

from orchestrator.worker import progress

from .experts import stored_names
from .features import ImageTokens, Settings, projector_shapes
from .layout import Parts, budgets_of, lay_out, spread
from .memory import check_nothing_on_meta, device_of, maker, parameter_of, settle, without_memory
from .places import read_json
from .preprocess import Preprocessor
from .prompts import TEMPLATES
from .quantization import quantize
from .sources import VisionSources, vision_sources
from .tokens import load_tokenizer, stop_ids
from .towers import clip_geometry, convnext_geometry
from .variants import choose_template, choose_variant, language_classes, language_config
from .weights import Tensors, checkpoint_files, size_of

__all__ = ["Loaded", "load"]

QUERY = "model.vlm_uni_query_projector.0.weight"
DEFAULT_DETAIL = 320  # pixels per side of the ConvNeXt picture where config.json does not say
EMBEDDINGS = "model.embed_tokens.weight"
BITS = {8: 1.0, 4: 0.56}  # bytes per number, block scales included


class Loaded(NamedTuple):
    """A model ready to answer."""

    language: Any
    images: ImageTokens
    preprocess: Preprocessor
    tokenizer: Any
    template: str
    stops: List[int]
    max_length: Optional[int]  # of text and picture tokens together
    placeholder: str
    multiple: bool  # several pictures per prompt
    device: torch.device  # of the first layer and the vision side
    report: Dict[str, Any]


class Plan(NamedTuple):
    """What was read of a checkpoint before its weights."""

    config: Mapping[str, Any]
    tensors: Tensors
    vision: VisionSources
    variant: str
    classes: Tuple[Any, Any]  # transformers' configuration and model
    tokenizer: Any
    template: str
    dtype: torch.dtype
    bits: int  # 0: not quantized


def load(
    folder: Path,
    placement: Any,
    *,
    template: Optional[str] = None,
    vision_tower: Optional[str] = None,
    vision_tower_aux: Optional[str] = None,
    allow_offload: bool = False,
    bits: int = 0,
) -> Loaded:
    """Load the checkpoint in `folder`; the arguments are those of `MiniGemini`."""
    plan = read_plan(folder, placement.dtype, bits, template, (vision_tower, vision_tower_aux))
    images, preprocess = vision_modules(plan)
    language = language_module(plan)
    budgets, planned = budgets_of(placement.max_memory or {})
    parts = measure(plan, images, language, preprocess)
    placed = lay_out(parts, placement.device_map, placement.device, budgets, allow_offload, planned)
    read_vision(plan, images, placed["first"])
    unused = read_language(plan, language, placed)
    check_nothing_on_meta(images, language)
    return Loaded(
        language=language.eval(),
        images=images.eval(),
        preprocess=preprocess,
        tokenizer=plan.tokenizer,
        template=plan.template,
        stops=stop_ids(plan.tokenizer, plan.template),
        max_length=plan.config.get("tokenizer_model_max_length"),
        placeholder="<im_start><image><im_end>" if plan.config.get("mm_use_im_start_end") else "<image>",
        multiple=images.settings.grid == 1,
        device=torch.device(placed["first"]),
        report=report_of(plan, placed, images, language, preprocess.detail, unused),
    )


def read_plan(
    folder: Path, dtype: str, bits: int, template: Optional[str], towers: Tuple[Optional[str], Optional[str]]
) -> Plan:
    """Everything but weights, with the errors for a folder that cannot be loaded here."""
    config = read_config(folder)
    tensors = Tensors(checkpoint_files(folder))
    if QUERY not in tensors:
        raise ValueError(f"{folder} is no MiniGemini checkpoint: it has no {QUERY}")
    variant = choose_variant(config, tensors.shapes())
    classes = language_classes(
        variant
    )  # before the tokenizer, whose own error for an unknown model says less
    vision = vision_sources(folder, tensors, config, *towers)
    tokenizer = load_tokenizer(folder, variant, config)
    template = template or choose_template(variant, config, tokenizer.get_vocab(), folder.absolute().name)
    if template not in TEMPLATES:
        raise ValueError(f"template {template!r} is not known; known are {', '.join(TEMPLATES)}")
    check_version(template, folder)
    chosen = choose_dtype(dtype, config, tensors)
    return Plan(config, tensors, vision, variant, classes, tokenizer, template, chosen, bits)


def report_of(
    plan: Plan,
    placed: Mapping[str, str],
    images: ImageTokens,
    language: Any,
    pixels: int,
    unused: Sequence[str],
) -> Dict[str, Any]:
    """What the load tells: the variant, the map, where the towers' weights are from, what a user may want to know."""
    settings = images.settings
    return {
        "variant": plan.variant,
        "template": plan.template,
        "dtype": f"{plan.bits} bit" if plan.bits else str(plan.dtype).replace("torch.", ""),
        "device_map": dict(spread(placed)),
        "image_tokens": {"grid": settings.grid, "pixels": pixels, "global": settings.has_global},
        "towers": {
            "clip": plan.vision.clip.origin,
            "convnext": sorted({source.origin for source in plan.vision.convnext}),
        },
        "parameters": sum(p.numel() for module in (images, language) for p in module.parameters()),
        "notes": [*plan.vision.notes, *notes_of(plan), *unused],
    }


def read_config(folder: Path) -> Dict[str, Any]:
    """config.json, with errors for what cannot be a MiniGemini."""
    config = read_json(folder / "config.json")
    if not config:
        raise FileNotFoundError(f"{folder} holds no config.json")
    if config.get("mm_vision_select_feature", "patch") != "patch":
        raise ValueError("mm_vision_select_feature other than 'patch' does not work with patch mining")
    if grid_of(config) < 1:
        raise ValueError(f"image_grid is {config['image_grid']}")
    return config


def grid_of(config: Mapping[str, Any]) -> int:
    """Tiles per side that a picture is cut into; 1 where config.json does not say, or says null."""
    grid = config.get("image_grid")
    return 1 if grid is None else int(grid)


def check_version(template: str, folder: Path) -> None:
    """Refuse what would run and give other ids in silence."""
    import transformers

    if (
        template == "chatml_direct"
        and (folder / "tokenizer.model").is_file()
        and int(transformers.__version__.split(".")[0]) >= 5
    ):
        raise RuntimeError(
            f"transformers {transformers.__version__} has no slow tokenizers and splits the text behind special tokens "
            "otherwise than this checkpoint was trained with; use the family 'minigemini' (transformers 4.36.2)"
        )


def choose_dtype(name: str, config: Mapping[str, Any], tensors: Tensors) -> torch.dtype:
    """The dtype asked for; "auto" is config.json's, or else that of the stored embeddings."""
    if name == "auto":
        name = str(config.get("torch_dtype") or config.get("dtype") or "").replace("torch.", "")
    chosen = getattr(torch, name) if name else tensors.entries[EMBEDDINGS].dtype
    if chosen not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"dtype {name!r} is not one of float16, bfloat16, float32, auto")
    return chosen


def vision_modules(plan: Plan) -> Tuple[ImageTokens, Preprocessor]:
    """The vision side without weights, and what prepares pictures for it."""
    config = plan.config
    clip = clip_geometry(plan.vision.clip.shapes(), plan.vision.clip_config)
    shapes = {name: shape for source in plan.vision.convnext for name, shape in source.shapes().items()}
    convnext = convnext_geometry(shapes, plan.vision.convnext_name)
    grid = grid_of(config)
    whole = bool(config.get("image_global", False)) and grid > 1
    stored = plan.tensors.with_prefix("model.mm_projector.")
    projector = projector_shapes({name: plan.tensors.shape(full) for name, full in stored.items()})
    settings = Settings(config.get("mm_vision_select_layer", -2), grid, whole)
    with without_memory(plan.dtype):
        images = ImageTokens(clip, convnext, projector, settings)
    preprocess = Preprocessor(
        plan.vision.preprocessor,
        view=clip.image_size,
        detail=config.get("image_size_aux") or DEFAULT_DETAIL,
        pad=config.get("image_aspect_ratio") == "pad",
        grid=grid,
        whole=whole,
    )
    side, fine = clip.image_size // clip.patch, preprocess.detail // 4
    if preprocess.view != clip.image_size:
        raise ValueError(
            f"CLIP is made for {clip.image_size} pixels, its preprocessor_config.json says {preprocess.view}"
        )
    if fine % grid or fine // grid % side:
        raise ValueError(
            f"image_size_aux {preprocess.detail} gives {fine} x {fine} details, which {grid} x {grid} tiles of "
            f"{side} x {side} patches do not divide"
        )
    return images, preprocess


def language_module(plan: Plan) -> Any:
    """transformers' language model without weights; its buffers are real."""
    config_class, model_class = plan.classes
    arguments = language_config(plan.config, plan.tensors.shapes(), plan.variant, len(plan.tokenizer))
    with without_memory(plan.dtype):
        return model_class(config_class(**arguments))


def measure(plan: Plan, images: ImageTokens, language: Any, preprocess: Preprocessor) -> Parts:
    """Bytes of every part, as they will lie in memory."""
    size = size_of(plan.dtype)
    layer_size = BITS.get(plan.bits, size)
    embeddings = language.model.embed_tokens.weight.numel()
    pixels = preprocess.detail**2
    maps = sum(
        plan_width
        for plan_width in (stage.blocks[0].gamma.numel() for stage in images.convnext.vision_stages)
    )
    return Parts(
        first=size * (sum(p.numel() for p in images.parameters()) + embeddings),
        workspace=3 * size * maps * pixels // 16,  # the joined maps of all stages, and copies on the way
        layers=[
            int(layer_size * sum(p.numel() for p in layer.parameters())) for layer in language.model.layers
        ],
        last=size * language.lm_head.weight.numel(),
        tied=bool(language.config.tie_word_embeddings),
    )


def read_vision(plan: Plan, images: ImageTokens, device: str) -> None:
    """Fill the vision side."""
    own = {
        name: f"model.{name}"
        for name, _ in images.named_parameters()
        if name.startswith(("vlm_uni", "mm_projector"))
    }
    jobs: List[Tuple[str, str, Tensors, Dict[str, str]]] = [("projectors", "", plan.tensors, own)]
    jobs.append(("CLIP", "clip.", plan.vision.clip.tensors, plan.vision.clip.names))
    jobs += [("ConvNeXt", "convnext.", source.tensors, source.names) for source in plan.vision.convnext]
    here = {name for name, _ in images.named_parameters()}
    for what, prefix, tensors, names in jobs:
        stored = {name: prefix + own_name for own_name, name in names.items() if prefix + own_name in here}
        tensors.fill(
            {name: maker(images, target, plan.dtype, device) for name, target in stored.items()},
            telling(what),
        )
    images.to(device)
    lacking = [name for name, parameter in images.named_parameters() if parameter.is_meta]
    if lacking:
        raise ValueError(
            f"the checkpoint and the towers lack {len(lacking)} vision tensors, such as {lacking[0]}"
        )


def read_language(plan: Plan, language: Any, placed: Mapping[str, str]) -> List[str]:
    """Fill the language model; returns notes about tensors that nothing used."""
    tied = bool(language.config.tie_word_embeddings)
    wanted = {name for name, _ in language.named_parameters() if not (tied and name == "lm_head.weight")}
    sources = stored_names(wanted, plan.tensors)
    lacking = sorted(wanted - {target for target, _ in sources.values()})
    if lacking:
        raise ValueError(
            f"the checkpoint lacks {len(lacking)} tensors of the language model, such as {lacking[0]}"
        )
    if plan.bits:
        quantize(plan, language, placed, maker, telling("weights"))
    sources = {name: place for name, place in sources.items() if parameter_of(language, place[0]).is_meta}
    plan.tensors.fill(
        {
            name: maker(language, target, plan.dtype, device_of(target, placed), index)
            for name, (target, index) in sources.items()
        },
        telling("weights"),
    )
    if tied:
        language.lm_head.weight = language.model.embed_tokens.weight
    settle(language, placed)
    used = re.compile(
        r"model\.(mm_projector|vlm_uni_|vision_tower|vision_fpn)|lm_head|.*rotary_emb\.inv_freq$"
    )
    rest = [name for name in plan.tensors.entries if name not in sources and not used.match(name)]
    return (
        [f"{len(rest)} tensors of the checkpoint are not used, such as {rest[0]}"]
        if rest and not plan.bits
        else []
    )


def telling(what: str) -> Callable[[Path, int, int], None]:
    """Progress by file: `what FILE`, in bytes, at most about 50 times."""
    last = {"file": Path(), "step": -1}

    def tell(file: Path, done: int, total: int) -> None:
        step = done * 50 // max(total, 1)
        if (file, step) != (last["file"], last["step"]):
            last.update(file=file, step=step)
            progress(f"{what}: {file.name}", done, total)

    return tell


def notes_of(plan: Plan) -> List[str]:
    """What a user may want to know about the checkpoint."""
    notes = []
    rows, tokens = plan.tensors.shape(EMBEDDINGS)[0], len(plan.tokenizer)
    if tokens < rows:
        notes.append(f"embeddings are cut from {rows} to the tokenizer's {tokens} rows, as the original does")
    elif tokens > rows:
        notes.append(f"the tokenizer has {tokens - rows} tokens without weights; their rows are zero")
    if plan.config.get("image_global") and grid_of(plan.config) == 1:
        notes.append("image_global has no meaning without tiles (image_grid 1)")
    return notes
