"""Runs inside an environment by the family `python`: what its transformers makes of a folder, with nothing of ours."""

from __future__ import annotations

from typing import Any


class Tokens:
    """The tokenizer as `AutoTokenizer` loads it."""

    def __init__(self, checkpoint: str) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def ids(self, text: str) -> Any:
        return [int(token) for token in self.tokenizer(text)["input_ids"]]

    def keys(self, text: str) -> Any:
        return sorted(self.tokenizer(text))

    def decoded(self, ids: Any) -> str:
        return self.tokenizer.decode(ids)

    def chat(self, text: str) -> str:
        return self.tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)


class Logits:
    """A causal model as `AutoModelForCausalLM` loads it, with no argument of ours."""

    def __init__(self, checkpoint: str) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()

    def last(self, ids: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([ids])).logits[0, -1].float().numpy()

    def dtype(self) -> str:
        return str(self.model.dtype)
