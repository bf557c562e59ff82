"""8 and 4 bit layers through bitsandbytes, the family's extra `quantization`."""

from __future__ import annotations

from typing import Any, Callable, Mapping

import torch
from torch import nn

__all__ = ["quantize"]


def quantize(
    plan: Any, language: Any, placed: Mapping[str, str], maker: Callable[..., Any], told: Callable[..., None]
) -> None:
    """Fill the language model's layers one at a time, their linear layers in `plan.bits` bits.

    Norms and routers keep their dtype, as do embeddings, head and the whole vision side. Raises ImportError that names
    the extra where bitsandbytes is missing.
    """
    library = bitsandbytes()
    for index, layer in enumerate(language.model.layers):
        prefix, device = f"model.layers.{index}.", placed[str(index)]
        names = [name for name, _ in layer.named_parameters()]
        plan.tensors.fill({prefix + name: maker(layer, name, plan.dtype, "cpu") for name in names}, told)
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear) and not name.endswith("gate"):
                owner, _, attribute = name.rpartition(".")
                setattr(
                    layer.get_submodule(owner),
                    attribute,
                    smaller(library, module, plan.bits, plan.dtype, device),
                )
        layer.to(device)


def smaller(library: Any, linear: nn.Linear, bits: int, dtype: torch.dtype, device: str) -> Any:
    """A quantized stand-in of a linear layer without bias; the weights shrink as they reach the device."""
    rows, columns = linear.weight.shape
    weight = linear.weight.data
    if bits == 8:
        made = library.nn.Linear8bitLt(
            columns, rows, bias=False, has_fp16_weights=False, threshold=6.0, device="meta"
        )
        made.weight = library.nn.Int8Params(
            weight.to(torch.float16), requires_grad=False, has_fp16_weights=False
        )
    else:
        made = library.nn.Linear4bit(
            columns,
            rows,
            bias=False,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        made.weight = library.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4"
        )
    return made.to(device)


def bitsandbytes() -> Any:
    """The library, or an error that says how the environment gets it."""
    try:
        import bitsandbytes as library
    except ImportError as error:
        raise ImportError(
            f"load_in_8bit and load_in_4bit need bitsandbytes, which this environment does not have ({error}); load the "
            "family with its extra, with_=['quantization']"
        ) from error
    return library
