"""Specs that are wrong in one way each: `#!` behind a line says which diagnostics belong to it, and what they mention."""

from __future__ import annotations

HEAD = """dsk 1

use std { attention, swiglu, moe, mlp, llama }
"""
DIMS = "V = 32, D = 16, F = 24, H = 4, E = 4, X = 4"


def model(body: str, blocks: str = "", dims: str = DIMS, items: str = "") -> str:
    """A spec around the body of a model, which binds `x` before it and needs `x` after it."""
    lines = "\n".join(f"  {line}" for line in body.strip("\n").splitlines())
    return (
        f"{HEAD}{blocks}\nmodel m(tokens: ids[B, S]) -> logits: [B, S, V] {{\n  dims {{ {dims} }}\n"
        f"  x = embed(tokens, V -> D)\n{lines}\n  logits = linear(x, D -> V)\n}}\n{items}"
    )


def block(body: str, call: str = "x = b(x)", signature: str = "x: [B, S, D]", result: str = "[B, S, D]") -> str:
    """A spec around the body of a block."""
    return model(call, f"block b({signature}) -> {result} {{\n{body}\n}}\n")


def train(body: str, head: str = "train t of m") -> str:
    return model("", items=f"{head} {{\n{body}\n}}\n")


def plan(body: str, head: str = "plan p for t on 8 * h100_80gb", settings: str = "batch { sequences = 8 }") -> str:
    return model("", items=f"train t of m {{ {settings} }}\n{head} {{\n{body}\n}}\n")


def derived(body: str) -> str:
    layers = "repeat 2 layers {\n  x += attention(rms_norm(x), heads: H, width: E)\n}"
    return model(layers, items=f"model n from m {{\n{body}\n}}\n")


