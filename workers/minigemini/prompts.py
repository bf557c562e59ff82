"""MiniGemini's five conversation formats, and prompts with pictures as token ids."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from orchestrator.worker.images import Turn

__all__ = ["IMAGE", "IMAGE_ID", "TEMPLATES", "image_token_ids", "number_images", "render"]

IMAGE = "<image>"
IMAGE_ID = -200  # stands in the ids where a picture's tokens go; no tokenizer has it

ASSISTANT_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA_3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


class Template(NamedTuple):
    """How a conversation becomes a prompt. `write` takes the system text and user and assistant texts in turn."""

    system: str
    write: Callable[[str, Sequence[str]], str]


def vicuna(system: str, texts: Sequence[str]) -> str:
    prompt = system + " "
    for index, text in enumerate(texts):
        prompt += f"ASSISTANT: {text}</s>" if index % 2 else f"USER: {text} "
    return prompt + "ASSISTANT:"


def chatml(system: str, texts: Sequence[str]) -> str:
    prompt = f"<|im_start|>system\n{system}<|im_end|>"
    for index, text in enumerate(texts):
        prompt += f"<|im_start|>{'assistant' if index % 2 else 'user'}\n{text}<|im_end|>"
    return prompt + "<|im_start|>assistant\n"


def mistral(system: str, texts: Sequence[str]) -> str:
    """The first turn has no `<s>`: the tokenizer puts one."""
    prompt = ""
    if system:
        texts = [f"<<SYS>>\n{system}\n<</SYS>>\n\n{texts[0]}", *texts[1:]]
    for index, text in enumerate(texts):
        prompt += f" {text} </s>" if index % 2 else f"{'<s>' if index else ''}[INST] {text} [/INST]"
    return prompt


def gemma(system: str, texts: Sequence[str]) -> str:
    prompt = system
    for index, text in enumerate(texts):
        role, end = ("model", "<eos>") if index % 2 else ("user", "")
        prompt += f"<start_of_turn>{role}\n{text}<end_of_turn>\n{end}"
    return prompt + "<start_of_turn>model\n"


def llama_3(system: str, texts: Sequence[str]) -> str:
    """The assistant's role really is "system": the published models were trained so."""
    prompt = f"<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
    for index, text in enumerate(texts):
        role = "system" if index % 2 else "user"
        prompt += f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
    return prompt + "<|start_header_id|>system<|end_header_id|>\n\n"


TEMPLATES: Dict[str, Template] = {
    "vicuna_v1": Template(ASSISTANT_SYSTEM, vicuna),
    "chatml_direct": Template("Answer the questions.", chatml),
    "mistral_instruct": Template("", mistral),
    "gemma": Template("", gemma),
    "llama_3": Template(LLAMA_3_SYSTEM, llama_3),
}


def render(template: str, turns: Sequence[Turn], placeholder: str = IMAGE) -> str:
    """The prompt, ending where the answer begins.

    A first message of role "system" replaces the template's own system text; then user and assistant take turns, and
    the user speaks last. Raises ValueError where they do not.
    """
    system: Optional[str] = None
    if turns and turns[0]["role"] == "system":
        system, turns = text_of(turns[0], placeholder), turns[1:]
    for index, turn in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if turn["role"] != expected:
            raise ValueError(
                f"message {index + 1} after the system's is the {turn['role']}'s where the {expected}'s is due: "
                "user and assistant take turns, the user begins"
            )
    if len(turns) % 2 == 0:
        raise ValueError("the last message must be the user's")
    chosen = TEMPLATES[template]
    texts = [text_of(turn, placeholder) for turn in turns]
    return number_images(chosen.write(chosen.system if system is None else system, texts))


def text_of(turn: Turn, placeholder: str) -> str:
    """A turn's text, with a line of its own for each picture."""
    return "".join(
        placeholder + "\n" if part["type"] == "image" else spoken(part) for part in turn["content"]
    )


def spoken(part: Mapping[str, Any]) -> str:
    if part["type"] != "text":
        raise ValueError(f"MiniGemini reads texts and images, not a {part['type']}")
    return str(part["text"])


def number_images(prompt: str) -> str:
    """With two pictures or more, each is announced: `Image 1:<image>`."""
    pieces = prompt.split(IMAGE)
    if len(pieces) < 3:
        return prompt
    return (
        "".join(f"{piece}Image {index + 1}:{IMAGE}" for index, piece in enumerate(pieces[:-1])) + pieces[-1]
    )


def image_token_ids(prompt: str, tokenizer: Any) -> List[int]:
    """The prompt's ids with -200 for each picture.

    The text between pictures is tokenised piece by piece, so a SentencePiece tokenizer begins each with its space; the
    BOS that it puts before each piece is kept once.
    """
    pieces = [list(tokenizer(piece).input_ids) for piece in prompt.split(IMAGE)]
    ids: List[int] = []
    skip = 1 if pieces[0][:1] == [tokenizer.bos_token_id] else 0
    for index, piece in enumerate(pieces):
        ids += [IMAGE_ID] if index else piece[:skip]
        ids += piece[skip:]
    return ids
