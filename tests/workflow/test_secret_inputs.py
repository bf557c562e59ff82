"""Secret inputs: workers get the value, and nothing that a run leaves or says has it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_models import FakeModels

from orchestrator.errors import ConfigError, RemoteError, WorkflowError
from orchestrator.events import Event
from orchestrator.workflow import Workflow
from orchestrator.workflow.cache import Cache, CacheMemory
from orchestrator.workflow.identity import Identifier
from orchestrator.workflow.inputs import parse_overrides
from orchestrator.workflow.models import Roster, Seat
from orchestrator.workflow.record import describe_seat
from orchestrator.workflow.schema import Input, Model
from orchestrator.workflow.secret_inputs import Secrets, is_secret_input

VALUE = "hunter2-is-no-word"
TEXT = """
version: 1
name: w
on_error: skip
inputs:
  token: {type: text}
  names: {type: list, default: [ada, bob]}
models:
  m: {family: one}
  kept: {family: two, options: {login: "with ${token}"}}
steps:
- {id: greet, for_each: "${names}", model: m, call: greet, with: {x: "${item}", by: "Bearer ${token}"}}
- {id: size, for_each: "${names}", model: m, call: size, with: {x: "${greet}"}}
- {id: double, for_each: "${names}", model: m, call: double, with: {x: "${size}"}}
- {id: told, model: m, call: tell, with: {x: 1}}
- {id: piece, model: m, stream: true, call: pieces, with: {x: "${token}"}}
- {id: owned, model: kept, call: double, with: {x: 3}}
- {id: gossip, model: m, stream: true, call: gossip, with: {x: 1}}
- {id: bad, for_each: "${names}", model: m, call: fail, with: {x: "${token}"}}
outputs: {greet: "${greet}", double: "${double}", told: "${told}", piece: "${piece}", bad: "${bad}"}
report: {intro: "as ${token}", item: {title: "${token}", text: "${greet}"}, figures: [{label: l, value: "${token}"}]}
"""


def fail(x: str) -> None:
    logging.getLogger("orchestrator.replicas").warning("m: %s", f"no login as {x!r}")
    raise RemoteError(f"no login as {x!r}", hint=f"try {x}", remote_traceback=f"File f, in g\n  {x}")


METHODS: dict[str, Callable[..., Any]] = {
    "greet": lambda x, by: {"hello": f"{x} by {by}"},
    "size": lambda x: len(x["hello"]),
    "double": lambda x: x * 2,
    "tell": lambda x: f"somebody logged in with {VALUE} before",
    "pieces": lambda x: iter(["my ", x[:5], x[5:]]),
    "gossip": lambda x: iter([f"{VALUE} it was"]),
    "fail": fail,
}


class House:
    """A cache, and a workflow that runs in it."""

    def __init__(self, folder: Path) -> None:
        self.cache = Cache(folder / "results", 10**8)
        self.events: list[Event] = []
        self.models = FakeModels()

    def run(self, text: str = TEXT, **arguments: Any) -> Any:
        self.models = FakeModels(one=METHODS, two=METHODS)
        memory = CacheMemory(self.cache, Identifier(self.models))
        given = {"token": VALUE, **arguments.pop("inputs", {})}
        return Workflow.parse(text).run(
            self.models, memory=memory, inputs=given, listener=self.events.append, **arguments
        )


@pytest.fixture
def house(here: Path) -> Iterator[House]:
    made = House(here)
    yield made
    made.cache.close()


def test_the_value_comes_to_the_workers_and_into_no_file_event_or_log(
    house: House, here: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["orchestrator", "run", f"--input=token={VALUE}", "-i", f"token={VALUE}"])
    with caplog.at_level(logging.WARNING):
        done = house.run()
    assert house.models.calls("greet")[0]["by"] == f"Bearer {VALUE}"
    assert ("two", f"with {VALUE}") in [(family, told.get("login")) for family, told in house.models.loads]
    holding = [
        path.name for path in here.rglob("*") if path.is_file() and VALUE.encode() in path.read_bytes()
    ]
    assert holding == []
    assert done.results()[0]["greet"] == {"hello": "ada by Bearer <token>"}
    told = json.loads((done.folder / "summary.json").read_text())
    assert (told["piece"], told["told"]) == ("my <token>", "somebody logged in with <token> before")
    assert done.record["errors"][0]["error"] == "no login as '<token>'"
    assert done.record["host"]["command"] == ["run", "--input=token=<token>", "-i", "token=<token>"]
    assert (done.record["workflow"]["inputs"], done.record["workflow"]["withheld"]) == ({}, ["token"])
    assert "my" not in " ".join(event.message for event in house.events)  # it would come in two pieces
    assert caplog.messages == 2 * ["m: no login as '<token>'"]
    assert VALUE not in " ".join(event.message for event in house.events)


def test_what_holds_a_secret_is_not_cached_and_the_rest_is(house: House) -> None:
    house.run(out="first")
    second = house.run(out="second")
    computed = [method for _, method, _ in house.models.log]
    assert sorted(computed) == [
        "double",
        "fail",
        "fail",
        "gossip",
        "greet",
        "greet",
        "pieces",
        "size",
        "size",
        "tell",
    ]
    assert (
        second.record["steps"]["double"]["cached"] == 2
    )  # made of what a secret's step gave, without the secret
    (planned,) = [step for step in plan(house).steps if step.id == "owned"]
    assert (planned.cached, planned.run) == (0, 1)
    house.run(TEXT.replace("{type: text}", "{type: text, secret: false}"), out="third")
    house.run(TEXT.replace("{type: text}", "{type: text, secret: false}"), out="fourth")
    assert [method for _, method, _ in house.models.log] == ["fail", "fail"]


def plan(house: House, text: str = TEXT, secret: str = VALUE) -> Any:
    models = FakeModels(one=METHODS, two=METHODS)
    memory = CacheMemory(house.cache, Identifier(models))
    return Workflow.parse(text).plan(models, inputs={"token": secret}, memory=memory)


def test_loops_over_secrets_are_given_them(house: House) -> None:
    text = TEXT.replace("{type: list, default: [ada, bob]}", "{type: list, secret: true}")
    text = text.replace(
        "steps:",
        """steps:
