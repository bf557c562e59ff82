"""`orchestrator place`: where a model would be placed, module by module, on this machine or an imagined one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.console import Console, OutFile, json_option, pass_console
from orchestrator.devices import Inventory, format_size, parse_budgets
from orchestrator.errors import ConfigError
from orchestrator.placement import (
    Ledger,
    Needs,
    Placement,
    estimate_from_config,
    needs_of,
    picture,
    place,
    place_replicas,
    shape,
)

__all__ = ["command"]


@click.command("place")
@click.argument("family", required=False)
@click.option("-c", "--checkpoint", metavar="SPEC", help="A folder, or hf:…, modelscope:…, pypi:….")
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False), help="A config.json alone: an estimate."
)
@click.option(
    "--shape", "published", metavar="NAME", help="A published shape: llama-7b, mgm-34b, qwen2-vl-7b …."
)
@click.option(
    "--devices", "imagined", metavar="LIST", help="An imagined machine: 4x24GiB, or 2x80GiB,cpu:64GiB."
)
@click.option(
    "--pin", multiple=True, metavar="DEVICE", help="Only this device: index or UUID; may be repeated."
)
@click.option("--dtype", help="float32, float16, bfloat16 or auto (as stored).")
@click.option("--device-map", help="sequential, balanced, auto, single, cpu, a device, or a JSON object.")
@click.option(
    "--max-memory", metavar="LIST", help="Budgets: 0=20GiB,1=22GiB; with cpu=60GiB offload is allowed."
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences at once.")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Tokens of a sequence.  [default: 2048 at most, an HD MiniGemini's own limit]",
)
@click.option("--tower", multiple=True, type=click.Path(exists=True), help="A tower in a folder of its own.")
@click.option(
    "--bits", type=click.Choice(["4", "8"]), help="Layers quantised as load_in_4bit and load_in_8bit do."
)
@click.option("--replicas", type=click.IntRange(min=1), default=1, show_default=True, help="One per device.")
@click.option("--offload", is_flag=True, help="Layers that find no accelerator may stay in RAM.")
@click.option("--svg", type=OutFile(), help="Draw it into this file.")
@json_option
@pass_console
def command(
    console: Console,
    /,
    replicas: int,
    imagined: str | None,
    svg: Path | None,
    **options: Any,
) -> None:
    """Show where a model would be placed, module by module and byte by byte. Nothing is started or loaded.

    FAMILY gives the defaults (dtype, device_map), `auto` those of the checkpoint's own; --devices plans for a machine that is not here. Exits with 4
    when it does not fit, and says what would make it fit.
    """
    defaults = _defaults(console, options["family"], options["checkpoint"])
    for key in ("dtype", "device_map", "max_memory"):
        options[key] = options[key] or defaults.get(key)
    needs = _needs(console, options)
    if options["bits"] is not None:
        needs = needs.quantised_to(int(options["bits"]))
    if imagined is None:
        inventory = Ledger(console.settings).free(Inventory.detect())
    else:
        inventory = Inventory.parse(imagined)
    wanted = {
        "dtype": options["dtype"],
        "device_map": _map(options["device_map"]),
        "devices": options["pin"] or None,
        "max_memory": _budgets(options["max_memory"]),
        "offload": options["offload"],
    }
    if replicas > 1:
        placements = place_replicas(needs, inventory, replicas, **wanted)
    else:
        placements = [place(needs, inventory, **wanted)]
    needs = needs if options["dtype"] in (None, "auto") else needs.as_dtype(options["dtype"])
    _report(console, needs, placements)
    if svg is not None:
        svg.write_text(picture(needs, placements, inventory), encoding="utf-8")
        console.talk(f"drawn: {svg}")


def _defaults(console: Console, family: str | None, checkpoint: str | None) -> Mapping[str, Any]:
    if family is None:
        return {}
    from orchestrator.environments import Catalog
    from orchestrator.pins import family_for

    catalog = Catalog.default(console.settings)
    if family == "auto" and checkpoint is not None:
        found = family_for(checkpoint, catalog) or family_for(_checkpoint(console, checkpoint), catalog)
        if found is None:
            raise ConfigError(f"no family is known for {checkpoint!r}", hint="leave FAMILY out, or name one")
        console.talk(f"family: {found}")
        family = found
    return catalog.get(family).defaults


def _needs(console: Console, options: Mapping[str, Any]) -> Needs:
    sources = [options[key] for key in ("checkpoint", "config", "published")]
    if sum(source is not None for source in sources) != 1:
        raise ConfigError(
            "say what to place: one of --checkpoint, --config and --shape",
            hint="orchestrator place --shape llama-13b --devices 2x16GiB",
        )
    dtype = options["dtype"] or "auto"
    size = {"batch": options["batch"], "context": options["context"]}
    if options["checkpoint"] is not None:
        path = _checkpoint(console, options["checkpoint"])
        needs: Needs = needs_of(path, dtype=dtype, towers=options["tower"], **size)
        if not needs.total:
            raise ConfigError(f"{path} holds no weights", hint="name the folder or the file that has them")
        return needs
    if options["published"] is not None:
        return estimate_from_config(shape(options["published"]), dtype, name=options["published"], **size)
    config = Path(options["config"])
    try:
        document = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"not valid JSON: {error}", path=str(config)) from None
    if not isinstance(document, dict):
        raise ConfigError(
            "no mapping of names to values", path=str(config), hint="give a model's config.json"
        )
    return estimate_from_config(document, dtype, name=config.absolute().parent.name, **size)


def _checkpoint(console: Console, spec: str) -> Path:
    path = Path(spec).expanduser()
    if path.exists():
        return path
    from orchestrator.checkpoints import CheckpointStore
    from orchestrator.environments import Catalog, EnvironmentStore

    settings = console.settings
    store = CheckpointStore(settings, EnvironmentStore(settings), Catalog.default(settings))
    with console.progress() as listener:
        found: Path = store.resolve(spec, listener).path
    return found


def _map(text: Any) -> Any:
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--device-map is not valid JSON: {error}") from None


def _budgets(text: Any) -> Mapping[str, Any] | None:
    if not isinstance(text, str):  # a family's default, already a mapping
        return dict(text) if text else None
    return parse_budgets(text, "--max-memory")


def _report(console: Console, needs: Needs, placements: list[Placement]) -> None:
    if console.json_output:
        console.json(_described(needs, placements))
        return
    console.table(
        ("needs", "bytes", "", "of"),
        (
            (t.name, f"{t.amount.bytes(needs.dtype):,}", format_size(t.amount.bytes(needs.dtype)), t.words)
            for t in needs.terms
        ),
    )
    for number, placement in enumerate(placements):
        console.data("")
        console.data(
            f"replica {number}, {', '.join(placement.devices)}: {placement.explanation}"
            if len(placements) > 1
            else placement.explanation
        )
        console.table(
            ("device", "name", "weights", "cache+logits+maps", "activations", "runtime", "sum", "may be used"),
            (
                (s.label, s.device.name, *(format_size(x) for x in
                 (s.weights, s.state, s.workspace, s.runtime, s.used, s.budget)))
                for s in placement.shares
            ),
        )  # fmt: skip
    console.data("")
    _modules(console, needs, placements[0])
    for note in needs.notes:
        console.talk(f"note: {note}")


def _modules(console: Console, needs: Needs, placement: Placement) -> None:
    console.table(
        ("module", "kind", "parameters", "weights", "state", "device"),
        (
            (
                block.name,
                "head (tied)" if block.tied else block.kind,
                f"{block.parameters:,}",
                f"{block.weights.bytes(needs.dtype):,}",
                f"{block.state.bytes(needs.dtype):,}",
                share.label,
            )
            for share in placement.shares
            for block in share.blocks
        ),
    )


def _described(needs: Needs, placements: list[Placement]) -> dict[str, Any]:
    return {
        "name": needs.name,
        "dtype": needs.dtype,
        "parameters": needs.parameters,
        "total": needs.total,
        "terms": [
            {"name": t.name, "bytes": t.amount.bytes(needs.dtype), "words": t.words, "where": t.where}
            for t in needs.terms
        ],
        "notes": list(needs.notes),
        "placements": [_placement(needs, p) for p in placements],
    }


def _placement(needs: Needs, placement: Placement) -> dict[str, Any]:
    fields = ("device", "devices", "device_map", "max_memory", "dtype", "threads", "explanation")
    numbers = ("label", "weights", "state", "workspace", "runtime", "used", "budget")
    return {
        **{name: getattr(placement, name) for name in fields},
        "shares": [
            {
                **{name: getattr(share, name) for name in numbers},
                "uuid": share.device.uuid,
                "modules": [
                    {
                        "name": block.name,
                        "kind": block.kind,
                        "parameters": block.parameters,
                        "weights": block.weights.bytes(needs.dtype),
                        "state": block.state.bytes(needs.dtype),
                    }
                    for block in share.blocks
                ],
            }
            for share in placement.shares
        ],
    }
