"""Checkpoints of others: the map's operations and their inverses, coverage, and files that are not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from dskc.runtime.problem import Problem
from dskc.runtime.weights import export_weights, import_weights, open_source, plan_import, read_tokenizer
from dskc.runtime.weights.faults import fold
from dskc.runtime.weights.rules import read_rules

Json = dict[str, object]


def tensor(name: str) -> Json:
    return {"op": "tensor", "name": name}


def rule(parameter: str, value: Json | str) -> Json:
    return {"parameter": parameter, "value": tensor(value) if isinstance(value, str) else value}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def stored(folder: Path, state: dict[str, Tensor], shards: int = 1) -> Path:
    """A checkpoint of these tensors, as Hugging Face writes them."""
    folder.mkdir(exist_ok=True)
    state = {name: value.contiguous() for name, value in state.items()}
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return folder
    names = list(state)
    holder = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        save_file({name: state[name] for name in part}, folder / file)
        holder |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": holder}))
    return folder


def imported(rules: list[Json], model: dict[str, tuple[int, ...]], folder: Path) -> dict[str, Tensor]:
    source = open_source(folder)
    return import_weights(plan_import(rules, model, source), source)


# --- the operations


def test_rows_transpose_and_columns(tmp_path: Path) -> None:
    fused, conv = torch.randn(10, 3), torch.randn(3, 10)
    rules = [
        rule("q.weight", {"op": "rows", "of": tensor("qkv"), "from": 0, "to": 6}),
        rule("k.weight", {"op": "rows", "of": tensor("qkv"), "from": 6, "to": 10}),
        rule("a.weight", {"op": "rows", "of": {"op": "transpose", "of": tensor("conv")}, "from": 0, "to": 4}),
        rule("b.weight", {"op": "rows", "of": {"op": "transpose", "of": tensor("conv")}, "from": 4, "to": 10}),
    ]
    model = {"q.weight": (6, 3), "k.weight": (4, 3), "a.weight": (4, 3), "b.weight": (6, 3)}
    state = imported(rules, model, stored(tmp_path, {"qkv": fused, "conv": conv}))
    assert torch.equal(state["q.weight"], fused[:6]) and torch.equal(state["k.weight"], fused[6:])
    assert torch.equal(state["a.weight"], conv.T[:4]) and torch.equal(state["b.weight"], conv.T[4:])
    back = export_weights(rules, state)
    assert torch.equal(back["qkv"], fused) and torch.equal(back["conv"], conv)


def test_interleave_deals_rows_out(tmp_path: Path) -> None:
    x = torch.arange(12.0)
    rules = [
        rule(f"p{i}", {"op": "interleave", "of": tensor("x"), "parts": 3, "part": i, "block": 2}) for i in range(3)
    ]
    state = imported(rules, dict.fromkeys(["p0", "p1", "p2"], (4,)), stored(tmp_path, {"x": x}))
    assert state["p0"].tolist() == [0, 1, 6, 7]
    assert state["p2"].tolist() == [4, 5, 10, 11]
    assert torch.equal(export_weights(rules, state)["x"], x)


def test_permute_rope_orders_pairs_within_heads(tmp_path: Path) -> None:
    rules = [
        rule("all", {"op": "permute_rope", "of": tensor("x"), "heads": 2}),
        rule("part", {"op": "permute_rope", "of": tensor("y"), "heads": 2, "rotary": 4}),
    ]
    x, y = torch.arange(12.0), torch.arange(12.0)
    state = imported(rules, {"all": (12,), "part": (12,)}, stored(tmp_path, {"x": x, "y": y}))
    assert state["all"].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert state["part"].tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    assert torch.equal(export_weights(rules, state)["x"], x)


def test_experts_are_stacked_by_number(tmp_path: Path) -> None:
    checkpoint = {f"layers.{i}.experts.{j}.up": torch.full((2, 3), 100.0 * i + j) for i in range(2) for j in range(11)}
    rules = [rule("block.*.up", {"op": "stack", "of": tensor("layers.*.experts.#.up")})]
    state = imported(rules, {"block.0.up": (11, 2, 3), "block.1.up": (11, 2, 3)}, stored(tmp_path, checkpoint))
    assert state["block.1.up"][:, 0, 0].tolist() == [100.0 + j for j in range(11)]
    back = export_weights(rules, state)
    assert back.keys() == checkpoint.keys() and all(torch.equal(back[n], checkpoint[n]) for n in back)


@st.composite
def maps(draw) -> tuple[list[Json], dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """A random map with its model's shapes and a checkpoint that it covers exactly."""
    rules: list[Json] = []
    model: dict[str, tuple[int, ...]] = {}
    checkpoint: dict[str, Tensor] = {}
    layers = draw(st.integers(1, 3))

    def dress(value: Json, rows: int, width: int | None, turned: bool) -> tuple[Json, tuple[int, ...]]:
        """More operations on top, which keep a tensor's size; and the shape that comes out."""
        shape = (rows,) if width is None else (rows, width)
        if draw(st.booleans()):
            heads = draw(st.sampled_from([h for h in (1, 2, 3) if rows % (2 * h) == 0] or [0]))
            if heads:
                value = {"op": "permute_rope", "of": value, "heads": heads}
                if draw(st.booleans()):
                    value["rotary"] = 2 * draw(st.integers(1, rows // heads // 2))
        if width is not None and draw(st.booleans()):
            value, shape = {"op": "transpose", "of": value}, shape[::-1]
        return value, shape

    for t in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["whole", "rows", "interleave", "stack"]))
        width = draw(st.sampled_from([None, 3, 4])) if kind != "stack" else 3
        name = f"model.{t}.*.w" if kind != "stack" else f"model.{t}.*.expert.#.w"
        turned = width is not None and draw(st.booleans())
        base: Json = {"op": "transpose", "of": tensor(name)} if turned else tensor(name)
        cuts = draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
        parts, block = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        experts = draw(st.integers(1, 3))
        rows = parts * block * draw(st.integers(1, 3)) if kind == "interleave" else sum(cuts)
        values: list[tuple[Json, int]] = [(base, rows)]
        if kind == "rows":
            starts = [sum(cuts[:i]) for i in range(len(cuts))]
            values = [
                ({"op": "rows", "of": base, "from": a, "to": a + n}, n) for a, n in zip(starts, cuts, strict=True)
            ]
        elif kind == "interleave":
            values = [
                ({"op": "interleave", "of": base, "parts": parts, "part": i, "block": block}, rows // parts)
                for i in range(parts)
            ]
        for i, (value, size) in enumerate(values):
            value, shape = dress(value, size, width, turned)
            if kind == "stack":
                value, shape = {"op": "stack", "of": value}, (experts, *shape)
            rules.append(rule(f"blocks.*.p{t}_{i}", value))
            model |= {f"blocks.{n}.p{t}_{i}": shape for n in range(layers)}
        full = (rows,) if width is None else ((width, rows) if turned else (rows, width))
        for n in range(layers):
            for x in range(experts if kind == "stack" else 1):
                checkpoint[name.replace("*", str(n)).replace("#", str(x))] = torch.randn(full)
    return rules, model, checkpoint


@settings(max_examples=60, deadline=None)
@given(maps())
def test_what_a_map_reads_it_writes_back(tmp_path_factory: pytest.TempPathFactory, drawn) -> None:
    rules, model, checkpoint = drawn
    state = imported(rules, model, stored(tmp_path_factory.mktemp("c"), checkpoint))
    assert shapes(state) == model
    assert sum(v.numel() for v in state.values()) == sum(v.numel() for v in checkpoint.values())
    back = export_weights(rules, state)
    assert back.keys() == checkpoint.keys()
    assert all(torch.equal(back[name], checkpoint[name]) for name in checkpoint)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"parameter": "a"}, "means nothing"),
        (rule("a.*", "b"), "equally many"),
        (rule("a", {"op": "rows", "of": tensor("b"), "from": 3, "to": 3}), "means nothing"),
        (rule("a", {"op": "interleave", "of": tensor("b"), "parts": 2, "part": 2}), "means nothing"),
        (rule("a", {"op": "permute_rope", "of": tensor("b"), "heads": 0}), "means nothing"),
        (rule("a", {"op": "reverse", "of": tensor("b")}), "means nothing"),
        (rule("a", {"op": "rows", "of": {"op": "stack", "of": tensor("#")}, "from": 0, "to": 1}), "rows of something"),
    ],
)
def test_rules_that_mean_nothing_are_refused(bad: Json, says: str) -> None:
    with pytest.raises(Problem, match=says):
        read_rules([bad])


