"""As much of lm-eval 0.4's interface as a model and `dskc eval` need, for machines without it.

`lm_eval.api.model.LM`, `lm_eval.api.registry`, `lm_eval.tasks.TaskManager`, `lm_eval.simple_evaluate`, and `datasets`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

OURS = ("dskc.runtime.eval.harness", "dskc.runtime.eval.harness_tasks")


@dataclass
class Request:
    """`lm_eval.api.instance.Instance`, of which models read the arguments."""

    args: tuple[Any, ...]


class CacheHook:
    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, Any]] = []

    def add_partial(self, kind: str, arguments: Any, result: Any) -> None:
        self.seen.append((kind, arguments, result))


class LM:
    def __init__(self) -> None:
        self._device = None
        self.cache_hook = CacheHook()

    @property
    def device(self) -> Any:
        return self._device

    @classmethod
    def create_from_arg_string(cls, text: str, more: Mapping[str, Any] | None = None) -> Any:
        given = (part.split("=") for part in text.split(","))
        typed: dict[str, Any] = {name: int(value) if value.isdecimal() else value for name, value in given}
        return cls(**typed, **{key: value for key, value in (more or {}).items() if value is not None})


def install(
    monkeypatch: pytest.MonkeyPatch, answers: Any = None, rows: Sequence[Mapping[str, Any]] = ()
) -> dict[str, type]:
    """Put it in the place of lm-eval. answers: what `simple_evaluate(**arguments)` does. rows: of any data set. Returns
    the registry of models."""
    registry: dict[str, type] = {}

    def register(name: str) -> Any:
        return lambda model: registry.setdefault(name, model)

    class TaskManager:
        all_tasks = ("hellaswag", "humaneval", "mbpp")

    modules = {
        "lm_eval": {"__version__": "0", "simple_evaluate": lambda **arguments: answers(**arguments)},
        "lm_eval.api": {}, "lm_eval.api.model": {"LM": LM}, "lm_eval.api.registry": {"register_model": register},
        "lm_eval.tasks": {"TaskManager": TaskManager},
        "datasets": {"load_dataset": lambda name, split: rows},
    }  # fmt: skip
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    forget(monkeypatch)
    return registry


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our modules are imported anew, and again after the test."""
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
