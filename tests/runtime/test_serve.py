"""The cache, sampling and generation of text."""

from __future__ import annotations

import random
import types

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from dskc.runtime.modules import Embed, Linear, RMSNorm
from dskc.runtime.problem import Problem
from dskc.runtime.reference import attention, causal, rope, rope_table, window
from dskc.runtime.serve import Cache, Sampler, generate
from dskc.runtime.serve.generate import main, stop_ids, stream
from dskc.runtime.serve.sampling import greedy, keep_top_k, keep_top_p, sample
from dskc.runtime.serve.text import TextStream

V, D, H, G, E = 300, 32, 4, 2, 8
MASKS = [causal, causal & window(5)]


class Layer(nn.Module):
    def __init__(self, mask) -> None:
        super().__init__()
        self.norm = RMSNorm(D, eps=1e-6)
        self.q, self.k, self.v, self.out = Linear(D, H * E), Linear(D, G * E), Linear(D, G * E), Linear(H * E, D)
        self.mask = mask

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        h = self.norm(x)
        q, k = (rope(y.unflatten(-1, (heads, E)), *table) for y, heads in ((self.q(h), H), (self.k(h), G)))
        v = self.v(h).unflatten(-1, (G, E))
        if cache is not None:
            k, v = cache.keep(k=k, v=v)
        return x + self.out(attention(q, k, v, self.mask).flatten(-2))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = Embed(V, D)
        self.layers = nn.ModuleList([Layer(mask) for mask in MASKS])
        self.logits = Linear(D, V)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        x = self.embed(tokens)
        position = torch.arange(tokens.shape[1]) if cache is None else cache.positions(tokens)
        table = rope_table(position, E, 10_000.0)
        for i, layer in enumerate(self.layers):
            x = layer(x, table, None if cache is None else cache.at("layers", i))
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.logits(x)


def forward(model: nn.Module, tokens: Tensor, cache: Cache) -> Tensor:
    return model(tokens, cache)[:, -1]


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 3))
def test_decoding_in_pieces_equals_the_whole(model: Model, pieces: list[int], batch: int) -> None:
    tokens = torch.randint(0, V, (batch, sum(pieces)))
    with torch.no_grad():
        whole = model(tokens)
        cache = Cache(batch, sum(pieces))
        parts = [model(piece, cache) for piece in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)
    assert cache.length == sum(pieces)


def test_a_pass_that_failed_can_run_again(model: Model) -> None:
    tokens = torch.randint(0, V, (1, 12))
    cache = Cache(1, 12)
    with torch.no_grad():
        forward(model, tokens[:, :6], cache)
        cache.at("layers", 0).keep(k=torch.randn(1, 3, G, E), v=torch.randn(1, 3, G, E))  # and no `advance`
        again = forward(model, tokens[:, 6:], cache)
        torch.testing.assert_close(again, model(tokens)[:, -1], rtol=1e-4, atol=1e-4)


def test_cache_keeps_blocks_apart_and_grows_to_its_capacity() -> None:
    cache = Cache(2, 100)
    expected: dict[int, list[Tensor]] = {0: [], 1: []}
    for n in (1, 70, 29):
        for i, seen in expected.items():
            seen.append(torch.randn(2, n, 3))
            (kept,) = cache.at("layers").at(i).keep(c=seen[-1])
            assert torch.equal(kept, torch.cat(seen, dim=1))
        cache.advance(n)
    assert cache.length == 100
    with pytest.raises(Problem, match="101 tokens long, and the cache holds 100"):
        cache.positions(torch.empty(2, 1))
    with pytest.raises(Problem, match="101"):
        cache.at("layers", 0).keep(c=torch.empty(2, 1, 3))
    cache.clear()
    assert cache.positions(torch.empty(2, 3)).tolist() == [0, 1, 2]


def test_cache_refuses_what_changes_shape() -> None:
    cache = Cache(1, 10)
    cache.keep(k=torch.zeros(1, 2, 3))
    with pytest.raises(AssertionError, match="k was "):
        cache.keep(k=torch.zeros(1, 2, 4))
    with pytest.raises(AssertionError, match="k was "):
        cache.keep(k=torch.zeros(1, 2, 3, dtype=torch.float64))
    with pytest.raises(Problem):
        Cache(1, 0)


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert greedy(torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, -1.0]])).tolist() == [1, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.floats(0.05, 0.99))
def test_top_k_and_top_p_against_transformers(seed: int, k: int, p: float) -> None:
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))
    assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits))


def test_top_p_keeps_the_likeliest_always() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    assert keep_top_p(logits, 1e-9).isfinite().tolist() == [[False, True, False]]


