"""Modules without memory, memory for their parameters one at a time, and the way of inputs between devices."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import nn

__all__ = ["check_nothing_on_meta", "device_of", "maker", "parameter_of", "settle", "without_memory"]


@contextmanager
def without_memory(dtype: torch.dtype) -> Iterator[None]:
    """Modules made in this block have parameters of `dtype` on the meta device, and buffers where they always are."""
    register, before = nn.Module.register_parameter, torch.get_default_dtype()

    def on_meta(module: nn.Module, name: str, parameter: Optional[nn.Parameter]) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        torch.set_default_dtype(before)


def maker(
    module: nn.Module, name: str, dtype: torch.dtype, device: str, index: Tuple[Any, ...] = ()
) -> Callable[[], torch.Tensor]:
    """A function that gives parameter `name` of `module` memory and returns it (or the part at `index`)."""

    def make() -> torch.Tensor:
        parameter = parameter_of(module, name)
        if parameter.is_meta:
            owner, _, attribute = name.rpartition(".")
            parameter = nn.Parameter(
                torch.empty(parameter.shape, dtype=dtype, device=device), requires_grad=False
            )
            setattr(module.get_submodule(owner), attribute, parameter)
        return parameter.data[index] if index else parameter.data

    return make


def parameter_of(module: nn.Module, name: str) -> torch.Tensor:
    """The parameter of that dotted name."""
    owner, _, attribute = name.rpartition(".")
    parameter: torch.Tensor = getattr(module.get_submodule(owner), attribute)
    return parameter


def device_of(name: str, placed: Mapping[str, str]) -> str:
    """Where a parameter of the language model goes."""
    found = re.match(r"model\.layers\.(\d+)\.", name)
    if found:
        return placed[found.group(1)]
    return placed["first"] if name.startswith("model.embed_tokens") else placed["last"]


def settle(language: Any, placed: Mapping[str, str]) -> None:
    """Move buffers to where the parameters are, and inputs there on the way where there are several devices."""
    homes = [(layer, placed[str(index)]) for index, layer in enumerate(language.model.layers)]
    for device in set(placed.values()):
        share_rotary_tables([layer for layer, home in homes if home == device])
    if len(set(placed.values())) == 1:
        language.to(placed["first"])
        return
    for module, device in [*homes, (language.model.norm, placed["last"])]:
        module.to(device)
        module.register_forward_pre_hook(moving_to(torch.device(device)), with_kwargs=True)
    for _, child in language.model.named_children():
        if child not in (language.model.layers, language.model.norm):
            child.to(placed["first"])
    for name, buffer in language.model.named_buffers(recurse=False):
        setattr(language.model, name, buffer.to(placed["first"]))


def moving_to(device: torch.device) -> Callable[..., Any]:
    """A hook that brings a module's tensors (not its cache, whose entries live with their layers) to its device."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, (tuple, list)):
            return type(value)(moved(item) for item in value)
        return value

    def hook(_module: nn.Module, arguments: Any, keywords: Dict[str, Any]) -> Any:
        return moved(arguments), {name: moved(value) for name, value in keywords.items()}

    return hook


def share_rotary_tables(layers: List[Any]) -> None:
    """One table of rotations for all layers of a device: 4.36 keeps one per layer, 1 GB in all for a Mixtral."""
    first = getattr(layers[0].self_attn, "rotary_emb", None) if layers else None
    if hasattr(first, "cos_cached"):
        for layer in layers[1:]:
            layer.self_attn.rotary_emb = first


def check_nothing_on_meta(*modules: nn.Module) -> None:
    """RuntimeError that names a parameter or buffer which has no memory."""
    for module in modules:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_meta:
                raise RuntimeError(f"{name} is still on the meta device after loading: it was never read")
