"""Models of several inputs, any of which a batch may come without: what they compute, learn from, cost and decode."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dskc.compiler.parameters import parameters
from dskc.compiler.passes.memory import flops, memory, positions
from dskc.runtime.data.batch import IGNORED, Batch
from dskc.runtime.reference import join, or_empty, part_ids, parts, pool
from dskc.runtime.serve.cache import Cache
from dskc.runtime.spec_module import SpecModule

from .small_models import Small, compiled
from .test_properties import COUNTED, kept_bytes

pytestmark = pytest.mark.slow  # together half a minute

SPECS = Path(__file__).parents[2] / "specs"
OWN = """dsk 1

/// A block of the user's, in a file of its own.
block doubled(x: [.., D], bias: float) -> [.., D] {
  return 2 * linear(x, D -> D, bias: true) + bias
}
"""
OBJECTIVE = "next_token(logits) + 2 * classify(digit) + classify(word) + 0.5 * regress(reward) + 0.01 * balance"
SPEC = f"""dsk 1

use std {{ attention, classification_head, moe, regression_head }}
use "own.dsk" {{ doubled }}

model small(
    tokens: ids[B, S]?,
    code: ids[B, Y]?,
    image: [B, P, A]?,
    audio: [B, T, M]?,
) -> logits: [B, S + Y, V], digit: [B, 10], word: [B, 4], reward: [B, 1] {{
  dims {{ V = 32, D = 16, H = 2, E = 8, X = 3, A = 4, M = 5 }}

  table = embed(V -> D)
  x = join(linear(image, A -> D) as patches, linear(audio, M -> D) as frames, table(tokens), table(code))
  x += embed(part_ids([P, T, S, Y]), 4 -> D) as kind
  repeat 2 layers {{
    x += attention(rms_norm(x), heads: H, width: E, rope: rope())
    x += moe(rms_norm(x), count: X, inner: 8, top: 2)
  }}
  x = doubled(x, bias: 1)
  picture, speech, text = parts(x, [P, T, S + Y])
  logits = linear(rms_norm(text), D -> V)
  digit  = classification_head(picture, classes: 10)
  word   = classification_head(speech, classes: 4)
  reward = regression_head(x, outputs: 1)
}}

train tiny of small {{
  objective {OBJECTIVE}
  tokens    = 1_000
  batch     {{ sequences = 4, S = 6, Y = 3, P = 5, T = 7 }}
  optimizer lion(lr: 1e-3)
  schedule  constant()
}}
"""
NAMES = ("tokens", "code", "image", "audio")
PRESENT = [chosen for chosen in product((False, True), repeat=4) if any(chosen)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("several")
    (folder / "own.dsk").write_text(OWN, encoding="utf-8")
    return compiled(SPEC, folder)


def double(small: Small) -> SpecModule:
    return small.model(compute=torch.float64).double()


def drawn(batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """All four inputs: 6 tokens, 3 of code, 5 patches and 7 frames a row."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "tokens": torch.randint(0, 32, (batch, 6), generator=generator),
        "code": torch.randint(0, 32, (batch, 3), generator=generator),
        "image": torch.randn(batch, 5, 4, generator=generator, dtype=torch.float64),
        "audio": torch.randn(batch, 7, 5, generator=generator, dtype=torch.float64),
    }


def given_inputs(chosen: tuple[bool, ...], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name, there in zip(NAMES, chosen, strict=True) if there}


