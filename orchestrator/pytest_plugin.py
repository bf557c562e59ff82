"""pytest plugin: `@pytest.mark.environments("transformers==4.36.2", …)` runs a test's body in each environment.

Each environment has one process with its own pytest, which runs one test after the other as they are asked for; the
reports (assertion introspection and captured output included) come back as if the tests had run here. docs/testing.md
tells how to use it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from orchestrator import Orchestrator
    from orchestrator.environments import Environment
    from orchestrator.events import Event

__all__ = ["environment", "orchestrator"]

MARK = (
    "environments(*requirements, family='python', python=None): run the test in an environment for each entry"
)
IN_ENVIRONMENT = Path(__file__).parent / "worker" / "pytest_in_environment.py"
FORWARDED = ("tbstyle", "showlocals", "verbose", "fulltrace")
UNSUITED = (
    "environments() needs a function or a method of a plain class: pytest cannot run this test once for each environment"
    " (as a method of a unittest.TestCase), and here it would be no test of them"
)
LAST_WORDS = 4000  # characters of what a process said that ended


class Key(NamedTuple):
    """What makes an environment of the marks: tests with the same key share a process."""

    family: str
    requirements: str
    python: str | None


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--environment` and the ini keys."""
    group = parser.getgroup("orchestrator")
    group.addoption(
        "--environment",
        action="append",
        default=[],
        metavar="GLOB",
        help="Of the tests marked with environments(…), only those in an environment whose name matches, such as "
        "'transformers==4.3*'. Repeatable.",
    )
    parser.addini(
        "environments_with",
        "Requirements that every environment of a marked test gets beside pytest.",
        type="linelist",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declares the mark."""
    config.addinivalue_line("markers", MARK)
    config.addinivalue_line(
        "markers", "xdist_group(name): pytest-xdist's, given to the tests of an environment"
    )
    config.pluginmanager.register(Runner(config), "orchestrator-environments")


@pytest.fixture(scope="session")
def orchestrator() -> Iterator[Orchestrator]:
    """An Orchestrator for the session; its workers end with it."""
    from orchestrator import Orchestrator

    with Orchestrator() as running:
        yield running


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> str:
    """In a marked test: the name of the environment that it runs in."""
    name = getattr(request, "param", None)
    if name is None:
        pytest.fail("the fixture 'environment' is for tests with @pytest.mark.environments(…)")
    return str(name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each environment of the mark."""
    mark = metafunc.definition.get_closest_marker("environments")
    if mark is None:
        return
    if not mark.args or not all(isinstance(entry, str) for entry in mark.args):
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: environments() needs requirements as texts")
    if unknown := sorted(set(mark.kwargs) - {"family", "python"}):
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: environments() has no argument {unknown[0]!r}"
        )
    if "environment" not in metafunc.fixturenames:
        metafunc.fixturenames.append("environment")
    # With `--dist loadgroup` xdist keeps a group on one of its workers: one process for each environment.
    grouped = hasattr(metafunc.config, "workerinput")
    values = [
        pytest.param(name, id=name, marks=[pytest.mark.xdist_group(name)] if grouped else [])
        for name in dict.fromkeys(mark.args)
    ]
    # The scope makes pytest run the tests of one environment in a row.
    metafunc.parametrize("environment", values, indirect=True, scope="session")


