"""`make demo`: the whole path on real code, the Python standard library that every machine with Python has.

Checks and compiles specs/moe_nano.dsk, trains it, compares its held-out loss with the unigram entropy of the same
tokens, and samples. Exits with 1 when the model learned less than it should: 1.0 nat under the unigram entropy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DSKC = [sys.executable, "-m", "dskc.compiler.cli"]
MARGIN = 1.0  # nats
PACKAGES = (
    "asyncio", "collections", "concurrent", "email", "html", "http", "importlib", "json", "logging",
    "multiprocessing", "unittest", "urllib", "wsgiref", "xml", "xmlrpc", "zoneinfo",
)  # fmt: skip


def standard_library() -> list[Path]:
    """Source of the standard library: its modules and the packages that are code rather than tables or tests."""
    home = Path(sysconfig.get_paths()["stdlib"])
    return sorted(home.glob("*.py")) + [home / name for name in PACKAGES if (home / name).is_dir()]


def run(*command: str | Path) -> None:
    shown = " ".join(str(part) for part in command[:8]) + (" ..." if len(command) > 8 else "")
    print(f"\n$ {shown.replace(sys.executable, 'python').replace('-m dskc.compiler.cli', 'dskc')}", flush=True)
    # Threads of torch that wait spin by default: where something else wants the cores, both then crawl.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo")
    options = parser.parse_args()
    began = time.monotonic()
    out = options.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    shown = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    spec = "specs/moe_nano.dsk"
    run(*DSKC, "check", spec)
    run(*DSKC, "compile", spec)
    trainer = ROOT / "generated" / "moe_nano" / "train.py"
    run(
        sys.executable,
        trainer.relative_to(ROOT),
        "--steps",
        str(options.steps),
        "--out",
        shown,
        "--data",
        *standard_library(),
    )
    run(*DSKC, "generate", shown, "--prompt", "def ", "--max-tokens", "120", "--temperature", "0.7", "--seed", "1")
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    loss, entropy = result["held_out_loss"], result["unigram_entropy"]
    under = entropy - loss
    print(f"\nheld-out loss {loss:.3f} nats, unigram entropy of these tokens {entropy:.3f}: {under:.3f} under it")
    print(f"loss plot: {shown / 'loss.png'}\n{time.monotonic() - began:.0f} s in all")
    if under < MARGIN:
        sys.exit(f"the model learned too little: it should be at least {MARGIN} nat under the unigram entropy")


if __name__ == "__main__":
    main()
