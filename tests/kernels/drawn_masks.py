"""Masks drawn as expressions, and the functions that the compiler writes for them as a module."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from dskc.compiler.emit.attention import all_blocks, blocks_function, mask_functions, mask_text
from dskc.compiler.values import Mask
from dskc.runtime import reference
from dskc.runtime.kernels.attention.kernel import AttentionKernel

from .conftest import triton_interprets

CAUSAL, EVERYTHING, DOCUMENTS = Mask("causal"), Mask("everything"), Mask("documents")
_count = itertools.count()


def window(size: int) -> Mask:
    return Mask("window", (), (("size", size),))


def blocks(size: int, window: int, leading: int, random: int, seed: int = 0) -> Mask:
    told = (("size", size), ("window", window), ("global", leading), ("random", random), ("seed", seed))
    return Mask("blocks", (), told)


def both(*operands: Mask) -> Mask:
    return Mask("&", operands)


def either(*operands: Mask) -> Mask:
    return Mask("|", operands)


def expressions(leaves: int = 4) -> st.SearchStrategy[Mask]:
    """Of all elementary masks, with `&` and `|` of two or three."""
    elementary = st.one_of(
        st.just(CAUSAL),
        st.just(CAUSAL),
        st.just(DOCUMENTS),
        st.just(EVERYTHING),
        st.builds(window, st.sampled_from((1, 2, 5, 16, 17, 33, 100))),
        st.builds(
            blocks,
            st.sampled_from((1, 3, 8)),
            st.sampled_from((1, 3)),
            st.integers(0, 2),
            st.integers(0, 3),
            st.integers(0, 1),
        ),
    )

    def combined(inner: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
        operands = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.builds(Mask, st.sampled_from(("&", "|")), operands)

    return st.recursive(elementary, combined, max_leaves=leaves)


def dense(mask: Mask, queries: int, keys: int, documents_BT: Tensor | None, device: str = "cpu") -> Tensor:
    """Which places it allows: [1 or B, S, T]. Written for itself, but for blocks, which the reference draws."""
    if mask.operator in ("&", "|"):
        parts = [dense(operand, queries, keys, documents_BT, device) for operand in mask.operands]
        found = parts[0]
        for part in parts[1:]:
            found = found & part if mask.operator == "&" else found | part
        return found
    query_S1 = torch.arange(keys - queries, keys, device=device)[:, None]
    key_T = torch.arange(keys, device=device)
    told = dict(mask.arguments)
    if mask.operator == "causal":
        return (key_T <= query_S1)[None]
    if mask.operator == "window":
        return ((query_S1 - key_T).abs() < told["size"])[None]
    if mask.operator == "documents" and documents_BT is not None:
        return documents_BT[:, keys - queries :, None] == documents_BT[:, None, :]
    if mask.operator == "blocks":
        drawn = reference.blocks(told["size"], told["window"], told["global"], told["random"], told["seed"])
        return drawn.allowed(queries, keys, torch.device(device))[None]
    return torch.ones(1, queries, keys, dtype=torch.bool, device=device)


@dataclass(frozen=True)
class Written:
    """What kernels.py would hold of a mask."""

    module: ModuleType

    @property
    def mask(self) -> Callable[[Tensor | None], Any]:
        return self.module.mask

    def function(self, name: str) -> Any:
        """`mask`, of places; `mask_of_queries` and `mask_of_keys`, of ranges; None where there is none."""
        return getattr(self.module, name, None)

    def kernel(self, scale: float | None = None, softcap: float | None = None, dropout: float = 0.0) -> AttentionKernel:
        return AttentionKernel(
            f"drawn::attention_{next(_count)}", "drawn.dsk:7", self.mask, self.function("allows"),
            self.function("allows_of_queries"), self.function("allows_of_keys"), scale, softcap, dropout,
        )  # fmt: skip


@cache
def written(mask: Mask | None) -> Written:
    """The module of a mask, interpreted where there is no GPU."""
    head = [
        "import torch",
        "from dskc.runtime import reference",
        "from dskc.runtime.kernels.language import tl, triton",
        "from dskc.runtime.kernels.attention.masks import draw, hashed",
        f"mask = lambda documents_BT: {mask_text(mask)}",
    ]
    functions = [blocks_function(found) for found in all_blocks(mask)] + mask_functions(mask, "allows")
    text = "\n".join([*head, *("\n\n" + "\n".join(lines) for lines in functions), ""])
    return Written(imported(text))


def imported(text: str) -> ModuleType:
    """A module from its text, by way of a file: Triton reads the source of a function."""
    name = f"drawn_mask_{next(_count)}"
    path = Path(tempfile.mkdtemp(prefix="dskc-masks-")) / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with triton_interprets():
        spec.loader.exec_module(module)
    return module
