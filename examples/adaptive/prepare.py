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
    """scikit-learn's `load_digits`: 1,797 images of 8 x 8 (UCI's "Optical Recognition of Handwritten Digits")."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = patches((found.images.astype(np.float32) - 4.9) / 6.0)  # mean 0 and deviation 1, about
    save_file({"image": images, "image_label": found.target.astype(np.int64)}, folder / "digits.safetensors")
    return f"{len(images):,} images of {images.shape[1]} patches"


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
