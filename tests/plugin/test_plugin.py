"""The pytest plugin, run as a library's author runs it: in a project of its own, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.settings import Settings

pytest_plugins = ["pytester"]

TESTS = """
import os
import pytest

@pytest.fixture(scope="module")
def model():
    path = os.environ["LOADED"]
    with open(path, "a") as file:
        file.write(f"{os.getpid()} ")
    return "model"

@pytest.mark.environments("numpy==1.26.4", "numpy==2.2.6")
def test_major(environment, model):
    import numpy
    print("here is", numpy.__version__)
    assert environment == "numpy==" + numpy.__version__
    major = int(numpy.__version__.split(".")[0])
    assert major == 1, "told"

@pytest.mark.environments("numpy==1.26.4")
@pytest.mark.parametrize("n", [1, 2])
def test_parameters(n, model):
    import orchestrator_is_not_here_probe_helper as helper
    assert helper.double(n) == 2 * n

@pytest.mark.environments("numpy==2.2.6")
@pytest.mark.skipif("sys.version_info > (3,)", reason="not today")
def test_marks_count():
    raise RuntimeError

@pytest.mark.environments("numpy==2.2.6")
def test_a_process_of_its_own():
    assert os.getpid() != int(os.environ["PARENT"])

def test_plain():
    assert True
"""


@pytest.fixture(autouse=True)
def the_store(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's store: pytester gives its runs another home folder."""
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(settings.home))


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    pytester.makepyfile(
        test_it=TESTS, orchestrator_is_not_here_probe_helper="def double(x):\n    return 2 * x\n"
    )
    monkeypatch.setenv("LOADED", str(pytester.path / "loaded"))
    monkeypatch.setenv("PARENT", str(os.getpid()))
    return pytester


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "no:cacheprovider", "-rA", *arguments, timeout=200)


@pytest.mark.slow
def test_bodies_run_in_their_environments_with_introspection_and_output(project: pytest.Pytester) -> None:
    result = run(project)
    result.assert_outcomes(passed=5, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*test_major?numpy==2.2.6?*", "*AssertionError: told*", "*assert 2 == 1*"])
    result.stdout.fnmatch_lines(["*here is 2.2.6*"])
    result.stdout.fnmatch_lines(["*SKIPPED*not today*"])
    # One process for each environment, and its fixtures live as long as they would here.
    loads = (project.path / "loaded").read_text().split()
    assert len(loads) == len(set(loads)) == 2


@pytest.mark.slow
def test_cells_are_selected_and_the_others_deselected(project: pytest.Pytester) -> None:
    run(project, "--environment", "numpy==1*").assert_outcomes(passed=4, deselected=3)


@pytest.mark.slow
def test_output_is_not_captured_under_s(project: pytest.Pytester) -> None:
    result = run(project, "-s", "-k", "test_major and 1.26")
    result.assert_outcomes(passed=1, deselected=6)
    result.stdout.fnmatch_lines(["*here is 1.26.4*"])


@pytest.mark.slow
def test_it_works_under_xdist(project: pytest.Pytester) -> None:
    result = run(project, "-n", "2")
    result.assert_outcomes(passed=5, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*AssertionError: told*", "*assert 2 == 1*"])


@pytest.mark.slow
def test_what_goes_wrong_there_is_told_here(pytester: pytest.Pytester) -> None:
    """An environment that cannot be made, a process that dies, a module that cannot be imported; and the others run.

    The configuration holds a key of a plugin that the environment does not have, and makes warnings errors.
    """
    pytester.makeini(
        "[pytest]\ntimeout = 100\naddopts = --strict-markers --strict-config\nfilterwarnings =\n    error\n"
        "    ignore:Module already imported:pytest.PytestAssertRewriteWarning\n"
    )
    pytester.makepyfile(
        test_deaths="""
        import os, pytest

        @pytest.mark.environments("numpy==1.26.4")
        def test_dies():
            os.abort()

        @pytest.mark.environments("numpy==1.26.4", "numpy==0.0.1")
        def test_goes_on():
            pass
        """,
        test_imports="""
        import orchestrator
        import pytest

        @pytest.mark.environments("numpy==1.26.4")
        def test_never():
            pass
        """,
    )
    result = run(pytester)
    result.assert_outcomes(passed=1, failed=1, errors=2)
    said = result.stdout.str()
    assert "numpy==1.26.4 ended with signal 6 before this test did" in said
    assert "the environment numpy==0.0.1 could not be made" in said
    assert "No module named 'orchestrator'" in said


def test_a_wrong_mark_is_refused(pytester: pytest.Pytester) -> None:
    for name, mark in (("none", "environments()"), ("unknown", "environments('numpy', famly='x')")):
        pytester.makepyfile(
            **{f"test_{name}": f"import pytest\n\n@pytest.mark.{mark}\ndef test_never(): pass\n"}
        )
    said = pytester.runpytest_inprocess("-p", "no:cacheprovider").stdout.str()
    assert "environments() needs requirements" in said
    assert "environments() has no argument 'famly'" in said


def test_a_test_that_cannot_be_multiplied_is_refused_and_not_run_here(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import unittest, pytest

        @pytest.mark.environments("numpy==1.26.4")
        class TestUnit(unittest.TestCase):
            def test_never(self):
                pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*environments() needs a function or a method of a plain class*"])


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_behind(pytester: pytest.Pytester, tmp_path: Path) -> None:
    started = tmp_path / "started"
    pytester.makepyfile(
        f"""
        import os, time, pytest

        @pytest.mark.environments("numpy==1.26.4")
        def test_sleeps():
            with open({str(started)!r}, "w") as file:
                file.write(str(os.getpid()))
            os.rename({str(started)!r}, {str(started)!r} + ".pid")
            time.sleep(600)
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=pytester.path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    mark = Path(f"{started}.pid")
    try:
        deadline = time.monotonic() + 120
        while not mark.exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.05)
        worker = psutil.Process(int(mark.read_text()))
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 2, out
    assert "KeyboardInterrupt" in out
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running()
