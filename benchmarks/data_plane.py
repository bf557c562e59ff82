"""Round trips of values between two environments: this project, its peers, and the machine's limit, in one run.

    python benchmarks/data_plane.py [--rows product,raw_zmq,…] [--payloads empty,1MB,…] [--rounds 5]

Rows are interleaved: every row is measured once in each round, so that a slow minute of the machine hits them all.
Peers live in environments of their own, made once with uv in `--environments`. Prints a Markdown table: median round
trip and, behind it, the ratio to the limit (an empty round trip over a unix socket and two warm copies).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from machine import describe

from orchestrator.environments.indexes import read_indexes
from orchestrator.environments.uv import find_uv, uv_environment
from orchestrator.settings import load_settings

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
from _driver import PAYLOADS  # noqa: E402 - the drivers' folder is not a package: each runs in its own environment

COUNTS = {
    "empty": 400,
    "1KB": 300,
    "64KB": 200,
    "dict200": 40,
    "1MB": 60,
    "images64": 12,
    "16MB": 8,
    "256MB": 3,
}
BUDGET = 1.5  # seconds that a row may use for one payload in one round
CLIENT = ("numpy>=2", "pyzmq", "msgpack")
WORKER = ("numpy<2", "pyzmq", "msgpack")


@dataclass(frozen=True)
class Row:
    """One line of the table. `client` and `worker` are requirements; the worker's Python is the driver's argument."""

    name: str
    driver: str
    client: Sequence[str] = CLIENT
    worker: Sequence[str] = WORKER
    label: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


ROWS = (
    Row("limit", "limit.py", label="limit: unix socket and two warm copies"),
    Row("two_processes", "two_processes.py", label="two processes that only copy, no codec"),
    Row("raw_zmq", "raw_zmq.py", label="raw pyzmq ipc, no codec"),
    Row("product", "product.py", client=(), label="**this project**, public client"),
    Row(
        "product_tcp",
        "product.py",
        client=(),
        label="this project, `ORCHESTRATOR_TRANSPORT=tcp` (encrypted)",
        variables={"ORCHESTRATOR_TRANSPORT": "tcp"},
    ),
    Row("pipe", "pipe.py", label="multiprocessing pipe (pickle, same environment)"),
    Row("execnet", "execnet_gateway.py", client=(*CLIENT, "execnet"), label="execnet 2 (bytes)"),
    Row(
        "appose",
        "appose_service.py",
        client=("appose", "numpy>=2"),
        worker=("appose", "numpy<2"),
        label="Appose",
    ),
    Row(
        "ray",
        "ray_actor.py",
        client=("ray[default]==2.60.0", "numpy<2"),
        worker=("ray[default]==2.60.0", "numpy<2"),
        label="Ray actor, py_executable (numpy 1.26 on both ends: it fails across majors)",
    ),
    Row(
        "http",
        "http_json.py",
        client=("httpx", "numpy>=2"),
        worker=("fastapi", "uvicorn", "numpy<2"),
        label="FastAPI + httpx, JSON and base64",
    ),
)


@dataclass
class Driver:
    """A row's process and what it measured."""

    row: Row
    process: subprocess.Popen[str]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def measure(self, payload: str) -> None:
        if payload in self.errors or "" in self.errors:
            return
        known = self.seconds.setdefault(payload, [])
        count = COUNTS[payload]
        count = max(1, min(count, int(BUDGET / statistics.median(known)))) if known else min(count, 10)
        answer = self.ask({"payload": payload, "count": count})
        if "error" in answer:
            self.errors[payload] = answer["error"]
        known.extend(answer.get("seconds", ()))

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            return dict(json.loads(self.process.stdout.readline() or '{"error": "the row ended"}'))
        except (OSError, ValueError) as error:
            return {"error": str(error)}


def environment(folder: Path, name: str, requirements: Sequence[str]) -> str:
    """The Python of an environment with `requirements`, made once."""
    if not requirements:
        return sys.executable
    python = folder / name / "bin" / "python"
    if not python.exists():
        environ = uv_environment(load_settings(), read_indexes().variables)
        uv = [find_uv(), "-q"]
        subprocess.run([*uv, "venv", "--python", "3.11", str(folder / name)], env=environ, check=True)
        install = [*uv, "pip", "install", "--python", str(python), *requirements]
        subprocess.run(install, env=environ, check=True)
    return str(python)


def start(row: Row, folder: Path) -> Driver:
    client = environment(folder, f"{row.name}-client", row.client)
    worker = environment(folder, f"{row.name}-worker", row.worker)
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [client, str(HERE / "peers" / row.driver), worker],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**environ, **row.variables},
    )
    driver = Driver(row, process)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline() or '{"error": "the row ended at its start"}')
    if "error" in ready:
        driver.errors[""] = ready["error"]
    print(f"# {row.name}: {ready}", file=sys.stderr, flush=True)
    return driver


def duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def table(drivers: Sequence[Driver], payloads: Sequence[str]) -> str:
    """Median round trips, each with its ratio to the limit and, for small payloads, to raw pyzmq."""
    medians = {d.row.name: {p: statistics.median(s) for p, s in d.seconds.items() if s} for d in drivers}
    lines = ["| | " + " | ".join(payloads) + " |", "|---" * (len(payloads) + 1) + "|"]
    for driver in drivers:
        cells = []
        for payload in payloads:
            value = medians[driver.row.name].get(payload)
            if value is None:
                cells.append("–")
                continue
            limit = medians.get("limit", {}).get(payload)
            cells.append(duration(value) + (f" ×{value / limit:.1f}" if limit else ""))
        lines.append(f"| {driver.row.label} | " + " | ".join(cells) + " |")
    product, raw = medians.get("product", {}), medians.get("raw_zmq", {})
    ratios = [f"{p} ×{product[p] / raw[p]:.2f}" for p in payloads if p in product and p in raw]
    return "\n".join([*lines, "", "This project against raw pyzmq ipc: " + ", ".join(ratios) + "."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS))
    parser.add_argument("--payloads", default=",".join(PAYLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    default = Path(platformdirs.user_cache_dir("orchestrator-benchmarks"))
    parser.add_argument("--environments", type=Path, default=default)
    arguments = parser.parse_args()
    payloads = arguments.payloads.split(",")
    wanted = arguments.rows.split(",")
    drivers = [start(row, arguments.environments) for row in ROWS if row.name in wanted]
    for payload in payloads:
        for _ in range(arguments.rounds):
            for driver in drivers:
                driver.measure(payload)
        print(f"# {payload} done, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    for driver in drivers:
        driver.process.communicate()
    print(describe() + "\n\n" + table(drivers, payloads))
    for driver in drivers:
        for payload, error in driver.errors.items():
            print(f"- {driver.row.name} {payload}: {error}")


if __name__ == "__main__":
    main()
