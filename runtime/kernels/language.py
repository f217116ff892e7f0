"""Triton, or where it is not installed something that lets generated kernels be defined: their references still run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import triton
    import triton.language as tl
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:

        class _Triton:
            """A stand-in whose `jit` gives the function back; it is never launched."""

            @staticmethod
            def jit(function: Any) -> Any:
                return function

        triton, tl = _Triton(), type("tl", (), {"constexpr": int})

__all__ = ["tl", "triton"]
