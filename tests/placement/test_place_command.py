"""`orchestrator place` and `orchestrator devices`: text, JSON, a picture, exit codes."""

import json
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from orchestrator.cli.console import Console
from orchestrator.cli.devices import command as devices_command
from orchestrator.cli.place import command as place_command
from orchestrator.errors import ConfigError, PlacementError


@pytest.fixture
def run(tmp_path):
    def invoke(command, *arguments):
        console = Console(overrides={"home": str(tmp_path / "home"), "project": str(tmp_path)})
        return CliRunner().invoke(command, arguments, obj=console, catch_exceptions=False)

    return invoke


def test_module_by_module_and_byte_by_byte(run, llama):
    result = run(place_command, "--checkpoint", str(llama()), "--devices", "2x24GiB")
    lines = result.stdout.splitlines()
    rows = [line.split() for line in lines]
    assert ["model.layers.11", "layer", "36,992", "73,984", "262,144", "cuda:0"] in rows
    assert sum(row[-1:] == ["cuda:0"] and row[0].startswith("model.layers") for row in rows) == 12
    assert any("2 (K, V) x 12 layers x 2 heads x 16" in line for line in lines)
    assert "tiny-llama in float16, one device" in result.stdout


def test_json_adds_up(run, llama):
    result = run(
        place_command, "--checkpoint", str(llama()), "--devices", "2x24GiB", "--json", "--dtype", "fp32"
    )
    answer = json.loads(result.stdout)
    (placement,) = answer["placements"]
    assert placement["device_map"] == {"": "cuda:0"}
    assert placement["dtype"] == answer["dtype"] == "float32"
    (share,) = placement["shares"]
    assert sum(m["weights"] for m in share["modules"]) == share["weights"] == 4 * answer["parameters"]
    assert sum(t["bytes"] for t in answer["terms"]) == answer["total"]
    assert share["used"] == answer["total"] + share["runtime"]


def test_this_machine_where_nothing_is_imagined(run, llama):
    answer = json.loads(run(place_command, "--checkpoint", str(llama()), "--json").stdout)
    assert answer["placements"][0]["shares"][0]["budget"] > 0


def test_a_published_shape_split_over_cards(run, tmp_path):
    file = tmp_path / "plan.svg"
    result = run(place_command, "--shape", "mgm-34b", "--devices", "4x24GiB", "--svg", str(file))
    assert "cuda:3" in result.stdout
    root = ET.parse(file).getroot()
    space = "{http://www.w3.org/2000/svg}"
    titles = [title.text for title in root.iter(f"{space}title")]
    assert sum("model.layers." in title for title in titles) == 60  # a segment each
    frames = [r for r in root.iter(f"{space}rect") if r.get("class") == "frame"]
    assert len(frames) == 4
    widths = [float(r.get("width")) for r in root.iter(f"{space}rect") if r.find(f"{space}title") is not None]
    assert sum(widths) == pytest.approx(sum(float(f.get("width")) for f in frames), abs=1)  # bars are full


def test_a_config_alone_is_enough(run, llama):
    folder = llama()
    (folder / "model.safetensors").unlink()
    result = run(place_command, "--config", str(folder / "config.json"), "--devices", "24GiB", "--batch", "4")
    assert "x 4 x 2048 tokens" in result.stdout


def test_budgets_maps_and_replicas(run):
    answer = json.loads(
        run(place_command, "--shape", "llama-7b", "--devices", "3x24GiB", "--json", "--device-map", "balanced",
            "--max-memory", "0=10GiB,2=12GiB").stdout
    )  # fmt: skip
    assert answer["placements"][0]["devices"] == ["imagined-0", "imagined-2"]
    answer = json.loads(
        run(place_command, "--shape", "llama-7b", "--devices", "3x24GiB", "--json", "--replicas", "3").stdout
    )
    assert [p["devices"] for p in answer["placements"]] == [[f"imagined-{i}"] for i in range(3)]
    answer = json.loads(
        run(place_command, "--shape", "llama-7b", "--devices", "3x24GiB", "--json", "--device-map",
            '{"": 0, "lm_head": 1}').stdout
    )  # fmt: skip
    assert answer["placements"][0]["device_map"] == {"": "cuda:0", "lm_head": "cuda:1"}


