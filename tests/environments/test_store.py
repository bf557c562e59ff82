"""The store: built once, found at once, shared, and never taken for ready before it is."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time

import psutil
import pytest
from conditions import until

from orchestrator.environments.environment import MARKER, site_packages
from orchestrator.environments.interpreters import find_interpreter
from orchestrator.logs import logs_of, parse, read_lines

SLOW = {"slow/__init__.py": "import time\ntime.sleep(600)\n"}
HALF = {"slow/__init__.py": "import time\ntime.sleep(1.5)\n"}


def held_until(condition):
    """A package whose import lasts until `condition`, an expression with `Path` and `here`, the file itself."""
    text = "import time\nfrom pathlib import Path\nhere = Path(__file__)\nend = time.monotonic() + 60\n"
    text += f"while not ({condition}) and time.monotonic() < end: time.sleep(0.01)\n"
    return {"slow/__init__.py": text}


def building_in(machine):
    """Whether a build has come as far as the import probe."""
    return list((machine.home / "environments").glob(".building-*/*/requirements.lock")) and [
        process for process in psutil.process_iter(["cmdline"]) if probing(machine, process.info["cmdline"])
    ]


def probing(machine, command):
    return bool(command) and command[0].startswith(str(machine.home)) and "slow" in command


def processes_of(machine):
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and str(machine.home) in " ".join(
            command[:1] + command[2:]
        ):
            found.append(command)
    return found


def test_an_environment_holds_what_the_family_needs(machine):
    machine.wheel("model", "1.0")
    environment = machine.ensure(machine.declare("family", ["model"]))
    done = subprocess.run(
        [environment.python, "-I", "-c", "import model, zmq, sys; print(model.__version__, sys.prefix)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1.0", str(environment.path)]
    assert environment.versions == {"model": "1.0", "msgpack": "30.0", "numpy": "30.0", "pyzmq": "30.0"}
    assert environment.family == "family"
    assert set(environment.timings) == {"venv", "install", "check", "bytecode"}
    assert not machine.leftovers()
    assert machine.events[-1].finished


def test_console_scripts_work_after_the_move(machine):
    files = {"tool/__init__.py": "def main(): print('works')\n"}
    files["tool-1.0.dist-info/entry_points.txt"] = "[console_scripts]\ntool = tool:main\n"
    machine.wheel("tool", "1.0", files=files)
    environment = machine.ensure(machine.declare("family", ["tool"]))
    done = subprocess.run([environment.path / "bin" / "tool"], capture_output=True, text=True, check=True)
    assert done.stdout == "works\n"


def test_a_second_time_it_is_found_at_once(machine):
    family = machine.declare("family")
    assert machine.store.find(family) is None
    first = machine.ensure(family)
    machine.events.clear()
    assert machine.ensure(family) == first
    assert not machine.events
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        assert machine.store.find(family) == first
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.030  # of 20, so that a loaded machine does not count


def test_only_what_was_imported_is_compiled_and_the_next_environment_gets_it(machine, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # as this shell and many images have it
    machine.wheel("model", "1.0", files={"model/__init__.py": "", "model/other.py": ""})
    machine.wheel("extra", "1.0")
    one = machine.ensure(machine.declare("one", ["model"]))
    compiled = {path.name.split(".")[0] for path in site_packages(one.path).glob("model/__pycache__/*.pyc")}
    assert compiled == {"__init__"}
    two = machine.ensure(machine.declare("two", ["model", "extra"]))
    cached = [next(site_packages(e.path).glob("model/__pycache__/__init__*.pyc")) for e in (one, two)]
    assert cached[0].stat().st_ino == cached[1].stat().st_ino


def test_the_probe_may_be_left_to_the_worker(machine):
    machine.wheel("model", "1.0")
    family = machine.declare("family", ["model"])
    environment = machine.ensure(family, probe=False)
    assert not machine.store.confirmed(environment)
    assert not list(environment.path.rglob("*.pyc"))
    machine.events.clear()
    assert machine.ensure(family, probe=False) == environment
    assert not machine.events
    assert machine.ensure(family) == environment  # who wants it probed gets it probed
    assert machine.store.confirmed(environment)
    assert list(environment.path.rglob("*.pyc"))
    machine.events.clear()
    machine.ensure(family)
    assert not machine.events


def test_a_worker_that_imported_confirms(machine):
    machine.wheel("model", "1.0")
    environment = machine.ensure(machine.declare("one", ["model"]), probe=False)
    subprocess.run([environment.python, "-I", "-c", "import model"], check=True)
    machine.store.confirm(environment)
    machine.wheel("extra", "1.0")
    other = machine.ensure(machine.declare("two", ["model", "extra"]), probe=False)
    assert list(other.path.rglob("model/__pycache__/*.pyc"))


def test_the_probe_reaches_the_names_that_the_family_gives(machine):
    machine.wheel("model", "1.0", files={"model/__init__.py": "", "model/deep.py": "class Deep: pass\n"})
    family = machine.declare("family", ["model"], orchestrator='probe = ["model.deep.Deep"]')
    environment = machine.ensure(family)
    assert list(site_packages(environment.path).glob("model/__pycache__/deep*.pyc"))


def test_families_that_resolve_alike_share_one_folder(machine):
    one, two = machine.ensure(machine.declare("one")), machine.ensure(machine.declare("two"))
    assert one.path == two.path
    assert (one.family, two.family) == ("one", "two")
    assert machine.store.families_of(one.id) == ("one", "two")
    assert [environment.id for environment in machine.store.list()] == [one.id]
    assert machine.store.get(one.id[:6]) == machine.store.list()[0]
    assert machine.store.get("") is None


def test_files_are_hard_links_unless_the_family_wants_its_own(machine):
    machine.wheel("model", "1.0")
    shared = machine.ensure(machine.declare("one", ["model"]))
    private = machine.ensure(machine.declare("two", ["model"], orchestrator='link-mode = "copy"'))
    links = [(site_packages(e.path) / "model" / "__init__.py").stat().st_nlink for e in (shared, private)]
    assert links == [2, 1]


@pytest.mark.parametrize("damage", ["marker", "interpreter", "other marker"])
def test_what_is_not_whole_is_built_again(machine, damage):
    family = machine.declare("family")
    environment = machine.ensure(family)
    if damage == "marker":
        (environment.path / MARKER).unlink()
    elif damage == "other marker":
        (environment.path / MARKER).write_text(json.dumps({"id": environment.id}))
    else:
        (environment.path / "bin" / "python").unlink()
    assert machine.store.find(family) is None
    assert machine.ensure(family).path == environment.path
    assert machine.store.find(family) is not None
    assert not machine.leftovers()


def test_two_processes_build_it_once(machine):
    go = machine.root / "go"
    machine.wheel("slow", "1.0", files=held_until(f"Path({str(go)!r}).exists()"))
    machine.declare("family", ["slow"])
    code = (
        "def say(event):\n"
        "    print(event.message, flush=True)\n"
        f"    if event.message.startswith('waiting'): Path({str(go)!r}).touch()\n"
        "print(store.ensure(family('family'), say).id)\n"
    )
    processes = [machine.start(code) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert outputs[0][-1] == outputs[1][-1]
    said = [line for output in outputs for line in output]
    assert sum(line.startswith("installing") for line in said) == 1
    assert any(line.startswith("waiting") for line in said)
    assert all(
        any(line.startswith("ready") for line in output) for output in outputs
    )  # who waits is told of the end


def test_two_threads_build_it_once(machine):
    machine.wheel("slow", "1.0", files=HALF)
    family = machine.declare("family", ["slow"])
    threads = [threading.Thread(target=machine.ensure, args=(family,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(event.message.startswith("installing") for event in machine.events) == 1
    assert machine.store.find(family)
    (log,) = logs_of(machine.settings.logs, f"build-{family.label}")
    said = [parse(line) for line in read_lines(log)]
    assert {line.source for line in said} == {"build"}
    assert said[0].text.startswith("installing")
    assert said[-1].text == "finished"


def test_several_are_built_at_once_and_errors_keep_their_place(machine):
    meeting = machine.root / "meeting"
    meeting.mkdir()
    for version in ("1.0", "2.0"):  # each import waits for the other
        arrived = (
            f"Path({str(meeting)!r}, {version!r}).touch() or len(list(Path({str(meeting)!r}).iterdir())) == 2"
        )
        machine.wheel("slow", version, files=held_until(arrived))
    families = [machine.declare(f"f{n}", [f"slow=={n}.0"]) for n in (1, 2, 3)]
    events = []
    results = machine.store.ensure_all(families, events.append)
    messages = [event.finished for event in events]
    assert [type(result).__name__ for result in results] == ["Environment", "Environment", "ResolutionError"]
    importing = [event.message.startswith("importing") for event in events]
    assert sum(importing[: messages.index(True)]) == 2


def test_kill_9_in_a_build_leaves_nothing_that_is_taken_for_ready(machine):
    machine.wheel("slow", "1.0", files=SLOW)
    family = machine.declare("family", ["slow"])
    process = machine.start("store.ensure(family('family'))")
    until(lambda: building_in(machine))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    until(lambda: not processes_of(machine))  # the probe dies with it
    assert machine.leftovers()
    assert machine.store.find(family) is None
    assert machine.store.list() == []
    machine.ensure(machine.declare("other"))
    assert not machine.leftovers()


def test_a_build_under_way_is_not_swept_away(machine):
    go = machine.root / "go"
    machine.wheel("slow", "1.0", files=held_until(f"Path({str(go)!r}).exists()"))
    machine.declare("family", ["slow"])
    process = machine.start("print(store.ensure(family('family')).id)")
    until(lambda: building_in(machine))
    machine.ensure(machine.declare("other"))
    assert process.poll() is None
    go.touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing_behind(machine, how):
    machine.wheel("slow", "1.0", files=SLOW)
    machine.declare("family", ["slow"])
    code = (
        "import signal\ndef end(*_): raise SystemExit(143)\nsignal.signal(signal.SIGTERM, end)\n"
        "store.ensure_all([family('family'), family('family')])"
    )
    process = machine.start(code)
    until(lambda: building_in(machine))
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    until(
        lambda: not processes_of(machine)
    )  # what its programs started has been killed, and ends a moment later
    assert not machine.leftovers()


def test_the_interpreter_of_an_environment_may_go(machine):
    family = machine.declare("family")
    environment = machine.ensure(family)
    link = environment.path / "bin" / "python"
    link.unlink()
    link.symlink_to(machine.root / "removed" / "python3")
    assert machine.store.find(family) is None
    assert machine.ensure(family).python.exists()


def test_a_use_is_written_down(machine):
    before = time.time()
    environment = machine.ensure(machine.declare("family"))
    assert before - 1 <= machine.store.last_used(environment.id) <= time.time() + 1
    assert machine.store.last_used("unknown") == 0


def test_a_store_that_moves_still_works(machine):
    """Nothing in an environment names the store, apart from what uv writes for its activation scripts."""
    machine.wheel("model", "1.0")
    environment = machine.ensure(machine.declare("family", ["model"]))
    moved = machine.root / "moved"
    shutil.move(environment.path, moved)
    subprocess.run([moved / "bin" / "python", "-I", "-c", "import model, zmq"], check=True)


def test_the_python_of_the_lock_is_used(machine):
    interpreter = find_interpreter(machine.settings, ">=3.8")
    environment = machine.ensure(machine.declare("family", python=f"=={interpreter.minor}.*"))
    assert environment.python_version == interpreter.version


def test_building_beside_other_work_ends_when_that_fails(machine):
    machine.wheel("slow", "1.0", files=SLOW)
    family = machine.declare("family", ["slow"])
    with pytest.raises(ZeroDivisionError), machine.store.ensuring(family) as building:  # noqa: PT012 - two things at once
        until(lambda: building_in(machine))
        raise ZeroDivisionError
    assert building.exception() is not None  # long before the import ends
    until(lambda: not processes_of(machine))
    assert not machine.leftovers()


def test_building_beside_other_work(machine):
    family = machine.declare("family")
    with machine.store.ensuring(family) as building:
        environment = building.result()
    assert environment == machine.store.find(family)
