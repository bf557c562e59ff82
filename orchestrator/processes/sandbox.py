"""A worker's sandbox, through bubblewrap: no network, a file system that can only be read but for a cache and scratch.

Inside there are namespaces of its own for users, processes, the network, IPC and the host's name, and no capability.
`/tmp`, `/var/tmp` and `/run` are empty: sockets of other programs live there, and a socket leads out wherever the file
system is only to be read. Those that live elsewhere are covered.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SandboxUnavailable

__all__ = ["Sandbox", "require_bubblewrap"]

_APART = (
    "--unshare-user", "--unshare-pid", "--as-pid-1", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--cap-drop",
    "ALL", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc",
    "--remount-ro", "/proc",  # root outside could otherwise write /proc/sys
)  # fmt: skip
_EMPTY = ("/tmp", "/var/tmp", "/run")  # noqa: S108 - these are what is hidden
_DEVICES = ("nvidia*", "dri", "kfd", "dxg")
_PROBE_SECONDS = 20
_WITHOUT = "or load it with sandbox=False, with the rights that you have yourself"


@dataclass(frozen=True)
class Sandbox:
    """What one worker sees. Everything else can be read, and nothing else written.

    Attributes:
        cache: the folder that it may write and that stays: its home.
        readable: paths that it needs, wherever they lie.
        accelerators: whether it gets the device nodes of GPUs.
    """

    cache: Path
    readable: tuple[Path, ...] = ()
    accelerators: bool = False

    def command(self) -> str:
        """bubblewrap and its options, as the keeper takes them: a JSON list.

        Raises:
            SandboxUnavailable: this machine has no bubblewrap, or forbids it.
        """
        bwrap = require_bubblewrap()
        self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        hidden = [path for path in _EMPTY if os.path.isdir(path) and not os.path.islink(path)]
        words = [bwrap, *_APART]
        for path in hidden:
            words += ["--tmpfs", path]
        for socket in _sockets(hidden):
            words += ["--ro-bind", "/dev/null", socket]
        for path in sorted(_hidden_parts(self.readable, hidden)):
            words += ["--ro-bind-try", path, path]
        words += ["--bind", str(self.cache), str(self.cache)]
        if self.accelerators:
            for node in (str(path) for pattern in _DEVICES for path in Path("/dev").glob(pattern)):
                words += ["--dev-bind-try", node, node]
        return json.dumps([*words, "--"])

    def inherited(self, variables: Mapping[str, str]) -> dict[str, str]:
        """`variables` as they hold inside: caches are its own, and hubs are not asked."""
        kept = {
            name: value
            for name, value in variables.items()
            if not name.startswith("XDG_") and not name.lower().endswith("_proxy")
        }
        home = Path(variables.get("HOME") or "~").expanduser()
        kept.setdefault(
            "HF_HOME", str(Path(variables.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface")
        )
        return {**kept, "HOME": str(self.cache), "TMPDIR": "/tmp", "HF_HUB_OFFLINE": "1"}  # noqa: S108 - its own


def require_bubblewrap() -> str:
    """The path of a bubblewrap that works here.

    Raises:
        SandboxUnavailable: there is none, or this machine forbids what it needs.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxUnavailable(
            "a sandbox was asked for, and bubblewrap (bwrap) is not installed",
            hint=f"apt-get install bubblewrap, dnf install bubblewrap or pacman -S bubblewrap; {_WITHOUT}",
        )
    return _probed(found)


@functools.cache  # a failure is an exception, and is looked at again
def _probed(bwrap: str) -> str:
    nothing = shutil.which("true") or "/bin/true"
    try:
        done = subprocess.run(
            [bwrap, *_APART, "--", nothing],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
        complaint = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        complaint = str(error)
    if complaint:
        raise SandboxUnavailable(
            f"a sandbox was asked for, and this machine forbids it: {complaint[-500:]}",
            hint="allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone; on Ubuntu an"
            " AppArmor profile for bwrap; in a container --security-opt seccomp=unconfined and"
            f" --security-opt systempaths=unconfined); {_WITHOUT}",
        )
    return bwrap


def _hidden_parts(paths: Iterable[Path], hidden: Sequence[str]) -> set[str]:
    """Those of `paths`, and of what links on and in them lead to, that lie where everything is hidden."""
    wanted = {step for path in paths for step in _steps(path)}
    folders = [path for path in wanted if _under(path, hidden) and os.path.isdir(path)]
    links = (str(p) for folder in folders for p in Path(folder).rglob("*") if p.is_symlink())
    wanted.update(step for link in links for step in _steps(link))
    parts = {path for path in wanted if _under(path, hidden) and os.path.exists(path)}
    return {path for path in parts if parts.isdisjoint(str(parent) for parent in Path(path).parents)}


def _steps(path: str | Path) -> Iterator[str]:
    """A path and each one that its links lead to."""
    here = os.path.abspath(path)
    for _ in range(40):  # as the kernel
        yield here
        if not os.path.islink(here):
            break
        here = os.path.normpath(os.path.join(os.path.dirname(here), os.readlink(here)))
    yield os.path.realpath(here)


def _under(path: str, hidden: Sequence[str]) -> bool:
    return any(path.startswith(f"{root}/") for root in hidden)


def _sockets(hidden: Sequence[str]) -> list[str]:
    """The sockets in the file system that somebody listens on, in folders that are not hidden."""
    try:
        lines = Path("/proc/net/unix").read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1:]
    except OSError:
        return []
    paths = {path for line in lines for path in line.split(None, 7)[7:]}
    return sorted(path for path in paths if not _under(path, hidden) and _reachable(path))


def _reachable(path: str) -> bool:
    """Whether it is a socket in folders that a process without capabilities could enter."""
    if not path.startswith("/") or path.startswith(("/proc/", "/dev/")):
        return False
    try:
        if os.path.realpath(path) != path or not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        for folder in Path(path).parents:
            found = folder.stat()
            if not (found.st_mode & 0o001 or found.st_uid == os.getuid()):
                return False
    except OSError:
        return False
    return True
