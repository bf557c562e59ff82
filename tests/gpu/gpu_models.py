"""What the tests of this room load beside the built-in families: tensors on the GPU, and mistakes with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class OnGpu:
    def __init__(self, placement: Any) -> None:
        torch.manual_seed(0)
        self.device = torch.device(placement.device)
        self.net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).to(self.device)
        self.stray = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        self.stray[0].to(self.device)

    def there_and_back(self, tensor: Any) -> Any:
        """A tensor as it came, by way of the GPU; the answer is left there on purpose."""
        return torch.as_tensor(tensor).to(self.device)

    def halves(self) -> Any:
        """bfloat16 numbers whose bits a float16 would lose."""
        return torch.tensor([1.0, 3e38, 1e-38, -0.0, float("inf")], dtype=torch.bfloat16, device=self.device)

    def run(self, tensor: Any) -> Any:
        """The input comes on the CPU; nobody here moves it."""
        return self.net(torch.as_tensor(tensor))

    def run_stray(self) -> Any:
        """A wrong device map: the second layer was left on the CPU."""
        return self.stray(torch.ones(1, 16, device=self.device))

    def fill(self, keep: int) -> dict[str, int]:
        """Takes all of the GPU's memory but `keep` bytes, for as long as this worker lives."""
        free, _ = torch.cuda.mem_get_info()
        self.ballast = torch.empty(max(0, free - keep), dtype=torch.uint8, device=self.device)
        return {"free": torch.cuda.mem_get_info()[0]}

    def take(self, size: int) -> None:
        """Asks for more than there is."""
        torch.empty(size, dtype=torch.uint8, device=self.device)
