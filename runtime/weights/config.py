"""The config.json beside a checkpoint against what the spec says: numbers that no tensor's shape shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..problem import Problem

CONFIG = "config.json"
# Names of one thing in different configurations; those left out are called alike everywhere.
ALIASES = {
    "rope_local_base_freq": "rope_theta",
    "n_head": "num_attention_heads",
}
NESTED = (
    "rope_parameters",
    "rope_scaling",
    "text_config",
)  # what of a configuration speaks of the model as a whole does


def check_config(checkpoint: Path, facts: Mapping[str, Mapping[str, str]]) -> None:
    """Problem where the configuration beside a checkpoint contradicts the spec, each number with its line.

    facts: by key of the configuration, each value that the spec has for it and the line that says it. A checkpoint
    without a configuration, and keys that the spec has nothing to say of, are passed over. Problem too when the file
    cannot be read as JSON.
    """
    path = checkpoint / CONFIG if checkpoint.is_dir() else checkpoint.parent / CONFIG
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(config, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise Problem(
            f"{path} is not the configuration of a model: {error or 'no object'}",
            "fetch it again, or pass --no-config to go by the tensors alone",
        ) from error
    wrong = [line for key, value in _numbers(config) if (line := _contradiction(key, value, facts))]
    if wrong:
        raise Problem(
            "\n".join([f"{path} contradicts the spec", *(f"    {line}" for line in dict.fromkeys(wrong))]),
            "set it in the spec, or with --set; --no-config goes by the tensors alone",
        )


def _contradiction(key: str, value: float, facts: Mapping[str, Mapping[str, str]]) -> str | None:
    said = facts.get(ALIASES.get(key, key), {})
    if not said or any(_same(value, float(known)) for known in said):
        return None
    theirs = int(value) if float(value).is_integer() else value
    ours = ", ".join(f"{known} ({where})" for known, where in said.items())
    return f"{key} is {theirs}, and the spec has {ours}"


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))  # numbers that went through float32 are there: 9.99999997e-07


def _numbers(config: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """Every number of a configuration; of the rope's, those of each kind of layer, and the factor of its scaling."""
    for key, value in config.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            yield key, value
        elif key in NESTED and isinstance(value, dict):
            yield from _rope(value) if key != "text_config" else _numbers(value)


def _rope(parameters: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for key, value in parameters.items():
        if isinstance(value, dict):
            yield from _rope(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (f"rope_scaling.{key}" if key == "factor" else key), value
