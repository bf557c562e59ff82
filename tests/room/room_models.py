"""What the tests of this room load: memory that is really taken, and methods that run out of it on demand."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from orchestrator.worker.inference import map_batches


class Weighty:
    def __init__(self, checkpoint: str = "", mib: int = 0, answer: int = 0) -> None:
        self.weights = np.ones(mib << 20, np.uint8)
        self.answer = answer

    def ask(self) -> int:
        return self.answer + int(self.weights[-1])

    def pid(self) -> int:
        return os.getpid()

    def wait_for(self, file: str) -> str:
        while not os.path.exists(file):
            time.sleep(0.02)
        return "waited"

    def take_it_all(self) -> None:
        taken = []
        while True:
            taken.append(np.ones(16 << 20, np.uint8))

    def where(self) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def doubled(self, items: list[int], batch_size: int = 8) -> list[int]:
        return map_batches(lambda batch: [2 * item for item in batch], items, batch_size)

    def doubled_on(self, device: str, items: list[int]) -> list[int]:
        """Fits on one device only."""

        def run(batch: list[int]) -> list[int]:
            if os.environ["CUDA_VISIBLE_DEVICES"] != device:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return [2 * item for item in batch]

        return map_batches(run, items, 4)

    def never(self) -> Any:
        raise MemoryError
