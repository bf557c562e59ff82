"""Which part of the model goes to which device, decided before anything is read."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple, Union

__all__ = ["Parts", "budgets_of", "lay_out"]

GIB = 1 << 30
HEADROOM = (
    0.92  # of a device's free memory, where no budget is given: the rest is for the cache of keys and values
)

DeviceMap = Union[str, Mapping[str, Any]]


class Parts(NamedTuple):
    """Bytes of the model's parts. `first` must be together: both towers, patch mining, projector and embeddings."""

    first: int
    workspace: int  # for the towers' activations, beside `first`
    layers: Sequence[int]
    last: int  # the head; the final norm beside it is a few kilobytes
    tied: bool  # the head is the embeddings' own tensor


def lay_out(
    parts: Parts,
    device_map: DeviceMap,
    device: str,
    budgets: Mapping[str, int],
    allow_offload: bool = False,
    planned: bool = False,
) -> Dict[str, str]:
    """Device by part: "first", "0" … "n-1" for the layers, "last".

    "sequential" fills one device before the next, "auto" and "balanced" spread evenly; a device's name means that device
    whatever its budget; a mapping is taken as it is (module names of transformers, longest match). Layers are computed on
    the CPU beside GPUs only with `allow_offload`; RuntimeError says what is needed and what is there.

    `planned` budgets are the orchestrator's: for weights alone (it has counted everything else), and such that a fill
    which keeps room on the first device for the largest part still to come, as accelerate's does, is its plan.
    """
    names = [str(index) for index in range(len(parts.layers))]
    if isinstance(device_map, Mapping):
        return checked(explicit(names, device_map), allow_offload)
    allow_offload = allow_offload or (planned and "cpu" in budgets)
    if device_map not in ("sequential", "auto", "balanced"):
        return dict.fromkeys(["first", *names, "last"], device_map)
    if device == "cpu":
        return dict.fromkeys(["first", *names, "last"], "cpu")
    order = [name for name in budgets if name != "cpu"]
    rooms = {name: budgets[name] for name in order}
    if device_map != "sequential":
        rooms = evened(parts, rooms)
    if allow_offload:
        order.append("cpu")
        rooms["cpu"] = budgets.get("cpu", 1 << 62)
    return fill(parts._replace(workspace=0) if planned else parts, names, order, rooms, planned)


def fill(
    parts: Parts, names: Sequence[str], order: Sequence[str], rooms: Dict[str, int], reserve: bool
) -> Dict[str, str]:
    """Part after part onto the device that has room, never going back.

    With `reserve` the first device keeps room for the largest part still to come.
    """
    needs = {"first": parts.first + parts.workspace, **dict(zip(names, parts.layers))}
    needs["last"] = 0 if parts.tied else parts.last
    sizes = list(needs.values())
    placed: Dict[str, str] = {}
    position = 0
    for index, (name, need) in enumerate(needs.items()):
        kept = max(sizes[index + 1 :], default=0) if reserve else 0
        while position < len(order) and rooms[order[position]] < need + (0 if position else kept):
            if name == "first":
                raise does_not_fit(
                    parts, rooms, "the vision towers and embeddings must be on the first device"
                )
            position += 1
        if position == len(order):
            raise does_not_fit(
                parts,
                rooms,
                f"there is no room from layer {name} on" if name != "last" else "the head is left",
            )
        placed[name] = order[position]
        rooms[order[position]] -= need
    if parts.tied:
        placed["last"] = placed["first"]
    return placed


def evened(parts: Parts, rooms: Mapping[str, int]) -> Dict[str, int]:
    """Budgets that leave each device about the same share."""
    total = parts.first + parts.workspace + sum(parts.layers) + parts.last
    share = total // max(len(rooms), 1) + max(parts.layers)
    first = next(iter(rooms))
    return {
        name: min(room, max(share, parts.first + parts.workspace) if name == first else share)
        for name, room in rooms.items()
    }


def explicit(names: Sequence[str], device_map: Mapping[str, Any]) -> Dict[str, str]:
    """A map in transformers' terms: "model.layers.3": 1, or "" for everything."""
    modules = {name: f"model.layers.{name}" for name in names}
    modules.update(first="model.embed_tokens", last="lm_head")
    placed = {}
    for name in ["first", *names, "last"]:
        module = modules[name]
        matches = [key for key in device_map if key in ("", module) or module.startswith(key + ".")]
        if not matches:
            raise ValueError(f'device_map says nothing of {module}; "" stands for everything else')
        placed[name] = device_name(device_map[max(matches, key=len)])
    return placed


def checked(placed: Dict[str, str], allow_offload: bool) -> Dict[str, str]:
    """Refuse the disk always, and the CPU beside GPUs unless it was asked for."""
    if "disk" in placed.values():
        raise ValueError("device_map: the disk is no device; leave layers on the CPU with allow_offload=True")
    if len(set(placed.values())) > 1 and "cpu" in placed.values() and not allow_offload:
        raise ValueError(
            "device_map leaves parts on the CPU beside a GPU; that is slow, so it needs allow_offload=True"
        )
    return placed


def device_name(value: Any) -> str:
    """0 and "0" are "cuda:0"."""
    text = str(value)
    return f"cuda:{text}" if text.isdigit() else text


def budgets_of(max_memory: Mapping[Any, Any]) -> Tuple[Dict[str, int], bool]:
    """Bytes by device name, and whether they were planned; without any for GPUs, what is free on each visible one."""
    budgets = {device_name(name): int(value) for name, value in max_memory.items()}
    if any(name != "cpu" for name in budgets):
        return budgets, True
    import torch

    for index in range(torch.cuda.device_count()):
        budgets[f"cuda:{index}"] = int(torch.cuda.mem_get_info(index)[0] * HEADROOM)
    return budgets, False


def does_not_fit(parts: Parts, rooms: Mapping[str, int], why: str) -> RuntimeError:
    """What the model needs and what the devices have left, in GiB."""
    total = parts.first + parts.workspace + sum(parts.layers) + parts.last
    left = ", ".join(f"{name} {room / GIB:.2f} GiB" for name, room in rooms.items()) or "no GPU"
    return RuntimeError(
        f"the model does not fit: it needs {total / GIB:.2f} GiB ({(parts.first + parts.workspace) / GIB:.2f} of it on the "
        f"first device), {why} (left: {left}). Take a smaller dtype, load_in_4bit=True, more devices, or "
        "allow_offload=True to compute the last layers on the CPU"
    )


def spread(placed: Mapping[str, str]) -> List[Tuple[str, str]]:
    """Runs of layers by device, for reports: [("towers, embeddings, layers 0-11", "cuda:0"), …]."""
    runs: List[Tuple[str, List[str]]] = []
    for name, device in placed.items():
        if not runs or runs[-1][0] != device:
            runs.append((device, []))
        runs[-1][1].append(name)
    return [
        (f"{members[0]}-{members[-1]}" if len(members) > 1 else members[0], device)
        for device, members in runs
    ]
