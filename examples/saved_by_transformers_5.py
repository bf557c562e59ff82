"""Writes folders as transformers 5 saves them, for saved_by_5_matrix.yaml.

orchestrator call examples/saved_by_transformers_5.py:save checkpoint=FOLDER destination=saved_by_5
orchestrator call examples/saved_by_transformers_5.py:save checkpoint=FOLDER destination=saved_by_5_model tokenizer=false
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.4", "transformers==5.23.0"]
# ///

from __future__ import annotations

import shutil
from pathlib import Path

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def save(checkpoint: str, destination: str, tokenizer: bool = True) -> str:
    """Loads a causal language model and saves it; returns the new folder.

    Without `tokenizer` the tokenizer's files stay as they were, so that older versions can read them, and only
    config.json and the weights are as transformers 5 writes them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(destination).absolute()
    AutoModelForCausalLM.from_pretrained(checkpoint).save_pretrained(folder)
    if tokenizer:
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
        return str(folder)
    for name in TOKENIZER:
        if (file := Path(checkpoint) / name).is_file():
            shutil.copy(file, folder / name)
    return str(folder)