- {id: lengths, for_each: {name: "${names}", digits: "${name}"}, model: m, call: double, with: {x: "${digits.pin}"}}""",
    )
    house.run(text, inputs={"names": [[{"pin": 12}, {"pin": 34}], [{"pin": 5}]]}, out="first")
    house.run(text, inputs={"names": [[{"pin": 12}, {"pin": 34}], [{"pin": 5}]]}, out="second")
    assert {told["x"] for told in house.models.calls("double")} == {12, 34, 5, 3}
    done = house.run(text, inputs={"names": [["hunter3"], ["hunter4", 5]]}, out="texts")
    assert "hunter" not in (done.folder / "results.jsonl").read_text()


def test_an_error_that_ends_the_run_has_no_secret(house: House, here: Path) -> None:
    with pytest.raises(WorkflowError) as caught:
        house.run(TEXT.replace("on_error: skip", "on_error: stop"), out="out")
    error: BaseException | None = caught.value
    while error is not None:
        told = [str(error), *getattr(error, "__notes__", ()), getattr(error, "remote_traceback", "")]
        assert VALUE not in " ".join(told)
        error = error.__cause__
    assert VALUE not in (here / "out" / "run.json").read_text()


def test_a_condition_quotes_no_secret_nor_the_beginning_of_one(house: House) -> None:
    asked = TEXT.replace("call: tell,", 'call: tell, on_error: stop, when: {value: "${token}", above: 1},')
    for secret in (VALUE, VALUE * 4):
        with pytest.raises(WorkflowError, match=r"above 1\.0 cannot be asked of") as caught:
            plan(house, asked, secret)
        assert VALUE not in caught.value.message


def test_what_is_recorded_of_a_model_has_no_secret(here: Path) -> None:
    models = FakeModels(two=METHODS)
    secrets = Secrets({"token": [VALUE]})
    seat = Seat("kept", Model(family="two"), "two", None, {"login": [VALUE]})
    seat.model, seat.error = models.load("two", name="kept"), WorkflowError(f"no login with {VALUE}")
    seat.model.report = {"as": VALUE}
    roster = Roster(models, {}, {}, here)
    assert VALUE not in json.dumps(describe_seat(roster, seat, secrets, look=False), default=str)


@pytest.mark.parametrize(
    ("name", "spec", "secret"),
    [
        ("token", Input(type="text"), True),
        ("api-key", Input(type="text"), True),
        ("db_password", Input(type="any"), True),
        ("pin", Input(type="text"), False),
        ("pin", Input(type="text", secret=True), True),
        ("key", Input(type="text", secret=False), False),
        ("key_frames", Input(type="images"), False),
        ("token_limit", Input(type="integer"), False),
    ],
)
def test_which_inputs_are_secrets(name: str, spec: Input, secret: bool) -> None:
    assert is_secret_input(name, spec) is secret


def test_a_default_is_no_secret(house: House) -> None:
    done = Workflow.parse(TEXT.replace("token: {type: text}", "token: {type: text, default: anonymous}")).run(
        FakeModels(one=METHODS, two=METHODS), out="out"
    )
    assert done.results()[0]["greet"] == {"hello": "ada by Bearer anonymous"}
    assert done.record["workflow"]["withheld"] == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "{type: text}",
            "{type: integer, secret: true}",
            r"<text>:6:26: a secret is of type text, list, any",
        ),
        ("{family: one}", '{family: one, checkpoint: "hf:a/${token}"}', r"\$\{token\} is a secret, and a"),
    ],
)
def test_what_cannot_be_kept_secret_is_refused(old: str, new: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Workflow.parse(TEXT.replace(old, new))


def test_a_secret_of_the_wrong_type_is_not_quoted(house: House) -> None:
    for given in ("{it's: [hunter2", "hunter2"):
        with pytest.raises(ConfigError, match="--input names: ") as caught:
            house.run(
                TEXT.replace("{type: list, default: [ada, bob]}", "{type: list, secret: true}"),
                inputs={"names": given if given == "hunter2" else [given]},
            )
        assert "hunter2" not in caught.value.message


def test_another_input_that_holds_the_secret_is_withheld_too(house: House) -> None:
    done = house.run(inputs={"names": [f"https://{VALUE}@host", "b"]})
    assert done.record["workflow"]["withheld"] == ["token", "names"]
    assert done.record["inputs"] == {"token": "<token>", "names": "<names>"}


def test_how_it_is_crossed_out() -> None:
    secrets = Secrets(
        {"pin": ["1234"], "word": ['it\'s\n"é" here'], "number": ["4711.125"], "part": ["abcdef"]}
    )
    assert secrets.text("1234 12345 pin=1234.") == "<pin> 12345 pin=<pin>."
    assert secrets.text("xabcdefx") == "x<part>x"
    word = 'it\'s\n"é" here'
    assert (
        secrets.text(f"{word!r} {json.dumps(word)} {json.dumps(word, ensure_ascii=False)}").count("<word>")
        == 3
    )
    assert secrets.text("?q=it%27s%0A%22%C3%A9%22%20here") == "?q=<word>"
    assert secrets.value({"abcdef": [4711.125, 1234, True, (b"\xffabcdef",)]}) == {
        "<part>": ["<number>", 1234, True, [b"\xff<part>"]]
    }  # fmt: skip


def test_a_name_alone_is_the_variable_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("token", "a=b")
    assert parse_overrides(["token", "n=1"]) == {"token": ["a=b"], "n": ["1"]}
    monkeypatch.delenv("token")
    with pytest.raises(ConfigError, match="or the name of a variable that is set"):
        parse_overrides(["token"])