class Runner:
    """Sends the marked tests to the processes of their environments."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.files: dict[Key, list[str]] = {}
        self.open: tuple[Key, Process] | None = None
        self.refused: dict[Key, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leaves out the environments that `--environment` does not choose."""
        globs = self.config.getoption("--environment")
        left_out = [
            item
            for item in items
            if globs
            and (key := _key(item)) is not None
            and not any(fnmatch.fnmatchcase(key.requirements, glob) for glob in globs)
        ]
        if left_out:
            self.config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Notes which files each environment's process will need."""
        for item in session.items:
            if (key := _key(item)) is not None and str(item.path) not in self.files.setdefault(key, []):
                self.files[key].append(str(item.path))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Reports what the environment's own pytest says of a marked test."""
        if item.get_closest_marker("environments") is None:
            return None
        key = _key(item)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(key, item, nextitem) if key else [_broken(item, UNSUITED, when="setup")]:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_unconfigure(self) -> None:
        """Ends the last process."""
        self._close()

    def _reports(
        self, key: Key, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Iterator[pytest.TestReport]:
        then = nextitem if nextitem is not None and _key(nextitem) == key else None
        reported = False
        try:
            for data in self._process(key).run(_node(item), _node(then) if then else None):
                report = self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
                report.nodeid, report.location = item.nodeid, item.location  # xdist may add to a node's name
                if isinstance(report.longrepr, list):  # where and why it was skipped; JSON has no tuples
                    report.longrepr = tuple(report.longrepr)
                reported = True
                yield report
        except Broken as error:
            self._close()
            yield _broken(item, str(error), when="call" if reported else "setup")
        except BaseException:  # Ctrl-C, a timeout: the test may be in the middle of anything
            self._close(hurry=True)
            raise

    def _process(self, key: Key) -> Process:
        from orchestrator.errors import OrchestratorError

        if self.open is not None and self.open[0] == key:
            return self.open[1]
        self._close()
        if key not in self.refused:
            try:
                built = self._environment(key)
            except OrchestratorError as error:
                self.refused[key] = f"the environment {key.requirements} could not be made: {error}"
        if key in self.refused:
            raise Broken(self.refused[key])
        process = Process(self.config, key, built.python, self.files.get(key, []))
        self.open = (key, process)
        return process

    def _close(self, *, hurry: bool = False) -> None:
        if self.open is not None:
            self.open[1].close(hurry=hurry)
            self.open = None

    def _environment(self, key: Key) -> Environment:
        from orchestrator.environments import Catalog, EnvironmentStore
        from orchestrator.settings import load_settings

        settings = load_settings(project=self.config.rootpath)
        wanted = [*key.requirements.split(), "pytest>=8", *self.config.getini("environments_with")]
        family = Catalog.default(settings).get(key.family, wanted)
        if key.python is not None:
            family = family.on_python(key.python)
        return EnvironmentStore(settings).ensure(family, self._tell)

    def _tell(self, event: Event) -> None:
        """A build may take minutes: the terminal says that it has begun, and when it is done."""
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and (event.finished or event.message.startswith("resolving")):
            reporter.ensure_newline()
            reporter.write_line(f"environment {event.subject}: {event.message}")


class Broken(Exception):
    """A test has no reports of its own; the message says why."""


class Process:
    """An environment's pytest: collects the files once, then runs the tests that it is asked for, one at a time."""

    def __init__(self, config: pytest.Config, key: Key, python: Path, files: Sequence[str]) -> None:
        from orchestrator.environments.commands import die_with_parent

        self.name = key.requirements
        orders, self._orders = _pipe("w")
        self._replies, replies = _pipe("r")
        shown = config.getoption("capture") == "no"
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        order = {
            "environment": key.requirements,
            "files": list(files),
            "rootdir": str(config.rootpath),
            "config": str(config.inipath) if config.inipath else None,
            "capture": config.getoption("capture"),
            "options": {name: config.getoption(name) for name in FORWARDED},
        }
        try:
            self._process = subprocess.Popen(
                [str(python), "-I", str(IN_ENVIRONMENT), str(orders), str(replies)],
                cwd=config.rootpath,
                stdin=subprocess.DEVNULL,
                stdout=None if shown else self._words,
                stderr=None if shown else self._words,
                pass_fds=(orders, replies),
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, without locks or imports
            )
        finally:
            os.close(orders)
            os.close(replies)
        self._send(order)

    def run(self, node: str, following: str | None) -> Iterator[Mapping[str, Any]]:
        """Runs one test and yields its reports. `following` is the next one, whose fixtures are kept.

        Raises:
            Broken: the process ended, or could not collect the test.
        """
        self._send({"run": node, "next": following})
        for line in self._replies:
            reply = json.loads(line)
            if "missing" in reply:
                raise Broken(
                    f"the pytest of {self.name} did not collect this test\n{reply['missing']}".strip()
                )
            if "done" in reply:
                return
            yield reply
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise Broken(
            f"the process of {self.name} ended with {how} before this test did\n{self._last_words()}"
        )

    def close(self, *, hurry: bool = False) -> None:
        """Ends the process: it tears down its fixtures first, unless there is a `hurry`."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()
        try:
            if not hurry:
                self._process.wait()
        finally:
            self._process.kill()
            self._process.wait()
            self._replies.close()
            self._words.close()

    def _send(self, order: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended; reading its replies tells how
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()

    def _last_words(self) -> str:
        self._words.seek(0)
        return self._words.read().decode("utf-8", "replace")[-LAST_WORDS:]


def _pipe(ours: str) -> tuple[Any, Any]:
    """A pipe as (read end, write end): the end that is `ours` ("r" or "w") as a text file, the other as its number."""
    reading, writing = os.pipe()
    if ours == "r":
        return os.fdopen(reading, encoding="utf-8"), writing
    return reading, os.fdopen(writing, "w", encoding="utf-8")


def _key(item: pytest.Item) -> Key | None:
    mark = item.get_closest_marker("environments")
    callspec = getattr(item, "callspec", None)
    if mark is None or callspec is None or "environment" not in callspec.params:
        return None
    python = mark.kwargs.get("python")
    return Key(
        str(mark.kwargs.get("family", "python")),
        str(callspec.params["environment"]),
        None if python is None else str(python),
    )


def _node(item: pytest.Item) -> str:
    assert item.parent is not None
    return f"{item.parent.nodeid}::{item.name}"


def _broken(item: pytest.Item, words: str, *, when: Any) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid, location=item.location, keywords={}, outcome="failed", longrepr=words, when=when
    )
