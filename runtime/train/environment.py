"""What a run ran on and with."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

import torch

from .device import device_name

PACKAGES = ("dskc", "torch", "triton", "numpy", "tokenizers", "safetensors")


def environment(device: torch.device) -> dict[str, object]:
    """Versions, device and command of this process, as written to environment.json."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "device": str(device),
        "device_name": device_name(device),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
