"""A family whose values are torch tensors."""

from __future__ import annotations

import torch


class Tensors:
    """Makes tensors, and looks at those that come."""

    def facts(self, value):
        """dtype, shape, and the bytes of a tensor as torch sees them."""
        assert isinstance(value, torch.Tensor), type(value)
        carrier = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}[
            value.element_size()
        ]
        flat = value.detach().cpu().contiguous().reshape(-1)
        return [str(value.dtype)[6:], list(value.shape), flat.view(carrier).numpy().tobytes()]

    def make(self, dtype, shape):
        count = 1
        for side in shape:
            count *= side
        return torch.arange(count).reshape(shape).to(getattr(torch, dtype))

    def echo(self, value):
        return value

    def kinds(self):
        parameter = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
        return [
            parameter,
            torch.arange(12.0).reshape(3, 4).T,
            torch.arange(12.0)[::2],
            torch.tensor([1 + 2j]).conj(),
            torch.tensor(5),
            torch.zeros(0, 3),
            {"loss": torch.ones(1, requires_grad=True) * 2},
        ]

    def sparse(self):
        return torch.eye(3).to_sparse()

    def meta(self):
        return torch.empty(3, device="meta")
