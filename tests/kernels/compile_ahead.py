"""Compiles the launches of kernels for GPUs that are not there, and prints what each needs.

    python -m tests.kernels.compile_ahead [--arch 90] [--all | --quick] [--group experts] [--kernel TEXT] [--out FILE]

Operations are called with tensors on the CPU that nobody writes; each launch is taken down instead of made, with the
types and constants that it would have on the GPU, and compiled to the end, ptxas included. It is a program of its own:
where Triton interprets, as in other tests, there is nothing to compile.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dskc.runtime.kernels import KernelError, tuning
from dskc.runtime.kernels.attention import hopper, tensors
from dskc.runtime.kernels.attention import kernel as attention
from dskc.runtime.kernels.tuning import Tile, Unfit, Way

DTYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64", torch.int8: "i8",
    torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64", torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5", torch.bool: "i1",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One kernel as it would be launched: types by parameter, constants, which are multiples of 16, options."""

    name: str
    way: str
    calls: list[str]  # that it is a way of: several, where sizes make no difference
    kernel: Any = field(compare=False)
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    even: tuple[int, ...]
    options: tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Compiled:
    """What became of it: registers of a thread, bytes that it spills, bytes of shared memory; or an error."""

    name: str
    way: str
    calls: list[str]
    arch: int
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    warps: int = 0
    error: str = ""
    seconds: float = 0.0


class Recorder:
    """Stands in for launching. `ways` of an operation are all tried, or the first alone."""

    def __init__(self, every: bool, arch: int) -> None:
        self.every, self.arch, self.way, self.call = every, arch, "", ""
        self.found: dict[object, Launch] = {}

    def run_best(self, operation: str, key: object, ways: Sequence[Way], run: Callable[[Way], Any]) -> Any:
        made: Any = None
        outer = self.way
        # Where none are tiles, ways differ in what they launch; where some are, the others are a library's.
        tiles = [way for way in ways if isinstance(way, Tile) or hasattr(way, "keys")] or ways
        for way in tiles if self.every else tiles[:1]:
            self.way = f"{outer} {operation} {way.name}".strip()
            made = run(way)
        self.way = outer
        assert tiles, operation
        return made

    def launch(self, kernel: Any, args: Sequence[object], named: dict[str, object]) -> None:
        names = kernel.arg_names
        given = dict(zip(names, args, strict=False))
        given |= {name: named.pop(name) for name in names if name in named}
        signature: list[tuple[str, str]] = []
        constants: list[tuple[str, object]] = []
        even: list[int] = []
        for i, parameter in enumerate(kernel.params):
            value = given.get(parameter.name, parameter.default)
            if parameter.is_constexpr:
                value = self._on_gpu(parameter.name, value)
            kind = "constexpr" if parameter.is_constexpr else _type_of(value)
            signature.append((parameter.name, kind))
            if kind == "constexpr":
                constants.append((parameter.name, value))
            elif isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
                even.append(i)
        if given.get("EARLY") is not None:
            named["launch_pdl"] = self.arch >= 90
        named.pop("grid", None)
        launch = Launch(
            kernel.__name__, self.way, [], kernel, tuple(signature), tuple(constants), tuple(even),
            tuple(sorted(named.items())),
        )  # fmt: skip
        same = launch.name, str((launch.signature, launch.constants, launch.even, launch.options))
        self.found.setdefault(same, launch).calls.append(self.call)

    def _on_gpu(self, name: str, value: object) -> object:
        """Constants that the operation takes from the device."""
        return {"UPCAST": False, "EARLY": self.arch >= 90}.get(name, value)


def _type_of(value: object) -> str:
    if value is None or (type(value) is int and value == 1):
        return "constexpr"
    if isinstance(value, Tensor):
        return f"*{DTYPES[value.dtype]}"
    if hasattr(value, "block_shape"):
        inner = f"{DTYPES[value.base.dtype]}{list(value.block_shape)}"
        layout = getattr(value, "layout", None)
        return f"tensordesc<{inner}>" if layout is None else f"tensordesc<{inner},{layout!r}>"
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    assert isinstance(value, float), value
    return "fp32"


