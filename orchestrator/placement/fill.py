"""Filling devices with blocks in their order. Sizes and rooms in bytes; a plan is one list of blocks a device."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.placement.needs import Block, Needs

__all__ = ["balanced", "sequential"]


def sequential(needs: Needs, rooms: Sequence[int], *, reserve: bool = False) -> list[list[Block]] | None:
    """Fills each device before the next; None when blocks are left over, or a first one is not on the first.

    With `reserve` the first device keeps room for the largest block still to come, as accelerate does: what is
    planned here is then what it comes to by itself.
    """
    sizes = [needs.size(block) for block in needs.blocks]
    largest = _largest_after([b.weights.bytes(needs.dtype) for b in needs.blocks])
    plan: list[list[Block]] = [[] for _ in rooms]
    used = at = 0
    for i, block in enumerate(needs.blocks):
        while at < len(rooms):
            kept = largest[i] if reserve and at == 0 else 0
            if used + sizes[i] + kept <= rooms[at]:
                break
            at, used = at + 1, 0
        if at == len(rooms) or (block.first and at > 0):
            return None
        plan[at].append(block)
        used += sizes[i]
    return plan


def balanced(needs: Needs, rooms: Sequence[int]) -> list[list[Block]] | None:
    """The plan in order whose fullest device is as empty as can be; None when `sequential` finds none."""
    if sequential(needs, rooms) is None:
        return None
    low, high = 0, max(max(rooms, default=0), 0)
    while low < high:
        cap = (low + high) // 2
        if sequential(needs, [min(room, cap) for room in rooms]) is None:
            low = cap + 1
        else:
            high = cap
    return sequential(needs, [min(room, low) for room in rooms])


def _largest_after(sizes: Sequence[int]) -> list[int]:
    """For each block the size of the largest one after it."""
    result, largest = [], 0
    for size in reversed(sizes):
        result.append(largest)
        largest = max(largest, size)
    return result[::-1]
