"""Row kernels of deepseek_7b on this GPU, beside torch.compile and Liger: time, rate, share of the copy rate.

    python benchmarks/row_kernels.py [--write FILE]

Medians of replayed CUDA graphs, so that it is the GPU's time and not Python's (`triton.testing.do_bench` empties the
cache before each); every row counts the bytes that must move: each input read once, each output written once.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "generated")]

from deepseek_7b import kernels  # noqa: E402

ROWS, D, INNER, VOCABULARY = 16_384, 4096, 11_008, 102_400
Function = Callable[..., object]


def median(run: Function) -> float:
    """Milliseconds."""
    return float(triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median"))


def replayed(run: Function) -> float:
    """Milliseconds of what `run` has the GPU do, without what launching it takes."""
    with torch.cuda.stream(captured()):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=captured()):
        run()
    return median(graph.replay)


@cache
def captured() -> torch.cuda.Stream:
    """The stream that graphs are captured on: what backward runs on is where forward ran."""
    return torch.cuda.Stream()


def copy_rate() -> float:
    """GB/s of a large device-to-device copy, read and written."""
    x = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    return 2 * x.numel() * 2 / median(lambda: y.copy_(x)) / 1e6


class Table:
    def __init__(self, copied: float) -> None:
        self.copied, self.rows = copied, []

    def add(self, what: str, who: str, forward: float, backward: float, moved: tuple[float, float]) -> None:
        row = {"what": what, "who": who}
        for name, ms, amount in (("forward", forward, moved[0]), ("backward", backward, moved[1])):
            rate = amount / ms / 1e6
            row |= {
                f"{name}_ms": round(ms, 4),
                f"{name}_gb_s": round(rate),
                f"{name}_of_copy": round(rate / self.copied, 3),
            }
        self.rows.append(row)
        shown = (
            f"  {n}{row[f'{n}_ms']:9.4f} ms {row[f'{n}_gb_s']:6d} GB/s {row[f'{n}_of_copy']:6.1%}"
            for n in ("forward", "backward")
        )
        print(f"{what:24s} {who:10s}{''.join(shown)}", flush=True)

    def measure(
        self, what: str, who: str, run: Function, inputs: tuple[Tensor, ...], moved: tuple[float, float]
    ) -> None:
        torch.cuda.synchronize()
        with torch.cuda.stream(captured()):
            made = run(*inputs)
        torch.cuda.synchronize()
        results = [y for y in (made if isinstance(made, tuple) else (made,)) if y.requires_grad]
        directions = [torch.randn_like(y) for y in results]
        wanted = [x for x in inputs if x.requires_grad]
        forward = replayed(lambda: run(*inputs))
        backward = replayed(lambda: torch.autograd.grad(results, wanted, directions, retain_graph=True))
        self.add(what, who, forward, backward, moved)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)


def norms(table: Table) -> None:
    x, y, w = leaf(1, ROWS, D), leaf(1, ROWS, D), leaf(D)
    one = ROWS * D * 2

    def plain(x: Tensor, w: Tensor) -> Tensor:
        return F.rms_norm(x, (D,), w, 1e-6)

    def added(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        s = x + y
        return s, F.rms_norm(s, (D,), w, 1e-6)

    rivals: dict[str, tuple[Function, Function]] = {
        "dskc": (kernels.rms_norm, kernels.add_rms_norm),
        "compile": (torch.compile(plain), torch.compile(added)),
        "eager": (plain, added),
    }
    try:
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        def liger_added(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            normed, s = LigerFusedAddRMSNormFunction.apply(x, y, w, 1e-6, 0.0, "llama", False)
            return s, normed

        rivals["liger"] = (lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", False), liger_added)
    except ImportError as error:
        print(f"without Liger: {error}")
    for who, (single, _) in rivals.items():
        table.measure("rms_norm", who, single, (x, w), (2 * one, 3 * one))
    for who, (_, both) in rivals.items():
        table.measure("add + rms_norm", who, both, (x, y, w), (4 * one, 4 * one))


def gates(table: Table) -> None:
    a, b = leaf(1, ROWS, INNER), leaf(1, ROWS, INNER)
    one = ROWS * INNER * 2
    rivals: dict[str, Function] = {
        "dskc": kernels.swiglu,
        "compile": torch.compile(lambda a, b: F.silu(a) * b),
        "eager": lambda a, b: F.silu(a) * b,
    }
    try:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        rivals["liger"] = lambda a, b: LigerSiLUMulFunction.apply(a, b)
    except ImportError:
        pass
    for who, run in rivals.items():
        table.measure("swiglu", who, run, (a, b), (3 * one, 5 * one))


def rotations(table: Table) -> None:
    x = leaf(4, ROWS // 4, 32, 128)
    angle = torch.randn(ROWS // 4, 64, device="cuda")
    cos, sin = angle.cos(), angle.sin()
    one = x.numel() * 2

    def plain(x: Tensor) -> Tensor:
        return kernels.rope_reference(x, cos, sin)

    for who, run in {
        "dskc": lambda x: kernels.rope(x, cos, sin),
        "compile": torch.compile(plain),
        "eager": plain,
    }.items():
        table.measure("rope", who, run, (x,), (2 * one, 2 * one))


def losses(table: Table) -> None:
    x, target = leaf(1, 8192, VOCABULARY), torch.randint(0, VOCABULARY, (1, 8192), device="cuda")
    one = x.numel() * 2

    def plain(x: Tensor) -> Tensor:
        return F.cross_entropy(x.flatten(0, 1).float(), target.flatten(), reduction="none")

    for who, run in {"dskc": lambda x: kernels.cross_entropy(x, target), "compile": torch.compile(plain)}.items():
        table.measure("cross entropy", who, run, (x,), (one, 2 * one))


def commit() -> str:
    said = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return said.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the table there, as JSON")
    parser.add_argument("--commit", default=commit(), help="what is measured, where git cannot tell")
    options = parser.parse_args()
    torch.manual_seed(0)
    copied = copy_rate()
    print(f"{torch.cuda.get_device_name()}: copies at {copied:,.0f} GB/s")
    table = Table(copied)
    for part in (norms, gates, rotations, losses):
        part(table)
        torch.cuda.empty_cache()
    if options.write:
        machine = {
            "gpu": torch.cuda.get_device_name(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "copy_gb_s": round(copied),
        }
        found = {"machine": machine, "commit": options.commit, "rows": table.rows}
        options.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