def test_sampling_follows_the_odds() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(40_000, 4)
    for temperature in (0.5, 1.0, 2.0):
        drawn = sample(logits, temperature, generator=torch.Generator().manual_seed(0))
        share = torch.bincount(drawn, minlength=4) / 40_000
        torch.testing.assert_close(share, (logits[0] / temperature).softmax(-1), rtol=0, atol=0.01)
    only = sample(logits, 1.0, top_k=2, top_p=0.99, generator=torch.Generator().manual_seed(0))
    assert set(only.tolist()) == {1, 2}


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"seed": -1},
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(Problem):
        Sampler(**values)


def test_generate_greedy_equals_the_full_forward(model: Model) -> None:
    tokens = [5, 17, 250]
    got = list(generate(model, forward, tokens, 20, Sampler()))
    for i in range(20):
        with torch.no_grad():
            expected = model(torch.tensor([tokens + got[:i]]))[0, -1].argmax().item()
        assert got[i] == expected
    stop = got[7]
    first = got.index(stop)
    assert list(generate(model, forward, tokens, 20, Sampler(), {stop})) == got[:first]
    assert list(generate(model, forward, tokens, 0, Sampler())) == []
    with pytest.raises(Problem, match="no token to start from"):
        list(generate(model, forward, [], 5, Sampler()))


def test_the_same_seed_gives_the_same_text(model: Model) -> None:
    def text(seed: int) -> list[int]:
        return list(generate(model, forward, [1, 2], 30, Sampler(temperature=1.0, top_k=50, top_p=0.9, seed=seed)))

    assert text(3) == text(3)
    assert text(3) != text(4)


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the hat — naïve"] * 5, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As SentencePiece models are: words begin with ▁, and bytes stand for what has no token."""
    vocabulary = {f"<0x{i:02X}>": i for i in range(256)} | {
        "▁": 256,
        "▁a": 257,
        "b": 258,
        "▁b": 259,
        "<unk>": 260,
        "a": 261,
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@example(text=" 😀")
@example(text="😀😀 語a")
@given(text=st.text(alphabet="ab the—ï😀語\u0301\n", max_size=30))
def test_streamed_text_is_the_text_and_never_half_a_character(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(text).ids
    output = TextStream(tokenizer)
    pieces = [output.put(token) for token in tokens]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + output.end() == tokenizer.decode(tokens)


def test_streamed_text_of_any_bytes() -> None:
    tokenizer = TOKENIZERS["byte level"]
    draw = random.Random(0)
    for _ in range(300):
        tokens = [draw.randrange(tokenizer.get_vocab_size()) for _ in range(draw.randrange(1, 30))]
        output = TextStream(tokenizer)
        pieces = [output.put(token) for token in tokens]
        assert "".join(pieces) + output.end() == tokenizer.decode(tokens)
        assert len(tokens) < 10 or len("".join(pieces)) > 0  # bytes that are no text hold nothing up for ever


def test_text_after_a_prompt_keeps_its_space() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    output = TextStream(tokenizer, [257, 258])
    assert output.put(259) == " b"


def test_stream_stops_at_the_end_token(model: Model) -> None:
    tokenizer = byte_level()
    assert stop_ids(tokenizer) == {0}
    serve = types.ModuleType("serve")
    script = iter([tokenizer.token_to_id(c) for c in "hat"] + [299, 0])

    def scripted(model: nn.Module, tokens: Tensor, cache: Cache) -> Tensor:
        return torch.eye(V)[next(script)][None]

    serve.forward = scripted
    assert "".join(stream(model, serve, tokenizer, "", 50, Sampler())) == "hat"


def test_stream_goes_on_from_the_prompt(model: Model) -> None:
    serve = types.ModuleType("serve")
    serve.forward = lambda model, tokens, cache: torch.eye(V)[259][None]
    assert "".join(stream(model, serve, TOKENIZERS["byte fallback"], "a", 2, Sampler())) == " b b"


def test_main_prints_the_prompt_and_what_follows(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, serve = byte_level(), types.ModuleType("serve")
    serve.forward = forward
    train = types.ModuleType("dskc.runtime.train")
    train.load_model = lambda folder, step, device: (model, serve, tokenizer)
    monkeypatch.setitem(__import__("sys").modules, "dskc.runtime.train", train)
    main(["runs/x", "--prompt", "the naï", "--max-tokens", "12", "--temperature", "0"])
    tokens = tokenizer.encode("the naï").ids
    ids = [i for i in generate(model, forward, tokens, 12, Sampler(), {0}) if i < tokenizer.get_vocab_size()]
    assert capsys.readouterr().out == tokenizer.decode(tokens + ids) + "\n"
    for bad in (["--max-tokens", "0"], ["--temperature", "-1"], ["--top-p", "2"]):
        with pytest.raises(Problem):
            main(["runs/x", *bad])
