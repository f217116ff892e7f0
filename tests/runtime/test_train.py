"""Whole runs of a tiny generated trainer: what they leave, how they resume, and what they refuse."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_trainer import log_lines, start, train, write_package, write_text

from dskc.runtime.data import Bins, Loader, open_tokens
from dskc.runtime.problem import Problem
from dskc.runtime.reference import next_token
from dskc.runtime.train import Precision, create_run_folder, load_model, load_weights, write_checkpoint
from dskc.runtime.train.folder import Facts, RunFolder, staged
from dskc.runtime.train.kept import find_sound, list_checkpoints
from dskc.runtime.train.load import load_package
from dskc.runtime.train.stop import stop_on_problem


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "documents")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("generated"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, package: Path, text: Path) -> Path:
    """An unbroken run of ten steps."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(package, "--data", text, "--steps", 10, "--out", out, "--microbatch", 4)
    return out


def weights(run: Path, step: int | str | None = None) -> dict[str, torch.Tensor]:
    return load_model(run, step, device="cpu")[0].state_dict()


def copy_run(run: Path, to: Path, step: int) -> Path:
    """A run as it was when it was killed some time after this step's checkpoint."""
    shutil.copytree(run, to)
    for path in list_checkpoints(to / "checkpoints"):
        if path.name != f"step-{step:08d}":
            shutil.rmtree(path)
    return to


# What a run leaves