# --- coverage

RULES = [
    rule("embed.weight", "model.embed_tokens.weight"),
    rule("layers.*.q.weight", "model.layers.*.self_attn.q_proj.weight"),
    rule("layers.*.q.bias", "model.layers.*.self_attn.q_proj.bias"),
    rule("logits.weight", "lm_head.weight"),
    {"ignore": "*.rotary_emb.inv_freq"},
]


def checkpoint(layers: int = 3, bias: bool = False) -> dict[str, Tensor]:
    state = {"model.embed_tokens.weight": torch.randn(7, 4)}
    for i in range(layers):
        state[f"model.layers.{i}.self_attn.q_proj.weight"] = torch.randn(4, 4)
        if bias:
            state[f"model.layers.{i}.self_attn.q_proj.bias"] = torch.randn(4)
    return state


def model(layers: int = 3, bias: bool = False, head: bool = False) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"embed.weight": (7, 4)}
    for i in range(layers):
        found[f"layers.{i}.q.weight"] = (4, 4)
        if bias:
            found[f"layers.{i}.q.bias"] = (4,)
    return found | ({"logits.weight": (7, 4)} if head else {})


def problem(
    model: dict[str, tuple[int, ...]], state: dict[str, Tensor], folder: Path, rules: list[Json] = RULES
) -> str:
    with pytest.raises(Problem) as caught:
        plan_import(rules, model, open_source(stored(folder, state)))
    assert caught.value.help
    return caught.value.message


