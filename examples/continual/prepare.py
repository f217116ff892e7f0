"""Makes the data of the example: images of the digits 0 to 4, and of 5 to 9.

    python examples/continual/prepare.py build/continual

leaves `first/digits.safetensors` and `second/digits.safetensors` (records) in that folder. Needs the extra `example`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

PATCH = 2  # pixels a side
PARTS = {"first": range(5), "second": range(5, 10)}


def main(folder: Path) -> None:
    """scikit-learn's `load_digits`: 1,797 images of 8 x 8 (UCI's "Optical Recognition of Handwritten Digits"). A fifth
    of each part is held out.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    for name, digits in PARTS.items():
        chosen = order[np.isin(found.target[order], digits)]
        images = ((found.images[chosen] - 4.9) / 6.0).astype(np.float32)  # mean 0 and deviation 1, about
        to = folder / name
        to.mkdir(parents=True, exist_ok=True)
        held_out = np.arange(len(chosen)) < len(chosen) // 5
        labels = found.target[chosen].astype(np.int64)
        save_file({"image": patches(images), "image_label": labels, "held_out": held_out}, to / "digits.safetensors")
        print(f"{to}: {len(chosen):,} images of {digits[0]} to {digits[-1]}, {int(held_out.sum())} held out")


def patches(images_NYX: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, P, 4]: squares of 2 x 2 pixels, row by row."""
    count, height, width = images_NYX.shape
    squares = images_NYX.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH)
    return np.ascontiguousarray(squares.transpose(0, 1, 3, 2, 4)).reshape(count, -1, PATCH * PATCH)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/continual"))
