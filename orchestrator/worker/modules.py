"""The torch modules of a family's instance: found, looked over after loading, and named when devices do not match.

Nothing here imports torch: what the family has not imported it does not use.
"""

from __future__ import annotations

import re
import sys
import types
from collections import deque
from typing import Any, Deque, Dict, Iterator, List, Optional, Set, Tuple

from orchestrator.worker.memory import memory_now

__all__ = ["LeftOnMeta", "bring_inputs", "check_memory", "device_map", "find_mismatch", "modules_of", "sizes"]

_DEPTH = 4  # attributes of attributes that are followed
_MOST = 5000  # objects that are looked at
_SHOWN = 5
_MISMATCH = re.compile(
    r"to be on the same device|is not on the expected device|on the same device but got|"
    r"Input type \(torch\.\w*\.?\w+\) and weight type \(torch\.\w*\.?\w+\) should be the same|"
    r"Expected .{0,80} device type"
)
_DEVICE = re.compile(r"\b(?:(?:cuda|xpu|npu|mps)(?::\d+)?|cpu|meta)\b")
_LEAVES = (
    str,
    bytes,
    int,
    float,
    bool,
    type(None),
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
)


class LeftOnMeta(RuntimeError):
    """Parameters or buffers have no memory after loading."""


def modules_of(instance: Any) -> Dict[str, Any]:
    """The outermost torch modules that an instance holds, in attributes, tuples, lists and dicts, by their path."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "nn"):
        return {}
    found: Dict[str, Any] = {}
    seen: Set[int] = set()
    queue: Deque[Tuple[str, Any, int]] = deque([("", instance, 0)])
    while queue and len(seen) < _MOST:
        name, value, depth = queue.popleft()
        if id(value) in seen or isinstance(value, (*_LEAVES, torch.Tensor)):
            continue
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            found[name] = value
        elif depth < _DEPTH:
            queue.extend((_join(name, key), child, depth + 1) for key, child in _parts(value))
    return found


def check_memory(modules: Dict[str, Any]) -> None:
    """Looks whether everything was loaded; what accelerate keeps in RAM on purpose is excepted.

    Raises:
        LeftOnMeta: names the parameters and buffers that are on the meta device.
    """
    lost = [name for name, tensor, owner in _tensors(modules) if tensor.is_meta and not _offloaded(owner)]
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        raise LeftOnMeta(
            f"{len(lost)} parameters and buffers have no memory after loading (they are on the meta device): "
            f"{', '.join(lost[:_SHOWN])}{more}"
        )


def device_map(modules: Dict[str, Any]) -> Dict[str, str]:
    """Where everything is: each module that lies on one device whole, by its path."""
    found: Dict[str, str] = {}
    for name, module in modules.items():
        _map(name, module, found)
    return found


def sizes(modules: Dict[str, Any]) -> Dict[str, Dict[str, int]]:
    """Bytes by device: `model` of parameters and buffers (tied ones once), and what `memory_now` tells."""
    found = memory_now()
    seen: Set[Tuple[str, int]] = set()
    for _, tensor, owner in _tensors(modules):
        device = _device(tensor, owner)
        key = (device, 0 if tensor.is_meta else tensor.data_ptr())
        if not key[1]:
            key = (device, id(tensor))
        if key not in seen:
            seen.add(key)
            place = found.setdefault(device, {})
            place["model"] = place.get("model", 0) + tensor.numel() * tensor.element_size()
    return found


def bring_inputs(modules: Dict[str, Any]) -> None:
    """Tensors that a module is called with go to its device, whatever they came on.

    A module that is spread has hooks of its own (accelerate's, or the family's), and caches that stay with their layers.
    """
    for module in modules.values():
        devices = {parameter.device for parameter in module.parameters()}
        if len(devices) != 1 or hasattr(module, "_hf_hook"):
            continue
        device = devices.pop()
        if device.type == "cpu":
            continue  # everything is there already
        try:
            module.register_forward_pre_hook(_bringing(device), with_kwargs=True)
        except (TypeError, RuntimeError, NotImplementedError):  # torch before 2.0, or a scripted module
            continue


def find_mismatch(error: BaseException, modules: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """{"devices": the two devices, "module": where they met} if `error` says that tensors were on two; else None."""
    text = str(error)
    if not _MISMATCH.search(text):
        return None
    names = {
        id(part): _join(root, inner)
        for root, whole in modules.items()
        for inner, part in whole.named_modules()
    }
    module = ""
    values: List[Any] = []
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner: Any = frame.f_locals.get("self")
        if id(owner) in names:
            module = names[id(owner)] or type(owner).__name__
            values = [*frame.f_locals.values(), *owner.parameters(recurse=False)]
        elif not module:
            module, values = frame.f_code.co_name, list(frame.f_locals.values())
        trace = trace.tb_next
    devices = list(dict.fromkeys([*_DEVICE.findall(text), *(str(d) for d in map(_device_of, values) if d)]))
    return {"devices": devices[:2], "module": module} if len(devices) > 1 else None


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}".strip(".")


def _parts(value: Any) -> Iterator[Tuple[Any, Any]]:
    if isinstance(value, dict):
        return iter(list(value.items()))
    if isinstance(value, (list, tuple)):
        return zip(getattr(value, "_fields", range(len(value))), value)
    return iter(list(getattr(value, "__dict__", {}).items()))


def _tensors(modules: Dict[str, Any]) -> Iterator[Tuple[str, Any, Any]]:
    """(path, tensor, the module that owns it) of every parameter and buffer."""
    for root, whole in modules.items():
        for inner, owner in whole.named_modules():
            for own in (getattr(owner, "_parameters", {}), getattr(owner, "_buffers", {})):
                for name, tensor in own.items():
                    if tensor is not None:
                        yield _join(_join(root, inner), name), tensor, owner


def _offloaded(owner: Any) -> bool:
    """Whether accelerate brings this module's weights from RAM for each call."""
    hook = getattr(owner, "_hf_hook", None)
    return any(getattr(part, "offload", False) for part in (hook, *getattr(hook, "hooks", ())))


def _device(tensor: Any, owner: Any) -> str:
    return "cpu" if tensor.is_meta and _offloaded(owner) else str(tensor.device)


def _map(name: str, module: Any, found: Dict[str, str]) -> None:
    devices = {_device(tensor, owner) for _, tensor, owner in _tensors({"": module})}
    if len(devices) <= 1:
        found.update((name, device) for device in devices)
        return
    own = {_device(t, o) for path, t, o in _tensors({"": module}) if "." not in path}
    if own:
        found[name] = ", ".join(sorted(own))
    for inner, child in module.named_children():
        _map(_join(name, inner), child, found)


def _bringing(device: Any) -> Any:
    def moved(value: Any) -> Any:
        if hasattr(value, "is_meta"):  # a tensor
            return value if value.device == device else value.to(device)
        if type(value) in (list, tuple):
            return type(value)(moved(item) for item in value)
        if type(value) is dict:
            return {key: moved(item) for key, item in value.items()}
        return value

    def hook(_module: Any, arguments: Any, keywords: Dict[str, Any]) -> Any:
        return moved(arguments), moved(keywords)

    return hook


def _device_of(value: Any) -> Any:
    return getattr(value, "device", None) if hasattr(value, "is_meta") else None
