"""What kernels are to reach, and, where they do not, what stands between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .report import Row, Timed

Kind = Literal["ratio", "share", "none"]


@dataclass(frozen=True)
class Target:
    """Of one case. shapes: how its shape begins, in any of these. value: what the ratio to a peer, or the share of the
    ceiling, is to be at least. against: how that peer's name begins, the best of all where it is empty."""

    title: str
    kernel: str
    shapes: tuple[str, ...]
    kind: Kind
    value: float = 0.0
    against: str = ""
    most_gib: float | None = None

    def fits(self, row: Row) -> bool:
        return row.kernel == self.kernel and row.shape.startswith(self.shapes)

    def peer(self, row: Row) -> Timed | None:
        """Who it is compared with."""
        if not self.against:
            return row.best_peer
        return next((t for t in row.times if t.name.startswith(self.against)), None)

    def reached(self, row: Row, ceilings: Mapping[str, float]) -> float | None:
        """The ratio or the share that a row shows; None where it does not tell."""
        ours, peer = row.ours, self.peer(row)
        if ours is None:
            return None
        if self.kind == "share":
            return row.share(ours, ceilings)
        return peer.median / ours.median if peer is not None else None

    def met(self, row: Row, ceilings: Mapping[str, float]) -> bool:
        reached = self.reached(row, ceilings)
        holds = self.most_gib is None or (row.ours is not None and row.ours.gib <= self.most_gib)
        return self.kind == "none" or (holds and reached is not None and round(reached, 2) >= self.value)

    def __str__(self) -> str:
        if self.kind == "none":
            return "none"
        text = f"≥ {self.value:.0%} of the ceiling" if self.kind == "share" else f"≥ {self.value:.2f} ×"
        return text if self.most_gib is None else f"{text}, ≤ {self.most_gib} GiB"


def _both(
    title: str, kernel: str, shapes: tuple[str, ...], kind: Kind, *values: float, against: str = ""
) -> list[Target]:
    """Of forward and backward; one value is that of both."""
    return [
        Target(f"{title}, {way}", f"{kernel} {way}", shapes, kind, value, against)
        for way, value in zip(("forward", "backward"), values * (2 // len(values)), strict=True)
    ]


_ROWS = ("4x4096x4096", "16384x4096")
TARGETS: tuple[Target, ...] = (
    *_both("causal attention, 2 x 4096, 32 heads", "attention", ("causal B2 S4096 H32/32 E128",), "ratio", 1.0),
    *_both("causal attention, 1 x 16384, 32/8 heads", "attention", ("causal B1 S16384 H32/8 E128",), "ratio", 1.0),
    Target("latent attention, forward", "attention forward", ("latent B2 S4096 H128/128",), "ratio", 1.11),
    *_both("window", "attention", ("window 1024",), "ratio", 1.3, against="torch flex"),
    *_both("packed documents", "attention", ("documents of 1024",), "ratio", 1.3, against="torch flex"),
    *_both("block-sparse", "attention", ("blocks of 64",), "ratio", 1.3, against="torch flex"),
    *_both("softcap", "attention", ("softcap 50",), "ratio", 1.3, against="torch flex"),
    *_both("sinks in a window", "attention", ("sinks, window 1024",), "ratio", 1.3, against="torch flex"),
    *_both("residual add + RMSNorm", "add_rms_norm", _ROWS, "share", 0.94, 0.91),
    *_both("RMSNorm", "rms_norm", _ROWS, "none", 0.0),
    *_both("SwiGLU", "swiglu", ("4x4096x11008", "16384x11008"), "share", 0.99),
    Target(
        "linear + cross entropy, forward and backward", "linear + cross entropy, forward and backward",
        ("N8192 D4096 V102400",), "ratio", 1.0, "torch.compile", 0.2,
    ),
    *(
        Target(f"{title}, {experts}", kernel, (shape,), "ratio", 1.0)
        for experts, shape in (("64 experts", "T16384 K6 X64"), ("32 experts", "T8192 K8 X32"))
        for title, kernel in (
            ("grouped products", "grouped forward"),
            ("with the gather", "grouped with gather"),
            ("with the weighted scatter", "grouped with scatter"),
        )
    ),
    *(
        Target(f"matrix-vector, {shape}", "matrix-vector bf16", (f"N1 {shape},",), "share", 0.95)
        for shape in ("22016x4096", "102400x4096")
    ),
    *(
        Target(f"matrix-vector, {shape}", "matrix-vector bf16", (f"N1 {shape},",), "none")
        for shape in ("4096x4096", "4096x11008")
    ),
    Target("int8 product", "int8 product with its epilogue", ("8192x4096x11008",), "ratio", 0.85, "_int_mm alone"),
)  # fmt: skip

TRAINING: Mapping[str, float] = {  # tokens a second beside the peer's, by the rows of benchmarks/train_step.py
    "DeepSeek-7B, 30 layers, 1 x 4096": 1.40,
    "DeepSeek-7B, 8 layers, 2 x 4096": 1.09,
    "Qwen3-30B-A3B, 4 layers, 4 x 4096": 1.45,
    "DeepSeek-V2-Lite, 5 layers, 4 x 4096": 1.45,
}

BETWEEN: Mapping[str, str] = {  # by a target's title: what stands between, of each that is missed
    "latent attention, forward": "the older run timed ours first, on a GPU still hot from tuning, and the peers "
    "after it; since then everyone takes turns, and it is met.",
    "packed documents, backward": "1.35 ms, where 1.26 would do. Smaller tiles skip more at the edges of "
    "documents, and multiply slower: 64 x 64 and 128 x 64 are among those timed and gain nothing. No other cause "
    "was found.",
    "linear + cross entropy, forward and backward": "a thousand rows at a time, since no more logits fit into "
    "0.2 GiB: the weight's gradient is read and written once for each of eight parts, 13 GB in all, beside three "
    "products that alone take 27 ms at this GPU's rate. The peer takes 2.28 GiB.",
    "with the gather, 64 experts": "rows are loaded one by one by the threads that also multiply, not by the "
    "TMA unit, which cannot gather on Hopper. Copying them first takes as long as it saves.",
    "with the weighted scatter, 64 experts": "the peer is the product alone. Bringing each token's six rows "
    "home moves 0.47 GB more, 0.16 ms at the rate of copying.",
    "with the gather, 32 experts": "as with 64; with rows of 7168 numbers the copy is 0.94 GB each way. Copied "
    "first, as is tried too, it takes 6.1 ms.",
}
