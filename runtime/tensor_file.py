"""Opening a safetensors file: weights of a checkpoint, or records to train on."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from .problem import Problem


def open_tensor_file(file: Path) -> safe_open:
    """A handle that reads one tensor at a time. Problem when the file is cut off or of another kind."""
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise Problem(
            f"{file} is not a whole safetensors file: {error}",
            help="it was probably cut off while it was copied or downloaded: fetch it again",
        ) from error
