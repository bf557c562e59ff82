"""Where a model goes: a pure function from needs and inventory, which explains itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.devices import CPU, Device, Inventory, format_size, parse_size
from orchestrator.errors import ConfigError, PlacementError
from orchestrator.placement.amount import NOTHING, dtype_name
from orchestrator.placement.fill import balanced, sequential
from orchestrator.placement.needs import Block, Needs
from orchestrator.placement.refusal import refusal

__all__ = ["HEADROOM", "RUNTIME", "Placement", "Share", "place", "place_replicas", "threads_for"]

HEADROOM = 0.05
"""Part of a device's free memory that is left alone: fragments of the allocator, and what we did not foresee."""
RUNTIME: Mapping[str, int] = {"cuda": 512 * 2**20, "cpu": 400 * 2**20}
"""What a worker holds before any weight: CUDA's context and kernels; the interpreter and its libraries."""
NAMED_MAPS = ("sequential", "balanced", "auto", "single")
ACCELERATOR_THREADS = 8


@dataclass(frozen=True)
class Share:
    """What one device carries, in bytes."""

    device: Device
    label: str
    """The device as the worker sees it."""
    blocks: tuple[Block, ...]
    weights: int
    state: int
    workspace: int
    runtime: int
    budget: int
    dtype: str

    def weights_by_block(self) -> dict[str, int]:
        """Bytes of each block's weights, by its name."""
        return {block.name: block.weights.bytes(self.dtype) for block in self.blocks}

    @property
    def used(self) -> int:
        """Everything that is planned for this device."""
        return self.weights + self.state + self.workspace + self.runtime


@dataclass(frozen=True)
class Placement:
    """One replica's place. The worker gets the fields up to `threads`; the rest is for people and the ledger."""

    device: str
    devices: tuple[str, ...]
    device_map: str | dict[str, str]
    max_memory: dict[str, int]
    dtype: str
    threads: int
    explanation: str
    shares: tuple[Share, ...] = ()

    def for_worker(self) -> dict[str, Any]:
        """The fields that the worker gets, as plain values."""
        names = ("device", "devices", "device_map", "max_memory", "dtype", "threads")
        return {name: getattr(self, name) for name in names}

    @property
    def reservations(self) -> dict[str, int]:
        """Bytes by device UUID, for the ledger."""
        return {share.device.uuid: share.used for share in self.shares}

    @property
    def growth(self) -> dict[str, int]:
        """Bytes by device UUID that a loaded model may still take when it is called."""
        return {share.device.uuid: share.state + share.workspace for share in self.shares}


