"""Times whole processes of `dskc check` and `dskc compile` on every shipped spec: the best and median of several runs.

    python benchmarks/compiler_speed.py [--runs 7] [--write]

`--write` puts the figures under benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECK_TARGET, COMPILE_TARGET = 0.3, 1.0  # seconds


def seconds(bytecode: str, *arguments: str) -> float:
    """Of one process, with modules compiled once and kept in a folder, as beside an installed package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    command = [sys.executable, "-m", "dskc.compiler.cli", *arguments]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def measure(runs: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as bytecode:
        seconds(bytecode, "compile", "specs/deepseek_7b.dsk", "--out", out)
        for spec in sorted((ROOT / "specs").glob("*.dsk")):
            name = f"specs/{spec.name}"
            checks = [seconds(bytecode, "check", name) for _ in range(runs)]
            compiles = [seconds(bytecode, "compile", name, "--out", out) for _ in range(runs)]
            rows.append(
                {
                    "spec": name,
                    "check_best_s": round(min(checks), 3),
                    "check_median_s": round(statistics.median(checks), 3),
                    "compile_best_s": round(min(compiles), 3),
                    "compile_median_s": round(statistics.median(compiles), 3),
                }
            )
            print(
                f"{name:28} check {min(checks):.3f} / {statistics.median(checks):.3f} s   "
                f"compile {min(compiles):.3f} / {statistics.median(compiles):.3f} s",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = measure(options.runs)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    facts = {
        "what": "whole process, best and median seconds",
        "targets_s": {"check": CHECK_TARGET, "compile": COMPILE_TARGET},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), "lark": version("lark"), "pydantic": version("pydantic")},
        "commit": commit,
        "runs": options.runs,
        "rows": rows,
    }
    if options.write:
        path = ROOT / "benchmarks" / "results" / "compiler_speed.json"
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
