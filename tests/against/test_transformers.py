"""Every family against transformers: the shipped spec, shrunk by `--set`, with the weights of a small random model.

Logits, loss, the gradient of every parameter, decoding with a cache and greedy generation must agree; and must not, or
the import must fail, once a feature is taken out of the spec.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from differential import (
    TOLERANCE,
    Ours,
    decoded,
    error,
    import_,
    imported,
    logits,
    losses,
    our_gradients,
    their_gradients,
)
from families import FAMILIES, LAYERS, VOCABULARY, WINDOW, Family, build
from torch import Tensor
from transformers import PreTrainedModel

from dskc.runtime.serve.generate import generate
from dskc.runtime.serve.sampling import greedy

BATCH, LENGTH, PROMPT, NEW = 2, 96, 40, 32


@dataclass(frozen=True)
class Theirs:
    """A family's model of transformers, and its checkpoint. logits_BSV: of `tokens_BS`."""

    family: Family
    model: PreTrainedModel
    checkpoint: Path
    tokens_BS: Tensor
    logits_BSV: Tensor


class Models:
    """transformers' models, each built once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[str, Theirs] = {}

    def __getitem__(self, name: str) -> Theirs:
        if name not in self.built:
            family = FAMILIES[name]
            model = build(family.config)
            model.save_pretrained(self.folder / name)
            tokens_BS = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
            with torch.inference_mode():
                logits_BSV = model(tokens_BS).logits
            self.built[name] = Theirs(family, model, self.folder / name, tokens_BS, logits_BSV)
        return self.built[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="module", params=FAMILIES)
def theirs(request: pytest.FixtureRequest, models: Models) -> Theirs:
    return models[request.param]


@pytest.fixture(scope="module")
def ours(theirs: Theirs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    family = theirs.family
    yield imported(family.path, theirs.checkpoint, tmp_path_factory.mktemp("runs") / "run", family.shrunk)


def test_logits_and_loss(theirs: Theirs, ours: Ours) -> None:
    with torch.inference_mode():
        assert error(logits(ours.model, theirs.tokens_BS), theirs.logits_BSV) < TOLERANCE
        expected = theirs.model(theirs.tokens_BS, labels=theirs.tokens_BS).loss
        assert error(losses(ours, theirs.tokens_BS)["next_token"], expected) < TOLERANCE


def test_gradient_of_every_parameter(theirs: Theirs, ours: Ours, tmp_path: Path) -> None:
    expected = their_gradients(theirs.model, theirs.tokens_BS, tmp_path)
    found = our_gradients(ours, theirs.tokens_BS)
    assert found.keys() == expected.keys()
    assert all(value.norm() > 0 for value in expected.values())
    errors = {name: error(found[name], value) for name, value in expected.items()}
    assert {name: value for name, value in errors.items() if value >= TOLERANCE} == {}


@pytest.mark.parametrize(
    "steps",
    [(PROMPT, *[1] * (LENGTH - PROMPT)), (5, 1, WINDOW + 2, 1, 1, LENGTH - WINDOW - 10)],
    ids=["prefill and decode", "in chunks"],
)
def test_decoding_with_a_cache(theirs: Theirs, ours: Ours, steps: tuple[int, ...]) -> None:
    ends = torch.tensor(steps).cumsum(0) - 1
    found = decoded(ours, theirs.tokens_BS, steps)
    with torch.inference_mode():
        assert error(found, logits(ours.model, theirs.tokens_BS)[:, ends]) < TOLERANCE
    assert error(found, theirs.logits_BSV[:, ends]) < TOLERANCE


def test_greedy_generation(theirs: Theirs, ours: Ours) -> None:
    for prompt_S in theirs.tokens_BS[:, :PROMPT]:
        expected = theirs.model.generate(prompt_S[None], max_new_tokens=NEW, do_sample=False)[0, PROMPT:].tolist()
        found = list(generate(ours.model, ours.serve.forward, prompt_S.tolist(), NEW, greedy))
        assert found == expected and len(found) == NEW
        assert len(set(found)) > 4, "a text of a few tokens would not show much"
