"""Files of records, mixtures of sources, and whole runs of a tiny trainer on several kinds of data."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks_trainer import images, write_records, write_tasks_package
from tiny_trainer import log_lines, train, write_text
from torch import Tensor, nn

from dskc.runtime.data import Batch, Fields, Input, Mixture, RecordSource, Task, read_records, whole_weights
from dskc.runtime.problem import Problem
from dskc.runtime.reference import classify
from dskc.runtime.train import load_model
from dskc.runtime.train.evaluate import evaluate
from dskc.runtime.train.kept import list_checkpoints

FIELDS = Fields(
    {"tokens": Input((3,), optional=True, ids=True), "image": Input((5, 3), optional=True)},
    {"kind": Task("classify", (4,)), "reward": Task("regress", (1,))},
    vocabulary=10,
)
TEN = images(10)


# Files


def test_records_are_read_and_a_tenth_is_held_out(tmp_path: Path) -> None:
    made = images(50)
    reward = torch.arange(50.0, dtype=torch.float64)[:, None]
    records = read_records(write_records(tmp_path / "digits.safetensors", **made, reward=reward), FIELDS)
    assert (records.name, records.count, records.positions) == ("digits", 50, 5)
    assert len(records.held) == 5 and sorted([*records.train, *records.held]) == list(range(50))
    assert torch.equal(records.inputs["image"], made["image"]) and torch.equal(records.labels["kind"], made["kind"])
    assert records.labels["reward"].dtype == torch.float32
    again = read_records(tmp_path / "digits.safetensors", FIELDS)
    assert (again.held == records.held).all() and again.sha256 == records.sha256
    assert (records.held != np.arange(45, 50)).any()


def test_a_file_can_say_what_is_held_out(tmp_path: Path) -> None:
    mark = torch.arange(10) >= 7
    records = read_records(write_records(tmp_path / "a.safetensors", **TEN, held_out=mark), FIELDS)
    assert (records.train.tolist(), records.held.tolist()) == ([*range(7)], [7, 8, 9])


def changed(name: str, row: int, value: float) -> dict[str, Tensor]:
    tensor = TEN[name].clone()
    tensor[row].fill_(value)
    return TEN | {name: tensor}


@pytest.mark.parametrize(
    ("tensors", "message", "help"),
    [
        (TEN | {"imgae": TEN["image"]}, "the model has no `imgae`", "image [N, 5, 3]; labels kind [N] of 4"),
        ({"kind": TEN["kind"]}, "none of its tensors is an input", "the model takes inputs tokens [N, 3]"),
        ({"image": TEN["image"]}, "it has no labels", "reward [N, 1], targets [N, 3]"),
        (TEN | {"image": TEN["image"][:, :4]}, "`image` is [10, 4, 3], and the model takes [N, 5, 3]", "spec"),
        (TEN | {"image": TEN["image"][:8]}, "has 8 records, and `kind` has 10", ""),
        (changed("image", 3, float("nan")), "`image` is not finite in 1 of 10 records, first in 3", ""),
        (changed("image", 4, float("inf")), "`image` is not finite in 1 of 10 records, first in 4", ""),
        (TEN | {"image": TEN["image"].to(torch.int32)}, "`image` is int32, and should be float32", ""),
        (TEN | {"kind": TEN["kind"].float()}, "`kind` is float32, and should be int64", ""),
        (changed("kind", 6, 4), "`kind` has 4 in record 6, and 4 classes go from 0 to 3", ""),
        (changed("kind", 2, -1), "`kind` has -1 in record 2", ""),
        (TEN | {"kind": TEN["kind"][:, None]}, "`kind` is [10, 1], and the model takes [N]", ""),
        (TEN | {"reward": torch.zeros(10)}, "`reward` is [10], and the model takes [N, 1]", ""),
        (TEN | {"reward": torch.full((10, 1), torch.nan)}, "`reward` is not finite in 10 of 10 records", ""),
        (TEN | {"held_out": torch.ones(10, dtype=torch.bool)}, "`held_out` holds out all records", ""),
        (TEN | {"held_out": torch.full((10,), 2)}, "`held_out` should be [N] of true and false", ""),
        ({name: tensor[:0] for name, tensor in TEN.items()}, "0 records are too few", ""),
        (TEN | {"targets": torch.zeros(10, 3, dtype=torch.int64)}, "`targets` without `tokens`", ""),
        (
            {"tokens": torch.full((4, 3), 10), "targets": torch.zeros(4, 3, dtype=torch.int64)},
            "`tokens` has 10 in record 0, and the vocabulary of 10 go from 0 to 9 (4 records are so)",
            "",
        ),
    ],
)  # fmt: skip
def test_wrong_records_are_refused_by_name(tmp_path: Path, tensors: dict[str, Tensor], message: str, help: str) -> None:
    path = write_records(tmp_path / "a.safetensors", **tensors)
    with pytest.raises(Problem) as raised:
        read_records(path, FIELDS)
    assert message in raised.value.message and str(path) in raised.value.message
    assert help in (raised.value.help or "")


def test_an_input_that_the_model_needs_is_missed(tmp_path: Path) -> None:
    fields = Fields({"image": Input((5, 3)), "depth": Input((5,))}, FIELDS.tasks, next_token=False)
    with pytest.raises(Problem, match="it lacks `depth`, which the model does not do without"):
        read_records(write_records(tmp_path / "a.safetensors", **TEN), fields)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, size: int) -> None:
    path = write_records(tmp_path / "a.safetensors", **TEN)
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    with pytest.raises(Problem, match=r"a\.safetensors is not a whole safetensors file"):
        read_records(path, FIELDS)


def test_targets_make_batches_of_predicted_tokens(tmp_path: Path) -> None:
    tokens, targets = torch.randint(10, (6, 3)), torch.randint(10, (6, 3))
    targets[:, 2] = -100
    path = write_records(tmp_path / "a.safetensors", tokens=tokens, targets=targets)
    source = RecordSource(read_records(path, FIELDS), seed=0)
    batch = source.batch(0, source.count)
    assert batch.predicted == 2 * source.count and batch.documents is not None and not batch.labels
    pairs = {(tuple(a), tuple(b)) for a, b in zip(tokens.tolist(), targets.tolist(), strict=True)}
    assert batch.tokens is not None and batch.targets is not None
    assert {(tuple(a), tuple(b)) for a, b in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True)} < pairs


# Order and mixture


def test_an_epoch_has_every_training_record_once_and_no_other(tmp_path: Path) -> None:
    made = {"image": torch.arange(40.0)[:, None, None].expand(40, 5, 3).clone(), "kind": torch.zeros(40).long()}
    records = read_records(write_records(tmp_path / "a.safetensors", **made), FIELDS)
    source = RecordSource(records, seed=3)
    seen = [source.batch(start, 4).inputs["image"][:, 0, 0] for start in range(0, 2 * source.count, 4)]
    first, second = torch.cat(seen).split(source.count)
    assert sorted(first.tolist()) == sorted(second.tolist()) == sorted(float(n) for n in records.train)
    assert first.tolist() != second.tolist()
    other = RecordSource(records, seed=4).batch(0, source.count).inputs["image"][:, 0, 0]
    assert other.tolist() != first.tolist()
    held = torch.cat([batch.inputs["image"][:, 0, 0] for batch in source.held_out(10_000, 3)])
    assert held.tolist() == [float(n) for n in records.held]
    assert sum(batch.rows for batch in source.held_out(10, 3)) == 2  # of five positions each


class Numbered:
    """A source whose batches are only numbers."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 10

    def batch(self, start: int, count: int) -> Batch:
        return Batch(inputs={self.name: torch.arange(start, start + count)[:, None]})


