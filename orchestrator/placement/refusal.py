"""Why a model fits nowhere, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from orchestrator.devices import CPU, Device, Inventory, format_size
from orchestrator.errors import PlacementError
from orchestrator.placement.needs import Needs

__all__ = ["refusal"]

Attempt = Callable[[Needs, Inventory], bool]
MORE_DEVICES = 15
BITS = (8, 4)


def refusal(
    needs: Needs,
    inventory: Inventory,
    attempt: Attempt,
    budget: Callable[[Device], int],
    how: str,
    runtime: Mapping[str, int],
) -> PlacementError:
    """The error to raise; every remedy in its hint was tried on `attempt`.

    `runtime` is what a worker itself takes of a device, by the device's kind.
    """
    lines = [f"{needs.name} needs {format_size(needs.total)} in {needs.dtype}{_terms(needs)}"]
    lines[0] += f", and does not fit ({how}):"
    shown = (inventory.accelerators if how != "the CPU" else ()) or (inventory.host,)
    lines += [
        f"  {device.label} {device.name}: {format_size(device.free)} free of {format_size(device.total)}, "
        f"{format_size(budget(device))} may be used, {format_size(runtime[device.kind])} of it by the worker itself"
        f"{_held(device)}"
        for device in shown
    ]
    remedies = list(_remedies(needs, inventory, attempt))
    hint = "it would fit " + ", or ".join(remedies) if remedies else "no single change makes it fit"
    return PlacementError("\n".join(lines), hint=hint)


def _terms(needs: Needs) -> str:
    terms = [f"{t.name} {format_size(t.amount.bytes(needs.dtype))}" for t in needs.terms]
    return f" ({', '.join(terms)})" if terms else ""


def _held(device: Device) -> str:
    if not device.holders:
        return ""
    names = [
        f"{h.name}{f' (pid {h.pid})' if h.pid and not h.deployment else ''} {format_size(h.size) if h.size else '?'}"
        for h in device.holders
    ]
    return "; held by " + ", ".join(names)


def _remedies(needs: Needs, inventory: Inventory, attempt: Attempt) -> Iterator[str]:
    yield from _evictions(needs, inventory, attempt)
    if needs.dtype in ("float32", "float64"):
        for dtype in ("bfloat16",):
            if attempt(needs.as_dtype(dtype), inventory):
                yield "with dtype float16 or bfloat16"
    if needs.quantised is None:
        half = needs.as_dtype("float16")
        bits = next((b for b in BITS if attempt(half.quantised_to(b), inventory)), None)
        if bits is not None:
            yield f"with layers quantised to {bits} bits"
    yield from _more_devices(needs, inventory, attempt)


def _evictions(needs: Needs, inventory: Inventory, attempt: Attempt) -> Iterator[str]:
    names = {h.name for d in inventory.devices for h in d.holders if h.deployment}
    found = [name for name in sorted(names) if attempt(needs, _evicted(inventory, {name}))]
    if found:
        yield "with " + " or ".join(found) + " evicted"
    elif len(names) > 1 and attempt(needs, _evicted(inventory, names)):
        yield f"with {', '.join(sorted(names))} all evicted"


def _evicted(inventory: Inventory, names: set[str]) -> Inventory:
    return inventory.with_devices(
        [
            replace(
                d,
                free=min(
                    d.total, d.free + sum(h.size for h in d.holders if h.deployment and h.name in names)
                ),
            )
            for d in inventory.devices
        ]
    )


def _more_devices(needs: Needs, inventory: Inventory, attempt: Attempt) -> Iterator[str]:
    together = [d for d in inventory.accelerators if not d.alone]
    if not together:
        return
    model = max(together, key=lambda d: d.total)
    grown = inventory
    for more in range(1, MORE_DEVICES + 1):
        index = len(grown.accelerators)
        extra = replace(model, index=index, uuid=f"{CPU}-imagined-{more}", free=model.total, holders=())
        grown = replace(grown, accelerators=(*grown.accelerators, extra))
        if attempt(needs, grown):
            yield f"with {more} more device{'s' if more > 1 else ''} of {format_size(model.total)}"
            return
