"""Says where the time of `dskc check` goes: a whole process on one spec, cut into its steps; the best of several runs.

    python benchmarks/check_time.py [SPEC] [--runs 15] [--write]

`--write` puts the figures under benchmarks/results/, from where `make generate` takes them into docs/compiler.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "check_time.json"

# In the process that is measured, what `dskc check` does, with a clock between its steps. Making a dataclass generates
# code and compiles it, so those are counted apart from the imports that they are part of.
DRIVER = """
import sys, time
clock = time.perf_counter
steps, began = {}, clock()

def done(name):
    global began
    now = clock()
    steps[name] = steps.get(name, 0) + now - began
    began = now

import click
done("import click")
import dataclasses, enum, fractions, functools, hashlib, pathlib, re, tempfile, marshal
done("import Python's own modules")

making = 0.0
process = dataclasses._process_class
def timed(*args, **named):
    global making
    start = clock()
    try:
        return process(*args, **named)
    finally:
        making += clock() - start
dataclasses._process_class = timed
import dskc.compiler.cli, dskc.compiler.report, dskc.compiler.pipeline as pipeline, dskc.compiler.checkpoint_map
import dskc.dsl.render
from dskc.dsl import parser
done("import dskc")
parser._machinery()
done("load the grammar's tables")

def step(owner, name, label):
    run = getattr(owner, name)
    def counted(*args, **named):
        done("read, work out dims, verify")
        try:
            return run(*args, **named)
        finally:
            done(label)
    setattr(owner, name, counted)

step(pipeline, "resolve", "resolve: read and parse")
step(pipeline, "expand", "expand")
step(pipeline, "infer", "infer")
step(pipeline, "recipes", "recipes and plans")
from pathlib import Path
from dskc.compiler.report import read_all
problems = read_all(Path(sys.argv[1]))
done("read, work out dims, verify")
assert not len(problems)
steps["make dataclasses"] = making
steps["import dskc"] -= making
import json
print(json.dumps(steps))
"""


def run(spec: str, bytecode: str | None) -> dict[str, float]:
    """Seconds of each step, and of starting and ending Python, in one process.

    Bytecode is kept in a folder, as it is beside an installed package; without one, modules are compiled each time.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": bytecode} if bytecode else {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", DRIVER, spec]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    whole = time.perf_counter() - began
    steps: dict[str, float] = json.loads(done.stdout)
    return {"start and end Python": whole - sum(steps.values()), **steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", default="specs/deepseek_7b.dsk")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(options.spec, folder)  # which compiles modules to bytecode, and builds the grammar's tables
        pairs = [(run(options.spec, folder), run(options.spec, None)) for _ in range(options.runs)]
    runs = [warm for warm, _ in pairs]
    cold = min(sum(found.values()) for _, found in pairs)
    steps = {name: round(1000 * min(found[name] for found in runs), 1) for name in runs[0]}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    facts = {
        "what": f"milliseconds of `dskc check {options.spec}` by step, each the best of {options.runs} processes",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version()},
        "commit": commit,
        "steps_ms": steps,
        "sum_ms": round(sum(steps.values()), 1),
        "best_whole_ms": round(1000 * min(sum(found.values()) for found in runs), 1),
        "best_whole_without_bytecode_ms": round(1000 * cold, 1),
    }
    for name, milliseconds in steps.items():
        print(f"{name:32} {milliseconds:7.1f} ms")
    print(f"{'sum of the best':32} {facts['sum_ms']:7.1f} ms, best whole process {facts['best_whole_ms']:.1f} ms")
    print(f"without kept bytecode {facts['best_whole_without_bytecode_ms']:.1f} ms")
    if options.write:
        RESULT.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        print(RESULT.relative_to(ROOT))


if __name__ == "__main__":
    main()
