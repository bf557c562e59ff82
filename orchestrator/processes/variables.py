"""What a worker inherits from the coordinator's environment: an allow-list, never tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from orchestrator.worker.masking import is_secret

__all__ = ["HasDevices", "worker_variables"]

_NAMES = frozenset(
    (
        "HOME", "USER", "LOGNAME", "SHELL", "PATH", "TMPDIR", "TEMP", "TMP", "LANG", "LANGUAGE", "TZ", "TERM", "HOSTNAME",
        "LD_LIBRARY_PATH", "LD_PRELOAD", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NO_COLOR", "DO_NOT_TRACK",
        "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "GLIBC_TUNABLES", "USE_MODELSCOPE_HUB",
        "ORCHESTRATOR_INJECT_OUT_OF_MEMORY",
    )
)  # fmt: skip
_PREFIXES = (
    "LC_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "DIFFUSERS_", "TOKENIZERS_", "SAFETENSORS_",
    "ACCELERATE_", "MODELSCOPE_", "TORCH_", "PYTORCH_", "TRITON_", "NCCL_", "CUDA_", "CUDNN_", "CUBLAS_", "NVIDIA_", "OMP_",
    "MKL_", "OPENBLAS_", "NUMEXPR_", "KMP_", "GOMP_", "SSL_", "MALLOC_", "TIKTOKEN_",
)  # fmt: skip
_WEIGHTS_ONLY, _ANY_PICKLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PROXY = re.compile(r"(?i)(http|https|ftp|all|no)_proxy")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class HasDevices(Protocol):
    """What is asked of a placement here."""

    @property
    def devices(self) -> Sequence[str]: ...
    @property
    def threads(self) -> int: ...


def worker_variables(
    inherited: Mapping[str, str],
    given: Mapping[str, str],
    *,
    modules_cache: Path,
    placement: HasDevices | None = None,
) -> dict[str, str]:
    """The environment of a worker: what is allowed of `inherited`, what we set, and `given`, which wins.

    Tokens, keys and passwords are recognised by their variable's name and only come through `given`, where `${NAME}` as
    a whole value stands for the inherited variable of that name (nothing is set if there is none). Checkpoints of torch
    are read with weights only, whatever a library asks for, unless `given` allows more.
    """
    variables = {name: value for name, value in inherited.items() if _allowed(name)}
    variables.pop(_ANY_PICKLE, None)
    if _ANY_PICKLE not in given:  # torch refuses both at once
        variables[_WEIGHTS_ONLY] = "1"
    variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    variables["HF_MODULES_CACHE"] = str(modules_cache)
    if placement is not None:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(d for d in placement.devices if d != "cpu")
        for name in _THREADS:
            variables.setdefault(name, str(placement.threads))
        # Threads that wait must not spin: with more workers than cores, spinning costs a factor of 3 and more.
        variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name, value in given.items():
        reference = _REFERENCE.fullmatch(value)
        if reference is None:
            variables[name] = value
        elif reference[1] in inherited:
            variables[name] = inherited[reference[1]]
    return variables


def _allowed(name: str) -> bool:
    if is_secret(name):
        return False
    return name in _NAMES or name.startswith(_PREFIXES) or _PROXY.fullmatch(name) is not None
