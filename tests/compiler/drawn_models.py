"""Small models drawn at random, as the text of a spec: what Hypothesis varies."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

NORMS = (
    "rms_norm({})",
    "rms_norm({}, eps: 1e-5)",
    "rms_norm({}, offset: 1)",
    "layer_norm({})",
    "layer_norm({}, bias: false)",
)
SCALINGS = (
    "",
    ", scaling: linear(factor: 4)",
    ", scaling: llama3(factor: 8, low: 1, high: 4, from: 32)",
    ", scaling: yarn(factor: 4, from: 16)",
    ", scaling: yarn(factor: 40, from: 16, beta_fast: 16, mscale: 1, mscale_all: 0.7)",
)
CAUSAL = (
    "causal",
    "causal & window(3)",
    "causal & documents",
    "causal & window(4) & documents",
    "causal & (window(2) | documents)",
    "if i % 2 == 1 then causal else causal & window(3)",
    "if i < 1 then causal & documents else causal & window(2)",
)
OTHER = ("window(3)", "window(2) | documents", "documents")


@dataclass(frozen=True)
class Drawn:
    """A spec, and what a test must know of it."""

    text: str
    decodes: bool  # every position sees only those before it, so that decoding gives what the whole gives
    attention_dropout: bool

    def __repr__(self) -> str:
        return f"{'decodes' if self.decodes else 'does not decode'}\n{self.text}"


@st.composite
def models(draw: st.DrawFn, masks: tuple[str, ...] = (*CAUSAL, *OTHER), dropout: bool = True, scale: int = 1) -> Drawn:
    """A decoder of one to four layers with every choice that the standard library offers. Widths go by `scale`."""

    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    def perhaps(text: str) -> str:
        return text if draw(st.booleans()) else ""

    def norm(x: str) -> str:
        return draw(st.sampled_from(NORMS)).format(x)

    groups = number(1, 3)
    width = scale * 2 * number(1, 4)
    dims = {"V": number(11, 40), "D": scale * number(6, 24), "F": scale * number(4, 32), "G": groups}
    dims |= {"H": groups * number(1, 3), "E": width, "Er": 2 * number(1, width // 2), "X": number(2, 5)}
    dims |= {"Fx": scale * number(3, 12)}
    mask = draw(st.sampled_from(masks))
    rates = {name: draw(st.sampled_from((0, 0, 0.25))) if dropout else 0 for name in ("attention", "mlp")}

    def attention(x: str) -> str:
        options = ["heads: H", "width: E", perhaps("kv_heads: G") or "kv_heads: H", f"mask: {mask}"]
        pairs = draw(st.sampled_from(("", ", pairs: half", ", pairs: interleaved")))
        rope = f"rope: rope(theta: {draw(st.sampled_from((100, 10_000)))}{pairs}{perhaps(', width: Er')}"
        options.append(perhaps(f"{rope}{draw(st.sampled_from(SCALINGS))})"))
        options += [perhaps(s) for s in ("qk_norm: true", "bias: true", "out_bias: true", "scale: 0.3", "eps: 1e-5")]
        options.append(f"dropout: {rates['attention']}" if rates["attention"] else "")
        return f"attention({x}, {', '.join(option for option in options if option)})"

    def mix(x: str) -> str:
        if draw(st.integers(0, 4)) == 0:
            return f"if i % 2 == 1 then {attention(norm(x))} else {attention(norm(x))}"
        return attention(norm(x))

    def moe() -> str:
        more = perhaps(f", shared: {number(1, 2)}") + perhaps(", renormalize: false")
        return f"moe({{}}, count: X, inner: Fx, top: {number(1, dims['X'])}{more})"

    def dense() -> str:
        name = draw(st.sampled_from(("swiglu", "geglu", "mlp")))
        rate = f", dropout: {rates['mlp']}" if name == "mlp" and rates["mlp"] else ""
        return f"{name}({{}}, inner: F{perhaps(', bias: true')}{rate})"

    def feed_forward(x: str) -> str:
        kind = draw(st.sampled_from(("dense", "dense", "moe", "by index", "shared")))
        if kind == "by index":
            first = f"{dense().format(norm(x))} else {moe().format(norm(x))}"
            return f"if i {draw(st.sampled_from(('< 1', '% 2 == 0')))} then {first}"
        return f"ff({norm(x)})" if kind == "shared" else (moe() if kind == "moe" else dense()).format(norm(x))

    layer = [f"x += {mix('x')}", f"x += {feed_forward('x')}"]
    if draw(st.integers(0, 3)) == 0:
        layer = [f"n = {norm('x')} as shared_norm", f"x += {attention('n')} + {dense().format('n')}"]
    body = [f"repeat {number(1, 4)} layers[i] {{", *(f"  {line}" for line in layer), "}"]
    if draw(st.integers(0, 4)) == 0:
        body = ["group decoder {", *(f"  {line}" for line in body), "}"]
    if draw(st.integers(0, 4)) == 0:
        body += ["x0 = x", "repeat 2 last {", f"  x += {dense().format(norm('x'))}", "}", "x = x - 0.5 * x0"]
    head = draw(st.sampled_from(("linear", "linear", "fp32", "tied")))
    final = f"{norm('x')} as norm"
    embedded = f"embed(tokens, V -> D){perhaps(' * 4.0')}"
    if head == "tied":
        body = ["table = embed(V -> D)", "x = table(tokens)", "ff = swiglu(inner: F)", *body]
        logits = f"unembed({final}, table)"
    else:
        body = [f"x = {embedded}", "ff = swiglu(inner: F)", *body]
        options = perhaps(", bias: true") + (", compute: fp32" if head == "fp32" else "")
        logits = f"linear({final}, D -> V{options}) as head"
    body.append(f"logits = {(perhaps('softcap(') and f'softcap({logits}, 30)') or logits}")
    text = "\n".join(
        [
            "dsk 1",
            "",
            "use std { attention, swiglu, geglu, mlp, moe }",
            "",
            "model drawn(tokens: ids[B, S]) -> logits: [B, S, V] {",
            f"  dims {{ {', '.join(f'{name} = {value}' for name, value in dims.items())} }}",
            *(f"  {line}" for line in body),
            "}",
            "",
        ]
    )
    return Drawn(text, mask not in OTHER, bool(rates["attention"]))
