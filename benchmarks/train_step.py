"""A training step of the first layers of deepseek_7b on this GPU, with generated kernels and without.

    python benchmarks/train_step.py [--layers 8] [--batch 2] [--write FILE]

bf16 parameters, AdamW, no recomputation, sequences of 4096, random tokens; eager PyTorch around the kernels, and with
each layer compiled by torch.compile. Medians of steps; memory is torch's peak of allocated bytes. The model FLOPs of
MFU count causal attention once, against 989 TFLOP/s.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch
import triton

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "generated"), str(ROOT)]

from deepseek_7b import Model  # noqa: E402
from deepseek_7b.train import objective  # noqa: E402

from dskc.runtime import optim  # noqa: E402
from dskc.runtime.data import Batch  # noqa: E402
from dskc.runtime.kernels import use_kernels  # noqa: E402

LENGTH, PEAK = 4096, 989e12


def commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def measure(layers: int, batch: int, kernels: str, compiled: bool) -> dict[str, float | str]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    with torch.device("meta"):
        model = Model(compute=torch.bfloat16).to(torch.bfloat16)
        model.layers = model.layers[:layers]
    model = model.to_empty(device="cuda")
    optim.normal(std=0.006)(model, 0)
    if compiled:
        for layer in model.layers:
            layer.compile()
    with use_kernels(kernels):
        optimizer = optim.AdamW(model, lr=1e-5, betas=(0.9, 0.95), eps=1e-8, decay=0.1, state_dtype=torch.bfloat16)
    tokens = torch.randint(0, 102_400, (4, batch, LENGTH + 1), device="cuda")

    def step(i: int) -> torch.Tensor:
        given = tokens[i % 4]
        loss = objective(model, Batch(given[:, :-1], given[:, 1:]))["loss"]
        loss.backward()
        optimizer.clip(1.0)
        optimizer.step(1e-5)
        return loss.detach()

    with use_kernels(kernels):
        for i in range(3):
            step(i)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times = []
        for i in range(8):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            loss = step(i)
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
    ms = sorted(times)[len(times) // 2]
    weights = sum(p.numel() for p in model.parameters()) - model.embed.weight.numel()
    count = batch * LENGTH
    flops = 6 * weights * count + 6 * layers * 4096 * LENGTH * count
    found: dict[str, float | str] = {
        "kernels": kernels,
        "layers compiled": str(compiled),
        "ms": round(ms, 1),
        "tokens_per_s": round(count / ms * 1e3),
        "mfu": round(flops / ms * 1e3 / PEAK, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "loss": round(float(loss), 4),
    }
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2, help="sequences in a step")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the figures there, as JSON")
    parser.add_argument("--commit", default=commit(), help="what is measured, where git cannot tell")
    options = parser.parse_args()
    rows = []
    for compiled in (False, True):
        for kernels in ("reference", "triton"):
            rows.append(measure(options.layers, options.batch, kernels, compiled))
            torch.cuda.empty_cache()
    machine = {"gpu": torch.cuda.get_device_name(), "python": platform.python_version()}
    machine |= {"torch": torch.__version__, "triton": triton.__version__}
    found = {
        "machine": machine,
        "commit": options.commit,
        "layers": options.layers,
        "batch": options.batch,
        "rows": rows,
    }
    if options.write:
        options.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
