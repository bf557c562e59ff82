"""pip's configuration for uv: pip's order, the user's own uv settings first, credentials masked."""

from __future__ import annotations

import os
from subprocess import CompletedProcess
from typing import ClassVar

import pytest

from orchestrator.environments.indexes import mask, read_indexes, read_pip
from orchestrator.environments.uv import refusal, run_uv, search_path
from orchestrator.events import ignore


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Writes pip's files in a home of their own and reads them; keyword arguments are variables."""

    monkeypatch.setattr("orchestrator.environments.indexes.SYSTEM_FILE", tmp_path / "none")

    class Pip:
        environ: ClassVar = {
            "HOME": str(tmp_path / "home"),
            "XDG_CONFIG_DIRS": str(tmp_path / "xdg"),
            "XDG_CONFIG_HOME": str(tmp_path / "home" / ".config"),
        }
        prefix = tmp_path / "prefix"
        places: ClassVar = {
            "global": tmp_path / "xdg" / "pip" / "pip.conf",
            "legacy": tmp_path / "home" / ".pip" / "pip.conf",
            "user": tmp_path / "home" / ".config" / "pip" / "pip.conf",
            "site": prefix / "pip.conf",
            "named": tmp_path / "named.conf",
        }

        def write(self, place, text):
            self.places[place].parent.mkdir(parents=True, exist_ok=True)
            self.places[place].write_text(text)

        def read(self, **variables):
            values = read_pip({**self.environ, **variables}, prefix=str(self.prefix))
            return {
                key: value.text for key, value in values.items() if "opt/" not in value.text and key != "cert"
            }

        def variables(self, **variables):
            return dict(read_indexes({**self.environ, **variables}).variables)

    return Pip()


def test_later_files_win(pip):
    expected = None
    for place in ("global", "legacy", "user", "site"):
        pip.write(place, f"[global]\nindex-url = https://{place}\n")
        expected = f"https://{place}"
        assert pip.read()["index-url"] == expected
    assert pip.read(PIP_INDEX_URL="https://variable")["index-url"] == "https://variable"


def test_install_goes_before_global_even_from_an_earlier_file(pip):
    pip.write("global", "[install]\nindex-url = https://install\n")
    pip.write("user", "[global]\nindex-url = https://global\n[download]\nindex-url = https://download\n")
    assert pip.read()["index-url"] == "https://install"


def test_a_named_file_switches_the_users_off_and_goes_before_the_site(pip):
    pip.write("user", "[global]\nindex-url = https://user\ntimeout = 3\n")
    pip.write("site", "[global]\nindex-url = https://site\n")
    pip.write("named", "[global]\nindex-url = https://named\n")
    read = pip.read(PIP_CONFIG_FILE=str(pip.places["named"]))
    assert read["index-url"] == "https://named"
    assert "timeout" not in read
    missing = pip.read(PIP_CONFIG_FILE=str(pip.places["named"].with_name("missing")))
    assert missing["timeout"] == "3"


def test_devnull_means_no_file_at_all(pip):
    pip.write("site", "[global]\nindex-url = https://site\n")
    assert "index-url" not in pip.read(PIP_CONFIG_FILE=os.devnull)


def test_empty_values_count_for_nothing(pip):
    pip.write("user", "[global]\nindex_url = https://user\n")
    assert pip.read(PIP_INDEX_URL="")["index-url"] == "https://user"


def test_a_file_that_cannot_be_read_does_not_stop_us(pip):
    pip.write("user", "no section\n")
    assert pip.read(PIP_TIMEOUT="7")["timeout"] == "7"


def test_settings_get_uvs_names(pip):
    found = pip.variables(
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="https://mirror/simple",
        PIP_EXTRA_INDEX_URL="https://a/simple\nhttps://b/simple",
        PIP_FIND_LINKS="/w1 /w2",
        PIP_TRUSTED_HOST="mirror",
        PIP_PROXY="http://proxy:3128",
        PIP_DEFAULT_TIMEOUT="2.6",
        PIP_PRE="yes",
        PIP_KEYRING_PROVIDER="subprocess",
    )
    assert found == {
        "UV_DEFAULT_INDEX": "https://mirror/simple",
        "UV_INDEX": "https://a/simple https://b/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/w1,/w2",
        "UV_INSECURE_HOST": "mirror",
        "ALL_PROXY": "http://proxy:3128",
        "UV_HTTP_TIMEOUT": "3",
        "UV_PRERELEASE": "allow",
        "UV_KEYRING_PROVIDER": "subprocess",
    }


