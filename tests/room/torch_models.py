"""A small torch model with the faults of this field on demand: left on meta, spread over two devices, inputs elsewhere.

The meta device stands for a second device: tensors have one, and operations refuse to mix it with another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from orchestrator.worker.modules import bring_inputs, modules_of


class Loaded(NamedTuple):
    language: Any
    towers: Any


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Any) -> Any:
        return self.linear(x) * self.scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight  # tied: counted once

    def forward(self, ids: Any) -> Any:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Torchy:
    def __init__(self, meta: str = "") -> None:
        torch.manual_seed(0)
        net = Net()
        if meta:
            net.get_submodule(meta).to("meta")
        self.loaded = Loaded(net, [nn.Linear(2, 2)])
        self.threads = torch.get_num_threads()

    def run(self) -> Any:
        return self.loaded.language(torch.tensor([1, 2]))

    def spread_and_run(self) -> Any:
        """What a wrong device map does: the second layer's scale is elsewhere."""
        layer = self.loaded.language.layers[1]
        kept, layer.scale = layer.scale, layer.scale.to("meta")
        try:
            return self.run()
        finally:
            layer.scale = kept

    def plain_mistake(self) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    def bring(self) -> dict[str, Any]:
        """The inputs of a model elsewhere, as its first layer got them: positional, keyword and nested."""
        net = nn.Linear(4, 4).to("meta")
        spread = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).to("meta"))
        seen: dict[str, Any] = {}

        def forward(x: Any, more: Any = None) -> Any:
            seen.update(x=x.device.type, more=[t.device.type for t in more["list"]], plain=more["plain"])
            return x

        net.forward = forward
        bring_inputs(modules_of({"net": net, "spread": spread}))
        assert not spread._forward_pre_hooks  # its own business
        net(torch.ones(2, 4), more={"list": [torch.ones(1)], "plain": 3})
        return seen

    def offloaded(self) -> dict[str, Any]:
        """accelerate's own offload leaves parameters on meta on purpose."""
        from accelerate import cpu_offload

        from orchestrator.worker.modules import check_memory, device_map

        net = Net()
        cpu_offload(net, torch.device("cpu"))
        modules = {"net": net}
        check_memory(modules)
        return {"meta": any(p.is_meta for p in net.parameters()), "map": device_map(modules)}

    def thread_count(self) -> int:
        return torch.get_num_threads()
