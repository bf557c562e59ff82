"""Folder names that are safe for Python modules."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from orchestrator.checkpoints.names import safe_folder, safe_name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("gte-Qwen2-1.5B-instruct", "gte_Qwen2_1_5B_instruct"),
        ("org/name@v1.0", "org_name_v1_0"),
        ("7b", "_7b"),
        ("模型", "__"),
    ],
)
def test_names_become_identifiers(name: str, safe: str) -> None:
    assert safe_name(name) == safe
    assert safe.isidentifier()


def test_a_dotted_folder_is_seen_through_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "gte-Qwen2-1.5B-instruct"
    folder.mkdir()
    link = safe_folder(folder, tmp_path / "names")
    assert link.name == "gte_Qwen2_1_5B_instruct"
    assert link.readlink() == folder
    assert safe_folder(folder, tmp_path / "names") == link


def test_a_safe_folder_stays_itself(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert safe_folder(folder, tmp_path / "names") == folder
    assert not (tmp_path / "names").exists()


def test_two_folders_of_one_name_get_two_names(tmp_path: Path) -> None:
    folders = [tmp_path / parent / "m.1" for parent in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    links = [safe_folder(folder, tmp_path / "names") for folder in folders]
    assert links[0].name == "m_1"
    assert links[1].name.startswith("m_1_")
    assert [link.resolve() for link in links] == folders
    assert [safe_folder(folder, tmp_path / "names") for folder in folders] == links


def test_remote_code_never_shares_a_name(tmp_path: Path) -> None:
    folders = [tmp_path / parent / "model" for parent in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "modeling.py").touch()
    assert len({safe_folder(folder, tmp_path / "names").name for folder in folders}) == 2


def test_a_link_to_what_is_gone_is_not_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "m.1"
    folder.mkdir()
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "m_1").symlink_to(tmp_path / "gone")
    assert safe_folder(folder, tmp_path / "names").resolve() == folder


def test_many_at_once_agree(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) / "m.1" for number in range(8)]
    for folder in folders:
        folder.mkdir(parents=True)
    links: dict[Path, Path] = {}
    start = threading.Barrier(len(folders))

    def link(folder: Path) -> None:
        start.wait(60)
        links[folder] = safe_folder(folder, tmp_path / "names")

    threads = [threading.Thread(target=link, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {folder: link.resolve() for folder, link in links.items()} == {
        folder: folder for folder in folders
    }
