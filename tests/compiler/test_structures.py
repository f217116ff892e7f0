"""Shapes that a model's body can take, each compiled and run: its weights are those predicted, and it decodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dskc.compiler.parameters import parameters
from dskc.compiler.passes.memory import flops

from .small_models import Small, compiled, decoded, first
from .test_properties import COUNTED, inputs

HEAD = """dsk 1

use std { attention, swiglu, mlp, moe, deepseek_moe, deepseek_v2_moe, gated_delta_net }

block residual(x: [B, S, D], f: block) -> [B, S, D] {
  return x + f(rms_norm(x) as norm)
}

block plain(x: [B, S, D], f: block) -> [B, S, D] {
  return x + f(x)
}

block scaled(x: [.., D], by: float) -> [.., D] {
  return times(x, by: by)
}

block times(x: [.., D], by: float) -> [.., D] {
  return x * by
}

block layer(x: [B, S, D], heads: H, width: E, inner: F) -> [B, S, D] {
  x += attention(rms_norm(x), heads: H, width: E, rope: rope())
  x += swiglu(rms_norm(x), inner: F)
  return x
}

block deep(x: [B, S, D], inner: F) -> [B, S, D] {
  repeat 2 layers {
    x += swiglu(rms_norm(x), inner: F)
  }
  return x
}

block low(x: [B, S, D], rank: R?, gate: [B, S, D]?) -> [B, S, D] {
  h = x
  if R { h = linear(linear(x, D -> R) as down, R -> D) as up } else { h = linear(x, D -> D) as full }
  if gate { h = h * sigmoid(gate) }
  return h
}

block embedding(ids: ids[B, S], size: V, width: D) -> [B, S, D] {
  return rms_norm(embed(ids, V -> D) as table) as norm
}

block wide(x: [B, S, D]) -> [B, S, D] {
  f = linear(D -> D)
  return f(silu(f(x)))
}

block routed(x: [B, S, D], count: X, inner: F) -> [B, S, D] {
  score  = softmax(linear(x, D -> X) as router)
  chosen = top_k(score, 2)
  weight = gather(score, chosen)
  y = experts(x, chosen, weight, swiglu(inner: F), count: X) as gated
  return y + experts(x, chosen, weight, mlp(inner: F), count: X) as plain
}

