"""Trains one model on Python source, images of digits and spoken words, and says whether it learned all three.

    python examples/adaptive/run.py

takes under ten minutes on two cores. Exits with 1 when a figure is not reached. See README.md beside it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import prepare

ROOT = Path(__file__).resolve().parent.parent.parent
SPEC = ROOT / "specs" / "deepseek_adaptive_nano.dsk"
DATA, OUT = ROOT / "build" / "adaptive", ROOT / "runs" / "adaptive"
MIX = "1,6,1"  # batches of code, digits and words: digits are quick to compute and slow to learn, words the reverse
DIGITS, WORDS = 0.95, 0.90  # held-out accuracy to reach
BELOW_ENTROPY = 0.3  # nats that code's held-out loss is to be under its unigram entropy


def main(steps: int | None) -> int:
    began = time.monotonic()
    prepare.main(DATA)
    data = [f"code={DATA / 'code'}", str(DATA / "digits.safetensors"), str(DATA / "words.safetensors")]
    command = [sys.executable, "-m", "dskc.compiler.cli", "train", str(SPEC), "--data", *data, "--mix", MIX]
    command += ["--out", str(OUT), *(["--steps", str(steps)] if steps is not None else [])]
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        return code
    figures = check(json.loads((OUT / "result.json").read_text(encoding="utf-8")))
    for text, _ in figures:
        print(text)
    used = sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{time.monotonic() - began:.0f} s, {used:.0f} s of them on a processor, summed over the cores")
    return 0 if all(reached for _, reached in figures) else 1


def check(result: dict) -> list[tuple[str, bool]]:
    """The three figures of a run's result.json as text, and whether each is reached."""
    sources = result["sources"]
    digits, words = (
        sources[name]["accuracy"][f"{kind}_label"] for name, kind in (("digits", "image"), ("words", "audio"))
    )
    below = sources["code"]["unigram_entropy"] - sources["code"]["losses"]["next_token"]
    found = [
        (f"digits: {digits:.1%} of {sources['digits']['rows']} right, {DIGITS:.0%} wanted", digits >= DIGITS),
        (f"words: {words:.1%} of {sources['words']['rows']} right, {WORDS:.0%} wanted", words >= WORDS),
        (f"code: {below:.2f} nats under its unigram entropy, {BELOW_ENTROPY} wanted", below >= BELOW_ENTROPY),
    ]
    return [(f"{'reached' if reached else 'MISSED'}  {text}", reached) for text, reached in found]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else None))
