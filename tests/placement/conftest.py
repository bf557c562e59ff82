import json

import pytest
from made_checkpoints import LLAMA, llama_tensors, write_safetensors


@pytest.fixture
def llama(tmp_path):
    """Writes a small Llama and returns its folder; `stored` is the dtype as safetensors names it, more keys for config.json."""

    def write(stored="F16", name="tiny-llama", **config):
        folder = tmp_path / name
        folder.mkdir()
        merged = {**LLAMA, **config}
        (folder / "config.json").write_text(json.dumps(merged))
        write_safetensors(folder / "model.safetensors", llama_tensors(stored, merged))
        return folder

    return write


@pytest.fixture(scope="session")
def accelerate_python(store, catalog):
    """The interpreter of a family's environment that has accelerate; built once per machine."""
    return str(store.ensure(catalog.get("causal-lm")).python)