CASES: dict[str, str] = {
    # --- the text
    "statement": model("y = = 3  #! DSK0001 unexpected `=`, expected"),
    "key": train("tokens 5  #! DSK0001"),
    "edition": "dsk 2  #! DSK0002 edition 2 is not one that this compiler knows, the newest is 1\n",
    "no edition": "block b(x: [D]) -> [D] { return x }  #! DSK0002 write `dsk 1` above this\n",
    "bracket": model("x += linear(x, D -> D  #! DSK0003 this `(` is never closed\ny = x"),
    "brace": "dsk 1\nblock b(x: [D]) -> [D] {  #! DSK0003 this `{` is never closed\n  return x\n",
    "unit": model("", dims="V = 32k, D = 16  #! DSK0004 did you mean `32K`"),
    "depth": model(f"x = {'(' * 101}x{')' * 101}  #! DSK0005 nested over 100 deep"),
    # --- names
    "no file": 'dsk 1\nuse "nowhere.dsk" { b }  #! DSK0010 there is no file\n',
    "value": model("x = x + xx  #! DSK0101 no value is called `xx`, did you mean `x`"),
    "residual": model("y += x  #! DSK0101 no value is called `y`"),
    "kept": block("keep k  #! DSK0101 no value is called `k`\nreturn x"),
    "dim": model("x = linear(x, D -> Dd)  #! DSK0101 no dim is called `Dd`, did you mean `D`"),
    "block": model("x = swigloo(x, inner: F)  #! DSK0101 did you mean `swiglu`? It is in std, and already imported"),
    "unimported": model("x = geglu(x, inner: F)  #! DSK0101 it is in std: add it to `use std { ... }`"),
    "misspelt and unimported": model("x = gegl(x, inner: F)  #! DSK0101 did you mean `geglu`? It is in std: add it"),
    "element": model("").replace("ids[", "idz[", 1).replace("{\n", "{  #! DSK0101 one of ids, ints\n", 1),
    "kind": block("return x", "x = b(x)", "x: [B, S, D], n: itn = 1)  #! DSK0101 did you mean `int`").replace(
        "`int`)", "`int`", 1
    ),
    "model of a train": train("", "train t of mm  #! DSK0101 no model is called `mm`, did you mean `m`").replace(
        "`m` {", "`m`\n{"
    ),
    "base": model("", items="model n from mm {  #! DSK0101 no model is called `mm`\n}\n"),
    "weights map": model("weights lama  #! DSK0101 no checkpoint map is called `lama`, did you mean `llama`"),
    "path": model("require params(layers) == 0  #! DSK0101 no weights are called `layers`, there are embed, logits"),
    "twice": model(
        "", "block b(x: [D]) -> [D] { return x }\nblock b(x: [D]) -> [D] { return x }  #! DSK0102 again here\n"
    ),
    "library": "dsk 1\nuse stdlib { swiglu }  #! DSK0103 the library is `std`\n",
    "import": "dsk 1\nuse std { swigloo }  #! DSK0104 std defines no `swigloo`, did you mean `swiglu`\n",
    "itself": "dsk 1\nmodel a from b { }  #! DSK0106\nmodel b from a { }  #! DSK0106 comes from itself\n",
    "section from itself": train("", "train t from t {  #! DSK0106 comes from itself").replace(
        "itself {\n", "itself\n", 1
    ),
    "of nothing": train("", "train t {  #! DSK0107 write `of MODEL`").replace("MODEL` {\n", "MODEL`\n", 1),
    "for nothing": plan("", "plan p {  #! DSK0107 write `for NAME`").replace("NAME` {\n", "NAME`\n", 1),
    "dim twice": model("", dims="V = 32, D = 16,\n  D = 8  #! DSK0108 `D` is said twice\n"),
    "key twice": train("  tokens = 5M\n  tokens = 6M  #! DSK0108 `tokens` is said twice"),
    "mapped twice": model(
        "weights own",
        items='checkpoint own {\n  embed = "a"\n  embed = "b"  #! DSK0108 is mapped twice\n  logits = "c"\n}\n',
    ),
    # --- values
    "ellipsis": model("x = x * ..  #! DSK0110"),
    "dotted": model("x = x + tokens.x  #! DSK0111 `tokens.x` is a path"),
    "optional dim": block("return linear(x, D -> R)  #! DSK0112 `R` was not given", "x = b(x)", "x: [B, S, D], r: R?"),
    "no dim": model("x = linear(x, D -> x)  #! DSK0113 an axis is a dim, a tensor"),
    "a dim that is text": model("", dims='V = 32, D = "wide"  #! DSK0113 a dim is a size\n'),
    "adding text": model('x = x + "one"  #! DSK0114 does not go between a tensor'),
    "remainder": model("x = x % 2  #! DSK0114"),
    "mask and number": model("x += attention(x, heads: H, width: E, mask: causal & 3)  #! DSK0114 a mask"),
    "minus a mask": model("x += attention(x, heads: H, width: E, mask: -causal)  #! DSK0114 `-` needs a number"),
    "comparing": model("if causal > 3 { x = x }  #! DSK0114 does not compare"),
    "floor": model('x = linear(linear(x, D -> floor("a")) as a, F -> D)  #! DSK0114 `floor` needs one number'),
    "adding a number": model("x += 3  #! DSK0114 `+=` needs a tensor"),
    "zero": model("x = x * (D / 0)  #! DSK0115 this divides by zero"),
    "zero in dims": model("", dims="V = 32, D = V / (V - 32)  #! DSK0115\n"),
    "data": model("if S > 100 { x = x * 2 }  #! DSK0116 `S` has no value before data comes"),
    "condition on data": model("if x { x = x * 2 }  #! DSK0117 there is no control flow over data"),
    "condition on a number": model("if 3 { x = x * 2 }  #! DSK0117 compare it, as in `n > 0`"),
    "calling a tensor": model("y = x(x)  #! DSK0118 `x` is a tensor"),
    "a word of Python": model("x += linear(x, D -> D) as lambda  #! DSK0119 is a word of Python's"),
    "an attribute": model("x += linear(x, D -> D) as parameters  #! DSK0119 every module of PyTorch has"),
    "an underscore": model("group _g {  #! DSK0119 do not begin with an underscore\n  x = x * 2\n}"),
    "a loss": model("loss is = load_balance(x, top_k(x, 2))  #! DSK0119 is a word of Python's"),
    "a dim called None": model("", dims="V = 32, D = 16, None = 3  #! DSK0119 is a word of Python's\n"),
    "a dim called Linear": model("", dims="V = 32, D = 16, Linear = 3  #! DSK0119 is a class of generated code\n"),
    # --- calls
    "same path": model(
        "x += linear(x, D -> D) as a\nx += linear(x, D -> D) as a  #! DSK0120 two weights would be called `a`"
    ),
    "same callee": model("x += rms_norm(x)\nx += rms_norm(x)  #! DSK0120 would be called `rms_norm`, `... as name`"),
    "same repeat": model("repeat 2 a {\n  x += x\n}\nrepeat 2 a {  #! DSK0120\n  x += x\n}"),
    "same experts": block(
        "score = softmax(linear(x, D -> X))\nchosen = top_k(score, 2)\nw = gather(score, chosen)\n"
        "y = experts(x, chosen, w, swiglu(inner: F), count: X)\ny = experts(x, chosen, w, mlp(inner: F), count: X)"
        "  #! DSK0120 two weights would be called `b.experts`\nreturn y",
        "x = b(x, count: X, inner: F)",
        "x: [B, S, D], count: X, inner: F",
    ),
    "recursion": block("return b(x)  #! DSK0121 `b` uses itself, b -> b"),
    "argument twice": model("x = swiglu(x, inner: F, inner: F)  #! DSK0122 `inner` is given twice"),
    "too many": model("x = swiglu(x, F, false, 3)  #! DSK0123 it is swiglu(x, inner, bias?)"),
    "arrow": model("x = swiglu(x, D -> F)  #! DSK0123 takes no `->` here"),
    "unknown argument": model("x = swiglu(x, iner: F)  #! DSK0124 did you mean `inner`, DSK0125"),
    "lacking": model("x = swiglu(x)  #! DSK0125 also needs `inner`"),
    "lacking an arrow": model("x = linear(x)  #! DSK0125 axes such as `D -> F`"),
    "wrong kind": model("x = swiglu(x, inner: F, bias: 3)  #! DSK0126 `bias` is true or false, this is the number 3"),
    "block for a mask": model(
        "x += attention(x, heads: H, width: E, mask: swiglu(inner: F))  #! DSK0126 `mask` is a mask"
    ),
    "call in a recipe": train("  tokens = window(3)  #! DSK0126 does not go here"),
    "keep a number": block("n = 3\nkeep n  #! DSK0126 `keep` needs tensors\nreturn x"),
    "named again": model("f = linear(D -> D)\nx += f(x)\nx += f(x) as g  #! DSK0127 `f` has its weights already"),
    "two for one": block("return x, x", "x = b(x)")
    .replace("block b", "block b", 1)
    .replace("{\nreturn", "{  #! DSK0128 gives back 2 of the 1\nreturn", 1),
    "no return": block("y = x").replace("{\ny = x", "{  #! DSK0128 gives back 0 of the 1\ny = x", 1),
    "returns a number": block("return 3").replace("{\nreturn", "{  #! DSK0129 gives back the number 3\nreturn", 1),
    # --- numbers and words
    "window": model("x += attention(x, heads: H, width: E, mask: window(0))  #! DSK0131 at least 1 position"),
    "probability": model("x += attention(x, heads: H, width: E, dropout: 1)  #! DSK0131 from 0 to under 1"),
    "k": model("chosen = top_k(x, 0)  #! DSK0131 at least 1"),
    "number too long": model("", dims=f"V = 32, D = {' * '.join(['1e300'] * 9)}  #! DSK0131 two thousand digits\n"),
    "learning rate": train("  optimizer adamw(lr: 0)  #! DSK0131 `lr` must be over 0"),
    "no tokens": train("  tokens = 0  #! DSK0131 at least 1"),
    "pairs": model(
        "x = x\nx += attention(x, heads: H, width: E, rope: rope(pairs: sideways))  #! DSK0132 one of half, interleaved"
    ),
    "scaling": model(
        "x += attention(x, heads: H, width: E, rope: rope(scaling: yearn(factor: 2)))  #! DSK0132 did you mean `yarn`"
    ),
    "dtype": train("  precision { compute = fp8 }  #! DSK0132 one of fp32, bf16"),
    # --- models
    "override of nothing": derived("  repeat layer 3  #! DSK0140 has no repeat `layer`, did you mean `layers`"),
    "override of no dim": derived("  dims { DD = 3 }  #! DSK0140 has no dim `DD`"),
    "override of no argument": derived("  layers.attention(qk_nrm: true)  #! DSK0140 did you mean `qk_norm`"),
    "unnamed override": derived("  layers.attention(true)  #! DSK0141 write `name: value`"),
    "nothing to patch": train("  optimizer(lr: 1)  #! DSK0141 there is no `optimizer` to change"),
    "derived body": derived("  x = x  #! DSK0142 holds overrides only"),
    "return": model("return x")
    .replace("model m(", "model m(", 1)
    .replace("{\n  dims", "{  #! DSK0143 has no `return`\n  dims", 1)
    .replace("  logits =", "  #! DSK0146\n  logits =")
    .replace(
        "\n  #! DSK0146\n  logits = linear(x, D -> V)",
        "\n  logits = linear(x, D -> V)  #! DSK0146 nothing after `return`",
    ),
    "input": model("")
    .replace("tokens: ids[B, S])", "tokens: ids[B, S], n: int)")
    .replace("{\n  dims", "{  #! DSK0144 write `name: ids[B, S]`\n  dims", 1),
    "no result": model("")
    .replace("  logits =", "  logit =")
    .replace("{\n  dims", "{  #! DSK0145 did you mean `logit`\n  dims", 1),
    "result is no tensor": model("")
    .replace("linear(x, D -> V)", "3")
    .replace("{\n  dims", "{  #! DSK0145 the result `logits` is the number 3\n  dims", 1),
    "after return": block("return x\nx = x  #! DSK0146 nothing after `return` is reached"),
    "dims in a block": block("dims { Q = 3 }  #! DSK0147 `dims` belongs to a model\nreturn x"),
    "override in a model": model("repeat layers 3  #! DSK0148 only in a model that comes `from` another"),
    "unpacking": model("a, b = x  #! DSK0149 2 names for 1 value"),
    "requirement": model("require params == 3  #! DSK0150 is 1024: 1021 too many, embed 512 + logits 512"),
    "a name like a dim": model("Y = x * 2  #! DSK0151 values start with a small letter"),
    "a dim like a name": model("", dims="V = 32, D = 16, f = 3  #! DSK0151 dims start with a capital\n"),
    "loss": model("loss a = x  #! DSK0152 a loss is one number"),
    "repeat": model("repeat 0.5 a {  #! DSK0153 a whole number from 0 to 10000\n  x += x\n}"),
    "repeat by data": model("repeat S a {  #! DSK0153\n  x += x\n}"),
    "requirement of nothing": model("require weights(3) == 3  #! DSK0154 speaks of `params`"),
    "extern cost": model(
        "x = mine(x)", 'block mine(x: [B, S, D]) -> [B, S, D] = extern "a:B" { flop = 3 }  #! DSK0160 states `flops`\n'
    ),
    # --- recipes
    "unknown key": train("  tokns = 5M  #! DSK0170 a train has no key `tokns`, did you mean `tokens`"),
    "unknown inner key": train("  batch { sequence = 5 }  #! DSK0170 did you mean `sequences`"),
    "no data dim": train("  batch { T = 5 }  #! DSK0170 `m` has no data dim `T`"),
    "time": train("  tokens = 5min  #! DSK0172 is a count, time"),
    "no bytes": plan("  memory { limit = 72 }  #! DSK0172 write its unit"),
    "no loss": train("  objective balance  #! DSK0173 `balance` is no loss of `m`"),
    "no result of the model": train("  objective next_token(logit)  #! DSK0173 did you mean `logits`"),
    "ahead": train("  objective next_token(logits, behind: 2)  #! DSK0173 takes a result and `ahead`"),
    "map": model(
        "weights own", items='checkpoint own {\n  embed = 3  #! DSK0174 write a name in quotes\n  logits = "c"\n}\n'
    ),
    "map indices": model(
        "weights own", items='checkpoint own {\n  embed = "a.*"  #! DSK0174 has 0 `*`\n  logits = "c"\n}\n'
    ),
    "map arguments": model(
        "weights own",
        items='checkpoint own {\n  embed = permute_rope("a")  #! DSK0174 also needs heads\n  logits = transpose("c", by: 3)  #! DSK0174 takes nothing else\n}\n',
    ),
    # --- what is not there yet
    "optional input": model("")
    .replace("ids[B, S])", "ids[B, S]?)")
    .replace("{\n  dims", "{  #! DSK0190 optional inputs\n  dims", 1),
    "extern value": model(
        "f = mine()\nrepeat 2 layers {\n  x = f(x)  #! DSK0190 extern\n}",
        'block mine(x: [B, S, D]) -> [B, S, D] = extern "a:B" { flops = 3 }\n',
    ),
    "repeat in a value": model(
        "f = b(inner: F)\nx = f(x)",
        "block b(x: [B, S, D], inner: F) -> [B, S, D] {\n  repeat 2 layers {\n    x += swiglu(x, inner: F)  #! DSK0190 repeat\n  }\n  return x\n}\n",
    ),
    # --- shapes
    "linear": model("x = linear(x, F -> D)  #! DSK0201 this maps `F`, and gets an axis of `D`"),
    "adding shapes": model("x = x + linear(x, D -> F)  #! DSK0201 `D` is not `F`"),
    "split": model("a, b = split(x, [D, D])  #! DSK0201 the parts make `2 * D`"),
    "concat": model("x = concat(x, linear(x, D -> [H, E]))  #! DSK0201 only the last axis may differ"),
    "embedding floats": model("x = embed(x, V -> D)  #! DSK0201 embedding needs ids"),
    "attend": model("x += attend(x, x, x)  #! DSK0201 needs [B, S, H, E]"),
    "rope without heads": model("x = rope(linear(tokens, S -> D))  #! DSK0201"),
    "experts of norms": block(
        "score = softmax(linear(x, D -> X))\nchosen = top_k(score, 2)\n"
        "return experts(x, chosen, gather(score, chosen), rms_norm(), count: X)  #! DSK0201 only linear layers can",
        "x = b(x, count: X)",
        "x: [B, S, D], count: X",
    ),
    "applied to another width": model(
        "f = rms_norm()\nx = f(x)\ny = f(linear(x, D -> F))  #! DSK0201 was applied before"
    ),
    "bound twice": model(
        "x = b(x, linear(x, D -> F))  #! DSK0202 `D` of `b` is `D` and `F` at once",
        "block b(x: [B, S, D], y: [B, S, D]) -> [B, S, D] {\n  return x + y\n}\n",
    ),
    "equal today": model(
        "x = b(x, linear(x, D -> Q))  #! DSK0202 both are 16 today, but they are different dims",
        "block b(x: [B, S, D], y: [B, S, D]) -> [B, S, D] {\n  return x\n}\n",
        dims=f"{DIMS}, Q = 16",
    ),
    "number of axes": model(
        "x = swiglu(x, inner: F)\nx += attention(linear(x, D -> [H, E]), heads: H, width: E)  #! DSK0203 is [B, S, D]"
    ),
    "ids for floats": block("return x", "x = b(x)  #! DSK0203 is ids[B, S]", "x: ids[B, S]", "ids[B, S]").replace(
        "  logits", "  x = embed(x, V -> D) as e\n  logits"
    )
    if False
    else block(
        "return embed(x, V -> D)",
        "x = b(x, size: V, width: D)  #! DSK0203 is ids[B, S, C]",
        "x: ids[B, S, C], size: V, width: D",
        "[B, S, C, D]",
    ),
    "result": block("return linear(x, D -> F)", "x = b(x, inner: F)", "x: [B, S, D], inner: F").replace(
        "{\nreturn", "{  #! DSK0205 and gives back [B, S, F]\nreturn", 1
    ),
    "model result": model("")
    .replace("linear(x, D -> V)", "x")
    .replace("{\n  dims", "{  #! DSK0205 and gives back [B, S, D]\n  dims", 1),
    "growing": model(
        "repeat 2 layers {  #! DSK0206 changes its shape from one of `layers` to the next\n  x = concat(x, x)\n}"
    ),
    "circle": model("", dims="V = 32, D = F,\n  F = 2 * D  #! DSK0207 is defined by itself\n").replace(
        "D = F,", "D = F,"
    ),
    "no whole dim": model("", dims="V = 32, D = V / 3  #! DSK0208 `D` is not a whole number, this is 32 / 3\n"),
    "zero dim": model("", dims="V = 32, D = 0  #! DSK0208 `D` is at least 1\n"),
    "no whole axis": model("x = linear(linear(x, D -> F / 5) as a, F / 5 -> D)  #! DSK0208 `F / 5` is 4.8"),
    "empty axis": model("a, b = split(x, [D, D - D])  #! DSK0208 a whole number from 1, not 0"),
    "heads": model("x += attention(x, heads: H, width: E, kv_heads: 3)  #! DSK0209 4 query heads do not divide over 3"),
    "odd rope": model("x += attention(x, heads: H, width: 3, rope: rope())  #! DSK0209 turns pairs, and 3 is odd"),
    "too many experts": model("x += moe(x, count: X, inner: F, top: 5)  #! DSK0209 the best 5 of 4"),
    "weights of data": model("y = linear(x, D -> S)  #! DSK0214 `S` has no value before data comes"),
    # --- plans
    "indivisible": plan(
        "  mesh { dp = 1, tp = 8 }\n  shard { H -> tp }  #! DSK0204 H = 4 leaves 4 over, tp can be 1, 2 or 4"
    ),
    "ranks": plan("  mesh { dp = 2, tp = 2 }  #! DSK0210 2 × 2 is 4 and not 8"),
    "device": plan("", "plan p for t on h100  #! DSK0211 did you mean `h100_80gb`").replace(
        "`h100_80gb` {", "`h100_80gb`\n{"
    ),
    "part of a device": plan("", "plan p for t on 0.5 * h100_80gb  #! DSK0131 whole and at least 1").replace(
        "1 {", "1\n{"
    ),
    "no mesh axis": plan("  mesh { dp = 8 }\n  shard { H -> pt }  #! DSK0212 did you mean `tp`"),
    "no size": plan("  mesh { dp = 8 }\n  shard { H -> tp }  #! DSK0212 give `mesh` a size for it"),
    "no dim to shard": plan("  mesh { dp = 8 }\n  shard { HH -> dp }  #! DSK0212 `m` has no dim `HH`"),
    "batch": plan("  mesh { dp = 8 }\n  batch { microbatch = 3 }  #! DSK0213 8 sequences over 8 × 3"),
}