def test_run_learns_and_leaves_what_it_should(whole: Path, text: Path) -> None:
    lines = [json.loads(line) for line in (whole / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert all({"step", "loss", "tokens_per_s", "rate", "norm", "next_token"} <= line.keys() for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert [line["step"] for line in lines if "held_out" in line] == [4, 8, 10]
    assert [path.name for path in list_checkpoints(whole / "checkpoints")] == ["step-00000008", "step-00000010"]
    result = json.loads((whole / "result.json").read_text())
    assert result["held_out_loss"] == pytest.approx(lines[-1]["held_out"])
    assert result["unigram_entropy"] > 1
    assert (whole / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (whole / "code" / "tiny").glob("*.py")) == [
        "__init__.py",
        "model.py",
        "serve.py",
        "train.py",
    ]
    assert json.loads((whole / "environment.json").read_text())["packages"]["torch"] == torch.__version__
    assert not list(whole.parent.glob(".*"))


def test_first_loss_is_that_of_a_plain_loop_over_the_same_tokens(whole: Path, package: Path) -> None:
    tokens = open_tokens(whole / "data")
    from dskc.runtime import optim

    module = load_package(package)
    model = module.Model(compute=torch.float32)
    optim.normal(std=0.02)(model, 0)
    batch = Loader(tokens.train, 32, tokens.manifest.end, 0, "bestfit").batch(0, 8)
    model.eval()
    plain = next_token(model(batch.tokens), batch.targets)
    assert log_lines(whole)[0]["loss"] == pytest.approx(plain.item(), rel=2e-3)  # which had no dropout


def test_held_out_loss_is_that_of_all_its_tokens(whole: Path) -> None:
    tokens = open_tokens(whole / "data")
    model, _, _ = load_model(whole, device="cpu")
    held = torch.from_numpy(tokens.held.astype("int64"))
    total = count = 0.0
    for at in range(0, len(held) - 1, 32):
        inputs, targets = held[at : at + 32], held[at + 1 : at + 33]
        inputs = inputs[: len(targets)]
        kept = inputs != tokens.manifest.end
        losses = torch.nn.functional.cross_entropy(model(inputs[None])[0], targets, reduction="none")
        total, count = total + float(losses[kept].sum()), count + int(kept.sum())
    result = json.loads((whole / "result.json").read_text())
    assert result["held_out_tokens"] == count
    bins = Bins(tokens.held, 32, tokens.manifest.end)
    assert bins.sizes.sum() < 32 * bins.count, "some of it should be padded"
    assert result["held_out_loss"] == pytest.approx(total / count, rel=1e-4)


def test_model_comes_back_from_its_folder(whole: Path) -> None:
    model, serve, tokenizer = load_model(whole, device="cpu")
    assert not model.training and model.compute == torch.float32
    assert serve.forward(model, torch.tensor([[1, 2]]), None).shape == (1, 300)
    assert tokenizer is not None and tokenizer.decode(tokenizer.encode("alpha beta").ids) == "alpha beta"
    same = load_weights(load_package(whole / "code" / "tiny").Model, whole, device="cpu")
    assert torch.equal(same(torch.tensor([[1, 2]])), model(torch.tensor([[1, 2]])))
    half, _, _ = load_model(whole, step=8, device="cpu", dtype=torch.bfloat16)
    assert half.logits.weight.dtype == torch.bfloat16 == half.compute
    assert not torch.equal(half.logits.weight.float(), model.logits.weight)


def test_a_run_of_another_package_does_not_disturb_a_loaded_one(whole: Path, tmp_path: Path) -> None:
    model, _, _ = load_model(whole, device="cpu")
    shutil.copytree(whole, tmp_path / "other")
    other, _, _ = load_model(tmp_path / "other", device="cpu")
    assert type(model) is not type(other)
    assert sys.modules[type(model).__module__].Model is type(model)


# Resuming


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(save_every=st.integers(1, 6), steps=st.integers(2, 9), optimizer=st.sampled_from(["AdamW", "Lion"]))
def test_resumed_run_is_the_unbroken_run_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, text: Path, save_every: int, steps: int, optimizer: str
) -> None:
    folder = tmp_path_factory.mktemp("resume")
    package = write_package(folder / "generated", OPTIMIZER=optimizer, LR="1e-2" if optimizer == "AdamW" else "1e-3")
    options = ("--data", text, "--seed", 5, "--save-every", save_every, "--microbatch", 4)
    train(package, *options, "--steps", steps, "--out", folder / "whole")
    broken = write_package(
        folder / "broken",
        OPTIMIZER=optimizer,
        LR="1e-2" if optimizer == "AdamW" else "1e-3",
        EXTRA=f"\n        if step + 1 == {steps}: raise ConnectionError",  # before the save of the last step
    )
    with pytest.raises(ConnectionError):
        train(broken, *options, "--steps", steps, "--out", folder / "cut")
    if save_every >= steps:
        with pytest.raises(Problem, match="holds no checkpoint: the run ended before its first save"):
            train(package, "--resume", "--out", folder / "cut")
        return
    train(package, "--resume", "--out", folder / "cut")
    assert log_lines(folder / "cut") == log_lines(folder / "whole")
    here, there = weights(folder / "cut"), weights(folder / "whole")
    assert all(torch.equal(here[name], there[name]) for name in there)


def test_resuming_with_the_text_named_again_and_more_steps(
    whole: Path, package: Path, text: Path, tmp_path: Path
) -> None:
    out = copy_run(whole, tmp_path / "run", 8)
    train(package, "--resume", "--data", text, "--steps", 12, "--out", out)
    lines = log_lines(out)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[:8] == log_lines(whole)[:8]
    assert RunFolder(out).read().steps == 12


def test_resuming_what_is_done_measures_again_and_changes_nothing(whole: Path, package: Path, tmp_path: Path) -> None:
    out = copy_run(whole, tmp_path / "run", 10)
    (out / "result.json").unlink()
    train(package, "--resume", "--out", out)
    assert log_lines(out) == log_lines(whole)
    before, after = (json.loads((run / "result.json").read_text()) for run in (whole, out))
    assert after["held_out_loss"] == before["held_out_loss"]


def test_torn_log_line_is_cut_off(whole: Path, package: Path, tmp_path: Path) -> None:
    out = copy_run(whole, tmp_path / "run", 8)
    with (out / "train.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    train(package, "--resume", "--out", out)
    assert log_lines(out) == log_lines(whole)


def test_resuming_from_the_runs_own_code(whole: Path, tmp_path: Path) -> None:
    out = copy_run(whole, tmp_path / "run", 8)
    train(out / "code" / "tiny", "--resume", "--out", out)
    assert log_lines(out) == log_lines(whole)


@pytest.mark.parametrize("choice", [{"HASH": "bbbb", "LR": "3e-3"}, {"HASH": "cccc", "STATES": "bf16"}])
def test_another_spec_is_refused_with_the_difference(
    whole: Path, text: Path, tmp_path: Path, choice: dict[str, str]
) -> None:
    changed = write_package(tmp_path, **choice)
    with pytest.raises(Problem, match="was begun with another spec") as raised:
        train(changed, "--resume", "--out", whole)
    message = raised.value.message
    if "LR" in choice:
        assert '-    optimizer = optim.AdamW(model, lr=float("1e-2")' in message
        assert '+    optimizer = optim.AdamW(model, lr=float("3e-3")' in message
    else:
        assert (
            "precision: fp32 parameters, fp32 compute, fp32 optimizer -> fp32 parameters, fp32 compute, bf16" in message
        )
    assert raised.value.help is not None and f"{whole}/code/tiny/train.py" in raised.value.help


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", 3), "--seed 3: this run has seed 0"),
        (("--data", __file__), "is not the text that this run was trained on"),
        (("--tokenizer", __file__), "--tokenizer cannot change on the way"),
        (("--plan", "cluster"), "is for 512 devices"),
    ],
)
def test_what_cannot_change_on_the_way(whole: Path, package: Path, arguments: tuple[object, ...], message: str) -> None:
    before = (whole / "run.json").read_bytes()
    with pytest.raises(Problem, match=message):
        train(package, "--resume", "--out", whole, *arguments)
    assert (whole / "run.json").read_bytes() == before


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_damaged_checkpoint_gives_way_to_the_one_before(
    whole: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    last = out / "checkpoints" / "step-00000010"
    content = bytearray((last / "__0_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (last / "__0_0.distcp").write_bytes(content if how == "flipped" else content[:100])
    train(package, "--resume", "--out", out)
    said = capsys.readouterr().out
    assert f"note: the checkpoint {last} is damaged, and an earlier one is used: __0_0.distcp " in said
    assert "going on after step 8 of 10" in said
    assert log_lines(out) == log_lines(whole)
    assert last.is_dir() and last.with_name("step-00000010.damaged").is_dir()
    shutil.rmtree(last)
    shutil.rmtree(last.with_name("step-00000008"))
    with pytest.raises(Problem, match="holds no checkpoint"):
        train(package, "--resume", "--out", out)


def test_the_best_checkpoint_is_kept_and_can_be_asked_for(text: Path, tmp_path: Path) -> None:
    # Rates that destroy what was learned: the checkpoint after the warmup is the best.
    package = write_package(
        tmp_path, EXTRA="\n        if step >= 4: [p.data.add_(torch.randn_like(p)) for p in model.parameters()]"
    )
    source = (package / "train.py").read_text().replace("import sys\n", "import sys\n\nimport torch\n", 1)
    (package / "train.py").write_text(source)
    out = tmp_path / "run"
    train(package, "--data", text, "--steps", 16, "--out", out, "--microbatch", 4)
    lines = [line for line in log_lines(out) if "held_out" in line]
    assert min(lines, key=lambda line: line["held_out"])["step"] == 4
    assert [path.name for path in list_checkpoints(out / "checkpoints")] == [
        "step-00000004", "step-00000012", "step-00000016",
    ]  # fmt: skip
    assert all(torch.equal(tensor, weights(out, 4)[name]) for name, tensor in weights(out, "best").items())
    facts = json.loads((out / "checkpoints" / "step-00000004" / "checkpoint.json").read_text())
    assert facts["held_out"] == lines[0]["held_out"]


def full_disk(text: Path, package: Path, out: Path) -> str:
    """A run whose folder is too small for a third checkpoint; what it printed last."""
    process = start(package, "--data", text, "--steps", 40, "--save-every", 4, "--out", out)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in stderr, stderr
    return stderr


def test_full_disk_ends_the_run_and_leaves_the_last_good_checkpoint(package: Path, text: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        stderr = full_disk(text, package, disk / "run")
        assert "could not be written: No space left on device" in stderr
        assert "help: make room on the disk" in stderr
        there = list_checkpoints(disk / "run" / "checkpoints")
        assert there and not list((disk / "run" / "checkpoints").glob(".*"))
        assert find_sound(disk / "run" / "checkpoints")[0] == there[-1]
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        train(package, "--resume", "--out", disk / "run")
        assert len(log_lines(disk / "run")) == 40
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_that_may_not_grow_is_a_failed_save(package: Path, text: Path, tmp_path: Path) -> None:
    """As on a full disk, but with no need to be root: the limit is less than a checkpoint."""
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); sys.argv[:1] = []"
    )
    command = [sys.executable, "-c", f"{code}; runpy.run_path(sys.argv[0], run_name='__main__')"]
    arguments = [package / "train.py", "--data", text, "--steps", 40, "--save-every", 4, "--out", tmp_path / "run"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "step 4, held-out loss" in done.stdout and "not saved: " in done.stdout
    assert "step-00000008 could not be written: File too large" in done.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


# Refusing


def refused(package: Path, out: Path, message: str, *arguments: object) -> Problem:
    """The Problem of a run that leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(Problem, match=message) as raised:
        train(package, "--out", out, *arguments)
    assert sorted(out.parent.iterdir()) == before
    return raised.value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is nothing to train on"),
        (("--data", "TEXT", "--device", "cuda:9"), "--device cuda:9: "),
        (("--data", "TEXT", "--device", "tpu"), "--device tpu: there is no such device"),
        (("--data", "TEXT", "--plan", "other"), "--plan other: there is no such plan"),
        (("--data", "TEXT", "--plan", "cluster"), "the plan `cluster` is for 512 devices"),
        (("--data", "TEXT", "--microbatch", 3), "a microbatch of 3 does not divide the batch of 8"),
        (("--data", "TEXT/000.txt"), "too little text: .* takes 8"),
        (("--data", "TEXT", "--tokenizer", __file__), "not a tokenizers JSON file"),
        (("--data", "TEXT/missing"), "there is no such file or folder"),
        (("--resume",), "there is no run in"),
    ],
)
def test_refused_options_leave_nothing(
    package: Path, text: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    if "too little" in message:
        text = write_text(tmp_path / "little", documents=1)
        (text / "000.txt").write_text("alpha beta gamma")
    refused(package, tmp_path / "run", message, *(str(each).replace("TEXT", str(text)) for each in arguments))


@pytest.mark.parametrize("rate", ["nan", "-1.0", "inf"])
def test_rate_that_is_none_leaves_nothing(text: Path, tmp_path: Path, rate: str) -> None:
    package = write_package(tmp_path / "generated", LR=rate)
    runs = tmp_path / "runs"
    with pytest.raises(Problem, match=f"the learning rate is {rate}"):
        train(package, "--data", text, "--out", runs / "run")
    assert not runs.exists()


def test_run_that_cannot_fit_is_refused_with_the_ledger(text: Path, tmp_path: Path) -> None:
    package = write_package(tmp_path, LIMIT="250_000_000")
    problem = refused(package, tmp_path / "run", "does not fit in memory", "--data", text)
    assert "optimizer states" in problem.message and "238.4 MiB that the plan allows" in problem.message
    assert problem.help is not None and problem.help.startswith("--plan free fits here")


def test_out_that_is_no_folder_for_a_run(package: Path, text: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(package, tmp_path / "file", "is a file, and a run needs a folder", "--data", text)
    with pytest.raises(Problem, match="file is a file"):
        train(package, "--out", tmp_path / "file" / "run", "--data", text)
    with pytest.raises(Problem, match="holds another run"):
        train(package, "--out", whole, "--data", text)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("mine")
    refused(package, tmp_path / "full", "is not empty", "--data", text)
    (tmp_path / "empty").mkdir()
    train(package, "--out", tmp_path / "empty", "--data", text, "--steps", 1)
    assert (tmp_path / "empty" / "result.json").exists()


def broken(folder: Path, when: str, what: str) -> Path:
    """A package whose loss, or the gradient of some parameters, is not finite at some steps (counted from 1)."""
    hook = "" if what in ("loss", "term") else (
        f"\n        if calls in ({when}): dict(model.named_parameters())['layers.1.up.bias'].grad[3] = float('{what}')"
    )  # fmt: skip
    package = write_package(folder)
    source = (package / "train.py").read_text()
    wrong = {"loss": "loss = loss * float('nan')", "term": "term = loss * float('-inf')"}.get(what, "pass")
    source = source.replace(
        '    return {"loss": loss, "next_token": loss}',
        "    global calls\n    calls += model.training\n    term = loss * 0\n"
        f"    if model.training and calls in ({when}): {wrong}\n"
        '    return {"loss": loss + 0 * term, "next_token": loss, "extra": term}',
    )
    source = source.replace(
        "        norm = optimizer.clip(1.0)", f"        pass{hook}\n        norm = optimizer.clip(1.0)"
    )
    (package / "train.py").write_text(source.replace("PLANS = {", "calls = 0\nPLANS = {"))
    return package


@pytest.mark.parametrize(
    ("what", "name", "said"),
    [
        ("loss", "next_token", "step 6 skipped: the term next_token is nan"),
        ("term", "extra", "step 6 skipped: the term extra is -inf"),
        ("nan", "layers.1.up.bias", "step 6 skipped: the gradient of layers.1.up.bias has 1 of 32 values not finite"),
        ("inf", "layers.1.up.bias", "step 6 skipped: the gradient of layers.1.up.bias has 1 of 32 values not finite"),
    ],
)
def test_step_that_is_not_finite_is_skipped_and_named(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, name: str, said: str
) -> None:
    options = ("--data", text, "--steps", 8, "--save-every", 1, "--microbatch", 8)
    train(broken(tmp_path / "a", "6,", what), *options, "--out", tmp_path / "run")
    assert said in capsys.readouterr().out
    lines = log_lines(tmp_path / "run")
    assert [line.get("skipped") for line in lines] == [None] * 5 + [name] + [None] * 2
    assert lines[5]["loss"] is None if what in ("loss", "term") else lines[5]["loss"] == pytest.approx(5, abs=2)
    assert lines[5]["norm"] is None and lines[6]["norm"] > 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["skipped"] == 1
    # Not a parameter and no state has changed: the held-out loss is the same, and so is all that follows without it.
    assert lines[5]["held_out"] == lines[4]["held_out"] != lines[6]["held_out"]
    assert (tmp_path / "run" / "loss.png").exists()


def test_a_skipped_step_is_as_if_its_rate_and_its_data_alone_had_passed(text: Path, tmp_path: Path) -> None:
    """States, too: the run goes on as one that makes no step there at all."""
    options = ("--data", text, "--steps", 8, "--microbatch", 8)
    train(broken(tmp_path / "a", "3, 6", "nan"), *options, "--out", tmp_path / "skipped")
    package = broken(tmp_path / "b", "0,", "nan")
    source = (package / "train.py").read_text()
    source = source.replace(
        "        optimizer.step(rate)\n",
        "        if calls in (3, 6): [setattr(p, 'grad', None) for p in model.parameters()]\n"
        "        else: optimizer.step(rate)\n",
    )
    (package / "train.py").write_text(source)
    train(package, *options, "--out", tmp_path / "left out")
    skipped, left_out = log_lines(tmp_path / "skipped"), log_lines(tmp_path / "left out")
    assert [line["loss"] for line in skipped] == [line["loss"] for line in left_out]
    here, there = weights(tmp_path / "skipped"), weights(tmp_path / "left out")
    assert all(torch.equal(here[name], there[name]) for name in there)


def test_ten_skipped_steps_in_a_row_end_the_run(text: Path, tmp_path: Path) -> None:
    package = broken(tmp_path / "generated", ", ".join(str(step) for step in [3, *range(6, 30)]), "loss")
    with pytest.raises(Problem, match=r"10 steps in a row were skipped; of the last, the term next_token is nan") as it:
        train(package, "--data", text, "--out", tmp_path / "run", "--steps", 20, "--save-every", 5, "--microbatch", 8)
    assert it.value.help is not None and "try a lower learning rate" in it.value.help
    assert "step-00000010 was saved before" in it.value.help
    assert [line["step"] for line in log_lines(tmp_path / "run") if "skipped" in line] == [3, *range(6, 16)]


def test_run_folder_inside_the_text_is_not_text(package: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    out = text / "runs" / "here"
    train(package, "--data", text, "--out", out, "--steps", 4)
    train(package, "--data", text, "--out", out, "--resume", "--steps", 5)
    assert json.loads((out / "data" / "manifest.json").read_text())["documents"] == 20


# How it is computed


def test_recomputing_gives_the_same_losses_and_names(whole: Path, text: Path, tmp_path: Path) -> None:
    package = write_package(tmp_path, RECOMPUTE="2")
    train(package, "--data", text, "--steps", 10, "--out", tmp_path / "run", "--microbatch", 4)
    assert log_lines(tmp_path / "run") == log_lines(whole)
    assert RunFolder(tmp_path / "run").read().recompute == 2
    assert weights(tmp_path / "run").keys() == weights(whole).keys()


def test_layers_are_recomputed_indeed(tmp_path: Path, text: Path) -> None:
    package = write_package(tmp_path, RECOMPUTE="2")
    model_file = package / "model.py"
    model_file.write_text(
        model_file.read_text().replace(
            "    def forward(self, x):\n", "    calls = 0\n\n    def forward(self, x):\n        Layer.calls += 1\n"
        )
    )
    train(package, "--data", text, "--steps", 1, "--out", tmp_path / "run", "--microbatch", 8)
    # one step: three layers forward, two again; then the held-out text without
    tokens = open_tokens(tmp_path / "run" / "data")
    count = Bins(tokens.held, 32, tokens.manifest.end).count
    layer = next(m for n, m in sys.modules.items() if n.endswith("_tiny.model") and m.__file__ == str(model_file)).Layer
    assert layer.calls == 3 + 2 + 3 * math.ceil(count / 8)


def test_accumulated_gradients_are_those_of_the_whole_batch(package: Path, text: Path, tmp_path: Path) -> None:
    model_file = package / "model.py"
    plain = write_package(tmp_path / "plain")
    (plain / "model.py").write_text(model_file.read_text().replace("0.1, self.training", "0.0, self.training"))
    for microbatch in (2, 8):
        train(plain, "--data", text, "--steps", 3, "--out", tmp_path / str(microbatch), "--microbatch", microbatch)
    for small, large in zip(log_lines(tmp_path / "2"), log_lines(tmp_path / "8"), strict=True):
        assert small["loss"] == pytest.approx(large["loss"], rel=1e-3)  # means of means: targets differ in number
        assert small["norm"] == pytest.approx(large["norm"], rel=5e-2)


@pytest.mark.parametrize(
    ("choices", "arguments", "expected"),
    [
        ({}, ("--precision", "bf16"), (torch.float32, torch.bfloat16, torch.float32)),
        ({"PARAMS": "bf16", "COMPUTE": "bf16", "STATES": "bf16"}, (), (torch.bfloat16,) * 3),
        ({"PARAMS": "bf16", "COMPUTE": "bf16"}, (), (torch.bfloat16, torch.bfloat16, torch.float32)),
        (
            {"PARAMS": "bf16", "STATES": "bf16"},
            ("--precision", "fp32"),
            (torch.bfloat16, torch.float32, torch.bfloat16),
        ),
    ],
)
def test_precision_of_parameters_compute_and_states(
    text: Path,
    tmp_path: Path,
    choices: dict[str, str],
    arguments: tuple[str, ...],
    expected: tuple[torch.dtype, ...],
) -> None:
    check = (
        "\n        assert (model.logits.weight.dtype, model.compute,"
        " optimizer.state_dict()['logits.weight']['exp_avg'].dtype) == "
        f"({', '.join(str(dtype) for dtype in expected)})".replace("torch.", "__import__('torch').")
    )
    package = write_package(tmp_path, EXTRA=check, **choices)
    train(package, "--data", text, "--steps", 8, "--out", tmp_path / "run", *arguments)
    losses = [line["loss"] for line in log_lines(tmp_path / "run")]
    assert losses[-1] < losses[0] - 0.05


# As a program


def test_interrupted_run_saves_says_how_to_go_on_and_goes_on(
    whole: Path, text: Path, tmp_path: Path, package: Path
) -> None:
    slow = write_package(tmp_path / "generated", EXTRA="\n        __import__('time').sleep(0.3)")
    out = tmp_path / "run"
    process = start(slow, "--data", text, "--steps", 10, "--out", out, "--microbatch", 4)
    wait_for(lambda: (out / "train.jsonl").exists() and (out / "train.jsonl").read_text().count("\n") >= 2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert f"{out}/code/tiny/train.py --out {out} --resume" in stdout
    assert "Traceback" not in stderr
    train(package, "--resume", "--out", out)
    here, there = log_lines(out), log_lines(whole)
    assert [line["loss"] for line in here] == [line["loss"] for line in there]


def test_terminated_run_exits_as_such_and_saves(text: Path, tmp_path: Path) -> None:
    slow = write_package(tmp_path / "generated", EXTRA="\n        __import__('time').sleep(0.3)")
    out = tmp_path / "run"
    process = start(slow, "--data", text, "--out", out)
    wait_for(lambda: (out / "train.jsonl").exists() and (out / "train.jsonl").read_text().count("\n") >= 1)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert len(list_checkpoints(out / "checkpoints")) == 1


def test_reader_that_goes_away_stops_the_run_with_a_checkpoint(text: Path, tmp_path: Path) -> None:
    slow = write_package(tmp_path / "generated", EXTRA="\n        __import__('time').sleep(0.3)")
    out = tmp_path / "run"
    process = start(slow, "--data", text, "--out", out, "--save-every", 1)
    assert process.stdout is not None and process.stderr is not None
    wait_for(lambda: (out / "train.jsonl").exists())
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    assert len(list_checkpoints(out / "checkpoints")) >= 1


def test_reader_that_is_gone_before_training_ends_the_program_tidily(package: Path, text: Path, tmp_path: Path) -> None:
    process = start(package, "--data", text, "--out", tmp_path / "run")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []


def test_program_prints_problems_and_nothing_else(package: Path, tmp_path: Path) -> None:
    process = start(package, "--data", tmp_path / "none", "--out", tmp_path / "run")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr == f"error: --data {tmp_path}/none: there is no such file or folder\n"
    assert stdout == ""


def test_deterministic_is_remembered_by_the_run(
    whole: Path, package: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    out = tmp_path / "run"
    train(package, "--data", text, "--steps", 4, "--out", out, "--microbatch", 4)
    assert asked == []
    train(package, "--resume", "--steps", 6, "--out", out, "--deterministic")
    train(package, "--resume", "--steps", 10, "--out", out)
    assert asked == [True, True]


def test_help_shows_the_recipe(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train(package, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    flags = ("data", "steps", "out", "resume", "save-every", "seed", "device", "precision", "plan", "tokenizer")
    for flag in (*flags, "microbatch", "deterministic"):
        assert f"--{flag}" in shown
    assert "default: 16, the recipe's tokens" in shown
    assert "one of: default, free, cluster" in shown


def test_other_errors_pass_with_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop_on_problem(main)

    def problem() -> None:
        raise Problem("this", "that")

    with pytest.raises(SystemExit) as raised:
        stop_on_problem(problem)
    assert raised.value.code == 1
    assert capsys.readouterr().err == "error: this\nhelp: that\n"


# Folders of models from elsewhere


def test_imported_model_in_a_run_folder(whole: Path, package: Path, tmp_path: Path) -> None:
    facts = Facts("tiny", "specs/tiny.dsk", "aaaa", Precision("bf16", "fp32", "fp32", "fp32"))
    state = {name: tensor.to(torch.bfloat16) for name, tensor in weights(whole).items()}
    with staged(tmp_path / "imported") as path:
        folder = create_run_folder(path, package, facts, tokenizer=whole / "tokenizer.json")
        write_checkpoint(folder.checkpoints, 0, state)
    model, _, tokenizer = load_model(tmp_path / "imported", device="cpu")
    assert tokenizer is not None
    assert model.compute == torch.float32
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(Problem, match="holds an imported model, not a training run"):
        train(package, "--resume", "--out", tmp_path / "imported")


def test_staged_folder_vanishes_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError), staged(tmp_path / "a" / "b" / "run") as path:
        (path / "half").write_text("written")
        raise ConnectionError
    assert list(tmp_path.iterdir()) == []


def test_staging_in_a_folder_that_is_there_keeps_that_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    out = tmp_path / "link"
    out.symlink_to("real")
    inode = out.stat().st_ino
    with pytest.raises(ConnectionError), staged(out) as path:
        (path / "run.json").write_text("half")
        raise ConnectionError
    assert list(out.iterdir()) == []
    with staged(out) as path:
        (path / "code").mkdir()
        (path / "run.json").write_text("whole")
    assert sorted(part.name for part in out.iterdir()) == ["code", "run.json"]
    assert out.is_symlink() and out.stat().st_ino == inode
    assert sorted(part.name for part in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", None, "is not the folder of a run"),
        ("run.json", "{", "cannot be read"),
        ("run.json", '{"format": 99}', "has format 99"),
        ("code/tiny/__init__.py", None, "the run's generated code is missing"),
    ],
)
def test_folders_that_are_no_runs(whole: Path, tmp_path: Path, name: str, content: str | None, message: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / name).unlink() if content is None else (out / name).write_text(content)
    with pytest.raises(Problem, match=message):
        load_model(out, device="cpu")
    with pytest.raises(Problem, match="there is no such run"):
        load_model(tmp_path / "none")


def test_facts_come_back_as_they_were(whole: Path, tmp_path: Path) -> None:
    facts = RunFolder(whole).read()
    RunFolder(tmp_path).write(replace(facts, seed=9))
    assert RunFolder(tmp_path).read() == replace(facts, seed=9)


def wait_for(happened: object, seconds: float = 60.0) -> None:
    assert callable(happened)
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
