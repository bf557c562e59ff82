"""`orchestrator run` and `orchestrator schema`, with fake models in the place of the client."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from click.testing import CliRunner, Result
from conditions import until
from fake_models import FakeModels

from orchestrator.cli.console import Console
from orchestrator.cli.run import command
from orchestrator.cli.schema import command as schema
from orchestrator.errors import ConfigError, WorkflowError
from orchestrator.events import Event

TEXT = """
version: 1
name: w
on_error: skip
inputs: {n: {type: list, default: [1, 2, 3]}}
models: {m: {family: python}}
steps: [{id: a, model: m, call: f, for_each: "${n}", with: {x: "${item}"}}]
"""
SECRET = "hunter2-is-no-word"


class FakeOrchestrator(FakeModels):
    method: Callable[..., Any] = staticmethod(lambda x: x * 2)
    made: ClassVar[list[FakeOrchestrator]] = []

    def __init__(self, *, settings: Any, listener: Any) -> None:
        super().__init__(python={"f": self.method})
        self.settings, self.listener, self.closed = settings, listener, False
        self.made.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@pytest.fixture
def run(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    import orchestrator.client

    monkeypatch.setattr(orchestrator.client, "Orchestrator", FakeOrchestrator)
    monkeypatch.setattr(FakeOrchestrator, "made", [])
    (here / "w.yaml").write_text(TEXT)

    def invoke(*arguments: str) -> Result:
        console = Console(overrides={"home": str(here / "home")})
        return CliRunner().invoke(command, arguments, obj=console)

    return invoke


def test_it_prints_where_the_report_is_and_talks_to_stderr(run: Callable[..., Result]) -> None:
    result = run("w.yaml", "--out", "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{Path('out') / 'report.html'}\n"
    assert "3 rows" in result.stderr
    assert "0 of 3 calls from the cache" in result.stderr
    assert FakeOrchestrator.made[0].closed
    assert "3 of 3 calls from the cache" in run("w.yaml").stderr
    assert "0 of 3 calls from the cache" in run("w.yaml", "--no-cache").stderr


def test_json_and_inputs(run: Callable[..., Result]) -> None:
    result = run("w.yaml", "--input", "n=[5]", "--json", "--out", "out")
    shown = json.loads(result.stdout)
    assert (shown["rows"], shown["exit_code"], shown["state"]) == (1, 0, "finished")
    assert json.loads(Path("out/results.jsonl").read_text())["a"] == 10


def test_a_failed_item_is_exit_code_1_and_told(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeOrchestrator, "method", staticmethod(lambda x: 6 // (x - 2)))
    result = run("w.yaml", "--out", "out")
    assert result.exit_code == 1
    assert "failed: a[1]: ZeroDivisionError" in result.stderr
    Path("w.yaml").write_text(TEXT.replace("on_error: skip\n", ""))
    result = run("w.yaml", "--out", "stopped")
    assert isinstance(result.exception, WorkflowError)
    assert "go on: orchestrator run --resume stopped" in result.stderr
    shown = json.loads(run("w.yaml", "--out", "told", "--json").stdout)
    assert (shown["state"], shown["exit_code"], shown["folder"]) == ("failed", 1, "told")
    assert "ZeroDivisionError" in shown["error"]


def test_resume_goes_on_as_recorded(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("w.yaml").write_text(TEXT.replace("on_error: skip\n", "in_flight: 1\n"))
    monkeypatch.setattr(FakeOrchestrator, "method", staticmethod(lambda x: 6 // (x - 9)))
    assert run("w.yaml", "--out", "out", "--input", "n=[8, 9, 10]").exit_code == 1
    Path("w.yaml").unlink()
    monkeypatch.setattr(FakeOrchestrator, "method", staticmethod(lambda x: x))
    result = run("--resume", "out")
    assert result.exit_code == 0, result.output
    assert FakeOrchestrator.made[-1].calls("f") == [{"x": 9}, {"x": 10}]
    assert [json.loads(line)["a"] for line in Path("out/results.jsonl").read_text().splitlines()] == [
        -6,
        9,
        10,
    ]
    assert json.loads(Path("out/run.json").read_text())["workflow"]["inputs"] == {"n": ["[8, 9, 10]"]}


def test_paths_of_the_command_line_are_found_again_from_another_folder(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("w.yaml").write_text(TEXT.replace("{type: list, default: [1, 2, 3]}", "{type: files}"))
    Path("a.txt").touch()
    assert run("w.yaml", "--input", "n=*.txt", "--out", "out").exit_code == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run("--resume", "../out").exit_code == 0
    assert run("--replay", "../out", "--out", "again").exit_code == 0


def test_a_replay_without_results_to_compare_with_is_refused_at_once(run: Callable[..., Result]) -> None:
    run("w.yaml", "--out", "out")
    Path("out/results.jsonl").unlink()
    made = len(FakeOrchestrator.made)
    result = run("--replay", "out", "--out", "again")
    assert isinstance(result.exception, ConfigError)
    assert "no out/results.jsonl to compare with" in result.exception.message
    assert len(FakeOrchestrator.made) == made
    assert not Path("again").exists()


def test_a_sandbox_is_asked_for_again_when_a_run_goes_on(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.workflow.run.require_bubblewrap", lambda: "bwrap")
    assert run("w.yaml", "--sandbox", "--out", "out").exit_code == 0

    def loaded(*arguments: str) -> Any:
        assert run(*arguments).exit_code == 0
        return FakeOrchestrator.made[-1].loads[0][1].get("sandbox")

    assert loaded("--resume", "out", "--fresh") is True
    assert loaded("--replay", "out", "--out", "again") is True
    assert loaded("--resume", "out", "--fresh", "--no-sandbox") is False


def test_resume_and_replay_ask_for_a_secret_with_the_option_that_gives_it(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeOrchestrator, "method", staticmethod(lambda x: {"by": x}))
    text = Path("w.yaml").read_text().replace("inputs: {", "inputs: {pin: {type: text, secret: true}, ")
    Path("w.yaml").write_text(text.replace("${item}", "${pin} ${item}"))
    assert run("w.yaml", "--input", f"pin={SECRET}", "--out", "out").exit_code == 0
    for arguments in (("--resume", "out"), ("w.yaml", "--resume", "out"), ("--replay", "out/run.json")):
        result = run(*arguments)
        assert isinstance(result.exception, ConfigError)
        assert (
            result.exception.hint
            == f"give it again: orchestrator run {' '.join(arguments)} --input pin=VALUE"
        )
    assert run("--resume", "out", "--input", f"pin={SECRET}").exit_code == 0
    again = run("--replay", "out", "--input", f"pin={SECRET}", "--out", "again")
    assert again.exit_code == 0, again.output
    assert FakeOrchestrator.made[-1].calls("f")[0] == {"x": f"{SECRET} 1"}
    refused = run("--replay", "out", "--input", "n=[1]", "--input", f"pin={SECRET}")
    assert isinstance(refused.exception, ConfigError)
    assert "only secrets are given again" in refused.exception.message


def test_nothing_says_a_secret_and_where_to_go_on_names_its_option(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(x: str) -> None:
        FakeOrchestrator.made[-1].listener(Event("state", "m", f"no login as {x}", state="quarantined"))
        raise RuntimeError(x)

    def close(*_: object) -> None:
        logging.getLogger("orchestrator.replicas").warning(SECRET)

    monkeypatch.setattr(FakeOrchestrator, "method", staticmethod(fail))
    monkeypatch.setattr(FakeOrchestrator, "__exit__", close)
    text = Path("w.yaml").read_text().replace("inputs: {", "inputs: {token: {type: text}, ")
    Path("w.yaml").write_text(text.replace("${item}", "${token}").replace("on_error: skip", "on_error: stop"))
    result = run("w.yaml", "--input", f"token={SECRET}", "--out", "out")
    assert "go on: orchestrator run --resume out --input token=VALUE" in result.stderr
    assert "no login as <token>" in result.stderr
    assert SECRET not in f"{result.output} {result.exception} {caplog.text}"


def test_dry_run_shows_the_plan_and_makes_no_folder(run: Callable[..., Result]) -> None:
    result = run("w.yaml", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "MODEL  FAMILY  ENVIRONMENT  CHECKPOINT  LOAD",
        "m      python  env-python               yes",
        "",
        "STEP  MODEL  CACHED  TO RUN  SKIPPED",
        "a     m      0       3       0",
    ]
    assert not Path("runs").exists()
    run("w.yaml")
    plan = json.loads(run("w.yaml", "--dry-run", "--json").stdout)
    assert plan["steps"][0] | {"id": "a"} == {
        "id": "a", "model": "m", "cached": 3, "run": 0, "skipped": 0, "open": False,
    }  # fmt: skip
    assert plan["models"][0]["load"] is False


def test_replay_compares(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    run("w.yaml", "--out", "before")
    result = run("--replay", "before/run.json", "--out", "same")
    assert result.exit_code == 0, result.output
    assert FakeOrchestrator.made[-1].settings.offline
    assert len(FakeOrchestrator.made[-1].log) == 3
    monkeypatch.setattr(FakeOrchestrator, "method", staticmethod(lambda x: x * 2 + (x == 3) * 0.5))
    result = run("--replay", "before", "--out", "other", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["columns"] == [
        {"column": "a", "rows": 3, "equal": False, "largest": 0.5, "differing": 1, "first": [[2]]}
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "WORKFLOW is missing"),
        (("none.yaml",), "cannot read it"),
        (("w.yaml", "--input", "m=1"), "no input 'm'"),
        (("w.yaml", "--input", "n"), "expected NAME=VALUE"),
        (("--resume", ".", "--out", "x"), "there is no run in"),
        (("--replay", ".", "w.yaml"), "only --out, --sandbox"),
        (("--replay", ".", "--fresh"), "only --out, --sandbox"),
    ],
)
def test_wrong_use_is_a_configuration_error(
    run: Callable[..., Result], arguments: tuple[str, ...], words: str
) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert words in result.exception.message


def test_what_parquet_needs_is_asked_for_before_the_run(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("w.yaml", "--parquet")
    assert isinstance(result.exception, ConfigError)
    assert "pyarrow" in result.exception.message
    assert FakeOrchestrator.made == []


SCRIPT = """
import sys, time
sys.path[:0] = {tests!r}
import orchestrator.client
from test_cli import FakeOrchestrator