@contextmanager
def taken_down(every: bool, arch: int) -> Iterator[Recorder]:
    """Within, operations take down their launches as those on a GPU of this kind."""
    from triton.runtime.jit import JITFunction

    recorder = Recorder(every, arch)

    def run(kernel: Any, *args: object, **named: Any) -> None:
        named.pop("warmup", None)
        recorder.launch(kernel, args, named)

    with ExitStack() as stack:

        def patch(where: object, name: str, value: object) -> None:
            stack.enter_context(mock.patch.object(where, name, value))

        def hopper_ways(q: Tensor, k: Tensor, v: Tensor) -> list[Tile]:
            wide = v.shape[-1] in hopper.TILES and sum(tensors.parts(q.shape[-1])) == q.shape[-1]
            ways = hopper.TILES[v.shape[-1]] if arch == 90 and wide and hopper._kernels() else ()
            return [replace(way, name=way.name.replace("triton", "hopper")) for way in ways]

        patch(JITFunction, "run", run)
        patch(torch.cuda, "get_device_capability", lambda device=None: divmod(arch, 10))
        patch(torch.cuda, "get_device_name", lambda device=None: f"a GPU of {arch / 10}")
        patch(attention, "hopper_ways", hopper_ways)
        for name, module in list(sys.modules.items()):
            if name.startswith("dskc.runtime.kernels") and name != tuning.__name__:
                for attribute, value in {
                    "run_best": recorder.run_best,
                    "kernels_in_use": lambda device: True,
                    "interpreted": lambda: False,
                    "has_tma": lambda device: arch >= 90,
                    "has_tensor_memory_access": lambda device: arch >= 90,
                    "has_fp8": lambda device: arch >= 89,
                    "copied_by_engine": lambda tensors: arch >= 90,
                }.items():
                    if hasattr(module, attribute):
                        patch(module, attribute, value)
        yield recorder


def compiled(launch: Launch, arch: int) -> Compiled:
    """Compiles one, to what a GPU of this kind runs."""
    names = [name for name, _ in launch.signature]
    constants = {(names.index(name),): value for name, value in launch.constants}
    attributes = {(i,): [["tt.divisibility", 16]] for i in launch.even}
    kind = ASTSource
    if type(launch.kernel).__name__ == "GluonJITFunction":
        from triton.experimental.gluon._runtime import GluonASTSource

        kind = GluonASTSource
    began = time.perf_counter()
    named = {"name": launch.name, "way": launch.way, "calls": launch.calls, "arch": arch}
    try:
        source = kind(fn=launch.kernel, signature=dict(launch.signature), constexprs=constants, attrs=attributes)
        made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(launch.options))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Compiled(**named, error=f"{type(error).__name__}: {' | '.join(lines[-4:])}"[:600])
    if not _copies_fit(made.asm["ttgir"]):
        return Compiled(**named, error="a copy of the TMA unit and its descriptor differ in size")
    registers, spilled = _resources(made.asm["cubin"])
    seconds = round(time.perf_counter() - began, 2)
    return Compiled(**named, registers=registers, spilled=spilled, shared=made.metadata.shared,
                    warps=made.metadata.num_warps, seconds=seconds)  # fmt: skip


def _copies_fit(text: str) -> bool:
    """Whether what a descriptor describes is as large as the place that is copied to."""
    for line in text.splitlines():
        if "async_tma_copy_global_to_local" in line:
            described = re.search(r"tensordesc<(?:tensor<)?([\dx]+)x", line)
            place = re.search(r"-> !ttg\.memdesc<([\dx]+)x", line)
            assert described and place, line
            sizes = [math.prod(map(int, found[1].split("x"))) for found in (described, place)]
            if sizes[0] != sizes[1]:
                return False
    return True


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and the bytes of its stack, which is where what does not fit is spilled to."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return int(found[1]), int(found[2])


def main() -> None:
    from .ahead_calls import GROUPS

    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--all", action="store_true", help="each way, not the first alone")
    parser.add_argument("--quick", action="store_true", help="each kernel once")
    parser.add_argument("--group", action="append", choices=sorted(GROUPS))
    parser.add_argument("--kernel", default="", help="those with this in kernel and way")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: list[Compiled] = []
    for group in options.group or sorted(GROUPS):
        with taken_down(options.all, options.arch) as recorder, torch.no_grad():
            for i, call in enumerate(GROUPS[group]()):
                recorder.call = f"{group} {i}"
                with suppress(Unfit, KernelError):  # such as of 8-bit floats on an older GPU
                    call()
        launches = list(recorder.found.values())
        if options.arch < 89:
            launches = [launch for launch in launches if "fp8e4nv" not in str(launch.signature)]
        if options.quick:
            launches = list({launch.name: launch for launch in reversed(launches)}.values())
        for launch in launches:
            if options.kernel in f"{launch.name} {launch.way}":
                results.append(compiled(launch, options.arch))
                r = results[-1]
                print(f"{r.name:30} {r.way:70} regs {r.registers:4} spilled {r.spilled:5} shared {r.shared:7} "
                      f"{r.seconds:5} s {r.error}", flush=True)  # fmt: skip
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(r) for r in results], indent=1))


if __name__ == "__main__":
    main()
