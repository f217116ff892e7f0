"""Makes the data of the example: Python source, images of digits, and spoken words.

    python examples/adaptive/prepare.py build/adaptive

leaves `code/` (text), `digits.safetensors` and `words.safetensors` (records) in that folder. Needs the extra `example`.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from speech import WORDS, speak_all

PATCH = 2  # pixels a side
TAKES = 2  # of each word, voice and accent
HELD_VOICES = 6  # of 33
CODE = 4_000_000  # bytes of Python source, about


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("code", write_code), ("digits", write_digits), ("words", write_words)):
        began = time.monotonic()
        print(f"{name}: ", end="", flush=True)
        print(f"{make(folder)} ({time.monotonic() - began:.0f} s)", flush=True)


def write_code(folder: Path) -> str:
    """The standard library's own modules, without tests, in the order of their names until there is enough."""
    library, to = Path(sysconfig.get_path("stdlib")), folder / "code"
    shutil.rmtree(to, ignore_errors=True)
    files, size = 0, 0
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings"} & set(name.parts):
            continue
        target = to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        files, size = files + 1, size + path.stat().st_size
        if size > CODE:
            break
    return f"{files} files of Python's standard library, {size / 1e6:.1f} MB"


def write_digits(folder: Path) -> str:
    """scikit-learn's `load_digits`: 1,797 images of 8 x 8 (UCI's "Optical Recognition of Handwritten Digits"). A fifth
    is held out; the others come in five places, as they are and moved by a pixel each way.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    moved = [shift(found.images[kept], *by) for by in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))]
    images = np.concatenate([found.images[held], *moved]).astype(np.float32)
    tensors = {
        "image": patches((images - 4.9) / 6.0),  # mean 0 and deviation 1, about
        "image_label": found.target[np.concatenate([held, *[kept] * len(moved)])].astype(np.int64),
        "held_out": np.arange(len(images)) < len(held),
    }
    save_file(tensors, folder / "digits.safetensors")
    return f"{len(order):,} images, {len(held)} held out and {len(kept):,} in {len(moved)} places each"


def shift(images_NYX: NDArray[np.float64], down: int, right: int) -> NDArray[np.float64]:
    """The images moved by so many pixels; what moves out is lost, and zeros come in."""
    padded = np.pad(images_NYX, ((0, 0), (1, 1), (1, 1)))
    height, width = images_NYX.shape[1:]
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def patches(images_NYX: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, P, 4]: squares of 2 x 2 pixels, row by row."""
    count, height, width = images_NYX.shape
    squares = images_NYX.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH)
    return np.ascontiguousarray(squares.transpose(0, 1, 3, 2, 4)).reshape(count, -1, PATCH * PATCH)


def write_words(folder: Path) -> str:
    """Ten words by espeak-ng's voices; which voices are held out is in the file."""
    spoken = speak_all(TAKES, HELD_VOICES)
    save_file(
        {"audio": spoken.frames, "audio_label": spoken.words, "held_out": spoken.held_out}, folder / "words.safetensors"
    )
    return f"{len(spoken.words):,} recordings of {len(WORDS)} words, {int(spoken.held_out.sum()):,} by voices held out"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/adaptive"))
