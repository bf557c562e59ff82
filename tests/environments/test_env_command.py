"""The command line: data on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from orchestrator.cli import doctor
from orchestrator.environments.environment import MARKER
from orchestrator.errors import SandboxUnavailable


@pytest.fixture
def cli(machine):
    """Runs `orchestrator` in the machine's project, as a user does."""

    def call(*args, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", "--home", machine.home, "--project", machine.project, *args],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


@pytest.fixture
def mine(machine):
    machine.wheel("model", "1.0")
    return machine.declare("mine", ["model==1.0"], project='description = "A family of mine"')


def test_the_way_of_a_user(cli, machine, mine):
    assert "A family of mine" in cli("family", "list").stdout
    assert cli("env", "lock", "--check", "mine", code=1).stdout == "mine: stale: there is no lock\n"
    assert cli("env", "lock", "mine").stdout.strip() == str(mine.lock_file)
    assert cli("env", "lock", "--check", "mine").stdout == "mine: up to date\n"
    python = cli("env", "ensure", "mine", "--print-python").stdout.strip()
    subprocess.run([python, "-c", "import model"], check=True)
    (listed,) = json.loads(cli("env", "list", "--json").stdout)
    assert listed["families"] == ["mine"]
    assert listed["versions"]["model"] == "1.0"
    assert listed["own_bytes"] < listed["bytes"]
    assert "model" in cli("env", "show", "mine").stdout
    assert "mine: ok" in cli("env", "verify", listed["id"][:5]).stdout
    assert cli("env", "repair", "mine").stdout.strip() == listed["id"]
    shown = json.loads(cli("family", "show", "mine", "--json").stdout)
    assert (shown["environment"], shown["lock"]) == (listed["id"], "up to date")
    variant = json.loads(cli("family", "show", "mine", "--with", "model==2", "--json").stdout)
    assert "its own" in variant["lock"]
    pruned = json.loads(cli("env", "prune", "--older-than", "0s", "--dry-run", "--json").stdout)
    assert pruned["candidates"][0]["environment"]["id"] == listed["id"]
    assert cli("-q", "env", "list").stdout.strip() == listed["id"]
    assert listed["id"] in cli("env", "prune", "--older-than", "0s").stdout
    assert json.loads(cli("env", "list", "--json").stdout) == []


def test_damage_is_told_with_exit_code_1(cli, machine, mine):
    environment = machine.ensure(mine)
    next(environment.path.glob("lib/python*/site-packages/model/__init__.py")).unlink()
    out = cli("env", "verify", "mine", code=1).stdout
    assert "missing: lib/" in out
    assert "__init__.py of model" in out
    result = json.loads(cli("env", "verify", "mine", "--json", code=1).stdout)[0]
    assert result["faults"][0]["kind"] == "missing"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("env", "ensure", "mien"), 2, "did you mean 'mine'?"),
        (("env", "ensure"), 2, "name a FAMILY"),
        (("env", "ensure", "mine", "--with", "a b"), 2, "is not a requirement"),
        (("env", "ensure", "mine", "--with", "model==6"), 3, "No solution found"),
        (("env", "show", "mine"), 2, "is not installed"),
        (("env", "prune", "--older-than", "soon"), 2, "30d"),
        (("env", "prune", "--max-size", "20"), 2, "20G"),  # not 20 bytes
        (("env", "lock", "mine[model==1.0]"), 2, "is a variant"),
        (("family", "check", "mien"), 2, "did you mean 'mine'?"),
        (("family", "suggest", "./no-such-folder"), 1, "there is no /"),
        (("logs", "-n", "-1"), 2, "--lines"),
    ],
)
def test_refusals(cli, mine, args, code, words):
    assert words in cli(*args, code=code).stderr


def test_the_beginning_of_several_ids_names_none(cli, machine, mine):
    environment = machine.ensure(mine)
    twin = environment.path.with_name(f"{environment.id[:4]}-twin")
    shutil.copytree(environment.path, twin, symlinks=True)
    marker = twin / MARKER
    marker.write_text(marker.read_text().replace(f'"id": "{environment.id}"', f'"id": "{twin.name}"'))
    told = cli("env", "show", environment.id[:4], code=2).stderr
    assert "is the beginning of 2 ids" in told
    assert twin.name in told


def test_one_failure_does_not_hide_the_others(cli, machine, mine):
    machine.declare("wrong", ["nothing==1"])
    done = cli("env", "ensure", "mine", "wrong", "--print-python", code=3)
    assert done.stdout.strip().endswith("/bin/python")
    assert "nothing" in done.stderr


def test_the_plan_in_words_and_as_json(cli, machine, mine):
    machine.wheel("model", "2.0")
    machine.declare("other", ["model==2.0"])
    out = cli("env", "plan", "mine", "other").stdout
    assert "2 families, 2 environments" in out
    assert "mine needs model==1.0" in out
    plan = json.loads(cli("env", "plan", "mine", "other", "--json").stdout)
    assert plan["clashes"][0]["package"] == "model"


def test_a_broken_family_does_not_hide_the_others(cli, machine, mine):
    machine.declare("broken")
    (machine.project / "workers" / "broken.py").unlink()
    done = cli("family", "list", code=2)
    assert "mine" in done.stdout
    assert "pyproject.toml:" in done.stderr


def test_what_a_family_passes_on_is_shown_without_its_secrets(cli, machine, mine):
    file = mine.folder / "pyproject.toml"
    table = (
        'sandbox = true\nenvironment = { MY_API_KEY = "abc123", HF_TOKEN = "${HF_TOKEN}", MODE = "fast" }\n'
    )
    file.write_text(file.read_text().replace("[tool.orchestrator]\n", f"[tool.orchestrator]\n{table}"))
    shown = json.loads(cli("family", "show", "mine", "--json").stdout)
    assert shown["environment_variables"] == {"MY_API_KEY": "****", "HF_TOKEN": "${HF_TOKEN}", "MODE": "fast"}
    assert shown["sandbox"] is True


def test_doctor_tells_whether_the_sandbox_that_families_ask_for_can_be(machine, mine, monkeypatch):
    def finding():
        (found,) = doctor._sandbox(machine.settings)
        return found.level, found.text, found.hint

    def absent():
        raise SandboxUnavailable(
            "a sandbox was asked for, and bubblewrap (bwrap) is not installed", hint="install it"
        )

    monkeypatch.setattr(doctor, "require_bubblewrap", absent)
    assert finding() == ("note", "bubblewrap (bwrap) is not installed", "")
    file = mine.folder / "pyproject.toml"
    file.write_text(
        file.read_text().replace("[tool.orchestrator]\n", "[tool.orchestrator]\nsandbox = true\n")
    )
    assert finding() == ("broken", "bubblewrap (bwrap) is not installed; asked for by mine", "install it")


def test_doctor_masks_and_says_what_is_broken(cli, machine, mine, monkeypatch):
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://me:secret@mirror.invalid/simple")
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("PIP_CLIENT_CERT", "/somewhere")
    done = cli("doctor")
    assert "https://****@mirror.invalid/simple" in done.stdout
    assert "secret" not in done.stdout + done.stderr
    assert "client-cert" in done.stdout
    assert "from PIP_EXTRA_INDEX_URL" in done.stdout
    assert str(machine.home) in done.stdout
    monkeypatch.setenv("PIP_FIND_LINKS", "/no/such/folder")
    found = json.loads(cli("doctor", "--json", code=1).stdout)
    assert [f["name"] for f in found if f["level"] == "broken"] == ["find-links"]
