"""A placement as an SVG picture: a bar per device, as long as its memory, with what is planned for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from orchestrator.devices import Device, Inventory, format_size
from orchestrator.placement.needs import Block, Needs
from orchestrator.placement.place import Placement, Share

__all__ = ["picture"]

LEFT, BAR, RIGHT, ROW, HEIGHT, TOP = 190, 640, 130, 58, 26, 76
CLASSES = {
    "held": "held by others",
    "runtime": "runtime",
    "towers": "towers, projector",
    "embedding": "embeddings",
    "layer": "layers",
    "head": "norm, head, other",
    "state": "KV cache, logits",
    "workspace": "activations",
    "free": "free",
}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1b1f24 } .title { font-size: 15px; font-weight: 600 }
.small { font-size: 11px; fill: #57606a } .page { fill: #ffffff } .frame { fill: none; stroke: #8c959f }
.held { fill: #8c959f } .runtime { fill: #6e4a7e } .towers { fill: #d1782b } .embedding { fill: #c9a227 }
.layer { fill: #2f6db5 } .head { fill: #1b8a8f } .state { fill: #5aa469 } .workspace { fill: #a9cf7a }
.free { fill: #eaeef2 } .cut { stroke: #ffffff; stroke-width: .6 } .budget { stroke: #cf222e; stroke-dasharray: 3 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9198a1 } .page { fill: #0d1117 }
.free { fill: #262c36 } .cut { stroke: #0d1117 } .frame { stroke: #656c76 } }
""".strip()


def picture(needs: Needs, placements: Sequence[Placement], inventory: Inventory) -> str:
    """The SVG document of one placement, or of several replicas of one model."""
    shares = {share.device.uuid: share for p in placements for share in p.shares}
    devices = [d for d in inventory.devices if d.kind != "cpu" or d.uuid in shares]
    longest = max(d.total for d in devices)
    width = LEFT + BAR + RIGHT
    height = TOP + ROW * len(devices) + 58
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(needs.name)} on {len(shares)} device(s)</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
        _text(16, 26, f"{needs.name}, {needs.dtype}", "title"),
        _text(16, 46, _summary(needs, placements), "small"),
    ]
    for row, device in enumerate(devices):
        parts += _row(device, shares.get(device.uuid), TOP + ROW * row, BAR / longest)
    parts += _legend(TOP + ROW * len(devices) + 14)
    return "\n".join([*parts, "</svg>", ""])


def _summary(needs: Needs, placements: Sequence[Placement]) -> str:
    terms = [f"{t.name} {format_size(t.amount.bytes(needs.dtype))}" for t in needs.terms]
    replicas = f"{len(placements)} replicas, each: " if len(placements) > 1 else ""
    return replicas + ", ".join(terms)


def _row(device: Device, share: Share | None, top: float, scale: float) -> Iterator[str]:
    yield _text(16, top + 12, device.label)
    yield _text(16, top + 27, device.name[:26], "small")
    x = float(LEFT)
    for kind, size, words in _segments(device, share):
        yield (
            f'<rect class="{kind}{" cut" if size * scale > 4 else ""}" x="{x:.2f}" y="{top}" width="{size * scale:.2f}" height="{HEIGHT}">'
            f"<title>{escape(words)}: {size:,} bytes</title></rect>"
        )
        x += size * scale
    yield f'<rect class="frame" x="{LEFT}" y="{top}" width="{device.total * scale:.2f}" height="{HEIGHT}"/>'
    if share is not None:
        limit = LEFT + (device.total - device.free + share.budget) * scale
        yield f'<line class="budget" x1="{limit:.2f}" x2="{limit:.2f}" y1="{top - 4}" y2="{top + HEIGHT + 4}"/>'
        yield _text(LEFT, top + HEIGHT + 15, _span(share.blocks), "small")
    used = share.used if share is not None else 0
    yield _text(LEFT + BAR + 10, top + 12, format_size(used))
    yield _text(LEFT + BAR + 10, top + 27, f"of {format_size(device.total)}", "small")


def _span(blocks: Sequence[Block]) -> str:
    if not blocks:
        return ""
    return blocks[0].name if len(blocks) == 1 else f"{blocks[0].name} … {blocks[-1].name}"


def _segments(device: Device, share: Share | None) -> Iterator[tuple[str, int, str]]:
    """(class, bytes, words) from left to right; they add up to the device's memory."""
    held = device.total - device.free
    if held:
        yield "held", held, "held: " + (", ".join(h.name for h in device.holders) or "by others")
    if share is None:
        yield "free", device.free, "free"
        return
    yield "runtime", share.runtime, "runtime"
    each = share.weights_by_block()
    for block in share.blocks:
        yield _class(block), each[block.name], block.name
    yield "state", share.state, "KV cache, logits, picture maps"
    yield "workspace", share.workspace, "activations"
    yield "free", max(0, device.free - share.used), "free"


def _class(block: Block) -> str:
    if block.kind in ("tower", "projector"):
        return "towers"
    return block.kind if block.kind in ("embedding", "layer") else "head"


def _legend(top: float) -> Iterator[str]:
    step = (LEFT + BAR + RIGHT - 32) / 5
    for i, (kind, words) in enumerate(CLASSES.items()):
        x, y = 16 + step * (i % 5), top + 20 * (i // 5)
        yield f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="12" height="12"/>'
        yield _text(x + 18, y + 10, words, "small")
    x, y = 16 + step * 4, top + 20
    yield f'<line class="budget" x1="{x + 6:.1f}" x2="{x + 6:.1f}" y1="{y}" y2="{y + 12}"/>'
    yield _text(x + 18, y + 10, "what may be used", "small")


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text{mark} x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
