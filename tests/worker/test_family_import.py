"""A family's code is found by its path, and its methods are what it calls public."""

from __future__ import annotations

import sys

import pytest

from orchestrator.worker.family import call_with_known, import_family, methods_of, streams


@pytest.fixture(autouse=True)
def clean_modules():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("_family_"):
            del sys.modules[name]


def test_a_file_a_folder_and_a_file_in_a_folder(tmp_path):
    (tmp_path / "mine.py").write_text("class A:\n    x = 1\n")
    folder = tmp_path / "my-family"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .inner import B\n")
    (folder / "inner.py").write_text("from . import other\nclass B:\n    x = other.X\n")
    (folder / "other.py").write_text("X = 2\n")
    before = list(sys.path)
    assert import_family(str(tmp_path / "mine.py"), "A").x == 1
    assert import_family(str(folder), "B").x == 2
    assert import_family(str(folder / "inner.py"), "B") is import_family(str(folder), "B")
    assert import_family(str(folder / "__init__.py"), "B").x == 2
    assert sys.path == before
    assert "mine" not in sys.modules


def test_a_family_called_like_a_library_does_not_shadow_it(tmp_path):
    (tmp_path / "json.py").write_text("import json\nclass A:\n    dumps = staticmethod(json.dumps)\n")
    assert import_family(str(tmp_path / "json.py"), "A").dumps([1]) == "[1]"


def test_dataclasses_in_a_family_find_their_module(tmp_path):
    (tmp_path / "d.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 3\n"
    )
    assert import_family(str(tmp_path / "d.py"), "A")().x == 3


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("class A: pass\nclass B: pass\n")
    with pytest.raises(AttributeError, match="has no class 'C'; it has: A, B"):
        import_family(str(tmp_path / "mine.py"), "C")
    with pytest.raises(FileNotFoundError):
        import_family(str(tmp_path / "absent.py"), "A")


def test_a_failed_import_can_be_tried_again(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("raise ValueError(5)\n")
    with pytest.raises(ValueError, match="5"):
        import_family(str(path), "A")
    path.write_text("class A: pass\n# longer\n")
    assert import_family(str(path), "A")


def test_a_module_is_a_family_of_functions(tmp_path):
    (tmp_path / "m.py").write_text(
        "from os.path import join\ndef f(): return 1\ndef _g(): pass\ndef close(): pass\nx = 1\n"
    )
    module = import_family(str(tmp_path / "m.py"), "")
    assert list(methods_of(module)) == ["f"]


class Base:
    def inherited(self): ...

    @property
    def costly(self):
        raise AssertionError("looking at methods must not run properties")


class Family(Base):
    x = 1

    class Inner: ...

    def __init__(self):
        self.made_here = lambda: 2
        self.data = [1]

    def method(self): ...

    @staticmethod
    def static(): ...

    @classmethod
    def of_class(cls): ...

    def pieces(self):
        yield 1

    def _private(self): ...

    def close(self): ...


def test_public_methods():
    found = methods_of(Family())
    assert set(found) == {"inherited", "method", "static", "of_class", "pieces", "made_here"}
    assert streams(found["pieces"])
    assert not streams(found["method"])


def test_only_known_arguments_are_passed():
    class Plain: ...

    class Some:
        def __init__(self, checkpoint, *, placement, scale=1):
            self.got = (checkpoint, placement, scale)

    class All:
        def __init__(self, **options):
            self.got = options

    given = {"checkpoint": "c", "placement": "p", "scale": 2, "odd": 3}
    assert isinstance(call_with_known(Plain, **given), Plain)
    assert call_with_known(Some, **given).got == ("c", "p", 2)
    assert call_with_known(All, **given).got == given