def test_every_parameter_is_filled(tmp_path: Path) -> None:
    state = checkpoint()
    got = imported(RULES, model(), stored(tmp_path, state))
    assert torch.equal(got["layers.2.q.weight"], state["model.layers.2.self_attn.q_proj.weight"])
    source = open_source(tmp_path)
    cast = import_weights(plan_import(RULES, model(), source), source, torch.bfloat16)
    assert all(value.dtype == torch.bfloat16 for value in cast.values())


def test_missing_extra_and_wrong_shape_are_named_together(tmp_path: Path) -> None:
    state = checkpoint(layers=4) | {"model.layers.1.self_attn.q_proj.weight": torch.randn(4, 6)}
    del state["model.layers.2.self_attn.q_proj.weight"]
    text = problem(model(layers=3) | {"router.weight": (2, 2)}, state, tmp_path)
    assert "missing in the checkpoint:\n    model.layers.2.self_attn.q_proj.weight" in text
    assert "not asked for by the model:\n    model.layers.3.self_attn.q_proj.weight" in text
    assert "layers.1.q.weight is [4, 4] in the model, and [4, 6]" in text
    assert "no rule of the map fills:\n    router.weight" in text


def test_extra_biases_are_named_once_for_all_layers(tmp_path: Path) -> None:
    text = problem(model(layers=3), checkpoint(layers=3, bias=True), tmp_path)
    assert "model.layers.*.self_attn.q_proj.bias (0 to 2)" in text


def test_two_rules_for_a_parameter(tmp_path: Path) -> None:
    text = problem(model(), checkpoint(), tmp_path, [*RULES, rule("layers.0.q.weight", "x")])
    assert "more than one rule of the map fills:\n    layers.0.q.weight" in text


def test_ignored_tensors_and_buffers(tmp_path: Path) -> None:
    state = checkpoint() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    plan = plan_import(RULES, model(), open_source(stored(tmp_path, state)))
    assert plan.notes == ("1 tensors are ignored, as the map says",)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([rule("a", "x"), rule("b", "x")], "x is used 2 times"),
        ([{"op": "rows", "from": 0, "to": 3}, {"op": "rows", "from": 2, "to": 5}], "x is used twice from row 2 on"),
        ([{"op": "rows", "from": 0, "to": 2}, {"op": "rows", "from": 3, "to": 6}], "x has 1 of 6 rows left over"),
        ([{"op": "rows", "from": 0, "to": 2}, {"op": "rows", "from": 3, "to": 9}], "cannot be made of x"),
    ],
)
def test_a_tensor_is_used_wholly_and_once(tmp_path: Path, rules: list[Json], says: str) -> None:
    if "op" in rules[0]:
        rules = [rule(name, value | {"of": tensor("x")}) for name, value in zip("ab", rules, strict=True)]
        sizes = [value["value"]["to"] - value["value"]["from"] for value in rules]
    else:
        sizes = [6, 6]
    text = problem({"a": (sizes[0],), "b": (sizes[1],)}, {"x": torch.randn(6)}, tmp_path, rules)
    assert says in text


