"""Training steps of published models on this GPU, beside what users run instead.

    python benchmarks/train_step.py [--only TEXT] [--write FILE]

bf16 parameters and moments, AdamW, gradients clipped, sequences of 4096 random tokens. Ours is the generated model with
its objective and optimizer, and with the kernels that are recorded for this GPU; the peer is transformers with torch's
fused AdamW.
"compiled" is by torch.compile, layer by layer. Each runs in a process of its own. Times are medians of steps, memory is
torch's peak of allocated bytes. MFU counts causal attention once, and 989 TFLOP/s. Needs transformers for the peers.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from dskc.runtime import optim  # noqa: E402
from dskc.runtime.bench.model import Trained  # noqa: E402
from dskc.runtime.data import Batch  # noqa: E402
from dskc.runtime.kernels import use_kernels  # noqa: E402
from dskc.runtime.modules import GroupedLinear  # noqa: E402

LENGTH, PEAK = 4096, 989e12
WARM, STEPS, BATCHES = 3, 8, 4
LIMIT = 600  # seconds that one measurement may take


@dataclass(frozen=True)
class Row:
    """The first `layers` of a model, `batch` sequences a step. choices: of a token, where there are experts.

    attention: numbers that scores and their results take for a position and a key, by which its FLOPs are counted:
    the mean width of keys and values, of all heads. recomputed: whether the peer keeps only what goes into each layer.
    """

    name: str
    model: str
    layers: int
    batch: int
    attention: int
    choices: int = 0
    recomputed: bool = False


ROWS = (
    Row("DeepSeek-7B, 30 layers, 1 x 4096", "deepseek_7b", 30, 1, 32 * 128, recomputed=True),
    Row("DeepSeek-7B, 8 layers, 2 x 4096", "deepseek_7b", 8, 2, 32 * 128),
    Row("Qwen3-30B-A3B, 4 layers, 4 x 4096", "qwen3_30b_a3b", 4, 4, 32 * 128, choices=8),
    Row("DeepSeek-V2-Lite, 5 layers, 4 x 4096", "deepseek_v2_lite", 5, 4, 16 * 160, choices=6),
)
WHO = ("dskc", "dskc, compiled", "transformers, compiled")

Step = Callable[[torch.Tensor], torch.Tensor]


# --- ours


def ours(row: Row, compiled: bool) -> Step:
    trained = Trained.load(ROOT / "generated" / row.model)
    with torch.device("meta"):
        model = trained.package.Model(compute=torch.bfloat16).to(torch.bfloat16)
        model.layers = model.layers[: row.layers]
    model = model.to_empty(device="cuda")
    optim.normal(std=0.006)(model, 0)
    if compiled:
        for layer in model.layers:
            layer.compile()
    optimizer = optim.AdamW(model, lr=1e-5, betas=(0.9, 0.95), eps=1e-8, decay=0.1, state_dtype=torch.bfloat16)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        loss = trained.losses(model, Batch(tokens[:, :-1], tokens[:, 1:]))["loss"]
        loss.backward()
        optimizer.clip(1.0)
        optimizer.step(1e-5)
        return loss.detach()

    return step


# --- the peer


def theirs(row: Row, compiled: bool) -> Step:
    with _created_here():
        model = MODELS[row.model](row.layers)
    model.train()
    if row.recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if compiled:
        for layer in model.model.layers:
            layer.compile()
        if not row.choices:
            model.loss_function = torch.compile(model.loss_function)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        given = tokens[:, :-1]
        loss: torch.Tensor = model(input_ids=given, labels=given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


@contextmanager
def _created_here() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            yield
    finally:
        torch.set_default_dtype(before)


COMMON: dict[str, Any] = {"use_cache": False, "attn_implementation": "sdpa", "tie_word_embeddings": False}


def _llama(layers: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=102400, hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-6, **COMMON,
    ))  # fmt: skip


def _qwen3_moe(layers: int) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    return Qwen3MoeForCausalLM._from_config(Qwen3MoeConfig(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768,
        num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128,
        num_experts_per_tok=8, norm_topk_prob=True, decoder_sparse_step=1, output_router_logits=False, **COMMON,
    ), experts_implementation="grouped_mm")  # fmt: skip


def _deepseek_v2(layers: int) -> Any:
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    return DeepseekV2ForCausalLM._from_config(DeepseekV2Config(
        vocab_size=102400, hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408,
        num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=16, n_shared_experts=2,
        n_routed_experts=64, num_experts_per_tok=6, first_k_dense_replace=1, kv_lora_rank=512, q_lora_rank=None,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, topk_method="greedy", n_group=1, topk_group=1,
        routed_scaling_factor=1.0, norm_topk_prob=False, **COMMON,
    ), experts_implementation="grouped_mm")  # fmt: skip


MODELS: dict[str, Callable[[int], Any]] = {
    "deepseek_7b": _llama, "qwen3_30b_a3b": _qwen3_moe, "deepseek_v2_lite": _deepseek_v2,
}  # fmt: skip


# --- measuring


def measure(row: Row, who: str) -> dict[str, float | str]:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    make, compiled = (ours if who.startswith("dskc") else theirs), who.endswith("compiled")
    with use_kernels("triton"):
        step = make(row, compiled)
        vocabulary = 151936 if row.model.startswith("qwen") else 102400
        tokens = torch.randint(0, vocabulary, (BATCHES, row.batch, LENGTH + 1), device="cuda")
        for i in range(WARM):
            step(tokens[i % BATCHES])
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times = []
        for i in range(STEPS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            loss = step(tokens[i % BATCHES])
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
    times.sort()
    ms, count = times[len(times) // 2], row.batch * LENGTH
    flops = (6 * active(row) + 6 * row.layers * row.attention * LENGTH) * count
    return {
        "row": row.name,
        "who": who,
        "ms": round(ms, 1),
        "low_ms": round(times[0], 1),
        "high_ms": round(times[-1], 1),
        "tokens_per_s": round(count / ms * 1e3),
        "mfu": round(flops / ms * 1e3 / PEAK, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "loss": round(float(loss), 4),
    }


def active(row: Row) -> int:
    """Weights that a token is multiplied with, of the model as it is generated: all but the embedding."""
    trained = Trained.load(ROOT / "generated" / row.model)
    with torch.device("meta"):
        model = trained.package.Model()
        model.layers = model.layers[: row.layers]
    count = sum(p.numel() for p in model.parameters()) - model.embed.weight.numel()
    for module in model.modules():
        if isinstance(module, GroupedLinear):
            experts, every = module.weight.shape[0], module.weight.numel()
            count -= every - every * row.choices // experts
    return count


def in_a_process(row: Row, who: str) -> dict[str, float | str]:
    """`measure` in a process of its own; what went wrong where it did."""
    asked = [sys.executable, __file__, "--one", row.name, who]
    try:
        ended = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"row": row.name, "who": who, "error": f"took longer than {LIMIT} s"}
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        return {"row": row.name, "who": who, "error": lines[-1][:300] if lines else f"exit code {ended.returncode}"}
    found: dict[str, float | str] = json.loads(ended.stdout.splitlines()[-1])
    return found


def commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def machine() -> dict[str, str]:
    found = {"gpu": torch.cuda.get_device_name(), "python": platform.python_version()}
    found |= {"torch": torch.__version__, "triton": triton.__version__}
    try:
        import transformers

        found["transformers"] = transformers.__version__
    except ImportError:
        pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="rows with this in their names")
    parser.add_argument("--who", action="append", default=[], choices=WHO, help="and of these alone")
    parser.add_argument("--write", type=Path, metavar="FILE", help="add the figures to that file, as JSON")
    parser.add_argument("--commit", default=commit(), help="what is measured, where git cannot tell")
    parser.add_argument("--one", nargs=2, metavar=("ROW", "WHO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (row,) = [row for row in ROWS if row.name == options.one[0]]
        print(json.dumps(measure(row, options.one[1])))
        return
    began = datetime.now(UTC).isoformat(timespec="seconds")
    rows: list[dict[str, float | str]] = []
    run = {"began": began, "machine": machine(), "commit": options.commit, "rows": rows}
    kept = (
        json.loads(options.write.read_text(encoding="utf-8"))["runs"]
        if options.write and options.write.exists()
        else []
    )
    for row in ROWS:
        if options.only and not any(text in row.name for text in options.only):
            continue
        for who in options.who or WHO:
            rows.append(in_a_process(row, who))
            print(rows[-1], flush=True)
            if options.write:
                options.write.write_text(json.dumps({"runs": [*kept, run]}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