class Slow(FakeOrchestrator):
    @staticmethod
    def method(x):
        open("called", "w").close()
        time.sleep(0.5 if x == 1 else 3)
        return x

orchestrator.client.Orchestrator = Slow
from orchestrator.cli.main import main
sys.argv = ["orchestrator", "--home", "home", "run", "w.yaml", "--out", "out"]
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_its_code_and_a_readable_folder(here: Path, number: int, code: int) -> None:
    (here / "w.yaml").write_text(TEXT)
    command = [sys.executable, "-c", SCRIPT.format(tests=list(map(str, Path(__file__).parents[:2])))]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=here, env=dict(os.environ)
    ) as process:
        until((here / "called").exists)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert "go on: orchestrator run --resume out" in errors
    assert json.loads((here / "out" / "run.json").read_text())["state"] == "interrupted"
    assert "interrupted" in (here / "out" / "report.html").read_text()


def test_the_schemas_are_printed() -> None:
    result = CliRunner().invoke(schema, ["workflow"], obj=Console())
    assert json.loads(result.stdout)["title"] == "compat-orchestrator workflow, version 1"
    family = json.loads(CliRunner().invoke(schema, ["family"], obj=Console()).stdout)
    assert "worker" in family["definitions"]["OrchestratorTable"]["properties"]
    assert family["definitions"]["ProjectTable"]["additionalProperties"] is False
