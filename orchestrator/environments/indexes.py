"""pip's configuration, translated for uv, which does not read it and on which users of mirrors depend."""

from __future__ import annotations

import configparser
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["Indexes", "mask", "read_indexes", "read_pip"]

SYSTEM_FILE = Path("/etc/pip.conf")
TRUE = {"1", "on", "yes", "true", "y", "t"}
CREDENTIALS = re.compile(r"(?<=//)[^/@\s]+@")
UNMAPPED = ("client-cert", "prefer-binary", "cache-dir")
ALIASES = {
    "UV_DEFAULT_INDEX": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "UV_INDEX": ("UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "SSL_CERT_FILE": ("SSL_CERT_FILE", "SSL_CERT_DIR"),
    "ALL_PROXY": ("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"),
    "UV_HTTP_TIMEOUT": ("UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT"),
}
UV_KEYS = {
    "UV_DEFAULT_INDEX": ("index-url", "index"),
    "UV_INDEX": ("extra-index-url", "index"),
    "UV_FIND_LINKS": ("find-links",),
    "UV_INDEX_STRATEGY": ("index-strategy",),
    "UV_INSECURE_HOST": ("allow-insecure-host", "trusted-host"),
    "UV_KEYRING_PROVIDER": ("keyring-provider",),
    "UV_PRERELEASE": ("prerelease",),
}
LISTS = {"extra-index-url", "find-links", "trusted-host", "constraint", "only-binary", "no-binary"}


@dataclass(frozen=True)
class Indexes:
    """Where uv looks for packages: what to add to its variables and flags, and where each came from."""

    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables for uv, derived from pip's settings; none that the user has set for uv."""
    flags: tuple[str, ...] = ()
    """Flags for `uv pip compile`, `sync` and `install`."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Variable or flag -> the file or variable of pip that it comes from."""
    unmapped: tuple[str, ...] = ()
    """pip settings in force that uv has no equal of."""

    @property
    def find_links(self) -> tuple[str, ...]:
        """Folders and pages of wheels, the user's own setting first."""
        text = os.environ.get("UV_FIND_LINKS") or self.variables.get("UV_FIND_LINKS", "")
        return tuple(part for part in text.split(",") if part)

    @property
    def default_only(self) -> Mapping[str, str]:
        """The variables without extra indexes and find-links: what every other machine has too."""
        extra = {"UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX_STRATEGY"}
        return {name: value for name, value in self.variables.items() if name not in extra}


@dataclass(frozen=True)
class PipValue:
    """One setting of pip and the file or variable it was read from."""

    text: str
    source: str

    @property
    def parts(self) -> list[str]:
        """The entries of a setting that is a list."""
        return self.text.split()


def mask(text: str) -> str:
    """The text without the user names and passwords of its URLs."""
    return CREDENTIALS.sub("****@", text)


def read_indexes(environ: Mapping[str, str] = os.environ) -> Indexes:
    """pip's settings in force as uv's. The user's own uv settings always win."""
    pip = read_pip(environ)
    own = _uv_file_keys(environ)
    variables: dict[str, str] = {}
    sources: dict[str, str] = {}
    for name, value, source in _variables(pip):
        taken = any(environ.get(alias) for alias in ALIASES.get(name, (name,)))
        if not taken and not own.intersection(UV_KEYS.get(name, ())):
            variables[name] = value
            sources[name] = source
    if "UV_INDEX" not in variables and sources.get("UV_INDEX_STRATEGY", "").endswith("extra-index-url)"):
        del variables["UV_INDEX_STRATEGY"], sources["UV_INDEX_STRATEGY"]
    flags: list[str] = []
    for flag, source in _flags(pip):
        flags.append(flag)
        sources[flag] = source
    return Indexes(variables, tuple(flags), sources, tuple(key for key in UNMAPPED if key in pip))


def read_pip(environ: Mapping[str, str] = os.environ, prefix: str = sys.prefix) -> dict[str, PipValue]:
    """pip's settings for `pip install`, read in pip's order; later ones win, empty ones count for nothing.

    Files: global, user, site, `PIP_CONFIG_FILE`; in the merged result `[install]` goes before `[global]`, and
    `PIP_*` before both.
    """
    merged: dict[tuple[str, str], PipValue] = {}
    for path in _files(environ, prefix):
        for section, key, text in _entries(str(path), _stamp(path)):
            merged[section, key] = PipValue(text, str(path))
    for variable, text in environ.items():
        if variable.startswith("PIP_"):
            merged["env", variable[4:].lower().replace("_", "-")] = PipValue(text, variable)
    settings: dict[str, PipValue] = {}
    for section in ("global", "install", "env"):
        settings.update({key: v for (where, key), v in merged.items() if where == section and v.text.strip()})
    if "default-timeout" in settings:
        settings.setdefault("timeout", settings["default-timeout"])
    return settings


def _files(environ: Mapping[str, str], prefix: str) -> Iterator[Path]:
    named = environ.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return
    home = Path(environ.get("HOME") or Path.home())
    for folder in reversed((environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")):
        yield Path(folder) / "pip" / "pip.conf"
    yield SYSTEM_FILE
    if not (named and Path(named).exists()):
        yield home / ".pip" / "pip.conf"
        yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    yield Path(prefix) / "pip.conf"
    if named:
        yield Path(named)


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _entries(path: str, stamp: int) -> tuple[tuple[str, str, str], ...]:
    if not stamp:
        return ()
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError):
        return ()  # pip says what is wrong with its own file; `doctor` shows which files count
    return tuple(
        (section, key.lower().replace("_", "-"), value)
        for section in parser.sections()
        for key, value in parser.items(section)
    )


def _variables(pip: Mapping[str, PipValue]) -> Iterator[tuple[str, str, str]]:
    """(uv's variable, its value, where pip's came from)."""
    plain = {
        "index-url": "UV_DEFAULT_INDEX",
        "cert": "SSL_CERT_FILE",
        "proxy": "ALL_PROXY",
        "timeout": "UV_HTTP_TIMEOUT",
    }
    lists = {
        "extra-index-url": ("UV_INDEX", " "),
        "find-links": ("UV_FIND_LINKS", ","),
        "trusted-host": ("UV_INSECURE_HOST", " "),
        "constraint": ("UV_CONSTRAINT", " "),
    }
    for key, variable in plain.items():
        if key in pip:
            value = pip[key]
            yield (
                variable,
                _rounded(value.text) if key == "timeout" else value.text.strip(),
                _source(value, key),
            )
    for key, (variable, separator) in lists.items():
        if key in pip:
            yield variable, separator.join(pip[key].parts), _source(pip[key], key)
    if "extra-index-url" in pip:
        # pip takes the best version of any index; uv by default only looks into the first that has the name.
        yield "UV_INDEX_STRATEGY", "unsafe-best-match", _source(pip["extra-index-url"], "extra-index-url")
    if _truth(pip, "pre"):
        yield "UV_PRERELEASE", "allow", _source(pip["pre"], "pre")
    if pip.get("keyring-provider", PipValue("", "")).text.strip() in {"subprocess", "import"}:
        yield "UV_KEYRING_PROVIDER", "subprocess", _source(pip["keyring-provider"], "keyring-provider")


def _flags(pip: Mapping[str, PipValue]) -> Iterator[tuple[str, str]]:
    if _truth(pip, "no-index"):
        yield "--no-index", _source(pip["no-index"], "no-index")
    for key in ("only-binary", "no-binary"):
        for name in pip[key].text.replace(",", " ").split() if key in pip else ():
            yield f"--{key}={name}", _source(pip[key], key)


def _truth(pip: Mapping[str, PipValue], key: str) -> bool:
    return key in pip and pip[key].text.strip().lower() in TRUE


def _rounded(text: str) -> str:
    try:
        return str(max(1, round(float(text))))
    except ValueError:
        return "30"


def _source(value: PipValue, key: str) -> str:
    return f"{value.source} ({key})"


def _uv_file_keys(environ: Mapping[str, str]) -> set[str]:
    """The keys that the user's or the system's own `uv.toml` sets."""
    home = Path(environ.get("HOME") or Path.home())
    files = [
        Path("/etc/uv/uv.toml"),
        Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "uv" / "uv.toml",
    ]
    if environ.get("UV_CONFIG_FILE"):
        files = [Path(environ["UV_CONFIG_FILE"])]
    keys: set[str] = set()
    for file in files:
        try:
            document: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
            continue
        keys.update(document, document.get("pip", {}))
    return keys