def test_what_does_not_fit_ends_with_four(run):
    with pytest.raises(PlacementError) as caught:
        run(place_command, "--shape", "llama-13b", "--devices", "16GiB")
    assert caught.value.exit_code == 4
    assert "1 more device" in str(caught.value.hint)


def test_bits_make_it_fit_as_the_hint_says(run):
    with pytest.raises(PlacementError) as caught:
        run(place_command, "--shape", "mgm-13b", "--devices", "16GiB")
    assert "quantised to 4 bits" in str(caught.value.hint)
    shown = run(place_command, "--shape", "mgm-13b", "--devices", "16GiB", "--bits", "4").stdout
    bill = next(line for line in shown.splitlines() if line.startswith("weights"))
    assert "layers in 4 bits" in bill
    assert 7e9 < int(bill.split()[1].replace(",", "")) < 10e9
    with pytest.raises(PlacementError, match=r"weights 14\.17 GiB"):
        run(place_command, "--shape", "mgm-13b", "--devices", "10GiB", "--bits", "8")


def test_auto_is_the_checkpoints_family(run, llama, tmp_path):
    folder = llama()
    assert "family: causal-lm" in run(place_command, "auto", "--checkpoint", str(folder)).stderr
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no family is known"):
        run(place_command, "auto", "--checkpoint", str(folder))


def test_the_document_says_what_the_command_says(run):
    text = (Path(__file__).parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
    with pytest.raises(PlacementError) as caught:
        run(place_command, "--shape", "mgm-13b", "--devices", "16GiB")
    first, *others = str(caught.value).splitlines()
    assert first.partition(" (weights")[0] in text
    for line in others:
        assert line in text
    shown = run(place_command, "--shape", "mgm-34b", "--devices", "4x24GiB").stdout
    for line in shown.splitlines()[:5]:
        assert line.split(" words, and")[0] in text


@pytest.mark.parametrize(
    "arguments",
    [(), ("--shape", "llama-7b", "--config", __file__), ("--shape", "llama"), ("--config", __file__),
     ("--shape", "llama-7b", "--max-memory", "20GiB"), ("--shape", "llama-7b", "--device-map", "{"),
     ("--shape", "llama-7b", "--devices", "many")],
)  # fmt: skip
def test_wrong_usage_ends_with_two(run, arguments):
    with pytest.raises(ConfigError) as caught:
        run(place_command, *arguments)
    assert caught.value.exit_code == 2


def test_a_family_gives_the_defaults(run, llama, tmp_path):
    (tmp_path / "envs" / "mine").mkdir(parents=True)
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "mine.py").write_text("class Mine:\n    pass\n")
    (tmp_path / "envs" / "mine" / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nrequires-python = ">=3.8"\ndependencies = []\n'
        '[tool.orchestrator]\nworker = "mine.py:Mine"\n[tool.orchestrator.defaults]\ndtype = "float32"\n'
    )
    folder = str(llama())
    answer = json.loads(
        run(place_command, "mine", "--checkpoint", folder, "--devices", "24GiB", "--json").stdout
    )
    assert answer["dtype"] == "float32"
    answer = json.loads(
        run(
            place_command, "mine", "--checkpoint", folder, "--devices", "24GiB", "--json", "--dtype", "bf16"
        ).stdout
    )
    assert answer["dtype"] == "bfloat16"


def test_devices_as_table_and_json(run):
    assert run(devices_command).stdout.splitlines()[-1].startswith("cpu ")
    answer = json.loads(run(devices_command, "--json").stdout)
    cpu = answer["devices"][-1]
    assert (cpu["label"], cpu["kind"], cpu["uuid"]) == ("cpu", "cpu", "cpu")
    assert 0 < cpu["free"] <= cpu["total"]


def test_devices_watched_until_interrupted(run, monkeypatch):
    looks = []

    def interrupted(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.cli.devices.time", SimpleNamespace(sleep=interrupted))
    result = run(devices_command, "--watch", "--json", "--interval", "0.5")
    assert result.exit_code == 0
    assert [json.loads(line)["devices"][-1]["label"] for line in result.stdout.splitlines()] == ["cpu", "cpu"]
    assert looks == [0.5, 0.5]
