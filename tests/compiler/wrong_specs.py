"""Specs that are wrong in one way each, with the diagnostic that they must get."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wrong:
    """A spec, the code of its one diagnostic, the first line of what that underlines, and a part of what it says."""

    code: str
    underlined: str
    says: str
    text: str
    also: tuple[str, ...] = ()  # codes of further diagnostics that come with it


DIMS = "V = 32, D = 16, F = 24, H = 4, E = 4, X = 4"


def model(
    body: str = "", blocks: str = "", dims: str = DIMS, after: str = "", result: str = "linear(x, D -> V)"
) -> str:
    """A spec around the body of a model, which has `x` to go on from, and goes on with `x`."""
    return f"""dsk 1

use std {{ attention, swiglu, moe, mlp, llama }}
{blocks}
model m(tokens: ids[B, S]) -> logits: [B, S, V] {{
  dims {{ {dims} }}
  x = embed(tokens, V -> D)
  {body}
  logits = {result}
}}
{after}
"""


def block(body: str, call: str = "x = b(x)", takes: str = "x: [B, S, D]", gives: str = "[B, S, D]") -> str:
    """A spec around the body of a block."""
    return model(call, f"block b({takes}) -> {gives} {{\n{body}\n}}")


def delta(k: str = "linear(x, D -> [H, E])", v: str | None = None, beta: str | None = None, heads: str = "H") -> str:
    """A spec around a delta rule with one operand of another shape."""
    lines = (
        "q = linear(x, D -> [H, E])",
        f"k = {k}",
        f"v = {v or f'linear(x, D -> [{heads}, E])'}",
        f"gate = linear(x, D -> {heads})",
        f"beta = {beta or f'linear(x, D -> {heads})'}",
        "x += linear(gated_delta(q, k, v, gate, beta), [{heads}, E] -> D) as out".replace("{heads}", heads),
    )
    return model("\n  ".join(lines))


def train(body: str, head: str = "train t of m") -> str:
    return model(after=f"{head} {{\n{body}\n}}")


def plan(body: str, head: str = "plan p for t on 8 * h100_80gb") -> str:
    return model(after=f"train t of m {{ batch {{ sequences = 8 }} }}\n{head} {{\n{body}\n}}")


def derived(body: str) -> str:
    layers = "repeat 2 layers {\n x += attention(rms_norm(x), heads: H, width: E)\n }"
    return model(layers, after=f"model n from m {{\n{body}\n}}")


def mapped(body: str) -> str:
    return model("weights own", after=f"checkpoint own {{\n{body}\n}}")


def attention(options: str) -> str:
    return model(f"x += attention(x, heads: H, width: E, {options})")


EXTERN = 'block mine(x: [B, S, D]) -> [B, S, D] = extern "a:B" {{ {} }}'
STACK = "block b(x: [B, S, D], inner: F) -> [B, S, D] {\nrepeat 2 layers { x += swiglu(x, inner: F) }\nreturn x\n}"
LONG = " * ".join(["1e300"] * 9)
Q = "q = linear(x, D -> [H, E])\n  "
ROUTED = "score = softmax(linear(x, D -> X))\nchosen = top_k(score, 2)\nw = gather(score, chosen)\n"

WRONG = (
    # --- the text
    Wrong("DSK0001", "=", "unexpected `=`", model("y = = 3")),
    Wrong("DSK0001", "Y", "expected a statement", model("Y = x * 2")),
    Wrong("DSK0001", "repaet", "did you mean `repeat`?", model("repaet 2 a {\n x += silu(x)\n }")),
    Wrong("DSK0001", "x", "a `=` is missing before this", model("y x * 2")),
    Wrong("DSK0001", "=", "it stands here twice", model("y = = 3")),
    Wrong("DSK0001", "+", "did you mean `x +`?", model("y = + x x")),
    Wrong("DSK0001", "Silu", "names start with a small letter: `silu`", model("y = Silu(x)")),
    Wrong("DSK0001", "F", "expected", model("x = swiglu(x, inner F)")),
    Wrong("DSK0001", "H", "`}`, `,`, the end of the line or an operator", model(dims="V = 32, D = 16 H = 4")),
    Wrong("DSK0001", "}", "what follows stands outside everything", model("}")),
    Wrong("DSK0001", "'", "texts stand in double quotes", model("y = 'a'")),
    Wrong("DSK0001", "m", "expected `{`, `from` or `of`", train("", "train t m")),
    Wrong("DSK0002", "dsk 1", "once, in its first line", model(after="dsk 1")),
    Wrong("DSK0002", "2", "edition 2 is not one that this compiler knows", "dsk 2\n"),
    Wrong("DSK0002", "use std { swiglu }", "write `dsk 1` above this", "use std { swiglu }\n"),
    Wrong("DSK0003", "(", "its `)` is missing", model("x += linear(x, D -> D\ny = x")),
    Wrong("DSK0003", "{", "this `{` is never closed", "dsk 1\nblock b(x: [D]) -> [D] {\n  return x\n"),
    Wrong("DSK0004", "32k", "did you mean `32K`?", model(dims="V = 32k, D = 16")),
    Wrong("DSK0005", "(", "nested over 100 deep", model(f"x = {'(' * 101}x{')' * 101}")),
    # --- names
    Wrong("DSK0010", '"nowhere.dsk"', "there is no file", 'dsk 1\nuse "nowhere.dsk" { b }\n'),
    Wrong("DSK0101", "xx", "no value is called `xx`", model("x = x + xx")),
    Wrong("DSK0101", "y", "no value is called `y`", model("y += x")),
    Wrong("DSK0101", "k", "no value is called `k`", block("keep k\nreturn x")),
    Wrong("DSK0101", "Dim", "no dim is called `Dim`", model("y = linear(x, D -> Dim)")),
    Wrong("DSK0101", "swigloo", "`swiglu`? It is in std, and already imported", model("y = swigloo(x, inner: F)")),
    Wrong("DSK0101", "geglu", "it is in std: add it to `use std { ... }`", model("y = geglu(x, inner: F)")),
    Wrong("DSK0101", "gegl", "`geglu`? It is in std: add it to `use std", model("y = gegl(x, inner: F)")),
    Wrong(
        "DSK0101", "mien", "did you mean `mine`? It is in this file", model("x = mien(x)", EXTERN.format("flops = 3"))
    ),
    Wrong("DSK0101", "idz", "one of ids, ints", model().replace("ids[", "idz[")),
    Wrong("DSK0101", "itn", "did you mean `int`?", block("return x", takes="x: [B, S, D], n: itn = 1")),
    Wrong("DSK0101", "mm", "there are m", train("", "train t of mm")),
    Wrong("DSK0101", "tt", "no train is called `tt`", plan("", "plan p for tt")),
    Wrong("DSK0101", "mm", "no model is called `mm`", model(after="model n from mm { }")),
    Wrong("DSK0101", "lama", "no checkpoint map is called `lama`", model("weights lama")),
    Wrong("DSK0101", "layers", "there are x, logits", model("require params(layers) == 0")),
    Wrong("DSK0102", "b", "again here", model(blocks="block b(x: [D]) -> [D] { return x }\n" * 2)),
    Wrong("DSK0102", "x", "again here", block("return x", "x = b(x, x)", "x: [B, S, D], x: [B, S, D]")),
    Wrong("DSK0102", "tokens", "again here", model().replace("[B, S])", "[B, S], tokens: ids[B, S])")),
    Wrong("DSK0102", "logits", "again here", model().replace("[B, S, V] {", "[B, S, V], logits: [B, S, V] {")),
    Wrong("DSK0102", "swiglu", "imported here", model(blocks="block swiglu(x: [D]) -> [D] { return x }")),
    Wrong("DSK0102", "a", "again here", model("a, a = split(x, [D / 2, D / 2])")),
    Wrong("DSK0103", "st", "did you mean `std`?", model("x = swiglu(x, inner: F)").replace("use std", "use st")),
    Wrong("DSK0103", "lib", "the library is `std`", "dsk 1\nuse lib { swiglu }\n"),
    Wrong("DSK0104", "swigloo", "did you mean `swiglu`?", "dsk 1\nuse std { swigloo }\n"),
    Wrong("DSK0106", "b", "comes from itself", "dsk 1\nmodel a from b { }\nmodel b from a { }\n", ("DSK0106",)),
    Wrong("DSK0106", "t", "comes from itself", train("", "train t from t")),
    Wrong("DSK0107", "t", "write `of MODEL`", train("", "train t")),
    Wrong("DSK0107", "p", "write `for NAME`", plan("", "plan p")),
    Wrong("DSK0108", "D", "`D` is said twice", model(dims="V = 32, D = 16, D = 8")),
    Wrong("DSK0108", "tokens", "again here", train("tokens = 5M\ntokens = 6M")),
    Wrong("DSK0108", "weights mixtral", "again here", model("weights llama\n  weights mixtral", "use std { mixtral }")),
    Wrong("DSK0108", "flops", "again here", model("x = mine(x)", EXTERN.format("flops = 3, flops = 4"))),
    Wrong("DSK0108", 'x = "b"', "mapped twice", mapped('x = "a"\nx = "b"\nlogits = "c"')),
    # --- values
    Wrong("DSK0110", "..", "`..` stands in types", model("x = x * ..")),
    Wrong("DSK0111", "tokens.x", "is a path", model("x = x + tokens.x")),
    Wrong("DSK0112", "R", "ask for it with `if` first", block("return linear(x, D -> R)", takes="x: [B, S, D], r: R?")),
    Wrong("DSK0113", "x", "this is a tensor", model("y = linear(x, D -> x)")),
    Wrong("DSK0113", '"wide"', "a dim is a size", model(dims='V = 32, D = "wide"')),
    Wrong("DSK0114", 'x + "one"', "and the text `one`", model('x = x + "one"')),
    Wrong("DSK0114", "x % 2", "`%` does not go between", model("x = x % 2")),
    Wrong("DSK0114", "causal & 3", "`&` does not go between a mask and", attention("mask: causal & 3")),
    Wrong("DSK0114", "-causal", "`-` needs a number or a tensor", attention("mask: -causal")),
    Wrong("DSK0114", "causal > 3", "does not compare a mask", model("if causal > 3 { x = x * 2 }")),
    Wrong("DSK0114", 'floor("a")', "needs one number or dim", model('y = linear(x, D -> floor("a"))')),
    Wrong("DSK0114", "3", "`+=` needs a tensor", model("x += 3")),
    Wrong("DSK0115", "0", "this divides by zero", model("x = x * (D / 0)")),
    Wrong("DSK0115", "V / (V - 32)", "this divides by zero", model(dims="V = 32, D = V / (V - 32)")),
    Wrong("DSK0116", "S", "no value before data comes", model("if S > 100 { x = x * 2 }")),
    Wrong("DSK0117", "x", "no control flow over data", model("if x { x = x * 2 }")),
    Wrong("DSK0117", "3", "compare it, as in `n > 0`", model("if 3 { x = x * 2 }")),
    Wrong("DSK0118", "x", "`x` is a tensor", model("y = x(x)")),
    Wrong("DSK0118", "rope", "nothing (it was not given)", block("return rope(x)", takes="x: [B, S, D], rope: block?")),
    Wrong("DSK0119", "linear(x, D -> D) as lambda", "a word of Python's", model("x += linear(x, D -> D) as lambda")),
    Wrong("DSK0119", "rms_norm(x) as parameters", "every module of PyTorch", model("x = rms_norm(x) as parameters")),
    Wrong("DSK0119", "_g", "do not begin with an underscore", model("group _g {\n x = x * 2\n }")),
    Wrong("DSK0119", "is", "a word of Python's", model("loss is = load_balance(x, top_k(x, 2))")),
    Wrong("DSK0119", "None", "a word of Python's", model(dims="V = 32, D = 16, None = 3")),
    Wrong("DSK0119", "Linear", "a class of generated code", model(dims="V = 32, D = 16, Linear = 3")),
    # --- calls
    Wrong("DSK0120", "rms_norm(x) as a", "would be called `a`", model("x = rms_norm(x) as a\n  x = rms_norm(x) as a")),
    Wrong("DSK0120", "rms_norm(x)", "`... as name`", model("x += rms_norm(x)\n  x += rms_norm(x)")),
    Wrong("DSK0120", "a", "would be called `a`", model("repeat 2 a { x += x }\n  repeat 2 a { x += x }")),
    Wrong(
        "DSK0120",
        "experts(x, chosen, w, mlp(inner: F), count: X)",
        "would be called `b.experts`",
        block(
            f"{ROUTED}y = experts(x, chosen, w, swiglu(inner: F), count: X)\n"
            "y = experts(x, chosen, w, mlp(inner: F), count: X)\nreturn y",
            "x = b(x, count: X, inner: F)",
            "x: [B, S, D], count: X, inner: F",
        ),
    ),
    Wrong("DSK0121", "b(x)", "b -> b", block("return b(x)")),
    Wrong("DSK0122", "inner: D", "`inner` is given twice", model("x = swiglu(x, inner: F, inner: D)")),
    Wrong("DSK0123", "4", "it is swiglu(x, inner, bias?, limit?)", model("x = swiglu(x, F, false, 3, 4)")),
    Wrong("DSK0123", "D -> F", "takes no `->` here", model("x = swiglu(x, D -> F)")),
    Wrong("DSK0124", "iner", "did you mean `inner`?", model("x = swiglu(x, iner: F)")),
    Wrong("DSK0125", "swiglu(x)", "also needs `inner`", model("x = swiglu(x)")),
    Wrong("DSK0125", "linear(x)", "axes such as `D -> F`", model("x = linear(x)")),
    Wrong("DSK0126", "3", "`bias` is true or false", model("x = swiglu(x, inner: F, bias: 3)")),
    Wrong("DSK0126", "swiglu(inner: F)", "`mask` is a mask", attention("mask: swiglu(inner: F)")),
    Wrong("DSK0126", "window(3)", "does not go here", train("tokens = window(3)")),
    Wrong(
        "DSK0126",
        "balance_bias(X)",
        "no choice counts for this",
        model(f"{ROUTED} x += experts(x, top_k(score + balance_bias(X), 2), w, swiglu(inner: F), count: X)"),
    ),
    Wrong("DSK0131", "3", "of 2 groups 3 cannot be kept", model(f"{ROUTED} c = top_k(score, 2, groups: 2, keep: 3)")),
    Wrong("DSK0131", "0", "`groups` is at least 1", model(f"{ROUTED} c = top_k(score, 2, groups: 0)")),
    Wrong(
        "DSK0209",
        "top_k(score, 1, groups: 3, keep: 2)",
        "4 scores do not make 3 equal groups",
        model(f"{ROUTED} c = top_k(score, 1, groups: 3, keep: 2)"),
    ),
    Wrong(
        "DSK0209",
        "top_k(score, 3, groups: 2, keep: 1)",
        "the best 3 cannot be chosen from 1 groups of 2",
        model(f"{ROUTED} c = top_k(score, 3, groups: 2, keep: 1)"),
    ),
    Wrong(
        "DSK0209",
        "top_k(score, 1, groups: 4, keep: 2, group_by: best_two)",
        "have no best two",
        model(f"{ROUTED} c = top_k(score, 1, groups: 4, keep: 2, group_by: best_two)"),
    ),
    Wrong("DSK0201", "x", "`bias` has a number for each score", model(f"{ROUTED} c = top_k(score, 2, bias: x)")),
    Wrong(
        "DSK0131",
        "0",
        "`capacity` is over 0",
        model(f"{ROUTED} x += experts(x, chosen, w, swiglu(inner: F), count: X, capacity: 0)"),
    ),
    Wrong("DSK0170", "speed", "has no `balance_bias` to move", train("balance { speed = 1e-3 }")),
    Wrong("DSK0126", "n", "`keep` needs tensors", block("n = 3\nkeep n\nreturn x")),
    Wrong("DSK0127", "g", "`f` has its weights already", model("f = linear(D -> D)\n  x = f(x)\n  x = f(x) as g")),
    Wrong("DSK0128", "b", "gives back 2 of the 1", block("return x, x")),
    Wrong("DSK0128", "b", "gives back 0 of the 1", block("y = x")),
    Wrong("DSK0129", "b", "gives back the number 3", block("return 3")),
    # --- numbers and words
    Wrong("DSK0131", "0", "at least 1 position", attention("mask: window(0)")),
    Wrong("DSK0131", "2", "`window` of `blocks` is odd", attention("mask: blocks(window: 2)")),
    Wrong("DSK0131", "0", "`size` of `blocks` is at least 1", attention("mask: blocks(size: 0)")),
    Wrong("DSK0124", "sise", "`blocks` takes no `sise`", attention("mask: blocks(sise: 8)")),
    Wrong("DSK0131", "0", "`softcap` is over 0", model(f"{Q}y = attend(q, q, q, softcap: 0)")),
    Wrong("DSK0201", "x", "a sink for each of `H` heads", model(f"{Q}y = attend(q, q, q, sinks: x)")),
    Wrong("DSK0201", "x", "selected positions are integers", model(f"{Q}y = attend(q, q, q, select: x)")),
    Wrong("DSK0201", "tokens", "select positions [B, S, K]", model(f"{Q}y = attend(q, q, q, select: tokens)")),
    Wrong("DSK0131", attention("dropout: 1").splitlines()[7][7:], "from 0 to under 1", attention("dropout: 1")),
    Wrong("DSK0131", "0", "`k` is at least 1", model("y = top_k(x, 0)")),
    Wrong(
        "DSK0131",
        " * ".join(["1e300"] * 9),
        "two thousand digits",
        model(dims=f"V = 3, D = {' * '.join(['1e300'] * 9)}"),
    ),
    Wrong("DSK0131", "0", "`lr` must be over 0", train("optimizer adamw(lr: 0)")),
    Wrong("DSK0131", "1", "`momentum` must be from 0 to under 1", train("optimizer muon(lr: 2, momentum: 1)")),
    Wrong("DSK0131", "0", "`lr` must be over 0", train("optimizer muon(lr: 2, adamw: adamw(lr: 0))")),
    Wrong(
        "DSK0124",
        "clip",
        "it is adamw(lr, betas?, eps?, decay?)",
        train("optimizer muon(lr: 2, adamw: adamw(lr: 1, clip: 2))"),
    ),
    Wrong("DSK0132", "rmsd", "did you mean `rms`?", train("optimizer muon(lr: 2, scale: rmsd)")),
    Wrong("DSK0132", "square", "one of linear, root", train("schedule constant(shape: square)")),
    Wrong("DSK0131", "ramp(start: 6)", "a multiple of 6", train("batch { sequences = 16, ramp = ramp(start: 6) }")),
    Wrong("DSK0131", "ramp(start: 16)", "does not reach 16", train("batch { sequences = 16, ramp = ramp(start: 16) }")),
    Wrong("DSK0170", "logit", "did you mean `logits`?", train("groups { logit { rate = 2 } }")),
    Wrong("DSK0170", "lr", "it has rate, decay, fp8, frozen, lora, init", train("groups { logits { lr = 2 } }")),
    Wrong("DSK0131", "-1", "`rate` is 0 or more", train("groups { logits { rate = -1 } }")),
    Wrong("DSK0132", "row", "did you mean `rows`?", train("groups { logits { fp8 = row } }")),
    Wrong(
        "DSK0170",
        "logits.lora",
        "heads, experts and embeddings have none",
        train("groups { logits.lora = lora(rank: 2) }"),
    ),
    Wrong(
        "DSK0131", "0", "`rank` must be 1 or more", train("groups { logits.lora = lora(rank: 0) }"), also=("DSK0170",)
    ),
    Wrong("DSK0170", "fp8", "has no linear layers for this", train("groups { x { fp8 = rows } }")),
    Wrong("DSK0170", "master", "goes with `params = bf16`", train("precision { master = fp32 }")),
    Wrong("DSK0132", "bf16", "one of fp32", train("precision { params = bf16, master = bf16 }")),
    Wrong("DSK0131", "[0.9]", "must be two numbers", train("optimizer adamw(lr: 1, betas: [0.9])")),
    Wrong("DSK0131", "[0.5]", "must go in pairs", train("schedule steps(at: [0.5], factor: [0.3, 0.1])")),
    Wrong("DSK0131", "0", "`tokens` is at least 1", train("tokens = 0")),
    Wrong("DSK0131", "0.5", "whole and at least 1", plan("", "plan p for t on 0.5 * h100_80gb")),
    Wrong("DSK0132", "sideways", "one of half, interleaved", attention("rope: rope(pairs: sideways)")),
    Wrong("DSK0132", "yearn", "did you mean `yarn`?", attention("rope: rope(scaling: yearn(factor: 2))")),
    Wrong("DSK0132", "fp8", "one of fp32, bf16", train("precision { compute = fp8 }")),
    Wrong("DSK0132", "up", "one of nearest, stochastic", train("precision { params = bf16, rounding = up }")),
    Wrong("DSK0170", "rounding", "goes with `params = bf16`", train("precision { rounding = stochastic }")),
    Wrong("DSK0170", "rounding", "in the same `precision`", plan("precision { rounding = stochastic }")),
    Wrong("DSK0132", "adam", "did you mean `adamw`?", train("optimizer adam(lr: 1)")),
    # --- models
    Wrong("DSK0140", "repeat layer 3", "did you mean `layers`?", derived("repeat layer 3")),
    Wrong("DSK0140", "DD = 3", "has no dim `DD`", derived("dims { DD = 3 }")),
    Wrong("DSK0140", "qk_nrm: true", "did you mean `qk_norm`?", derived("layers.attention(qk_nrm: true)")),
    Wrong("DSK0141", "true", "write `name: value`", derived("layers.attention(true)")),
    Wrong("DSK0141", "optimizer", "there is no `optimizer` to change", train("optimizer(lr: 1)")),
    Wrong("DSK0142", "x = x", "holds overrides only", derived("x = x")),
    Wrong("DSK0143", "m", "a model has no `return`", model("return x"), also=("DSK0145", "DSK0146")),
    Wrong("DSK0144", "n: int", "write `name: ids[B, S]`", model().replace("[B, S])", "[B, S], n: int)")),
    Wrong("DSK0145", "logits", "did you mean `logit`?", model().replace("  logits =", "  logit =")),
    Wrong("DSK0145", "logits", "is the number 3", model(result="3")),
    Wrong("DSK0146", "y = x", "nothing after `return` is reached", block("return x\ny = x")),
    Wrong("DSK0147", "dims { Q = 3 }", "`dims` belongs to a model", block("dims { Q = 3 }\nreturn x")),
    Wrong("DSK0148", "repeat layers 3", "only in a model that comes `from` another", model("repeat layers 3")),
    Wrong("DSK0148", "a.b(c: 1)", "only in a model that comes `from` another", model("a.b(c: 1)")),
    Wrong("DSK0149", "a, b", "2 names for 1 value", model("a, b = x")),
    Wrong("DSK0150", "params", "is 1024: 1021 too many", model("require params == 3")),
    Wrong("DSK0150", "params(x)", "is 512", model("require params(x) > 600")),
    Wrong("DSK0151", "f", "dims start with a capital", model(dims="V = 32, D = 16, f = 3")),
    Wrong("DSK0152", "x", "a loss is one number", model("loss a = x")),
    Wrong("DSK0153", "0.5", "a whole number from 0", model("repeat 0.5 a { x += x }")),
    Wrong("DSK0153", "S", "a whole number from 0", model("repeat S a { x += x }")),
    Wrong("DSK0154", "size(3)", "speaks of `params`", model("require size(3) == 3")),
    Wrong("DSK0160", "flop", "states `flops` and `saved`", model("x = mine(x)", EXTERN.format("flop = 3"))),
    Wrong(
        "DSK0161",
        '"a.B"',
        'write `"package.module:Class"`',
        model("x = mine(x)", EXTERN.replace("a:B", "a.B").format("flops = 3")),
    ),
    # --- recipes
    Wrong("DSK0170", "shhard", "did you mean `shard`?", plan("mesh { dp = 8 }\nshhard { D -> dp, V -> dp }")),
    Wrong("DSK0170", "bach", "did you mean `batch`?", train("bach { sequences = 5, S = 8 }")),
    Wrong("DSK0141", "optimizr", "did you mean `optimizer`?", train("optimizer adamw(lr: 1)\noptimizr(lr: 2)")),
    Wrong("DSK0170", "D -> dp", "goes into a plan", plan("mesh { dp = 8 }\nsplits { D -> dp }")),
    Wrong("DSK0170", "D -> dp", "goes into a plan", plan("mesh { dp = 8, D -> dp }")),
    Wrong("DSK0170", "D -> dp", "goes into a plan", train("shard { D -> dp }")),
    Wrong("DSK0170", "tokns", "did you mean `tokens`?", train("tokns = 5M")),
    Wrong("DSK0170", "sequence", "did you mean `sequences`?", train("batch { sequence = 5 }")),
    Wrong("DSK0170", "T", "`m` has no data dim `T`", train("batch { T = 5 }")),
    Wrong("DSK0172", "5min", "this is in time", train("tokens = 5min")),
    Wrong("DSK0172", "72", "write its unit, as in `72GiB`", plan("memory { limit = 72 }")),
    Wrong("DSK0173", "balance", "is no loss of `m`", train("objective balance")),
    Wrong("DSK0173", "logit", "did you mean `logits`?", train("objective next_token(logit)")),
    Wrong(
        "DSK0173",
        "behind: 2",
        "takes a result, `ahead`, `z` and `smoothing`",
        train("objective next_token(logits, behind: 2)"),
    ),
    Wrong("DSK0174", "3", "write a name in quotes", mapped('x = 3\nlogits = "c"')),
    Wrong("DSK0174", '"a.*"', "has 0 `*`", mapped('x = "a.*"\nlogits = "c"')),
    Wrong("DSK0174", 'permute_rope("a")', "also needs heads", mapped('x = permute_rope("a")\nlogits = "c"')),
    Wrong("DSK0174", "by: 3", "takes nothing else", mapped('x = transpose("a", by: 3)\nlogits = "c"')),
    Wrong("DSK0175", "rms_norm(x) as nomr", "did you mean `norm`?", model("x = rms_norm(x) as nomr\n  weights llama")),
    Wrong(
        "DSK0175",
        "repeat 2 lyaers",
        "did you mean `layers`?",
        model("repeat 2 lyaers {\n x += attention(rms_norm(x), heads: H, width: E)\n }\n  weights llama"),
    ),
    # --- what is not there yet
    Wrong(
        "DSK0190",
        "documents",
        "`documents` are those of one input's tokens",
        model("y = linear(join(x, 2 * x), D -> [H, E])\n  z = attend(y, y, y, mask: documents)", dims=DIMS)
        .replace("join(x, 2 * x)", "join(x, embed(more, V -> D) as again)")
        .replace("ids[B, S])", "ids[B, S], more: ids[B, P]?)"),
    ),
    # --- several inputs
    Wrong(
        "DSK0144", "ids[B]?", "empty along its second axis", model().replace("ids[B, S])", "ids[B, S], kind: ids[B]?)")
    ),
    Wrong(
        "DSK0201", "x, linear(x, D -> F)", "only the second axis may differ", model("y = join(x, linear(x, D -> F))")
    ),
    Wrong("DSK0201", "[S, S]", "the parts make `2 * S`", model("y, z = parts(x, [S, S])")),
    Wrong("DSK0201", "[D]", "`D` is no axis of an input", model("y = parts(x, [D])")),
    Wrong("DSK0201", "[3]", "none of the parts is as long as an input", model("y = part_ids([3])")),
    Wrong(
        "DSK0126",
        "g",
        "is a `linear(..)` that still wants its tensor",
        model("f = linear(D -> F, bias: true)\n  n = layer_norm()\n  g = mlp(inner: F)\n  x = compressed(x, g, f, n)"),
    ),
    Wrong("DSK0173", "logits", "compares [B, C]", train("objective classify(logits)")),
    Wrong("DSK0173", "classify()", "`classify` needs a result", train("objective classify()")),
    Wrong("DSK0173", "logit", "did you mean `logits`?", train("objective regress(logit)")),
    Wrong("DSK0173", "regress(logits)", "stands here twice", train("objective regress(logits) + regress(logits)")),
    Wrong("DSK0173", "regress(logits, 2)", "takes a result", train("objective regress(logits, 2)")),
    Wrong(
        "DSK0190", "f(x)", "an extern block", model("f = mine()\n  repeat 2 a { x = f(x) }", EXTERN.format("flops = 3"))
    ),
    Wrong("DSK0190", "swiglu(x, inner: F)", "a block with a repeat", model("f = b(inner: F)\n  x = f(x)", STACK)),
    # --- shapes
    Wrong("DSK0201", "x", "this maps `F`, and gets an axis of `D`", model("y = linear(x, F -> D)")),
    Wrong("DSK0201", "x + linear(x, D -> F)", "`D` is not `F`", model("x = x + linear(x, D -> F)")),
    Wrong("DSK0201", "[D, D]", "the parts make `2 * D`", model("a, b = split(x, [D, D])")),
    Wrong("DSK0201", "D -> [H, E]", "`D` numbers cannot be read as `E * H`", model("y = reshape(x, D -> [H, E])")),
    Wrong("DSK0201", "x", "are not those before the arrow", model("y = reshape(x, [H, E] -> D)")),
    Wrong("DSK0131", "0", "`width` is over 0", model("y = conv(x, width: 0)")),
    Wrong("DSK0201", "p", "none of an input's", model("p = parameter([H, F, E])\n  y = conv(p, width: 4)")),
    Wrong("DSK0201", "k", "queries are", delta(k="linear(x, D -> [H, 2 * E])")),
    Wrong("DSK0201", "v", "`gated_delta` needs [B, S, H, F]", delta(v="linear(x, D -> D)")),
    Wrong("DSK0201", "beta", "one `beta` for each value", delta(beta="linear(x, D -> X)")),
    Wrong("DSK0209", "gated_delta(q, k, v, gate, beta)", "3 value heads do not divide over 4", delta(heads="3")),
    Wrong(
        "DSK0201",
        "concat(x, linear(x, D -> [H, E]))",
        "only the last axis",
        model("y = concat(x, linear(x, D -> [H, E]))"),
    ),
    Wrong("DSK0201", "x", "embedding needs ids", model("y = embed(x, V -> D)")),
    Wrong("DSK0201", "x", "needs [B, S, H, E]", model("y = attend(x, x, x)")),
    Wrong("DSK0201", "x", "gets [B, S, D]", model("y = gather(x, x)")),
    Wrong("DSK0201", "tokens", "this needs floating point", model("y = rope(tokens)")),
    Wrong(
        "DSK0201",
        "experts(x, chosen, w, rms_norm(), count: X)",
        "only linear layers can",
        block(
            f"{ROUTED}return experts(x, chosen, w, rms_norm(), count: X)",
            "x = b(x, count: X)",
            "x: [B, S, D], count: X",
        ),
    ),
    Wrong(
        "DSK0201",
        "f(linear(x, D -> F))",
        "was applied before",
        model("f = rms_norm()\n  x = f(x)\n  y = f(linear(x, D -> F))"),
    ),
    Wrong(
        "DSK0202",
        "linear(x, D -> F)",
        "`D` of `b` is `D` and `F` at once",
        block("return x", "x = b(x, linear(x, D -> F))", "x: [B, S, D], y: [B, S, D]"),
    ),
    Wrong(
        "DSK0202",
        "linear(x, D -> Q)",
        "both are 16 today, but they are different dims",
        block("return x", "x = b(x, linear(x, D -> Q))", "x: [B, S, D], y: [B, S, D]").replace("H = 4", "Q = 16"),
    ),
    Wrong("DSK0203", "x", "`x` of `b` is [B, D]", block("return x", takes="x: [B, D]", gives="[B, D]")),
    Wrong("DSK0203", "x", "`x` of `b` is ids[B, S, D]", block("return x", takes="x: ids[B, S, D]")),
    Wrong(
        "DSK0205",
        "[B, S, D]",
        "and gives back [B, S, F]",
        block("return linear(x, D -> F)", "x = b(x, F)", "x: [B, S, D], f: F"),
    ),
    Wrong("DSK0205", "[B, S, V]", "and gives back [B, S, D]", model(result="x")),
    Wrong("DSK0206", "layers", "from one of `layers` to the next", model("repeat 2 layers { x = concat(x, x) }")),
    Wrong("DSK0207", "D", "D -> F -> D", model(dims="V = 32, D = F, F = 2 * D")),
    Wrong("DSK0208", "V / 3", "this is 32 / 3", model(dims="V = 32, D = V / 3")),
    Wrong("DSK0208", "0", "`D` is at least 1", model(dims="V = 32, D = 0")),
    Wrong("DSK0208", "linear(x, D -> F / 5)", "`F / 5` is 4.8", model("y = linear(x, D -> F / 5)")),
    Wrong("DSK0208", "D - D", "a whole number from 1, not 0", model("a, b = split(x, [D, D - D])")),
    Wrong(
        "DSK0209", attention("kv_heads: 3").splitlines()[7][7:], "4 query heads do not divide", attention("kv_heads: 3")
    ),
    Wrong(
        "DSK0209",
        "rope(q, width: 3)",
        "turns pairs, and 3 is odd",
        block(
            "q = linear(x, D -> [H, E])\ny = rope(q, width: 3)\nreturn x", "x = b(x, H, E)", "x: [B, S, D], h: H, e: E"
        ),
    ),
    Wrong("DSK0209", "top_k(x, 17)", "the best 17 of 16", model("y = top_k(x, 17)")),
    Wrong("DSK0214", "linear(x, D -> S)", "this size must be known", model("y = linear(x, D -> S)")),
    # --- plans
    Wrong("DSK0204", "H -> tp", "tp can be 1, 2 or 4", plan("mesh { tp = 8 }\nshard { H -> tp }")),
    Wrong("DSK0210", "mesh", "2 × 2 is 4 and not 8", plan("mesh { dp = 2, tp = 2 }")),
    Wrong("DSK0211", "h100", "did you mean `h100_80gb`?", plan("", "plan p for t on h100")),
    Wrong("DSK0212", "tpp", "did you mean `tp`?", plan("mesh { dp = 8 }\nshard { H -> tpp }")),
    Wrong("DSK0212", "tp", "give `mesh` a size for it", plan("mesh { dp = 8 }\nshard { H -> tp }")),
    Wrong("DSK0212", "HH", "`m` has no dim `HH`", plan("mesh { dp = 8 }\nshard { HH -> dp }")),
    Wrong("DSK0213", "3", "8 sequences over 8 × 3", plan("mesh { dp = 8 }\nbatch { microbatch = 3 }")),
)
