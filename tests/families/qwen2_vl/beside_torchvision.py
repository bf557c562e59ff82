"""Runs in an environment whose torchvision does not import: the worker's class all the same.

usage: python beside_torchvision.py ROOT CHECKPOINT OUT.npy
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np

root, checkpoint, out = sys.argv[1:]
try:
    importlib.import_module("torchvision")
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
else:
    raise SystemExit("this torchvision imports: it proves nothing")
for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
    del sys.modules[name]

package = types.ModuleType("orchestrator")  # of which a worker sees `orchestrator.worker` only
package.__path__ = [str(Path(root) / "orchestrator")]
sys.modules["orchestrator"] = package
folder = Path(root) / "workers" / "qwen2_vl"
spec = importlib.util.spec_from_file_location(
    "qwen2_vl", folder / "__init__.py", submodule_search_locations=[str(folder)]
)
module = sys.modules["qwen2_vl"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

sys.path.insert(0, str(Path(__file__).parent))
from pictures import PROMPT, picture  # noqa: E402

from orchestrator.worker.inference import CPU  # noqa: E402

np.save(
    out,
    module.Qwen2VL(checkpoint, placement=CPU).forward(images=[picture(75, 100, 2)], prompt=PROMPT)["logits"],
)
