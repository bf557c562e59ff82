"""What must not be in the source at all: read as a tree, so that no spelling hides it. Each rule is seen to catch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("orchestrator", "workers", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
RUN_BY_NAME = {"eval", "exec", "execfile", "__import__"}
OBJECTS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
UNPACKED = {"extractall", "unpack_archive", "_extract_member"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput"}
YAML = {
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.full_load_all",
    "yaml.unsafe_load_all",
}
LOADERS = {"UnsafeLoader", "FullLoader", "Loader", "CLoader"}

# A file's header is read by an unpickler that makes inert stand-ins: tests/placement/test_files.py has the evil ones.
READS_HEADERS = ROOT / "orchestrator" / "placement" / "files.py"
# What both sides of the wire run: no class, module or attribute is looked up by a name that came from outside.
WIRE = [
    ROOT / "orchestrator" / "worker" / f"{name}.py"
    for name in (
        "wire",
        "values",
        "arrays",
        "messages",
        "segments",
        "forwarding",
        "nameless",
        "channel",
        "transport",
        "curve",
        "desk",
    )
]
# torch's dtype of a name that is in the codec's own table: tests/worker/test_wire.py tries others.
EXCEPTIONS = {("values.py", "getattr: something looked up by a name, in a file of the wire")}
LOOKS_UP = {
    "import_module",
    "getattr",
    "setattr",
    "globals",
    "locals",
    "vars",
    "find_spec",
    "resolve_name",
    "locate",
}


def name_of(node: ast.AST) -> str:
    """`os.system` of the call `os.system(…)`; the last parts where the first is not a name."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def constant(call: ast.Call, keyword: str) -> object:
    return next(
        (k.value.value for k in call.keywords if k.arg == keyword and isinstance(k.value, ast.Constant)), None
    )


def in_call(call: ast.Call, *, wire: bool) -> Iterator[str]:
    name = name_of(call.func)
    last = name.rpartition(".")[2]
    if (name in RUN_BY_NAME and isinstance(call.func, ast.Name)) or name.startswith("builtins."):
        yield f"{name}: text becomes code"
    if name in SHELLS or constant(call, "shell") not in (None, False):
        yield f"{name}: a shell"
    if any(k.arg == "shell" and not isinstance(k.value, ast.Constant) for k in call.keywords):
        yield f"{name}: perhaps a shell"
    if name in YAML:
        yield f"{name}: YAML that makes objects"
    if last in UNPACKED:
        yield f"{name}: an archive unpacked without a look at its paths"
    if name == "torch.load" and constant(call, "weights_only") is not True:
        yield "torch.load without weights_only=True"
    if constant(call, "allow_pickle") not in (None, False) or (
        name in {"np.load", "numpy.load"} and constant(call, "allow_pickle") is not False
    ):
        yield f"{name}: allow_pickle=False is not there"
    if wire and last in LOOKS_UP and not all(isinstance(a, ast.Constant) for a in call.args[1:2]):
        yield f"{name}: something looked up by a name, in a file of the wire"
    if wire and last in LOOKS_UP - {"getattr", "setattr"}:
        yield f"{name}: in a file of the wire"


def findings(tree: ast.AST, *, headers: bool = False, wire: bool = False) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and [a.name for a in node.names] == ["UnpicklingError"]:
            continue  # what torch.load raises: nothing is read with it
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [
                f"import {m}: objects from bytes"
                for m in modules
                if m.split(".")[0] in OBJECTS and not headers
            ]
        elif isinstance(node, ast.Call):
            found += in_call(node, wire=wire)
        elif isinstance(node, ast.Attribute) and node.attr in LOADERS and name_of(node).startswith("yaml."):
            found.append(f"yaml.{node.attr}: YAML that makes objects")
        elif isinstance(node, ast.Attribute) and headers and name_of(node) in {"pickle.load", "pickle.loads"}:
            found.append(f"{name_of(node)}: objects from bytes")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_there_is_nothing_in_it_that_runs_what_it_reads(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = findings(tree, headers=path == READS_HEADERS, wire=path in WIRE)
    assert [what for what in found if (path.name, what) not in EXCEPTIONS] == []


def test_everything_is_looked_at():
    assert all(path in SOURCES for path in (READS_HEADERS, *WIRE))
    assert len(SOURCES) > 150


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)", "exec(x)", "__import__(x)", "builtins.eval(x)", "import pickle", "from pickle import loads", "import dill as d",
        "from pickle import UnpicklingError, loads",
        "import marshal", "os.system(x)", "subprocess.run(x, shell=True)", "run(x, shell=wanted)", "yaml.load(x)", "yaml.unsafe_load(x)",
        "yaml.load_all(x, Loader=yaml.Loader)", "f(yaml.UnsafeLoader)", "torch.load(x)", "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=w)", "np.load(x)", "np.load(x, allow_pickle=True)", "archive.extractall(x)",
        "shutil.unpack_archive(x)", "tarfile.open(x).extractall()",
    ],
)  # fmt: skip
def test_each_rule_catches(text):
    assert findings(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    ["getattr(module, name)", "importlib.import_module(name)", "globals()[name]", "vars(x)", "locate(n)"],
)
def test_each_rule_of_the_wire_catches(text):
    assert findings(ast.parse(text), wire=True)
    assert not findings(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "model.to(x).eval()",
        "re.compile(x)",
        "yaml.safe_load(x)",
        "torch.load(x, weights_only=True)",
        "from pickle import UnpicklingError",
        "run(x)",
    ],
)
def test_what_is_harmless_passes(text):
    assert not findings(ast.parse(text), wire=True)


def test_the_reader_of_headers_loads_nothing_by_itself():
    assert findings(ast.parse("pickle.loads(x)"), headers=True)
    assert findings(ast.parse("pickle.load(x)"), headers=True)