def test_a_tied_head_that_was_saved_is_a_copy(tmp_path: Path) -> None:
    state = checkpoint()
    table = state["model.embed_tokens.weight"]
    plan = plan_import(RULES, model(), open_source(stored(tmp_path / "a", state | {"lm_head.weight": table.clone()})))
    assert "lm_head.weight is a copy of model.embed_tokens.weight" in plan.notes[0]
    text = problem(model(), state | {"lm_head.weight": table + 1e-6}, tmp_path / "b")
    assert "lm_head.weight is not equal to model.embed_tokens.weight" in text
    text = problem(model(), state | {"lm_head.weight": torch.randn(8, 4)}, tmp_path / "c")
    assert "not asked for by the model:\n    lm_head.weight" in text
    text = problem(model(head=True), state, tmp_path / "d")
    assert "missing in the checkpoint:\n    lm_head.weight" in text


def test_same_rule(tmp_path: Path) -> None:
    same = {"same": "copy", "as": "model.embed_tokens.weight"}
    state = checkpoint()
    good = state | {"copy": state["model.embed_tokens.weight"].clone()}
    assert plan_import([*RULES, same], model(), open_source(stored(tmp_path / "a", good))).notes
    assert "copy is not equal" in problem(model(), good | {"copy": torch.zeros(7, 4)}, tmp_path / "b", [*RULES, same])
    assert "not asked for by the model:\n    copy" in problem(model(), good, tmp_path / "c")


def test_integers_are_refused(tmp_path: Path) -> None:
    source = open_source(stored(tmp_path, {"x": torch.ones(3, dtype=torch.int8)}))
    with pytest.raises(Problem, match="int8"):
        import_weights(plan_import([rule("a", "x")], {"a": (3,)}, source), source)


def test_fold() -> None:
    names = [f"layers.{i}.q" for i in (0, 1, 2, 5)] + ["norm"] + [f"layers.3.experts.{j}.up" for j in range(3)]
    assert fold(names) == ["layers.*.q (0 to 2, 5)", "norm", "layers.3.experts.*.up (0 to 2)"]
    grid = [f"layers.{i}.experts.{j}.up" for i in range(2) for j in range(2)]
    assert fold(grid) == ["layers.*.experts.*.up (4: layers.0.experts.0.up to layers.1.experts.1.up)"]


# --- files