def test_flags_are_for_what_has_no_variable(pip):
    environ = {**pip.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "true", "PIP_ONLY_BINARY": "a,b"}
    indexes = read_indexes({**environ, "PIP_CLIENT_CERT": "/c", "PIP_NO_BINARY": ":none:"})
    assert indexes.flags == ("--no-index", "--only-binary=a", "--only-binary=b", "--no-binary=:none:")
    assert indexes.unmapped == ("client-cert",)
    assert read_indexes({**environ, "PIP_NO_INDEX": "0"}).flags == ("--only-binary=a", "--only-binary=b")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"UV_DEFAULT_INDEX": "https://mine"}, {"UV_INDEX", "UV_INDEX_STRATEGY"}),
        ({"UV_INDEX_URL": "https://mine"}, {"UV_INDEX", "UV_INDEX_STRATEGY"}),
        ({"UV_EXTRA_INDEX_URL": "https://mine"}, {"UV_DEFAULT_INDEX"}),
        ({"UV_INDEX_STRATEGY": "first-index"}, {"UV_DEFAULT_INDEX", "UV_INDEX"}),
    ],
)
def test_what_the_user_set_for_uv_wins(pip, theirs, ours):
    found = pip.variables(
        PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL="https://pip", PIP_EXTRA_INDEX_URL="https://more", **theirs
    )
    assert set(found) == ours


def test_an_index_in_the_users_uv_toml_wins(pip, tmp_path):
    file = tmp_path / "home" / ".config" / "uv" / "uv.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[pip]\nindex-url = "https://mine"\n')
    assert "UV_DEFAULT_INDEX" not in pip.variables(PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL="https://pip")


def test_credentials_are_masked():
    assert mask("see https://user:secret@host/simple and http://token@other") == (
        "see https://****@host/simple and http://****@other"
    )


def test_errors_do_not_show_credentials():
    done = CompletedProcess([], 1, "", "error: Failed to fetch: https://user:secret@mirror/simple/x/")
    error = refusal("resolving", done)
    assert "secret" not in error.message + error.log
    assert "https://****@mirror/simple/x/" in error.message


def test_uv_sees_the_translation_and_no_other_virtual_environment(machine, monkeypatch):
    seen = {}

    def run(command, *, environ, **_):
        seen.update(environ, command=command)

    monkeypatch.setattr("orchestrator.environments.uv.run_command", run)
    monkeypatch.setenv("VIRTUAL_ENV", "/other")
    monkeypatch.setenv("PYTHONPATH", "/other")
    run_uv(machine.settings, ["pip", "compile", "x"])
    assert seen["UV_FIND_LINKS"] == str(machine.wheels)
    assert "--no-index" in seen["command"]
    assert not {"VIRTUAL_ENV", "PYTHONPATH"} & set(seen)
    assert seen["UV_PYTHON_DOWNLOADS"] == "never"
    run_uv(machine.settings, ["cache", "dir"])
    assert "--no-index" not in seen["command"]  # only those commands know the flag


def test_a_project_around_the_store_does_not_reach_uv(machine):
    (machine.root / "pyproject.toml").write_text(
        '[tool.uv]\nno-such-key = 1\n[tool.uv.pip]\nno-index = "wrong"\n'
    )
    done = run_uv(machine.settings, ["pip", "list", "--python", "/usr/bin/env"], listener=ignore)
    assert "no-such-key" not in done.stderr
    (machine.home / "uv.toml").unlink()
    done = run_uv(machine.settings, ["pip", "list"], cwd=machine.home)
    assert "no-index" in done.stderr  # which is what the barrier keeps out


def test_pyenvs_shims_are_replaced_by_what_is_behind_them(tmp_path):
    (tmp_path / ".pyenv" / "versions" / "3.9.1" / "bin").mkdir(parents=True)
    path = search_path({"PATH": f"{tmp_path}/.pyenv/shims:/usr/bin", "HOME": str(tmp_path)})
    assert path.split(":") == ["/usr/bin", f"{tmp_path}/.pyenv/versions/3.9.1/bin"]
