"""The plan: which families can share an environment, the fewest environments for all, and why others clash.

Nothing is installed: uv resolves the families together, each wrapped as a package of its own so that uv's
explanation names it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from packaging.specifiers import SpecifierSet

from orchestrator.environments.clash import Chain, Clash, explain
from orchestrator.environments.commands import parallel
from orchestrator.environments.family import Family
from orchestrator.environments.indexes import read_indexes
from orchestrator.environments.interpreters import MACHINE, Interpreter, choose, installed_interpreters
from orchestrator.environments.lock import compile_requirements, inputs_of, read_lock, work_folder
from orchestrator.environments.records import digest, read_json, write_json
from orchestrator.environments.requirements import name_of, pin_of
from orchestrator.environments.uv import refusal, uv_version
from orchestrator.errors import InterpreterNotFound, ResolutionError
from orchestrator.events import Event, Listener, ignore
from orchestrator.settings import Settings
from orchestrator.waiting import as_they_end

__all__ = ["Plan", "SharedEnvironment", "make_plan"]

EXACT = 8
"""Up to so many families the smallest number of environments is certain; beyond, a good one is found."""
AT_ONCE = 4
REMEMBERED = 86400.0
"""Seconds for which an answer of uv's counts: an index gets new releases."""


@dataclass(frozen=True)
class SharedEnvironment:
    """One environment of a plan."""

    families: tuple[str, ...]
    """Labels."""
    python: str
    """The minor version that all of them allow."""


@dataclass(frozen=True)
class Plan:
    """Which environments serve which families."""

    environments: tuple[SharedEnvironment, ...]
    compatible: tuple[tuple[str, str], ...]
    """Pairs that could share an environment."""
    clashes: tuple[Clash, ...]
    exact: bool
    """Whether no smaller set exists; else it was found by a greedy search."""


@dataclass(frozen=True)
class Answer:
    """Whether a group of families resolves together."""

    minor: str | None
    """The Python that they do with; None if they do not."""
    words: str = ""
    """uv's explanation."""
    ranges: Mapping[str, str] = field(default_factory=dict)
    """The ranges of Python, where already these leave nothing."""


Group = tuple[int, ...]


def make_plan(
    settings: Settings, families: Sequence[Family], listener: Listener = ignore, *, refresh: bool = False
) -> Plan:
    """Finds the smallest set of environments for families (at least one).

    uv's answers are remembered for a day, by what was asked and of which indexes; `refresh` asks anew.

    Raises:
        ResolutionError: a family cannot be resolved even alone.
        InstallError: the index cannot be asked.
    """
    judge = _Judge(settings, families, listener, refresh=refresh)
    numbers = range(len(families))
    judge.ask((n,) for n in numbers)
    for n in numbers:
        if judge((n,)).minor is None:
            raise ResolutionError(
                f"{families[n].label} cannot be resolved, even alone\n{judge((n,)).words}",
                log=judge((n,)).words,
            )
    pairs = list(itertools.combinations(numbers, 2))
    judge.ask(pairs)
    groups = smallest_cover(len(families), lambda group: judge(group).minor is not None)
    environments = tuple(
        SharedEnvironment(tuple(families[n].label for n in group), judge(group).minor or "")
        for group in groups
    )
    return Plan(
        environments,
        compatible=tuple((families[a].label, families[b].label) for a, b in pairs if judge((a, b)).minor),
        clashes=tuple(_clash(families, pair, judge(pair)) for pair in pairs if judge(pair).minor is None),
        exact=len(families) <= EXACT,
    )


def _clash(families: Sequence[Family], pair: Group, answer: Answer) -> Clash:
    a, b = (families[n].label for n in pair)
    if answer.ranges:
        chains = tuple(Chain(label, (f"Python {wanted}",)) for label, wanted in answer.ranges.items())
        return Clash((a, b), "Python", chains, "No installed Python is in both ranges.")
    told = explain(a, b, _package(families[pair[0]]), _package(families[pair[1]]), answer.words)
    pins = [{name_of(text): text for text in families[n].direct if pin_of(text)} for n in pair]
    for name in pins[0].keys() & pins[1].keys() - {told.package}:
        if pin_of(pins[0][name]) != pin_of(pins[1][name]):
            # uv names one reason of several; what the families are about says more than what follows from it.
            chains = tuple(Chain(label, (own[name],)) for label, own in zip((a, b), pins, strict=True))
            return replace(told, package=name, chains=chains)
    return told


def smallest_cover(count: int, together: Callable[[Group], bool]) -> list[Group]:
    """Splits `range(count)` into the fewest groups that are each `together`.

    `together` must hold for single members, and for a part of a group wherever it holds for the group. Up to
    `EXACT` members the result is smallest; beyond, members join the first group that takes them.
    """
    greedy = _greedy(count, together)
    if count > EXACT:
        return greedy
    for wanted in range(1, len(greedy)):
        found = _split(0, count, [], wanted, together)
        if found is not None:
            return found
    return greedy


def _greedy(count: int, together: Callable[[Group], bool]) -> list[Group]:
    groups: list[Group] = []
    for member in range(count):
        for index, group in enumerate(groups):
            if _joins(group, member, together):
                groups[index] = (*group, member)
                break
        else:
            groups.append((member,))
    return groups


def _split(
    member: int, count: int, groups: list[Group], wanted: int, together: Callable[[Group], bool]
) -> list[Group] | None:
    if member == count:
        return groups
    for index, group in enumerate(groups):
        if _joins(group, member, together):
            tried = [*groups[:index], (*group, member), *groups[index + 1 :]]
            found = _split(member + 1, count, tried, wanted, together)
            if found is not None:
                return found
    if len(groups) < wanted:
        return _split(member + 1, count, [*groups, (member,)], wanted, together)
    return None


