"""On a real GPU: the inventory is the driver's, and estimates are near what a model really takes.

Skipped where no accelerator is visible. The model runs in whatever interpreter has a torch that sees the GPU:
this one, `python3`, or the one that ORCHESTRATOR_GPU_PYTHON names.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache

import pytest

from orchestrator.devices import GIB, Inventory
from orchestrator.placement import estimate_from_config, place
from orchestrator.placement.place import RUNTIME

INVENTORY = Inventory.detect()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not INVENTORY.accelerators, reason=f"no GPU: {'; '.join(INVENTORY.notes)}"),
]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32000,
    "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
PROBE = """
import json, sys
import torch
from torch import nn
sizes, tokens, width = json.loads(sys.argv[1])
seen = torch.cuda.device_count()
empty = torch.cuda.mem_get_info()[0]
kept = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]
x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
y = nn.functional.gelu(x @ torch.randn(width, width, device="cuda", dtype=torch.bfloat16)).sum().item()
torch.cuda.synchronize()
print(json.dumps({"seen": seen, "allocated": torch.cuda.max_memory_allocated(),
                  "taken": empty - torch.cuda.mem_get_info()[0]}))
sys.stdin.read()
"""


@cache
def gpu_python():
    for python in (os.environ.get("ORCHESTRATOR_GPU_PYTHON"), sys.executable, shutil.which("python3")):
        if python is None:
            continue
        check = "import torch, sys; sys.exit(not torch.cuda.is_available())"
        if (
            subprocess.run([python, "-c", check], capture_output=True, check=False, timeout=120).returncode
            == 0
        ):
            return python
    return None


@pytest.fixture
def probe():
    """Runs the probe on one device and leaves it there until the test is over."""
    if gpu_python() is None:
        pytest.skip("no interpreter here has a torch that sees the GPU")
    running = []

    def start(uuid, sizes):
        process = subprocess.Popen(
            [gpu_python(), "-c", PROBE, json.dumps([sizes, 2048, 2048])], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "CUDA_VISIBLE_DEVICES": uuid},
        )  # fmt: skip
        running.append(process)
        line = process.stdout.readline()
        return process.pid, json.loads(line)

    yield start
    for process in running:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def test_the_inventory_is_the_drivers():
    smi = shutil.which("nvidia-smi")
    if smi is None or any(d.alone for d in INVENTORY.accelerators):
        pytest.skip("nvidia-smi does not list what is to be compared")
    query = [smi, "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    listed = dict(line.split(", ") for line in lines)
    for device in INVENTORY.accelerators:
        assert device.total // 2**20 == pytest.approx(int(listed[device.uuid]), abs=1)
        assert 0 <= device.free <= device.total


def test_a_worker_sees_its_device_and_no_other(probe):
    _, found = probe(INVENTORY.accelerators[0].uuid, [2**20])
    assert found["seen"] == 1


def test_the_estimate_is_near_what_is_taken(probe, record_property):
    needs = estimate_from_config(CONFIG, "bfloat16")
    device = INVENTORY.accelerators[0]
    if device.free < 8 * GIB:
        pytest.skip("less than 8 GiB free")
    placement = place(needs, INVENTORY, devices=[device.uuid])
    before = Inventory.detect().select(device.uuid).free
    _, found = probe(device.uuid, [block.weights.bytes("bfloat16") for block in needs.blocks])
    taken = before - Inventory.detect().select(device.uuid).free
    share = placement.shares[0]
    record_property("estimated", share.used)
    record_property("taken", taken)
    assert found["allocated"] >= share.weights
    assert taken <= share.used  # the estimate is an upper bound
    assert share.used - taken <= share.state + share.workspace + RUNTIME["cuda"]
