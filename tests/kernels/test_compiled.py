"""Every kernel compiled to the end for GPUs that are not here, at the sizes of real models: few spill, all fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from .compile_ahead import Compiled

ROOT = Path(__file__).resolve().parents[2]
SHARED = {90: 227 << 10, 86: 99 << 10}  # bytes that one program can have (CUDA programming guide, compute capabilities)
SPILLED = 256  # bytes of a thread
# What spills more at heads of 256 or at latents, as it is known to: none may get worse.
KNOWN = {"attention_backward_keys": 2048, "attention_forward": 2304, "attention_backward_queries": 1024,
         "multiply_add_kernel": 512, "product_kernel": 512, "split_kernel": 600}  # fmt: skip
GROUPS = ("attention", "decode", "experts", "loss", "optimizer", "products")


def compiled(folder: Path, *options: str) -> list[Compiled]:
    """By a process of its own: in this one, kernels are interpreted."""
    out = folder / "compiled.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
    command = [sys.executable, "-m", "tests.kernels.compile_ahead", "--out", str(out), *options]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [Compiled(**found) for found in json.loads(out.read_text())]


def check(found: list[Compiled], shared: int, every: bool) -> None:
    """No errors and few spills; of each call some way fits, where `every` was tried."""
    wrong = [f"{c.name}, {c.way}: {c.error}" for c in found if c.error]
    # What is too large for this GPU is not taken there, however it spills.
    fitting = [c for c in found if c.shared <= shared]
    wrong += [
        f"{c.name}, {c.way}: {c.spilled} bytes spilled"
        for c in fitting if c.spilled > (KNOWN.get(c.name, SPILLED) if every else 2 * SPILLED)
    ]  # fmt: skip
    least: defaultdict[tuple[str, str], int] = defaultdict(lambda: 1 << 30)
    for c in found:
        for call in c.calls:
            least[c.name, call] = min(least[c.name, call], c.shared)
    wrong += [
        f"{name} of {call}: {size} bytes of shared memory" for (name, call), size in least.items() if size > shared
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_each_kernel_once_for_hopper(tmp_path: Path) -> None:
    found = compiled(tmp_path, "--arch", "90", "--quick")
    assert len({c.name for c in found}) > 30
    check(found, SHARED[90], every=False)


@pytest.mark.exhaustive
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("arch", sorted(SHARED))
def test_each_way(group: str, arch: int, tmp_path: Path) -> None:
    check(compiled(tmp_path, "--arch", str(arch), "--all", "--group", group), SHARED[arch], every=True)