def _joins(group: Group, member: int, together: Callable[[Group], bool]) -> bool:
    # The pairs are known already; only a group whose pairs all agree is worth asking uv about.
    return all(together((other, member)) for other in group) and together((*group, member))


class _Judge:
    """Asks uv whether families resolve together, once for each group."""

    def __init__(
        self, settings: Settings, families: Sequence[Family], listener: Listener, *, refresh: bool = False
    ) -> None:
        self.settings, self.families, self.listener, self.refresh = settings, families, listener, refresh
        self.interpreters = installed_interpreters(settings)
        self.answers: dict[Group, Answer] = {}

    def __call__(self, group: Group) -> Answer:
        if group not in self.answers:
            self.answers[group] = self._resolve(group)
        return self.answers[group]

    def ask(self, groups: Iterable[Group]) -> None:
        """Asks about several groups at once."""
        wanted = [group for group in groups if group not in self.answers]
        with parallel(AT_ONCE) as submit:
            futures = {submit(self._resolve, group): group for group in wanted}
            for done, future in enumerate(as_they_end(futures), 1):
                self.answers[futures[future]] = future.result()
                self.listener(Event("environment", "plan", "resolving together", done, len(wanted), "groups"))

    def _resolve(self, group: Group) -> Answer:
        families = [self.families[n] for n in group]
        answer = Answer(None)
        for interpreter in self._interpreters(group):
            answer = self._try(group, interpreter)
            if answer.minor is not None:
                return answer
        if answer.words:
            return answer
        if len(group) == 1:
            raise InterpreterNotFound(
                f"no installed Python satisfies {families[0].requires_python} of {families[0].label}",
                hint="`orchestrator doctor` lists those that are installed",
            )
        return Answer(None, ranges={family.label: family.requires_python for family in families})

    def _try(self, group: Group, interpreter: Interpreter) -> Answer:
        families = [self.families[n] for n in group]
        path = self.settings.home / "state" / "plans" / f"{_question(families, interpreter)}.json"
        known = None if self.refresh else read_json(path)
        if known is not None and 0 <= time.time() - known["when"] < REMEMBERED:
            return Answer(known["minor"], known["words"])
        answer = self._ask_uv(families, interpreter)
        write_json(path, {"minor": answer.minor, "words": answer.words, "when": time.time()})
        return answer

    def _ask_uv(self, families: Sequence[Family], interpreter: Interpreter) -> Answer:
        with work_folder(self.settings) as folder:
            args = _write(folder, families)
            done = compile_requirements(
                self.settings,
                args,
                interpreter,
                cwd=folder,
                hashes=False,
                exclude_newer=min((f.exclude_newer for f in families if f.exclude_newer), default=None),
                listener=self.listener,
                subject="plan",
            )
        if done.returncode == 0:
            return Answer(interpreter.minor)
        error = refusal(" and ".join(family.label for family in families), done)
        if not isinstance(error, ResolutionError):
            raise error
        return Answer(None, error.log)

    def _interpreters(self, group: Group) -> list[Interpreter]:
        """Those that its members have by themselves; if none of these suits all, the newest that does."""
        families = [self.families[n] for n in group]
        allowed = SpecifierSet(",".join(family.requires_python for family in families), prereleases=True)
        fitting = [i for i in self.interpreters if i.version in allowed]
        minors = {self._own_minor(family) for family in families}
        own = {i.minor: i for i in reversed(fitting) if i.minor in minors}
        return list(own.values()) or fitting[:1]

    def _own_minor(self, family: Family) -> str | None:
        lock = read_lock(family.lock_file)
        found = choose(self.interpreters, family.requires_python, lock.minor if lock else None)
        return found.minor if found else None


def _question(families: Sequence[Family], interpreter: Interpreter) -> str:
    """A name for what uv is asked; folders of wheels count with their times."""
    indexes = read_indexes()
    folders = [
        f"{folder} {Path(folder).stat().st_mtime_ns}"
        for folder in indexes.variables.get("UV_FIND_LINKS", "").split(",")
        if folder and Path(folder).is_dir()
    ]
    return digest(
        [
            uv_version(), MACHINE, interpreter.minor, *sorted(_package(family) for family in families),
            "indexes", *(f"{k}={v}" for k, v in sorted(indexes.variables.items())), *indexes.flags, *folders,
        ]
    )[:32]  # fmt: skip


def _package(family: Family) -> str:
    """What uv calls a family: by what it asks for, so that remembered explanations fit."""
    return f"family-{inputs_of(family)[:12]}"


def _write(folder: Path, families: Sequence[Family]) -> list[str]:
    """Each family as a package without code, and one file that requires them all; returns uv's arguments."""
    for family in families:
        home = folder / _package(family)
        home.mkdir(exist_ok=True)
        lines = [
            "[project]",
            f"name = {json.dumps(_package(family))}",
            'version = "0"',
            f"dependencies = {json.dumps([*family.requirements, *_own_bounds(family)])}",
        ]
        (home / "pyproject.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = dict.fromkeys(_package(family) for family in families)
    lists = {
        "requirements.in": [f"{name} @ {(folder / name).as_uri()}" for name in names],
        "constraints.txt": [
            text for family in families for text in family.all_constraints if text not in _own_bounds(family)
        ],
        "overrides.txt": [text for family in families for text in family.overrides],
    }
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["requirements.in", "--constraints", "constraints.txt", "--overrides", "overrides.txt", "--quiet"]


def _own_bounds(family: Family) -> list[str]:
    """The constraints on what the family requires anyway: as its requirements uv says whose they are."""
    required = {name_of(text) for text in family.requirements}
    return [text for text in family.all_constraints if name_of(text) in required]