@dataclass(frozen=True)
class Options:
    """What the caller asks for, normalised. `limits` are the caller's own budgets by UUID."""

    mode: str = "sequential"
    explicit: Mapping[str, Device] = field(default_factory=dict)
    pinned: tuple[Device, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    headroom: float = HEADROOM
    offload: bool = False


def place(
    needs: Needs,
    inventory: Inventory,
    *,
    dtype: str | None = None,
    device_map: str | int | Mapping[str, Any] | None = None,
    devices: Sequence[str | int] | None = None,
    max_memory: Mapping[Any, int | str] | None = None,
    headroom: float = HEADROOM,
    offload: bool = False,
    workers: int = 1,
) -> Placement:
    """Chooses devices for one replica.

    Args:
        dtype: what the weights are loaded in; None leaves it to the checkpoint ("auto").
        device_map: "sequential" (default: one device when it fits, else one after the other), "balanced" and
            "auto" (spread evenly), "single", "cpu", one device, or a mapping of module prefixes to devices.
        devices: only these, by index, UUID or prefix.
        max_memory: budgets by device; devices that it does not name are not used. A "cpu" entry beside
            accelerators allows layers to be offloaded to RAM, as `offload=True` does.
        headroom: part of the free memory that is left alone, where `max_memory` does not say.
        workers: workers that share the cores, this one included.

    Raises:
        PlacementError: it does not fit; says what is needed, free and held, and what would make it fit.
        ConfigError: an unknown device, map, dtype or size.
    """
    dtype = "auto" if dtype is None else dtype_name(dtype, auto="auto")
    if dtype != "auto":
        needs = needs.as_dtype(dtype)
    options = _options(inventory, device_map, devices, max_memory, headroom, offload)
    shares, how = _shares(needs, inventory, options)
    if shares is None:
        raise refusal(
            needs,
            inventory,
            lambda n, i: _would_fit(n, i, options),
            lambda d: _budget(d, options),
            how,
            RUNTIME,
        )
    return _placement(needs, inventory, shares, how, options, dtype, workers)


def place_replicas(needs: Needs, inventory: Inventory, replicas: int, **options: Any) -> list[Placement]:
    """One placement a replica, no two on one accelerator; on a CPU they share cores and RAM.

    Raises:
        PlacementError: fewer than `replicas` fit; says how many do.
    """
    found: list[Placement] = []
    free = inventory
    options.setdefault("workers", replicas)
    for _ in range(replicas):
        try:
            found.append(place(needs, free, **options))
        except PlacementError as error:
            if not found:
                raise
            shared = "" if found[0].device == CPU else ", no two on one accelerator"
            raise PlacementError(
                f"{len(found)} of {replicas} replicas of {needs.name} fit{shared}; for the next one: "
                f"{error.message}",
                hint=f"replicas={len(found)}, or: {error.hint}",
            ) from None
        free = free.with_devices([_without(free, share) for share in found[-1].shares])
    return found


def threads_for(cores: int, workers: int, kind: str = CPU) -> int:
    """CPU threads of one worker when `workers` share `cores`: never more in sum than there are cores."""
    share = max(1, cores // max(1, workers))
    return share if kind == CPU else min(share, ACCELERATOR_THREADS)


def _without(inventory: Inventory, share: Share) -> Device:
    device = next(d for d in inventory.devices if d.uuid == share.device.uuid)
    left = max(0, device.free - share.used) if device.kind == CPU else 0
    return replace(device, free=left)


def _options(
    inventory: Inventory,
    device_map: str | int | Mapping[str, Any] | None,
    devices: Sequence[str | int] | None,
    max_memory: Mapping[Any, int | str] | None,
    headroom: float,
    offload: bool,
) -> Options:
    if not 0 <= headroom < 1:
        raise ConfigError(f"headroom must be in [0, 1), not {headroom}")
    limits = {inventory.select(k).uuid: parse_size(v) for k, v in (max_memory or {}).items()}
    pinned = tuple(dict.fromkeys(inventory.select(d) for d in devices or ()))
    explicit: dict[str, Device] = {}
    mode = "sequential" if device_map is None else device_map
    if isinstance(mode, Mapping):
        explicit = {str(k): _named(inventory, v) for k, v in mode.items()}
        mode = "explicit"
    elif isinstance(mode, int) or (mode not in NAMED_MAPS and mode != CPU):
        pinned, mode = (_named(inventory, mode),), "single"
    if not inventory.accelerators or mode == CPU or (pinned and all(d.kind == CPU for d in pinned)):
        mode = mode if mode == "explicit" else CPU
    offload = offload or (CPU in limits and len(limits) > 1) or (inventory.host in pinned and len(pinned) > 1)
    return Options(mode, explicit, pinned, limits, headroom, offload and mode not in ("single", CPU))


def _named(inventory: Inventory, name: Any) -> Device:
    if str(name) in ("disk", "meta"):
        raise ConfigError(f"device {name!r} in device_map", hint="weights on disk or meta are not supported")
    try:
        return inventory.select(name)
    except ConfigError as error:
        raise ConfigError(
            f"device_map: {error.message}", hint=f"{', '.join(NAMED_MAPS)}, cpu; {error.hint}"
        ) from None


def _budget(device: Device, options: Options) -> int:
    """Bytes that may be used of a device."""
    if options.limits:
        return min(options.limits.get(device.uuid, 0), device.free)
    return int(device.free * (1 - options.headroom))


def _usable(inventory: Inventory, options: Options) -> list[Device]:
    return [
        d
        for d in inventory.accelerators
        if (not options.pinned or d in options.pinned) and (not options.limits or d.uuid in options.limits)
    ]


def _would_fit(needs: Needs, inventory: Inventory, options: Options) -> bool:
    return _shares(needs, inventory, options)[0] is not None


def _shares(needs: Needs, inventory: Inventory, options: Options) -> tuple[list[Share] | None, str]:
    """The devices' shares in the worker's order, and how they came about; None when nothing fits."""
    if options.mode == "explicit":
        return _explicit(needs, inventory, options)
    if options.mode == CPU:
        share = _share(needs, inventory.host, needs.blocks, options, 0)
        return ([share] if share.used <= share.budget or not needs.blocks else None), "the CPU"
    usable = _usable(inventory, options)
    if options.mode in ("sequential", "single"):
        for device in usable:
            share = _share(needs, device, needs.blocks, options, 0)
            if share.used <= share.budget or not needs.blocks:
                return [share], "one device"
    if options.mode == "single":
        return None, "one device"
    together = [d for d in usable if not d.alone]
    return _spread(needs, together, inventory.host, options)


def _spread(
    needs: Needs, usable: Sequence[Device], host: Device, options: Options
) -> tuple[list[Share] | None, str]:
    how = "spread evenly" if options.mode in ("balanced", "auto") else "one device after the other"
    orders = [[lead, *(d for d in usable if d is not lead)] for lead in usable]
    for reserve in (True, False):
        for order in orders:
            rooms = [_room(needs, d, options) for d in order]
            if options.mode in ("balanced", "auto"):
                plan = None if reserve else balanced(needs, rooms)
            else:
                plan = sequential(needs, rooms, reserve=reserve)
            if plan is not None:
                pairs = [(d, blocks) for d, blocks in zip(order, plan, strict=True) if blocks]
                return [_share(needs, d, blocks, options, i) for i, (d, blocks) in enumerate(pairs)], how
    if options.offload:
        for order in orders:
            offloaded = _offloaded(needs, order, host, options)
            if offloaded is not None:
                return offloaded, "the tail in RAM"
    return None, how


def _offloaded(needs: Needs, order: Sequence[Device], host: Device, options: Options) -> list[Share] | None:
    """Layers that find no accelerator stay in RAM; they run on the first device, which keeps room for them."""
    rooms = [_room(needs, d, options) for d in order]
    bare = replace(needs, blocks=tuple(replace(b, state=NOTHING) for b in needs.blocks))
    rooms[0] -= needs.state()
    plan = sequential(bare, [*rooms, _room(needs, host, options)], reserve=True)
    if plan is None:
        return None
    pairs = [(d, blocks) for d, blocks in zip([*order, host], plan, strict=True) if blocks]
    shares = [_share(bare, d, blocks, options, i) for i, (d, blocks) in enumerate(pairs)]
    shares[0] = replace(shares[0], state=needs.state())
    return shares


def _room(needs: Needs, device: Device, options: Options) -> int:
    """Bytes for blocks on a device, after the runtime and the activations."""
    return _budget(device, options) - RUNTIME[device.kind] - needs.workspace.bytes(needs.dtype)


def _share(needs: Needs, device: Device, blocks: Sequence[Block], options: Options, index: int) -> Share:
    return Share(
        device=device,
        label=CPU if device.kind == CPU else f"cuda:{index}",
        blocks=tuple(blocks),
        weights=needs.weights(blocks),
        state=needs.state(blocks),
        workspace=needs.workspace.bytes(needs.dtype) if blocks else 0,
        runtime=RUNTIME[device.kind] if blocks else 0,
        budget=_budget(device, options),
        dtype=needs.dtype,
    )


def _explicit(needs: Needs, inventory: Inventory, options: Options) -> tuple[list[Share] | None, str]:
    carried: dict[Device, list[Block]] = {}
    for block in needs.blocks:
        keys = [k for k in options.explicit if not k or block.name == k or block.name.startswith(k + ".")]
        if not keys:
            raise ConfigError(
                f"device_map says nothing about {block.name!r}",
                hint='add it, or "" for all that is not named',
            )
        inside = next((k for k in options.explicit if k.startswith(block.name + ".")), None)
        if inside is not None and options.explicit[inside] != options.explicit[max(keys, key=len)]:
            raise ConfigError(f"device_map splits {block.name!r} at {inside!r}", hint="a layer stays whole")
        carried.setdefault(options.explicit[max(keys, key=len)], []).append(block)
    for device in options.explicit.values():  # a library's own module names need not be those of the files
        carried.setdefault(device, [])
    if not carried:
        carried = {inventory.devices[0]: []}
    pairs = sorted(carried.items(), key=lambda pair: pair[0].kind == CPU)
    shares = [_share(needs, d, blocks, options, i) for i, (d, blocks) in enumerate(pairs)]
    fits = all(share.used <= share.budget for share in shares)
    return (shares if fits else None), "as the map says"


def _placement(
    needs: Needs,
    inventory: Inventory,
    shares: Sequence[Share],
    how: str,
    options: Options,
    dtype: str,
    workers: int,
) -> Placement:
    kind = shares[0].device.kind
    accelerators = [share for share in shares if share.device.kind != CPU]
    return Placement(
        device=shares[0].label,
        devices=tuple(share.device.uuid for share in accelerators) or (CPU,),
        device_map=_worker_map(shares, options),
        max_memory=_handed(needs, shares),
        dtype=dtype,
        threads=threads_for(inventory.cores, workers, kind),
        explanation=_explain(needs, shares, how),
        shares=tuple(shares),
    )


def _worker_map(shares: Sequence[Share], options: Options) -> str | dict[str, str]:
    labels = {share.device.uuid: share.label for share in shares}
    if options.mode == "explicit":
        return {k: labels[d.uuid] for k, d in options.explicit.items() if d.uuid in labels}
    if len(shares) > 1:
        return "sequential"
    return CPU if shares[0].device.kind == CPU else {"": shares[0].label}


def _handed(needs: Needs, shares: Sequence[Share]) -> dict[str, int]:
    """Budgets for weights, such that accelerate's own sequential fill comes to this plan.

    It counts weights only, keeps room on its first device for the largest layer still to come, and takes
    whatever fits: so each device but the last is closed just before the next one's first block.
    """
    sizes = [[b.weights.bytes(needs.dtype) for b in share.blocks] for share in shares]
    handed: dict[str, int] = {}
    for index, share in enumerate(shares):
        key = CPU if share.device.kind == CPU else str(index)
        room = share.budget - share.state - share.workspace - share.runtime
        later = [size for following in sizes[index + 1 :] for size in following]
        if later:
            main = index == 0 and share.device.kind != CPU
            least = share.weights + (max(later) if main else 0)
            most = share.weights + later[0] - 1 + (max(later[1:], default=0) if main else 0)
            room = min(max(room, least), most)  # most wins: no device is ever filled beyond its budget
        handed[key] = max(0, room)
    return handed


def _explain(needs: Needs, shares: Sequence[Share], how: str) -> str:
    if not needs.blocks:
        return f"{needs.name}: nothing known to place; {shares[0].label}"
    parts = [
        f"{share.label} ({share.device.name}): {len(share.blocks)} blocks, {format_size(share.used)} "
        f"of {format_size(share.budget)}"
        for share in shares
    ]
    return f"{needs.name} in {needs.dtype}, {how}: " + "; ".join(parts)
