"""The example on code, images and speech: its data is what it says, and its parts run on a little of it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dskc.compiler.cli import main
from dskc.runtime.data import read_records
from dskc.runtime.train.load import load_package

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "adaptive"
SPEC = ROOT / "specs" / "deepseek_adaptive_nano.dsk"


def part(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module(name)


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return part("prepare", monkeypatch)


@pytest.fixture
def speech(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return part("speech", monkeypatch)


def recipe_fields():  # type: ignore[no-untyped-def]
    package = load_package(ROOT / "generated" / "deepseek_adaptive_nano")
    return importlib.import_module(f"{package.__name__}.train").RECIPE.fields


def test_patches_are_squares_row_by_row(prepare: ModuleType) -> None:
    image = np.arange(64).reshape(1, 8, 8)
    found = prepare.patches(image)
    assert found.shape == (1, 16, 4)
    assert found[0, 0].tolist() == [0, 1, 8, 9] and found[0, 5].tolist() == [18, 19, 26, 27]


def test_moved_images_lose_what_moves_out(prepare: ModuleType) -> None:
    image = np.arange(1, 17).reshape(1, 4, 4)
    assert prepare.shift(image, 1, 0)[0].tolist() == [[0] * 4, *image[0, :3].tolist()]
    assert prepare.shift(image, 0, -1)[0].tolist() == [[*row[1:], 0] for row in image[0].tolist()]


def test_digits_are_records_of_the_model_and_no_held_one_is_trained_on(prepare: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is in the extra `example`")
    prepare.write_digits(tmp_path)
    records = read_records(tmp_path / "digits.safetensors", recipe_fields())
    assert (len(records.held), len(records.train)) == (359, 5 * 1438)
    image, label = records.inputs["image"], records.labels["image_label"]
    held = {tuple(one.flatten().tolist()) for one in image[records.held]}
    trained = {tuple(one.flatten().tolist()) for one in image[records.train]}
    assert not held & trained
    assert sorted(set(label.tolist())) == list(range(10))
    moved = label[records.train].reshape(5, -1)
    assert all(torch.equal(moved[0], row) for row in moved), "an image and its moved copies have one label"


def test_a_tone_is_loudest_in_its_band_while_it_sounds(speech: ModuleType) -> None:
    rate, pitch = 22_050, 1_000.0
    tone = np.sin(2 * np.pi * pitch * np.arange(rate // 4) / rate).astype(np.float32)
    frames = speech.log_mel(tone, rate, np.random.default_rng(0))
    assert frames.shape == (speech.FRAMES, speech.BANDS) and frames.dtype == np.float32
    assert abs(frames.mean()) < 1e-5 and abs(frames.std() - 1) < 1e-4
    top = 2595 * np.log10(1 + 7600 / 700)
    low = 2595 * np.log10(1 + 60 / 700)
    band = (2595 * np.log10(1 + pitch / 700) - low) / (top - low) * (speech.BANDS + 1) - 1
    sounding = frames[:, round(band)] > 1
    assert sounding.sum() == pytest.approx(0.25 / speech.HOP, abs=3)
    assert (np.abs(frames[sounding].argmax(1) - band) <= 1).all()


def test_words_are_spoken_by_voices_of_which_some_are_held_out(
    speech: ModuleType, prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is in the extra `example`")
    monkeypatch.setattr(speech, "VOICES", ("m1", "f2", "f3"))
    monkeypatch.setattr(speech, "ACCENTS", ("en", "en-us"))
    monkeypatch.setattr(prepare, "HELD_VOICES", 1)
    prepare.write_words(tmp_path)
    records = read_records(tmp_path / "words.safetensors", recipe_fields())
    assert (records.count, len(records.held)) == (3 * 2 * 10 * prepare.TAKES, 2 * 10 * prepare.TAKES)
    again = speech.speak_all(1, 1)
    assert again.held_out.sum() == 20 and len(set(np.flatnonzero(again.held_out) // 20)) == 1, "one voice of three"
    # one word in two accents of a voice is more alike than two words
    frames, words = again.frames.mean(1), again.words
    same = [np.abs(frames[i] - frames[i + 10]).mean() for i in range(10)]
    other = [np.abs(frames[i] - frames[j]).mean() for i in range(10) for j in range(10) if i != j]
    assert np.mean(same) < np.mean(other) and sorted(set(words.tolist())) == list(range(10))


def test_figures_are_reached_or_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = part("run", monkeypatch)
    sources = {
        "code": {"unigram_entropy": 5.0, "losses": {"next_token": 4.0}},
        "digits": {"accuracy": {"image_label": 0.97}, "rows": 359},
        "words": {"accuracy": {"audio_label": 0.93}, "rows": 840},
    }
    assert [reached for _, reached in run.check({"sources": sources})] == [True, True, True]
    sources["digits"]["accuracy"] = {"image_label": 0.94}
    sources["code"]["losses"] = {"next_token": 4.9}
    assert [reached for _, reached in run.check({"sources": sources})] == [False, True, False]


@pytest.mark.slow
def test_the_nano_model_takes_a_few_steps_on_code_digits_and_noise(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is in the extra `example`")
    from safetensors.torch import save_file

    monkeypatch.setattr(prepare, "CODE", 60_000)
    prepare.write_code(tmp_path)
    prepare.write_digits(tmp_path)
    save_file({"audio": torch.randn(20, 50, 20), "audio_label": torch.arange(20) % 10}, tmp_path / "words.safetensors")
    data = [f"code={tmp_path / 'code'}", str(tmp_path / "digits.safetensors"), str(tmp_path / "words.safetensors")]
    out = tmp_path / "run"
    arguments = ["train", str(SPEC), "--data", *data, "--mix", "1,2,1", "--microbatch", "8", "--steps", "2"]
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [*arguments, "--out", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert list(found["sources"]) == ["code", "digits", "words"]
    assert found["sources"]["digits"]["rows"] == 359 and 0 <= found["sources"]["digits"]["accuracy"]["image_label"] <= 1
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"next_token", "classify_image_label", "classify_audio_label", "balance"} <= lines[0].keys()