def called(model: SpecModule, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    suffixes = {"tokens": "BS", "code": "BY", "image": "BPA", "audio": "BTM"}
    return model(**{f"{name}_{suffixes[name]}": x for name, x in inputs.items()})


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # routers run in float32


# --- operations


LENGTHS = st.lists(st.integers(0, 4), min_size=1, max_size=4)


@settings(deadline=None)
@given(lengths=LENGTHS)
def test_what_is_joined_comes_apart_again(lengths: list[int]) -> None:
    sequences = [torch.randn(2, n, 3) for n in lengths]
    x = join(*sequences)
    assert x.shape == (2, sum(lengths), 3)
    for part, whole in zip(parts(x, lengths), sequences, strict=True):
        assert torch.equal(part, whole)
    expected = [i for i, n in enumerate(lengths) for _ in range(n)]
    ids = part_ids(lengths, torch.device("cpu"))
    assert ids.tolist() == expected and ids.dtype == torch.int64
    assert torch.equal(pool(x), x.double().mean(1).float().nan_to_num()) or torch.allclose(pool(x), x.mean(1))


def test_what_is_absent_is_empty() -> None:
    x = torch.zeros(3, 2, 4, dtype=torch.float64)
    made = or_empty((None, (), torch.int64), (x, (4,), torch.float32), (None, (5, 6), torch.float32))
    assert [(tuple(t.shape), t.dtype) for t in made] == [
        ((3, 0), torch.int64), ((3, 2, 4), torch.float32), ((3, 0, 5, 6), torch.float32),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="at least one"):
        or_empty((None, (), torch.int64))


# --- what comes out, with each combination of inputs


@pytest.mark.parametrize("chosen", PRESENT, ids=str)
def test_absent_is_empty(small: Small, chosen: tuple[bool, ...]) -> None:
    """A model without an input gives what it gives where the input is there and has no position."""
    model, inputs = double(small), drawn()
    given = given_inputs(chosen, inputs)
    out = called(model, given)
    empty = {name: x if name in given else x[:, :0] for name, x in inputs.items()}
    for found, expected in zip(out, called(model, empty), strict=True):
        assert torch.equal(found, expected)
    text = (6 if chosen[0] else 0) + (3 if chosen[1] else 0)
    assert [tuple(result.shape) for result in out[:4]] == [(2, text, 32), (2, 10), (2, 4), (2, 1)]


@pytest.mark.parametrize("chosen", PRESENT, ids=str)
def test_all_weights_that_have_a_part_in_it_learn(small: Small, chosen: tuple[bool, ...]) -> None:
    model = double(small)
    out = called(model, given_inputs(chosen, drawn()))
    sum(result.square().sum() for result in out).backward()
    learns = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    owners = {"patches": chosen[2], "frames": chosen[3], "table": chosen[0] or chosen[1], "logits": any(chosen[:2])}
    for name, there in owners.items():
        assert (f"{name}.weight" in learns) == there, name
    assert "layers.1.attention.q.weight" in learns and "doubled.linear.weight" in learns


def test_results_rest_on_their_own_inputs_and_those_before(small: Small) -> None:
    """Images come first, then speech, then text: attention is causal over all of it, and looks back across inputs."""
    model, inputs = double(small), drawn()
    whole = called(model, inputs)
    alone = called(model, {"image": inputs["image"]})
    close(whole.digit, alone.digit)
    close(whole.word, called(model, {"image": inputs["image"], "audio": inputs["audio"]}).word)
    assert not torch.allclose(whole.word, called(model, {"audio": inputs["audio"]}).word, atol=1e-3)
    assert not torch.allclose(
        whole.logits, called(model, given_inputs((True, True, False, False), inputs)).logits, atol=1e-3
    )


def test_positions_and_kinds_run_over_the_joined_sequence(small: Small) -> None:
    """The same tokens as text and as code differ by their kind alone."""
    model, tokens = double(small), drawn()["tokens"]
    as_text, as_code = called(model, {"tokens": tokens}).logits, called(model, {"code": tokens}).logits
    assert not torch.allclose(as_text, as_code, atol=1e-3)
    with torch.no_grad():
        kind = model.get_parameter("kind.weight")
        kind[3] = kind[2]
    close(called(model, {"tokens": tokens}).logits, called(model, {"code": tokens}).logits)
    apart = called(model, {"tokens": tokens[:, :2], "code": tokens[:, 2:]}).logits
    close(apart, called(model, {"tokens": tokens}).logits)


def test_an_input_needs_another(small: Small) -> None:
    with pytest.raises(ValueError, match="at least one"):
        double(small)()


# --- objectives


LABELS = {"digit": torch.tensor([3, 9]), "word": torch.tensor([0, 3]), "reward": torch.tensor([[0.5], [-1.0]])}


@pytest.mark.parametrize("chosen", PRESENT, ids=str)
@pytest.mark.parametrize("labels", [(), ("digit",), ("digit", "word", "reward")], ids=str)
def test_terms_count_where_the_batch_has_their_target(
    small: Small, chosen: tuple[bool, ...], labels: tuple[str, ...]
) -> None:
    model, inputs = double(small), given_inputs(chosen, drawn())
    count = (6 if chosen[0] else 0) + (3 if chosen[1] else 0)
    targets = torch.randint(0, 32, (2, count)) if count else None
    if targets is not None:
        targets[0, 0] = IGNORED
    others = {name: x for name, x in inputs.items() if name != "tokens"}
    batch = Batch(inputs.get("tokens"), targets, None, others, {name: LABELS[name].to() for name in labels})
    found = small.trainer().objective(model, batch)

    out = called(model, inputs)
    expected = {"balance": out.balance}
    if targets is not None:
        kept = targets != IGNORED
        expected["next_token"] = -out.logits.log_softmax(-1)[kept].gather(-1, targets[kept][:, None]).mean()
    for name in labels:
        if name == "reward":
            expected["regress_reward"] = (out.reward - LABELS[name]).square().mean()
        else:
            rows = out._asdict()[name].log_softmax(-1)
            expected[f"classify_{name}"] = -rows.gather(-1, LABELS[name][:, None]).mean()
    factors = {"classify_digit": 2.0, "regress_reward": 0.5, "balance": 0.01}
    expected["loss"] = sum(factors.get(name, 1.0) * loss for name, loss in expected.items())
    assert set(found) == set(expected)
    for name, loss in expected.items():
        torch.testing.assert_close(found[name].double(), loss.double(), rtol=1e-5, atol=1e-6, msg=name)


def test_a_batch_without_any_target_is_refused(tmp_path: Path) -> None:
    text = """dsk 1

use std { classification_head }

model small(image: [B, P, A]) -> digit: [B, 10] {
  dims { A = 4 }
  digit = classification_head(image, classes: 10)
}

train t of small {
  objective classify(digit)
  batch { sequences = 2, P = 5 }
}
"""
    small = compiled(text, tmp_path)
    model, trainer = small.model(), small.trainer()
    image = torch.randn(2, 5, 4)
    labels = {"digit": torch.tensor([1, 2])}
    assert set(trainer.objective(model, Batch(inputs={"image": image}, labels=labels))) == {"loss", "classify_digit"}
    with pytest.raises(ValueError, match="no target"):
        trainer.objective(model, Batch(inputs={"image": image}))
    assert not trainer.RECIPE.next_token
    assert trainer.RECIPE.inputs["image"].shape == (5, 4) and not trainer.RECIPE.inputs["image"].optional


def test_the_recipe_says_what_it_is_fed(small: Small) -> None:
    recipe = small.trainer().RECIPE
    shapes = {"tokens": (6,), "code": (3,), "image": (5, 4), "audio": (7, 5)}
    assert {name: one.shape for name, one in recipe.inputs.items()} == shapes
    assert all(one.optional for one in recipe.inputs.values())
    tasks = {"digit": ("classify", (10,)), "word": ("classify", (4,)), "reward": ("regress", (1,))}
    assert {name: (task.loss, task.shape) for name, task in recipe.tasks.items()} == tasks
    assert recipe.next_token and recipe.length == 6


# --- decoding


@pytest.mark.parametrize("chosen", [c for c in PRESENT if c[0] and not c[1]], ids=str)
def test_text_goes_on_behind_what_came_first(small: Small, chosen: tuple[bool, ...]) -> None:
    """Images and speech come with the first pass; the tokens after that one by one, or several at a time."""
    model, inputs = double(small), given_inputs(chosen, drawn())
    whole = called(model, inputs).logits
    cache = Cache(2, 20)
    others = {{"image": "image_BPA", "audio": "audio_BTM"}[name]: x for name, x in inputs.items() if name != "tokens"}
    done = 0
    with torch.no_grad():
        for part in inputs["tokens"].split([2, 1, 3], dim=1):
            found = small.serve.forward(model, part, cache, **(others if done == 0 else {}))
            done += part.shape[1]
            close(found, whole[:, done - 1].detach())
    assert cache.length == 6 + sum(x.shape[1] for name, x in inputs.items() if name != "tokens")


# --- costs


def test_weights_are_those_predicted(small: Small) -> None:
    state = {name: tuple(tensor.shape) for name, tensor in small.model().state_dict().items()}
    assert state == {info.name: info.shape for info in parameters(small.graph)}


def test_costs_are_those_with_every_input(small: Small) -> None:
    recipe = small.compiled.recipes.trains["tiny"]
    assert dict(recipe.lengths) == {"Y": 3, "P": 5, "T": 7} and recipe.length == 6
    assert positions(small.graph, recipe) == 6 + 3 + 5 + 7
    inputs = {name: x.float() if x.is_floating_point() else x for name, x in drawn(batch=1).items()}
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter, torch.no_grad():
        called(small.model(), inputs)
    full, causal = flops(small.graph, recipe.length, lengths=recipe.lengths)
    assert counter.get_total_flops() == full > causal
    ledger = memory(small.graph, recipe)
    assert ledger.flops_per_token == causal // 21
    assert ledger.logits == 9 * 32 + 10 + 4 + 1

    saved = [*[repeat.unfused for repeat in ledger.repeats for _ in range(repeat.count)], ledger.rest_unfused]
    counted = sum(4 * (part.compute + part.fp32) + part.bytes for part in saved)
    kept = kept_bytes(small.model(), tuple(inputs[name] for name in NAMES))
    assert 0.8 * kept < counted < 1.25 * kept
    shorter = memory(small.graph, replace(recipe, lengths=(("Y", 3), ("P", 5), ("T", 1))))
    assert shorter.repeats[0].saved.compute < ledger.repeats[0].saved.compute


def test_documents_are_of_one_input(tmp_path: Path) -> None:
    text = SPEC.replace("rope: rope())", "rope: rope(), mask: causal & documents)").replace(
        'use "own.dsk" { doubled }', ""
    )
    text = text.replace("  x = doubled(x, bias: 1)\n", "")
    with pytest.raises(AssertionError, match=r"DSK0190(.|\n)*`documents` are those of one input's tokens"):
        compiled(text, tmp_path)


# --- the architecture itself


ADAPTIVE = f"""dsk 1

use "{SPECS}/deepseek_adaptive.dsk" {{ deepseek_adaptive, pretrain }}

model small from deepseek_adaptive {{
  dims {{ V = 32, D = 16, H = 2, X = 3, F = 8, A = 4, M = 5, C = 10, W = 4 }}
  repeat layers 2
  layers.encoder(top_k: 2, expert_capacity: 1, dropout: 0.1)
  adaptive_attention(near: causal & window(2), far: causal & blocks(size: 2, window: 1, random: 1))
  expert_selection(top: 2, hidden: 8, expert_capacity: 1)
}}
"""


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return compiled(ADAPTIVE, tmp_path_factory.mktemp("adaptive"))


@pytest.mark.parametrize("chosen", PRESENT, ids=str)
def test_the_adaptive_architecture_with_any_inputs(adaptive: Small, chosen: tuple[bool, ...]) -> None:
    """It gives the same for what is absent and what is empty, and trains on either; experts overflow in each batch."""
    model, inputs = double(adaptive), drawn()
    given = given_inputs(chosen, inputs)
    out = called(model, given)
    empty = {name: x if name in given else x[:, :0] for name, x in inputs.items()}
    for found, expected in zip(out, called(model, empty), strict=True):
        assert torch.equal(found, expected)
    trained = called(model.train(), given)
    sum(result.square().sum() for result in trained).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    learns = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    for name in ("embedding.local", "adaptive_attention.choice", "expert_selection.selection.spread",
                 "residual_compression.down", "layers.1.encoder.moe.router"):  # fmt: skip
        assert f"{name}.weight" in learns, name
    dropped = [b for name, b in model.named_buffers() if name.endswith("dropped")]
    assert len(dropped) == 3 and sum(int(b.sum()) for b in dropped) > 0


def test_the_adaptive_architecture_decodes(adaptive: Small) -> None:
    model, inputs = double(adaptive), drawn()
    whole = called(model, {"image": inputs["image"], "tokens": inputs["tokens"]}).logits.detach()
    cache, done = Cache(2, 20), 0
    with torch.no_grad():
        for part in inputs["tokens"].split([1, 2, 1, 1, 1], dim=1):
            found = adaptive.serve.forward(model, part, cache, image_BPA=inputs["image"] if done == 0 else None)
            done += part.shape[1]
            close(found, whole[:, done - 1])
