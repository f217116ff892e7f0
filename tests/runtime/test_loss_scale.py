"""fp16: gradients that are a power of two too large change nothing, and a run finds out how large they may be."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_muon import gradients, model
from test_train import train
from tiny_trainer import write_package

from dskc.runtime import optim
from dskc.runtime.optim.loss_scale import LEAST, MOST, PATIENCE, LossScale
from dskc.runtime.problem import Problem
from dskc.runtime.train.recipe import Precision


@pytest.mark.parametrize("kind", [optim.AdamW, optim.Lion, optim.Muon])
@pytest.mark.parametrize("most", [None, 0.5])
def test_a_scale_is_taken_out_of_gradients(kind: Any, most: float | None) -> None:
    plain, scaled = model(), model()
    one, two = kind(plain, lr=0.01), kind(scaled, lr=0.01)
    for step in range(3):
        gradients(plain, step)
        gradients(scaled, step)
        for parameter in scaled.parameters():
            parameter.grad *= 2.0**12
        two.scale = 2.0**12
        if step < 2:  # clipped, and not
            torch.testing.assert_close(two.clip(most), one.clip(most))
        assert one.step(0.01) and two.step(0.01)
    for (name, mine), other in zip(scaled.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_an_overflow_changes_nothing(  # whatever the scale
) -> None:
    one = model()
    optimizer = optim.AdamW(one, lr=0.01)
    before = copy.deepcopy(one.state_dict())
    gradients(one, 0)
    one.norm.weight.grad[1] = float("inf")
    optimizer.scale = 2.0**8
    assert not optimizer.step(0.01) and optimizer.skipped is not None and optimizer.skipped.name == "norm.weight"
    assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())


def test_the_scale_halves_and_doubles_within_bounds() -> None:
    scale = LossScale(value=4.0)
    assert scale.count(True) and scale.value == 2.0
    assert not any(scale.count(False) for _ in range(PATIENCE - 1)) and scale.value == 2.0
    scale.count(False)
    assert (scale.value, scale.good) == (4.0, 0)
    assert scale.count(True) and scale.count(True) and scale.value == LEAST
    assert not scale.count(True) and scale.value == LEAST  # it does not help any more
    scale = LossScale(value=MOST, good=PATIENCE - 1)
    scale.count(False)
    assert scale.value == MOST


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_in_fp16_recovers_from_an_overflow(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(Path(__file__).read_text(encoding="utf-8") * 3, encoding="utf-8")
    inject = "\n        if step == 3: run._scale.value = 2.0**34"  # what no gradient here stands
    package = write_package(tmp_path / "package", COMPUTE="fp16", EXTRA=inject)
    asked = ("--data", text, "--steps", 40, "--save-every", 5)
    train(package, *asked, "--out", tmp_path / "whole")
    found = lines(tmp_path / "whole")
    skipped = [line["step"] for line in found if "skipped" in line]
    assert (
        skipped[:10] == list(range(5, 15)) and len(skipped) < 25 and not any("skipped" in line for line in found[-5:])
    )
    assert [line["loss_scale"] for line in found[:4]] == [2.0**16] * 4 and found[4]["loss_scale"] == 2.0**34
    assert found[-1]["loss_scale"] == 2.0 ** (34 - len(skipped))
    assert found[-1]["loss"] < found[0]["loss"] - 0.2
    plain = write_package(tmp_path / "plain")
    train(plain, "--data", text, "--steps", 4, "--out", tmp_path / "exact")
    assert [line["loss"] for line in found[:4]] == pytest.approx(
        [line["loss"] for line in lines(tmp_path / "exact")], rel=2e-2
    )
    # a resumed run goes on with the scale that it had
    broken = write_package(
        tmp_path / "broken", COMPUTE="fp16", EXTRA=f"{inject}\n        if step == 13: raise ConnectionError"
    )
    with pytest.raises(ConnectionError):
        train(broken, *asked, "--out", tmp_path / "cut")
    train(package, "--resume", "--out", tmp_path / "cut")
    assert [(line["loss"], line["loss_scale"]) for line in lines(tmp_path / "cut")] == [
        (line["loss"], line["loss_scale"]) for line in found
    ]


def test_nothing_is_kept_in_fp16() -> None:
    for told in ({"params": "fp16"}, {"optimizer": "fp16"}, {"reduce": "fp16"}):
        with pytest.raises(Problem, match="fp16 is what activations may run in"):
            Precision(**told)
