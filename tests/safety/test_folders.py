"""Folders that somebody else prepared, or can exchange: nothing is put there, and nothing is taken from there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from orchestrator.environments.uv import prepare_home
from orchestrator.errors import ConfigError, WorkerStartError
from orchestrator.processes import folder as folders
from orchestrator.processes.folder import make_folder, remove_folder
from orchestrator.settings import Settings
from orchestrator.worker.transport import ZmqTransport


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """A short folder that all bases but the home point to, with the home elsewhere."""
    short = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(short))
    yield short
    for left in short.iterdir():
        remove_folder(left)
    short.rmdir()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_a_place_where_others_can_exchange_folders_is_passed_over(base, mode):
    base.chmod(mode)
    made = make_folder()
    try:
        assert made.parent != base
    finally:
        remove_folder(made)
    base.chmod(mode | 0o1000)  # sticky, as /tmp
    made = make_folder()
    assert made.parent == base


def test_a_place_of_another_user_is_passed_over(base, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    if os.stat(base).st_uid == 0:
        os.chown(base, 54321, -1)
    made = make_folder()
    try:
        assert made.parent != base
    finally:
        monkeypatch.undo()
        remove_folder(made)


def test_where_no_place_is_safe_the_reason_is_told(base, monkeypatch):
    base.chmod(0o777)
    monkeypatch.setattr(folders, "_bases", lambda: [str(base)])
    with pytest.raises(WorkerStartError, match="others can exchange what lies in it"):
        make_folder()


def test_a_folder_that_was_there_before_is_not_used(base, monkeypatch):
    """Names cannot be guessed; if one is there all the same, be it a link, another is taken."""
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: names)
    names = iter(["fresh"])
    made = make_folder()
    stem = made.name.removesuffix("fresh")
    (base / "elsewhere").mkdir()
    (base / f"{stem}guessed1").symlink_to(base / "elsewhere")
    (base / f"{stem}guessed2").mkdir(mode=0o777)
    names = iter(["guessed1", "guessed2", "other"])
    assert make_folder() == base / f"{stem}other"
    assert list((base / "elsewhere").iterdir()) == []
    (base / f"{stem}guessed1").unlink()


def test_a_sweep_follows_no_link_and_minds_no_odd_name(base, tmp_path):
    """What others put beside our folders, in a place that all share."""
    stem = f"{folders._namespace():x}"
    (tmp_path / "precious").write_text("x")
    (base / f"orc-fffffff-{stem}-link").symlink_to(tmp_path)
    odd = [base / f"orc-{'f' * 18}-{stem}-x", base / f"orc-0-{stem}-x", base / f"orc--{stem}-x"]
    for folder in odd:
        folder.mkdir(exist_ok=True)
    folders._swept.clear()
    make_folder()
    assert (tmp_path / "precious").exists()
    (base / f"orc-fffffff-{stem}-link").unlink()


@pytest.mark.parametrize("bind", [True, False])
@pytest.mark.parametrize("attack", ["open", "group", "link", "another user's"])
def test_a_socket_is_never_made_or_sought_in_a_folder_of_others(tmp_path, monkeypatch, attack, bind):
    folder = tmp_path / "f"
    folder.mkdir(mode=0o700)
    if attack == "link":
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    elif attack == "another user's":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    else:
        folder.chmod(0o755 if attack == "open" else 0o710)
    with pytest.raises(PermissionError, match="mode 0700"):
        ZmqTransport(f"ipc://{folder}/s", bind=bind)
    assert list(folder.iterdir()) == []


def test_a_store_that_everybody_can_write_is_refused(tmp_path):
    home = tmp_path / "home"
    before = os.umask(0)
    try:
        prepare_home(Settings(home=home))  # made by us it is not, whatever the umask
    finally:
        os.umask(before)
    home.chmod(0o777)
    with pytest.raises(ConfigError, match="everybody can write"):
        prepare_home(Settings(home=home))
