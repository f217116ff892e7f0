"""Times packing: tokens a second from a token file to batches in memory, laying out the sequences included.

    python benchmarks/packing.py [--tokens 20000000] [--runs 5] [--write] [--commit HASH]

`--write` puts the figures under benchmarks/results/. The lengths of documents are drawn, their ids are random.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dskc.runtime.data import Loader
from dskc.runtime.data.bins import documents

ROOT = Path(__file__).resolve().parent.parent
TARGET = 2e6  # tokens a second, on two cores
BATCH = 8  # sequences
END = 0
# Median ids of a document, and how far others are from it (the deviation of the logarithm).
CORPORA = {"messages": (40, 0.8), "web pages": (500, 1.1), "books": (90_000, 0.6)}
LENGTHS = (1024, 4096)


def token_file(path: Path, tokens: int, median: float, spread: float) -> np.memmap:
    """About so many ids, documents closed by END, mapped from disk."""
    rng = np.random.default_rng(0)
    sizes: list[int] = []
    while sum(sizes) < tokens:
        sizes += (rng.lognormal(np.log(median), spread, 1 + int(tokens / median / 4)).astype(int) + 2).tolist()
    ends = np.cumsum(sizes)
    ends = ends[: np.searchsorted(ends, tokens) + 1]
    ids = rng.integers(1, 50_000, ends[-1], dtype=np.uint16)
    ids[ends - 1] = END
    ids.tofile(path)
    return np.memmap(path, np.uint16, mode="r")


def measure(tokens: np.memmap, length: int, packing: str, runs: int) -> dict[str, object]:
    """An epoch, as often as `runs`: seconds to lay out and to take all batches."""
    layout, batches = [], []
    for seed in range(runs):
        began = time.perf_counter()
        loader = Loader(tokens, length, END, seed, packing)
        laid_out = time.perf_counter()
        taken = sum(loader.batch(n, BATCH).positions for n in range(0, loader.count - BATCH + 1, BATCH))
        layout.append(laid_out - began)
        batches.append((time.perf_counter() - laid_out) / taken * len(tokens))
    rates = [len(tokens) / (one + other) for one, other in zip(layout, batches, strict=True)]
    return {
        "packing": packing,
        "length": length,
        "sequences": loader.count,
        "padding": round(loader.padding, 5),
        "cut_though_short": round(cut_though_short(tokens, length), 4) if packing == "stream" else 0.0,
        "layout_s": round(statistics.median(layout), 3),
        "batches_s": round(statistics.median(batches), 3),
        "tokens_per_s": round(statistics.median(rates)),
        "slowest_tokens_per_s": round(min(rates)),
    }


def cut_though_short(tokens: np.memmap, length: int) -> float:
    """Of the documents that a sequence could hold whole, the share that a stream cuts."""
    starts, sizes = documents(tokens, END)
    short = sizes <= length
    return float(((starts // length != (starts + sizes - 1) // length) & short).sum() / max(short.sum(), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--commit", help="what to note as the commit that was measured (default: this checkout's)")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (median, spread) in CORPORA.items():
            tokens = token_file(Path(folder) / "tokens", options.tokens, median, spread)
            count = int((tokens == END).sum())
            for length in LENGTHS:
                for packing in ("bestfit", "stream"):
                    row = measure(tokens, length, packing, options.runs)
                    rows.append({"corpus": name, "documents": count, "tokens": len(tokens), **row})
                    print(
                        f"{name:10} {count:>8,} documents  {length:>5} {packing:8} "
                        f"{row['tokens_per_s'] / 1e6:7.1f} M tokens/s  {row['padding']:.3%} padding  "
                        f"{row['cut_though_short']:.1%} of those that fit are cut",
                        flush=True,
                    )
    commit = (
        options.commit
        or subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
    )
    facts = {
        "what": "token file to batches, layout included: median (and slowest) tokens a second of an epoch, one process",
        "target_tokens_per_s": TARGET,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), "numpy": version("numpy"), "torch": version("torch")},
        "commit": commit,
        "runs": options.runs,
        "rows": rows,
    }
    if options.write:
        path = ROOT / "benchmarks" / "results" / "packing.json"
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
