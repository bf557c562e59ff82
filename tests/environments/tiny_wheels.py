"""Tiny wheels made on the spot, so that environments are built in a second and without a network."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

WIRE = {"pyzmq": "zmq", "msgpack": "msgpack", "numpy": "numpy"}


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    files: Mapping[str, str] | None = None,
    requires: Sequence[str] = (),
    python: str = ">=3.8",
) -> Path:
    """Writes `name-version-py3-none-any.whl`; by default it holds one module that knows its version."""
    stem = f"{name.replace('-', '_')}-{version}"
    module = name.replace("-", "_")
    content = dict(files if files is not None else {f"{module}/__init__.py": f"__version__ = {version!r}\n"})
    info = f"{stem}.dist-info"
    content[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n"
        + "".join(f"Requires-Dist: {text}\n" for text in requires)
    )
    content[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{path},{_hash(text)},{len(text.encode())}\n" for path, text in content.items())
    content[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, text in content.items():
            archive.writestr(inside, text)
    return path


def make_wire(folder: Path) -> None:
    """Stand-ins for what the wire needs in every environment."""
    for name, module in WIRE.items():
        make_wheel(folder, name, "30.0", files={f"{module}/__init__.py": "", f"{module}/unused.py": ""})


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