model m(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 31, D = 16, F = 24, H = 4, E = 4, X = 4 }
"""
MIX = "x += attention(rms_norm(x), heads: H, width: E)"

BODIES = {
    "attention in the model itself": """
        q = linear(x, D -> [H, E])
        k = linear(x, D -> [H, E])
        v = linear(x, D -> [H, E])
        keep k, v
        x += linear(attend(q, k, v, mask: causal), [H, E] -> D) as out""",
    "learned tensors by themselves, of a layer and of the model": f"""
        gain = parameter(D, start: ones)
        repeat 2 layers {{
          h = linear(x, D -> [H, E]) as up + parameter([H, E], start: normal) as lift
          x += linear(silu(h), [H, E] -> D) as down
        }}
        repeat 2 more {{
          {MIX.replace("(x)", "(x * gain)")}
          x = x * parameter(D, start: ones) as out_gain / sqrt(D)
        }}""",
    "attention with all there is to it": """
        repeat 2 layers[i] {
          x += attention(rms_norm(x), heads: H, width: E, kv_heads: 2, qk_norm: true, offset: 1, softcap: 2,
               sinks: true, gate: true, mask: if i == 0 then causal & blocks(size: 1, window: 1, random: 2) else causal)
        }""",
    "positions selected, more than one way": """
        q = linear(x, D -> [H, E])
        k = linear(x, D -> [2, E])
        v = linear(x, D -> [2, E])
        at = top_k(linear(embed(tokens, V -> D) as probe_table, D -> X, compute: fp32) as probe, 2)
        keep k, v
        o = attend(q, k, v, mask: causal, sinks: parameter([H]) as logit, select: at)
        o = o + attend(q, k, v, mask: causal & documents, sinks: parameter([H]) as other)
        o = o + attend(q, k, v, mask: causal & (blocks(size: 2) | window(2)), softcap: 3)
        x += linear(o, [H, E] -> D) as out""",
    "a convolution and a delta rule in the model itself": """
        x += linear(conv(x, width: 3, bias: true) as first, D -> D) as mid
        h = linear(x, D -> [H, E])
        keep h
        x += linear(attend(linear(x, D -> [H, E]) as ask, h, h, mask: causal), [H, E] -> D) as seen
        q = l2_norm(reshape(conv(x, width: 2) as second, D -> [2, D / 2]))
        v = linear(x, D -> [H, E])
        gate = -1 * softplus(linear(x, D -> H) as fade)
        beta = sigmoid(linear(x, D -> H) as pace)
        y = gated_delta(q, q, v, gate, beta, scale: 1, chunk: 2)
        x = x + linear(y + gated_delta(q, q, v, gate, beta, chunk: 3), [H, E] -> D) as out""",
    "three layers of linear attention, then one of attention": """
        repeat 4 layers[i] {
          x += if i % 4 == 3 then attention(rms_norm(x), heads: H, width: E, rope: rope()) else gated_delta_net(
               rms_norm(x), heads: H, width: E, key_heads: 2, value: 6, chunk: 4)
          x += swiglu(rms_norm(x), inner: F)
        }""",
    "linear attention of each document": """
        repeat 2 layers {
          x += gated_delta_net(rms_norm(x), heads: H, width: E, chunk: 4, documents: true)
        }""",
    "one linear attention for all layers": """
        mix = gated_delta_net(heads: H, width: E, chunk: 4)
        repeat 1 layers {
          x += mix(rms_norm(x))
        }
        x += mix(mix(x))""",
    "what came before a repeat, after it and in it": f"""
        x0 = x
        repeat 3 layers {{
          {MIX.replace("(x)", "(x + x0)")}
        }}
        x = x + 0.5 * x0""",
    "two carried, exchanged": """
        y = linear(x, D -> D) as first
        repeat 3 layers {
          x += attention(rms_norm(y), heads: H, width: E)
          y += swiglu(rms_norm(x), inner: F)
          z = x
          x = y
          y = z
        }
        x = x - y""",
    "nested repeats with indices": """
        repeat 2 stages[i] {
          repeat 2 layers[j] {
            x += attention(rms_norm(x), heads: H, width: E, mask: if i + j == 1 then causal else causal & window(2))
          }
          x += swiglu(rms_norm(x), inner: F * (i + 1))
        }""",
    "variants that see different things": """
        repeat 5 layers[i] {
          x += if i % 2 == 0 then attention(rms_norm(x), heads: H, width: E, rope: rope()) else attention(rms_norm(x),
               heads: H, width: E, mask: causal & documents)
        }""",
    "no period in the variants": """
        repeat 7 layers[i] {
          x += attention(rms_norm(x), heads: H, width: E, scale: if i == 1 or i == 4 then 0.5 else 0.3)
          x = x * (1 - i / 20)
        }""",
    "a repeat without attention, and one of nothing": """
        repeat 2 layers {
          x += moe(rms_norm(x), count: X, inner: F, top: 2)
        }
        repeat 0 none {
          x += swiglu(x, inner: F)
        }""",
    "losses of several repeats": f"""
        repeat 2 layers {{
          {MIX}
          x += moe(rms_norm(x), count: X, inner: F, top: 2)
        }}
        repeat 2 more {{
          x += moe(rms_norm(x), count: X, inner: F, top: 1)
        }}
        x += moe(rms_norm(x), count: X, inner: F, top: 3, shared: 2)""",
    "losses that are called like functions": """
        repeat 2 layers {
          score = softmax(linear(x, D -> X) as router)
          loss softmax = 2 * load_balance(score, top_k(score, 2))
          loss rms = sequence_balance(score, top_k(score, 1))
          x += swiglu(x, inner: F)
        }""",
    "groups": f"""
        group encoder {{
          repeat 2 layers {{
            {MIX}
          }}
          group inner {{
            x += swiglu(rms_norm(x), inner: F)
          }}
        }}
        group decoder {{
          {MIX}
          h = rms_norm(x) as norm
        }}
        x = x + h""",
    "what nothing has use for": """
        group probe {
          a = linear(x, D -> D)
        }
        repeat 2 probes {
          b = swiglu(x, inner: F)
        }
        c = mlp(x, inner: F)""",
    "parallel": """
        repeat 2 layers {
          n = rms_norm(x) as norm
          x += attention(n, heads: H, width: E) + swiglu(n, inner: F)
        }""",
    "the tokens again at the end": f"""
        {MIX}
        x += embed(tokens, V -> D) as again""",
    "a map in fp32 into the residual": f"""
        repeat 2 layers {{
          {MIX}
          x += linear(rms_norm(x), D -> D, compute: fp32) as wide
        }}""",
    "an embedding in a block": """
        x += embedding(tokens, V, D) as second
        x += linear(x, D -> D) as mix""",
    "optional parameters": """
        repeat 2 layers[i] {
          x += low(rms_norm(x), rank: F, gate: if i == 1 then x else rms_norm(x) as other) as a
          x += low(rms_norm(x)) as b
        }""",
    "blocks without weights": """
        x = scaled(x, by: 2)
        x = scaled(x, by: 3)
        repeat 3 layers[i] {
          x = scaled(x, by: i + 1)
          x = scaled(x, by: 0.5)
        }""",
    "experts chosen in groups, with a bias, and with room for some": f"""
        repeat 2 layers {{
          {MIX}
          x += deepseek_moe(rms_norm(x), count: X, inner: F, top: 2, shared: 1, groups: 2, keep_groups: 1, scale: 2)
        }}
        x += deepseek_v2_moe(rms_norm(x), count: X, inner: F, top: 2, shared: 1, groups: 2, scale: 2)
        x += moe(rms_norm(x), count: X, inner: F, top: 2, capacity: 0.5, router_noise: 0.1, z_loss: true)""",
    "a bias in the model itself": """
        score  = sigmoid(linear(rms_norm(x), D -> X) as router)
        chosen = top_k(score, 2, bias: balance_bias(X))
        x += experts(x, chosen, gather(score, chosen), mlp(inner: F, bias: true), count: X, capacity: 2)""",
    "two kinds of experts": "x += routed(rms_norm(x), count: X, inner: F)",
    "a block in a block in a repeat in a block": f"""
        repeat 2 layers {{
          {MIX}
          x = deep(x, F)
        }}""",
    # --- values: blocks still to be applied, owning one set of weights
    "a shared feed-forward": f"""
        ff = swiglu(inner: F)
        repeat 3 layers {{
          {MIX}
          x += ff(rms_norm(x))
        }}
        x += ff(rms_norm(x) as last)""",
    "a shared attention": """
        mix = attention(heads: H, width: E, rope: rope())
        x += mix(rms_norm(x) as a)
        x += mix(rms_norm(x) as b)
        repeat 2 layers {
          x += mix(rms_norm(x))
        }""",
    "a shared layer": """
        one = layer(heads: H, width: E, inner: F)
        repeat 3 layers {
          x = one(x)
        }""",
    "shared experts": f"""
        ff = moe(count: X, inner: F, top: 2, shared: 1)
        repeat 2 layers {{
          {MIX}
          x += ff(rms_norm(x))
        }}""",
    "a shared block that shares": """
        w = wide()
        x = w(x)
        repeat 2 layers {
          x = w(x)
        }""",
    "values passed to blocks": """
        repeat 2 layers {
          x = residual(x, attention(heads: H, width: E, rope: rope())) as mix
          x = residual(x, linear(D -> D)) as ff
        }""",
    "one value passed twice": """
        ff = swiglu(inner: F)
        x = plain(x, ff)
        x = plain(x, ff)
        x = residual(x, ff)""",
    "a value with a value": """
        r = residual(f: swiglu(inner: F))
        x = r(x)
        repeat 2 layers {
          x = r(x)
        }""",
    "values by index": f"""
        repeat 3 layers[i] {{
          {MIX}
          f = if i == 1 then mlp(inner: F) else swiglu(inner: F)
          x = residual(x, f) as one
          x = residual(x, f) as two
        }}""",
    "tied embeddings in a group": """
        table = embed(V -> D)
        group inside {
          y = table(tokens)
          x = linear(concat(x, y, x), 3 * D -> D) as proj
        }
        x += 0.1 * linear(unembed(x, table), V -> D) as back""",
}
UNUSED = ("probe", "c.", "layers.1.other")


def built(name: str, folder: Path) -> Small:
    end = "\n  logits = linear(rms_norm(x) as final_norm, D -> V) as head\n}\n"
    return compiled(f"{HEAD}  x = embed(tokens, V -> D)\n{BODIES[name]}{end}", folder)


@pytest.mark.parametrize("name", BODIES)
def test_a_body(name: str, tmp_path: Path) -> None:
    small = built(name, tmp_path)
    model = small.model(compute=torch.float64).double()
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert state == {info.name: info.shape for info in parameters(small.graph)}

    arguments = inputs(small, 9, one_document=True)
    output = model(*arguments)
    sum(
        torch.as_tensor(result).square().sum() for result in (output if isinstance(output, tuple) else (output,))
    ).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all(name.startswith(UNUSED) for name in missing), missing

    whole_BSV = first(output).detach()
    chunks = (4, 1, 3, 1)
    ends = torch.tensor(chunks).cumsum(0) - 1
    torch.testing.assert_close(decoded(small, model, arguments[0], chunks), whole_BSV[:, ends], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in BODIES if name != "what nothing has use for"])
def test_a_body_costs_what_is_predicted(name: str, tmp_path: Path) -> None:
    small = built(name, tmp_path)
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter, torch.no_grad():
        small.model()(*inputs(small, 9))
    assert counter.get_total_flops() == flops(small.graph, 9, sequences=2)[0]


@pytest.mark.parametrize("name", BODIES)
def test_a_body_computes_in_bf16_with_parameters_in_fp32(name: str, tmp_path: Path) -> None:
    small = built(name, tmp_path)
    tokens = inputs(small, 9)
    logits = first(small.model(compute=torch.bfloat16)(*tokens))
    assert logits.dtype == torch.bfloat16
    exact = first(small.model()(*tokens))
    assert (logits.float() - exact).norm() / exact.norm() < 0.1
