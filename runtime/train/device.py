"""The device to train on, and what it has."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path

import torch

from ..problem import Problem


def find_device(name: str) -> torch.device:
    """`auto` (CUDA if there is any, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`. Problem when it is not here.

    A GPU becomes torch's current one, on which Triton launches kernels.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not count:
            raise Problem(f"--device {name}: torch sees no CUDA device here", "use --device cpu, or leave it out")
        if (device.index or 0) >= count:
            raise Problem(f"--device {name}: there are {count} CUDA devices, numbered from 0")
        if device.index is not None:
            torch.cuda.set_device(device)
        return torch.device("cuda", torch.cuda.current_device())
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise Problem(f"--device {name}: torch sees no Apple GPU here", "use --device cpu, or leave it out")
    if device.type not in ("cpu", "mps"):
        raise Problem(f"--device {name}: there is no such device", "it can be auto, cpu, cuda, cuda:N or mps")
    return device


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(_host_memory(), _container_memory())


def used_memory(device: torch.device) -> int:
    """The most bytes this process has held so far: allocated by torch on CUDA, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: torch.device) -> str:
    """What the device is called: the model of a GPU, the architecture of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def make_deterministic() -> None:
    """Have torch use only kernels that give the same bits each time; one that has no such form raises RuntimeError.

    Attention is the main difference: its backward on CUDA otherwise adds in any order (`use_deterministic_algorithms`
    in torch's documentation, which also asks for cuBLAS's workspace to be set, before its first use).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling memory costs time, and is for finding errors.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _host_memory() -> int:
    """Linux says what programs can still have without swapping (`MemAvailable`, proc(5)); elsewhere all memory."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container_memory() -> int:
    """What the control group leaves (cgroup v2, `memory.max` less what is in use and cannot be dropped)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return sys.maxsize
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return sys.maxsize
