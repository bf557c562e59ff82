"""What all rooms share: this machine's store, so that an environment is built once and not once for each test."""

from __future__ import annotations

import signal

import pytest

from orchestrator.environments import Catalog, EnvironmentStore
from orchestrator.settings import Settings, load_settings

# Under nohup, or in a shell's background, signals come ignored, and children would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


_running: dict[str, None] = {}


def pytest_runtest_logstart(nodeid: str) -> None:
    """Also called where pytest-xdist hands tests out, for those of its processes."""
    _running[nodeid] = None


def pytest_runtest_logfinish(nodeid: str) -> None:
    _running.pop(nodeid, None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A run that was ended from outside, or whose process crashed, says what it was at."""
    for nodeid in _running:
        terminalreporter.write_line(f"did not end: {nodeid}")


@pytest.fixture(scope="session")
def settings() -> Settings:
    """The settings in force, with the user's own store."""
    return load_settings()


@pytest.fixture(scope="session")
def catalog(settings: Settings) -> Catalog:
    """The built-in families."""
    return Catalog.default(settings)


@pytest.fixture(scope="session")
def store(settings: Settings) -> EnvironmentStore:
    """The user's own store of environments."""
    return EnvironmentStore(settings)