@settings(deadline=None)
@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=4), n=st.integers(0, 200))
def test_a_mixture_keeps_to_its_shares_and_leaves_nothing_out(weights: list[int], n: int) -> None:
    sources = [Numbered(str(i)) for i in range(len(weights))]
    mixture = Mixture(sources, weights, unit=3)
    picks = [mixture.pick(i) for i in range(n + 1)]
    for source, weight in enumerate(weights):
        own = [before for which, before in picks if which == source]
        assert own == list(range(len(own)))
        assert abs(len(own) - (n + 1) * weight / sum(weights)) < 1 or len(weights) > 2
        assert abs(len(own) - (n + 1) * weight / sum(weights)) < len(weights)
    assert Mixture(sources, weights, unit=3).pick(n) == picks[n]  # whatever was asked for before
    assert rows_of(mixture.batch(3 * n, 3)) == [(str(picks[n][0]), 3 * picks[n][1] + i) for i in range(3)]


def rows_of(batch: Batch) -> list[tuple[str, int]]:
    """(source, row) of a batch of a Numbered one."""
    ((name, rows),) = batch.inputs.items()
    return [(name, row) for row in rows.flatten().tolist()]


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@settings(deadline=None, max_examples=200)
@given(
    weights=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    unit=st.sampled_from([1, 2, 4, 6, 12]),
    groups=st.integers(1, 4),
    steps=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    data=st.data(),
)
def test_ranks_see_together_what_one_would_see_whatever_their_number(
    weights: list[int], unit: int, groups: int, steps: tuple[int, int], data: st.DataObject
) -> None:
    """A run begun on some ranks and resumed on others: each step's rows are those of one rank, each once."""
    sources = [Numbered(str(i)) for i in range(len(weights))]
    sequences = unit * groups
    alone = Mixture(sources, weights, unit)
    taken = 0  # all that a checkpoint knows
    for part in steps:
        ranks = data.draw(st.sampled_from(divisors(unit if len(weights) > 1 else sequences)))
        count = data.draw(st.sampled_from(divisors((unit if len(weights) > 1 else sequences) // ranks)))
        of_ranks = [Mixture(sources, weights, unit) for _ in range(ranks)]
        for _ in range(part):
            seen = [
                list(mixture.batches(taken, taken + sequences, count, rank, ranks))
                for rank, mixture in enumerate(of_ranks)
            ]
            for together in zip(*seen, strict=True):
                assert len({name for batch in together for name, _ in rows_of(batch)}) == 1
            found = [row for batches in seen for batch in batches for row in rows_of(batch)]
            at_once = sequences if len(weights) == 1 else unit
            expected = [row for batch in alone.batches(taken, taken + sequences, at_once) for row in rows_of(batch)]
            assert sorted(found) == sorted(expected)
            taken += sequences
    every = [row for at in range(0, taken, unit) for row in rows_of(alone.batch(at, unit))]
    for source, total in enumerate(alone.rows(taken)):
        assert sorted(row for name, row in every if name == str(source)) == list(range(total))
    extra = data.draw(st.integers(0, unit))
    more = [row for at in range(taken, taken + extra) for row in rows_of(alone.batch(at, 1))]
    assert alone.rows(taken + extra) == [
        sum(name == str(source) for name, _ in every + more) for source in range(len(weights))
    ]


def test_a_microbatch_that_would_mix_sources_is_refused() -> None:
    sources = [Numbered("0"), Numbered("1")]
    Mixture(sources[:1], [1], unit=4).require(3, 5)
    Mixture(sources, [1, 1], unit=4).require(2, 2)
    with pytest.raises(Problem, match="a microbatch of 2 on 4 ranks does not divide the 4 rows"):
        list(Mixture(sources, [1, 1], unit=4).batches(0, 8, 2, ranks=4))


def test_shares_as_written_are_whole_weights() -> None:
    assert whole_weights([Fraction("0.5"), Fraction("0.3"), Fraction("0.2")]) == (5, 3, 2)
    assert whole_weights([Fraction("2"), Fraction("1/3")]) == (6, 1)


# Accuracy


class Fixed(nn.Module):
    """Scores that are the images' first numbers."""

    def forward(self, image: Tensor) -> Tensor:
        return image[:, 0]


def test_accuracy_is_the_share_of_rows_that_are_right() -> None:
    scores = torch.tensor([[3.0, 1, 2], [0, 5, 1], [0, 1, 2], [9, 8, 7], [1, 2, 3]])
    labels = torch.tensor([0, 1, 0, 1, 2])
    batches = [
        Batch(inputs={"image": scores[part, None]}, labels={"kind": labels[part]}) for part in (slice(3), slice(3, 5))
    ]
    held = evaluate(
        Fixed(),
        lambda model, batch: {"loss": classify(model(batch.inputs["image"]), batch.labels["kind"])},
        batches,
        {"kind": Task("classify", (3,))},
        torch.device("cpu"),
    )
    assert held.accuracy == {"kind": 3 / 5} and held.rows == 5 and held.unigram_entropy is None
    assert held.losses["loss"] == pytest.approx(float(nn.functional.cross_entropy(scores, labels)))


# Whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    rated = images(60, seed=1)
    rated["reward"] = rated["image"].mean((1, 2))[:, None]
    return [
        write_records(folder / "kinds.safetensors", **images(200)),
        write_text(folder / "text"),
        write_records(folder / "rated.safetensors", **rated),
    ]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks_package(tmp_path_factory.mktemp("generated"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, package: Path, data: list[Path]) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    mixed = ["--data", data[0], "--data", *data[1:], "--mix", "2,1,0.5", "--packing", "stream"]
    train(package, *mixed, "--steps", 30, "--out", out)
    return out


def test_a_run_on_several_kinds_of_data_learns_each(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "train.jsonl").read_text().splitlines()]
    result = json.loads((whole / "result.json").read_text())
    facts = json.loads((whole / "run.json").read_text())
    assert (facts["sources"], facts["mix"]) == (["kinds", "text", "rated"], [4, 2, 1])
    assert list(result["sources"]) == facts["sources"]
    assert result["sources"]["kinds"]["accuracy"]["kind"] >= 0.95
    assert result["sources"]["kinds"]["rows"] == 20
    assert result["held_out_loss"] == result["sources"]["text"]["losses"]["next_token"] < result["unigram_entropy"]
    last = lines[-1]
    assert last["accuracy.kinds.kind"] == result["sources"]["kinds"]["accuracy"]["kind"]
    assert last["held_out.rated.regress_reward"] < lines[3]["held_out.rated.regress_reward"]
    # two batches of four rows a step: a term is logged where a batch of the step has it, and is not diluted
    assert all(("next_token" in line) + ("classify_kind" in line) >= 1 for line in lines)
    assert any("next_token" not in line for line in lines)
    assert {"next_token", "classify_kind"} <= lines[0].keys() and lines[0]["next_token"] > 5  # of a uniform 5.7
    # 60 batches of 4 rows: 34, 17 and 9 of them, of 5, 32 and 5 positions
    assert result["tokens"] == 4 * (34 * 5 + 17 * 32 + 9 * 5)
    assert (whole / "loss.png").read_bytes().startswith(b"\x89PNG")
    model, _, tokenizer = load_model(whole, device="cpu")
    assert tokenizer is not None and not model.training


def test_held_out_accuracy_is_that_of_the_model_that_was_saved(whole: Path, data: list[Path]) -> None:
    model, _, _ = load_model(whole, device="cpu")
    records = read_records(data[0], Fields({"image": Input((5, 3))}, {"kind": Task("classify", (4,))}))
    found = model(None, None, records.inputs["image"][records.held]).kind.argmax(-1)
    share = float((found == records.labels["kind"][records.held]).float().mean())
    result = json.loads((whole / "result.json").read_text())
    assert result["sources"]["kinds"]["accuracy"]["kind"] == pytest.approx(share)


@pytest.mark.parametrize("named", [False, True])
def test_a_resumed_mixture_is_the_unbroken_one(
    whole: Path, package: Path, data: list[Path], tmp_path: Path, named: bool
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for path in list_checkpoints(out / "checkpoints"):
        if path.name != "step-00000028":
            shutil.rmtree(path)
    again = ["--data", *data, "--mix", "4,2,1"] if named else []
    train(package, "--resume", "--out", out, *again)
    assert log_lines(out) == log_lines(whole)
    here, there = (load_model(run, device="cpu")[0].state_dict() for run in (out, whole))
    assert all(torch.equal(here[name], there[name]) for name in there)


def test_a_mixture_resumed_with_another_microbatch_sees_the_same_rows(
    whole: Path, package: Path, data: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for path in list_checkpoints(out / "checkpoints"):
        if path.name != "step-00000028":
            shutil.rmtree(path)
    with pytest.raises(Problem, match="a microbatch of 8 does not divide the 4 rows that come of one source"):
        train(package, "--resume", "--out", out, "--microbatch", 8)
    train(package, "--resume", "--out", out, "--microbatch", 2)
    facts = json.loads((out / "run.json").read_text())
    assert (facts["microbatch"], facts["unit"]) == (2, 4)
    here, there = (json.loads((run / "result.json").read_text()) for run in (out, whole))
    assert here["tokens"] == there["tokens"]
    # the step's loss of each source is the mean over its rows, in whatever microbatches they came (the model has no
    # dropout); of the first step after the checkpoint, whose weights are the same
    lines = [log_lines(run)[28] for run in (out, whole)]
    for term in ("next_token", "classify_kind", "regress_reward"):
        assert (term in lines[0]) == (term in lines[1])
        assert lines[0].get(term, 0) == pytest.approx(lines[1].get(term, 0), rel=1e-5)


def test_without_shares_epochs_take_equally_long(package: Path, data: list[Path], tmp_path: Path) -> None:
    train(package, "--data", data[0], data[2], "--steps", 1, "--out", tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["mix"] == [180 // 18, 54 // 18]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["unigram_entropy"] is None and not (tmp_path / "run" / "tokenizer.json").exists()


def test_text_for_another_input_shares_the_tokenizer(package: Path, data: list[Path], tmp_path: Path) -> None:
    source = write_text(tmp_path / "source", seed=5)
    out = tmp_path / "run"
    train(
        package, "--data", data[1], f"code={source}", "--mix", "1,1", "--steps", 8, "--out", out, "--packing", "stream"
    )
    result = json.loads((out / "result.json").read_text())
    assert list(result["sources"]) == ["text", "code"] and result["tokens"] == 4 * 8 * (32 + 16)
    assert (out / "data" / "code" / "train.tokens").exists()
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    before = log_lines(out)
    train(package, "--resume", "--out", out)
    assert log_lines(out) == before


def test_what_cannot_change_on_the_way(whole: Path, package: Path, data: list[Path], tmp_path: Path) -> None:
    for arguments, message in (
        (["--mix", "1,1,1"], "--mix: this run has a mix of 4, 2, 1"),
        (["--data", *data[:2]], "--data is not the data that this run was trained on"),
        (["--data", data[2], *data[:2]], "--data is not the data that this run was trained on"),
    ):
        with pytest.raises(Problem, match=message):
            train(package, "--resume", "--out", whole, *arguments)
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    write_records(out / "data" / "kinds.safetensors", **images(200, seed=9))
    with pytest.raises(Problem, match="data is not what this run was trained on"):
        train(package, "--resume", "--out", out)
    (out / "data" / "kinds.safetensors").unlink()
    with pytest.raises(Problem, match=r"kinds\.safetensors is missing"):
        train(package, "--resume", "--out", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kinds.safetensors", "--mix", "1,2"], "--mix has 2 shares, and --data names 1 sources: kinds"),
        (["kinds.safetensors", "--tokenizer", __file__], "there is no text among the data"),
        (["kinds.safetensors", "more/kinds.safetensors"], "two sources would be called `kinds`"),
        (["image=text"], "the model takes no text as `image`"),
        (["missing.safetensors"], r"missing\.safetensors: there is no such file"),
        (["wrong.safetensors", "text"], "the model has no `imgae`"),
    ],
)
def test_refused_data_leaves_nothing(package: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    write_text(folder / "text")
    for name in ("kinds", "more/kinds"):
        write_records(folder / f"{name}.safetensors", **TEN)
    write_records(folder / "wrong.safetensors", imgae=TEN["image"], kind=TEN["kind"])
    named = [
        each.replace("text", str(folder / "text")) if each.endswith("text")
        else str(folder / each) if each.endswith(".safetensors") else each
        for each in arguments
    ]  # fmt: skip
    with pytest.raises(Problem, match=message):
        train(package, "--out", tmp_path / "run", "--data", *named)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_shares_that_are_none_are_refused_by_the_command_line(
    package: Path, data: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mix in ("1,x", "1,0", "1,-2", ""):
        with pytest.raises(SystemExit):
            train(package, "--data", *data[:2], "--out", tmp_path / "run", "--mix", mix)