@pytest.mark.parametrize("shards", [1, 3])
def test_shards(tmp_path: Path, shards: int) -> None:
    state = checkpoint()
    folder = stored(tmp_path, state, shards)
    got = imported(RULES, model(), folder)
    assert torch.equal(got["embed.weight"], state["model.embed_tokens.weight"])
    assert torch.equal(got["layers.1.q.weight"], state["model.layers.1.self_attn.q_proj.weight"])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    stored(tmp_path, checkpoint(), shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(Problem, match="lacks 1 of its 3 files: model-00002-of-00003"):
        open_source(tmp_path)


def test_an_index_of_another_checkpoint(tmp_path: Path) -> None:
    stored(tmp_path, checkpoint(), shards=2)
    index = tmp_path / "model.safetensors.index.json"
    holder = json.loads(index.read_text())
    holder["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(holder))
    with pytest.raises(Problem, match="holds `ghost`, and it does not"):
        open_source(tmp_path)
    for text in ("", "{}", "[]", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(Problem, match="is not the index"):
            open_source(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_safetensors(tmp_path: Path, keep: int) -> None:
    stored(tmp_path, checkpoint())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(Problem, match="not a whole safetensors file"):
        open_source(tmp_path)


def test_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no checkpoint at"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(Problem, match=r"holds no \.safetensors"):
        open_source(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(Problem) as caught:
        open_source(tmp_path)
    assert "pytorch_model.bin is a pickle" in (caught.value.help or "")
    with pytest.raises(Problem, match=r"neither a \.safetensors nor"):
        open_source(tmp_path / "pytorch_model.bin")


def test_names_in_two_files(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "two.safetensors")
    with pytest.raises(Problem, match=r"holds `a` twice, in one\.safetensors and two\.safetensors"):
        open_source(tmp_path)


LLAMA = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
OUTER = [
    rule("embed.weight", "model.embed_tokens.weight"),
    rule("norm.weight", "model.norm.weight"),
    rule("logits.weight", "lm_head.weight"),
    *[rule(f"layers.*.{ours}.weight", f"model.layers.*.{theirs}.weight") for ours, theirs in LLAMA.items()],
]


def ours_from(theirs: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """transformers' state dict under our names, by plain renaming."""
    result = {}
    for name, value in theirs.items():
        for their_part, our_part in names.items():
            name = name.replace(their_part, our_part)
        result[name] = value
    return result


NAMES = {
    "model.embed_tokens": "embed",
    "model.norm": "norm",
    "lm_head": "logits",
    "model.layers": "layers",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
    **{theirs: ours for ours, theirs in LLAMA.items()},
}


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_saved_by_transformers(tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        tie_word_embeddings=tied,
    )
    llama = LlamaForCausalLM(config)
    llama.save_pretrained(tmp_path, max_shard_size="10KB")
    expected = ours_from(llama.state_dict(), NAMES)
    if tied:
        del expected["logits.weight"]
    rules = OUTER + [
        rule(f"layers.*.mlp.{x}.weight", f"model.layers.*.mlp.{x}_proj.weight") for x in ("gate", "up", "down")
    ]
    state = imported(rules, shapes(expected), tmp_path)
    assert state.keys() == expected.keys() and all(torch.equal(state[n], expected[n]) for n in state)


def test_a_mixtral_saved_by_transformers(tmp_path: Path) -> None:
    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        num_local_experts=3,
    )
    mixtral = MixtralForCausalLM(config)
    mixtral.save_pretrained(tmp_path)
    theirs = mixtral.state_dict()
    moe = "model.layers.*.block_sparse_moe"
    rules = [*OUTER, rule("layers.*.moe.router.weight", f"{moe}.gate.weight")]
    for ours, w in {"gate": "w1", "down": "w2", "up": "w3"}.items():
        value = {"op": "stack", "of": tensor(f"{moe}.experts.#.{w}.weight")}
        rules.append(rule(f"layers.*.moe.experts.{ours}.weight", value))
    model = {"embed.weight": (50, 16), "norm.weight": (16,), "logits.weight": (50, 16)}
    for i in range(2):
        model |= {f"layers.{i}.{n}.weight": (16,) for n in ("attention_norm", "mlp_norm")}
        model |= {f"layers.{i}.attention.{n}.weight": (16, 16) for n in ("q", "out")}
        model |= {f"layers.{i}.attention.{n}.weight": (8, 16) for n in ("k", "v")}
        model |= {f"layers.{i}.moe.router.weight": (3, 16), f"layers.{i}.moe.experts.down.weight": (3, 16, 24)}
        model |= {f"layers.{i}.moe.experts.{n}.weight": (3, 24, 16) for n in ("gate", "up")}
    state = imported(rules, model, tmp_path)
    for i in range(2):
        gate_up = theirs[f"model.layers.{i}.mlp.experts.gate_up_proj"]
        assert torch.equal(state[f"layers.{i}.moe.experts.gate.weight"], gate_up[:, :24])
        assert torch.equal(state[f"layers.{i}.moe.experts.up.weight"], gate_up[:, 24:])
        down = theirs[f"model.layers.{i}.mlp.experts.down_proj"]
        assert torch.equal(state[f"layers.{i}.moe.experts.down.weight"], down)
    back = export_weights(rules, state)
    saved = load_file(tmp_path / "model.safetensors")
    assert back.keys() == saved.keys() and all(torch.equal(back[n], saved[n]) for n in saved)


def test_export_names_what_it_cannot_write() -> None:
    with pytest.raises(Problem, match="0 rules of the map speak of `other`"):
        export_weights([rule("a", "x")], {"other": torch.ones(2)})
    cut = [rule("a", {"op": "rows", "of": tensor("x"), "from": 1, "to": 3})]
    with pytest.raises(Problem, match="x has 1 of 3 rows left over"):
        export_weights(cut, {"a": torch.ones(2)})


def test_tokenizer_of_a_folder(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(Problem, match="is not a tokenizer"):
        read_tokenizer(tmp_path)
    other = tmp_path / "other.json"
    with pytest.raises(Problem, match="no tokenizer at"):
        read_tokenizer(other)
    Tokenizer(models.BPE({"a": 0}, [])).save(str(other))
    found = read_tokenizer(other)
    assert found is not None and found.get_vocab_size() == 1
