"""How many held-out digits of each part a run knows, among all ten.

python examples/continual/compare.py build/continual RUN ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from dskc.runtime.train import load_model


def main(data: Path, runs: list[Path]) -> None:
    print(f"{'run':{WIDTH}}  0 to 4   5 to 9")
    for run in runs:
        first, second = (accuracy(run, data / part / "digits.safetensors") for part in ("first", "second"))
        print(f"{run!s:{WIDTH}}  {first:6.1%}   {second:6.1%}")


@torch.no_grad()
def accuracy(run: Path, records: Path) -> float:
    """The share of held-out images whose likeliest of the ten digits is theirs."""
    found = load_file(records)
    held = found["held_out"]
    model, _, _ = load_model(run, device="cpu")
    scores = model(None, None, found["image"][held], None).image_label
    return float((scores.argmax(-1) == found["image_label"][held]).float().mean())


WIDTH = 12

if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])
