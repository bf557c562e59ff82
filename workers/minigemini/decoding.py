"""From embeddings to answers: one loop for greedy and sampled, single and batched, streamed and whole answers.

The language model's body is called directly and its head only where logits are needed, which gives the numbers of
transformers' `generate` without its changes from version to version (a BOS in front of the output up to 4.37, new
arguments of `forward` from 4.38 on), and without logits of a whole prompt in memory.
"""

from __future__ import annotations

from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Set

import torch

__all__ = ["Sampling", "all_logits", "decode"]


class Sampling(NamedTuple):
    """How answers are drawn; temperature 0 is greedy. `top_k` 0 and `top_p` 1 leave the distribution alone."""

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: Optional[int] = None


class Row:
    """One answer in the making."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.ids: List[int] = []
        self.finish_reason: Optional[str] = None if sampling.max_new_tokens > 0 else "length"
        self.random = torch.Generator()
        if sampling.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(sampling.seed)

    def take(self, logits: torch.Tensor, stops: Set[int]) -> int:
        """Choose the next token from logits (vocabulary) and note whether it is the last one."""
        token = choose(logits, self)
        self.ids.append(token)
        if token in stops:
            self.finish_reason = "stop"
        elif len(self.ids) >= self.sampling.max_new_tokens:
            self.finish_reason = "length"
        return token


@torch.inference_mode()
def all_logits(model: Any, embeddings: torch.Tensor) -> torch.Tensor:
    """Logits (t, vocabulary), float32, of embeddings (t, hidden)."""
    hidden = model.model(
        inputs_embeds=embeddings.unsqueeze(0), use_cache=False, return_dict=True
    ).last_hidden_state[0]
    return head(model, hidden)


def decode(
    model: Any, prompts: Sequence[torch.Tensor], rows: Sequence[Row], stops: Set[int]
) -> Iterator[None]:
    """Grow every row's answer token by token; one step of all rows per iteration.

    `prompts` are embeddings (t, hidden), one per row, of any lengths: shorter ones are padded in front and masked. Rows
    that are finished step along without effect until the last one is.
    """
    if all(row.finish_reason for row in rows):
        return
    batch = pad_in_front(prompts)
    with torch.inference_mode():
        state = model.model(
            inputs_embeds=batch.embeddings, use_cache=True, return_dict=True, **batch.arguments()
        )
    while True:
        with torch.inference_mode():
            logits = head(model, state.last_hidden_state[:, -1])
            tokens = [
                0 if row.finish_reason else row.take(logits[index], stops) for index, row in enumerate(rows)
            ]
        yield
        if all(row.finish_reason for row in rows):
            return
        batch.grow()
        with torch.inference_mode():
            ids = torch.tensor(tokens, device=batch.embeddings.device).unsqueeze(1)
            state = model.model(
                input_ids=ids,
                past_key_values=state.past_key_values,
                use_cache=True,
                return_dict=True,
                **batch.arguments(),
            )


class Batch:
    """Padded embeddings with their mask, which grows by one column per step; no mask where nothing is padded."""

    def __init__(self, embeddings: torch.Tensor, mask: Optional[torch.Tensor]) -> None:
        self.embeddings = embeddings
        self.mask = mask
        self.first = True

    def grow(self) -> None:
        self.first = False
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)

    def arguments(self) -> dict[str, torch.Tensor]:
        """What the model needs beside its input."""
        if self.mask is None:
            return {}
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        return {"attention_mask": self.mask, "position_ids": positions if self.first else positions[:, -1:]}


def pad_in_front(prompts: Sequence[torch.Tensor]) -> Batch:
    """Prompts of any lengths as one batch (n, longest, hidden)."""
    longest = max(len(prompt) for prompt in prompts)
    if all(len(prompt) == longest for prompt in prompts):
        return Batch(torch.stack(list(prompts)), None)
    first = prompts[0]
    embeddings = first.new_zeros(len(prompts), longest, first.shape[-1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=first.device)
    for index, prompt in enumerate(prompts):
        embeddings[index, longest - len(prompt) :] = prompt
        mask[index, longest - len(prompt) :] = 1
    return Batch(embeddings, mask)


def head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states to float32 logits."""
    return model.lm_head(hidden.to(model.lm_head.weight.device)).float()


def choose(logits: torch.Tensor, row: Row) -> int:
    """The next token of a row, in the order of transformers' processors: penalty, temperature, top_k, top_p."""
    how = row.sampling
    if how.repetition_penalty != 1.0 and row.ids:
        logits = penalised(logits, row.ids, how.repetition_penalty)
    if how.temperature <= 0:
        return int(logits.argmax())
    scores = logits.cpu() / how.temperature  # drawn on the CPU: a seed means the same on every device
    if 0 < how.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(how.top_k).values[-1], float("-inf"))
    if how.top_p < 1:
        scores = nucleus(scores, how.top_p)
    return int(torch.multinomial(scores.softmax(-1), 1, generator=row.random))


def penalised(logits: torch.Tensor, ids: Sequence[int], penalty: float) -> torch.Tensor:
    """Logits in which tokens that were given already are less likely."""
    seen = torch.tensor(sorted(set(ids)), device=logits.device)
    values = logits[seen]
    return logits.index_copy(0, seen, torch.where(values < 0, values * penalty, values / penalty))


def nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Scores of the smallest set of tokens whose probabilities add up to `top_p`, -inf elsewhere."""
    ascending, order = scores.sort()
    outside = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    outside[-1] = False  # the likeliest token always stays
    return scores.masked_fill(torch.zeros_like(outside).scatter(0, order, outside), float("-inf"))
