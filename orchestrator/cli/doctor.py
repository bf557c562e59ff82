"""`orchestrator doctor`: what this machine offers, which settings are in force, and what is wrong with them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from orchestrator import __version__
from orchestrator.cli.console import Console, json_option, pass_console
from orchestrator.environments import Catalog, Family
from orchestrator.environments.driver import cuda_driver
from orchestrator.environments.indexes import mask, read_indexes
from orchestrator.environments.interpreters import choose, installed_interpreters
from orchestrator.environments.lock import is_stale
from orchestrator.environments.uv import find_uv, prepare_home, run_uv, search_path, uv_version
from orchestrator.errors import OrchestratorError, SandboxUnavailable
from orchestrator.processes import require_bubblewrap
from orchestrator.settings import NAMES, Settings
from orchestrator.worker.masking import is_secret
from orchestrator.worker.nameless import HUGE_PAGES, huge_pages

__all__ = ["command"]

OK, NOTE, WARNING, BROKEN = "ok", "note", "warning", "broken"
MARKS = {OK: " ", NOTE: " ", WARNING: "!", BROKEN: "x"}
LOW_DISK = 5 * 2**30
INDEX_VARIABLES = (
    "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX_STRATEGY",
    "UV_INSECURE_HOST", "UV_KEYRING_PROVIDER", "UV_CONSTRAINT", "UV_PRERELEASE", "UV_HTTP_TIMEOUT", "UV_OFFLINE",
    "UV_TORCH_BACKEND", "UV_CACHE_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY",
    "NO_PROXY",
)  # fmt: skip
HUB_VARIABLES = (
    "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN",
    "MODELSCOPE_CACHE", "MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN", "MODELSCOPE_API_TOKEN", "MODELSCOPE_HOME",
)  # fmt: skip
IMPORTED = (
    "orchestrator",
    "uv",
    "zmq",
    "msgpack",
    "numpy",
    "msgspec",
    "yaml",
    "click",
    "rich",
    "psutil",
    "pynvml",
)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    section: str
    name: str
    text: str
    level: str = OK
    hint: str = ""


Findings = Iterator[Finding]


@click.command("doctor")
@json_option
@pass_console
def command(console: Console) -> None:
    """Show interpreters, uv, indexes and mirrors, hubs, devices, disk and settings, and what is wrong with them.

    Credentials in URLs and tokens are masked. Exit code 1 if something is broken.
    """
    settings = console.settings
    checks: tuple[Callable[[Settings], Findings], ...] = (
        _versions, _interpreters, _indexes, _hubs, _devices, _shared_memory, _disk, _sandbox, _families, _imports, _settings,
    )  # fmt: skip
    findings = [finding for check in checks for finding in _guarded(check, settings)]
    if console.json_output:
        console.json([asdict(finding) for finding in findings])
    else:
        _print(console, findings)
    broken = sum(finding.level == BROKEN for finding in findings)
    warnings = sum(finding.level == WARNING for finding in findings)
    console.talk(f"{broken} broken, {warnings} to look at")
    if broken:
        raise click.exceptions.Exit(1)


def _guarded(check: Callable[[Settings], Findings], settings: Settings) -> list[Finding]:
    """A check that fails is a finding, and the others go on."""
    found: list[Finding] = []
    try:
        found.extend(check(settings))
    except OrchestratorError as error:
        found.append(Finding(check.__name__.strip("_"), "check", error.message, BROKEN, error.hint or ""))
    return found


def _print(console: Console, findings: list[Finding]) -> None:
    section = ""
    for finding in findings:
        if console.quiet and finding.level in {OK, NOTE}:
            continue
        if finding.section != section:
            section = finding.section
            console.data(section)
        console.data(f"{MARKS[finding.level]} {finding.name:<24} {finding.text}".rstrip())
        if finding.hint:
            console.data(f"  {'':<24} -> {finding.hint}")


def _versions(_: Settings) -> Findings:
    yield Finding(
        "versions", "orchestrator", f"{__version__} on Python {sys.version.split()[0]} ({sys.executable})"
    )
    version = uv_version()
    old = version == "unknown" or tuple(int(part) for part in version.split(".")[:2]) < (0, 8)
    yield Finding(
        "versions",
        "uv",
        f"{version} ({find_uv()})",
        BROKEN if old else OK,
        "python -m pip install -U uv" if old else "",
    )


def _sandbox(settings: Settings) -> Findings:
    wanted = [name for name, family in _readable_families(settings) if family.sandbox]
    try:
        text, level, hint = f"{require_bubblewrap()} works", OK, ""
    except SandboxUnavailable as error:
        message = error.message.removeprefix(
            "a sandbox was asked for, and "
        )  # by whom is said below, if anybody did
        text, level, hint = message, BROKEN if wanted else NOTE, error.hint or ""
    text += f"; asked for by {', '.join(wanted)}" if wanted else ""
    yield Finding("sandbox", "bubblewrap", text, level, hint if wanted else "")


def _readable_families(settings: Settings) -> Iterator[tuple[str, Family]]:
    catalog = Catalog.default(settings)
    for name in catalog.names():
        with contextlib.suppress(OrchestratorError):  # `_families` tells of those that cannot be read
            yield name, catalog.get(name)


def _interpreters(settings: Settings) -> Findings:
    for interpreter in installed_interpreters(settings, fresh=True):
        yield Finding("interpreters", interpreter.version, str(interpreter.path))
    shims = [part for part in os.environ.get("PATH", "").split(os.pathsep) if Path(part).name == "shims"]
    if shims:
        added = search_path().split(os.pathsep)
        count = sum(".pyenv" in part or "versions" in part for part in added)
        text = f"{', '.join(shims)}: uv is given the {count} interpreters behind them instead"
        yield Finding("interpreters", "pyenv shims", text, NOTE)


def _indexes(_: Settings) -> Findings:
    indexes = read_indexes()
    for variable in INDEX_VARIABLES:
        if os.environ.get(variable):
            yield Finding("indexes", variable, f"{_shown(variable, os.environ[variable])}  (your own)")
        elif variable in indexes.variables:
            text = f"{_shown(variable, indexes.variables[variable])}  (from {indexes.sources[variable]})"
            yield Finding("indexes", variable, text)
    if not any(os.environ.get(v) or v in indexes.variables for v in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")):
        yield Finding("indexes", "index", "the default of uv (the public Python index)", NOTE)
    for flag in indexes.flags:
        yield Finding("indexes", flag, f"from {indexes.sources[flag]}")
    for key in indexes.unmapped:
        yield Finding("indexes", key, "set for pip, and uv has no equal of it: not in force", WARNING)
    yield from _index_faults()


def _index_faults() -> Findings:
    indexes = read_indexes()
    if "UV_INDEX" in indexes.variables:
        text = "with extra indexes the best version of any index wins, as with pip"
        yield Finding(
            "indexes",
            "order",
            text,
            NOTE,
            "a private name can be taken over by a public package of that name",
        )
    for place in indexes.find_links:
        folder = Path(place.removeprefix("file://"))
        if "://" not in place.removeprefix("file://") and not folder.is_dir():
            yield Finding(
                "indexes", "find-links", f"{place} is not a folder", BROKEN, "correct pip's find-links"
            )
    certificate = os.environ.get("SSL_CERT_FILE") or indexes.variables.get("SSL_CERT_FILE")
    if certificate and not Path(certificate).is_file():
        yield Finding(
            "indexes",
            "certificate",
            f"{certificate} does not exist",
            BROKEN,
            "correct SSL_CERT_FILE or pip's cert",
        )


def _hubs(_: Settings) -> Findings:
    for variable in HUB_VARIABLES:
        if os.environ.get(variable):
            yield Finding("hubs", variable, _shown(variable, os.environ[variable]))
    if not os.environ.get("HF_ENDPOINT"):
        yield Finding("hubs", "Hugging Face", "https://huggingface.co (HF_ENDPOINT names a mirror)", NOTE)
    if not (os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN")):
        yield Finding("hubs", "ModelScope", "https://www.modelscope.cn", NOTE)
    if os.environ.get("MODELSCOPE_DOMAIN"):
        yield Finding("hubs", "MODELSCOPE_DOMAIN", "is deprecated", WARNING, "set MODELSCOPE_ENDPOINT")


def _devices(_: Settings) -> Findings:
    from orchestrator.devices import Inventory, format_size

    inventory = Inventory.detect()
    driver = cuda_driver()
    yield Finding(
        "devices", "driver", f"CUDA {driver}" if driver else "no NVIDIA driver: builds for the CPU are used"
    )
    for device in inventory.devices:
        text = f"{device.name}, {format_size(device.free)} free of {format_size(device.total)}"
        yield Finding("devices", device.label, text)
    for note in inventory.notes:
        yield Finding("devices", "note", note, NOTE)


def _shared_memory(_: Settings) -> Findings:
    chosen = huge_pages()
    if chosen in ("never", "deny"):
        remedy = f"as root: echo advise > {HUGE_PAGES}/shmem_enabled"
        text = f"small pages ({chosen}); arrays of megabytes go from process to process faster in huge ones"
        yield Finding("shared memory", "pages", text, NOTE, remedy)
    elif chosen:
        yield Finding("shared memory", "pages", f"huge pages ({chosen})")


def _disk(settings: Settings) -> Findings:
    home = prepare_home(settings)
    free = shutil.disk_usage(home).free
    low = free < LOW_DISK
    yield Finding(
        "disk",
        "store",
        f"{home}, {free / 2**30:.1f} GiB free",
        WARNING if low else OK,
        "`orchestrator env prune` frees room; ORCHESTRATOR_HOME moves the store" if low else "",
    )
    if not os.access(home, os.W_OK):
        yield Finding(
            "disk", "store", f"{home} cannot be written", BROKEN, "set ORCHESTRATOR_HOME to a folder of yours"
        )
    cache = Path(run_uv(settings, ["cache", "dir"]).stdout.strip() or ".")
    existing = next((path for path in (cache, *cache.parents) if path.exists()), Path("/"))
    apart = existing.stat().st_dev != home.stat().st_dev
    yield Finding(
        "disk",
        "uv's cache",
        f"{cache}"
        + (", on another file system than the store: files are copied, not linked" if apart else ""),
        WARNING if apart else OK,
        "put both on one (UV_CACHE_DIR, ORCHESTRATOR_HOME): environments then cost megabytes"
        if apart
        else "",
    )


def _families(settings: Settings) -> Findings:
    catalog = Catalog.default(settings)
    interpreters = installed_interpreters(settings)
    for root in catalog.roots:
        yield Finding("families", "folder", str(root), NOTE)
    for name in catalog.names():
        try:
            family = catalog.get(name)
        except OrchestratorError as error:
            yield Finding("families", name, error.message, BROKEN, error.hint or "")
            continue
        stale = is_stale(family)
        if choose(interpreters, family.requires_python, None) is None:
            text = f"no installed Python satisfies {family.requires_python}"
            yield Finding(
                "families", name, text, WARNING, "install one, or set ORCHESTRATOR_PYTHON_DOWNLOADS=1"
            )
        elif stale:
            yield Finding("families", name, f"lock: {stale}", NOTE, f"orchestrator env lock {name}")


def _imports(_: Settings) -> Findings:
    if os.environ.get("PYTHONPATH"):
        text = f"PYTHONPATH={os.environ['PYTHONPATH']}: it reaches this process, and no worker"
        yield Finding("imports", "PYTHONPATH", text, WARNING, "unset it unless you need it")
    ours = Path(__file__).resolve().parents[1]
    for folder in dict.fromkeys(Path(part or ".").resolve() for part in (*sys.path, ".")):
        if "site-packages" in folder.parts or folder == ours.parent:
            continue
        for name in IMPORTED:
            if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
                text = f"{folder / name} hides the package {name!r}"
                yield Finding("imports", name, text, WARNING, "rename it, or start from another folder")
    yield Finding("imports", "orchestrator", str(ours))


def _settings(settings: Settings) -> Findings:
    for name in NAMES:
        value = _shown(name, str(getattr(settings, name)))
        yield Finding("settings", name, f"{value}  ({settings.sources.get(name, 'default')})")


def _shown(name: str, value: str) -> str:
    return "****" if is_secret(name) else mask(value)
