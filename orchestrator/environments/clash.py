"""Why two families cannot share an environment: uv's explanation as one chain of requirements for each."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from dataclasses import dataclass

from packaging.utils import canonicalize_name

__all__ = ["Chain", "Clash", "explain"]

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
SPEC = r"[<>=!~][^\s]*"
# "flagembedding>=1.4.2 depends on transformers>=4.44.2,<6.0.0", "all versions of a depend on b==1"
DEPENDS = re.compile(
    rf"(?:all versions of )?({NAME})(?:\[[^\]]*\])?({SPEC})? depends? on (?:one of:\s*)?({NAME})(?:\[[^\]]*\])?({SPEC})?"
)


@dataclass(frozen=True)
class Chain:
    """How a family comes to ask for a package."""

    family: str
    links: tuple[str, ...]
    """Requirements from the family's own to the one in dispute: `flagembedding==1.4.2`, `transformers>=4.44.2`."""

    def __str__(self) -> str:
        first, *rest = self.links
        return f"{self.family} needs {first}" + "".join(f", which needs {link}" for link in rest)


@dataclass(frozen=True)
class Clash:
    """Two families that cannot share an environment."""

    families: tuple[str, str]
    package: str | None
    """The package that they disagree about, where uv's words say."""
    chains: tuple[Chain, ...]
    words: str
    """uv's own explanation."""

    def __str__(self) -> str:
        a, b = self.families
        if not self.chains:
            return f"{a} and {b} cannot share an environment:\n{self.words}"
        return f"{a} and {b} disagree about {self.package}:\n" + "\n".join(
            f"  {chain}" for chain in self.chains
        )


Edges = dict[str, list[tuple[str, str]]]


def explain(a: str, b: str, package_a: str, package_b: str, words: str) -> Clash:
    """The clash of the families labelled `a` and `b`, which uv knows as the packages `package_a` and `package_b`."""
    readable = words.replace(f"{package_a}==0", a).replace(f"{package_b}==0", b)
    readable = readable.replace(package_a, a).replace(package_b, b)
    edges = _edges(words)
    paths_a, paths_b = _paths(edges, package_a), _paths(edges, package_b)
    disputed = [
        name
        for name in paths_a
        if name in paths_b and _version(paths_a[name][-1]) != _version(paths_b[name][-1])
    ]
    if not disputed:
        return Clash((a, b), None, (), readable)
    name = min(disputed, key=lambda item: len(paths_a[item]) + len(paths_b[item]))
    chains = (Chain(a, _links(paths_a[name])), Chain(b, _links(paths_b[name])))
    return Clash((a, b), name, chains, readable)


def _edges(words: str) -> Edges:
    """Package -> what it depends on by its own metadata: (name, version range). uv's conclusions are left out."""
    edges: Edges = defaultdict(list)
    for sentence in re.split(r"(?:And b|B)ecause ", " ".join(words.split())):
        premises = sentence.partition(", we can conclude")[0]
        for premise in premises.split(" and "):
            if not premise.startswith("we know"):
                for name, _, other, spec in DEPENDS.findall(premise):
                    edges[canonicalize_name(name)].append((canonicalize_name(other), spec))
    return edges


def _paths(edges: Edges, start: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """Every package that can be reached from `start`, with the shortest way to it."""
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    queue: deque[tuple[str, tuple[tuple[str, str], ...]]] = deque([(start, ())])
    while queue:
        name, way = queue.popleft()
        for step in edges.get(name, ()):
            if step[0] not in found:
                found[step[0]] = (*way, step)
                queue.append((step[0], found[step[0]]))
    return found


def _links(path: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(name + version for name, version in path)


def _version(step: tuple[str, str]) -> str:
    return step[1]
