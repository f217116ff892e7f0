"""Bad input of every kind: a clear error with the way out, exit code 1, no traceback, and nothing half-written."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import dskc, refused
from safetensors.torch import save, save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from dskc.runtime import optim
from dskc.runtime.problem import Problem
from dskc.runtime.train.load import load_package

SPECS = Path(__file__).parents[2] / "specs"
VOCABULARY, WIDTH, INNER = 300, 32, 48
SPEC = f"""\
dsk 1

use "{SPECS / "deepseek_7b.dsk"}" {{ deepseek_7b, pretrain }}

model small from deepseek_7b {{
  dims {{ V = {VOCABULARY}, D = {WIDTH}, F = {INNER}, H = 4 }}
  repeat layers 1
}}

train tiny from pretrain of small {{
  tokens    = 1M
  batch     {{ sequences = 2, S = 16 }}
  precision {{ compute = fp32 }}
  optimizer(lr: 1e-3)
}}
"""
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 200


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "small.dsk"
    path.write_text(SPEC)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "small"


def nothing_is_left(out: Path) -> None:
    """No run, no part of one, and no folder that was made for it."""
    assert not out.parent.exists(), list(out.parent.rglob("*"))


# --- data


DATA = {
    "empty": (b"", "this file is empty"),
    "blank": (b" \n\t\n\n", "this file is empty"),
    "binary": (bytes(range(256)) * 20, "this file is binary"),
    "not UTF-8": ("café\n".encode("latin-1") * 200, "this file is not UTF-8"),
    "too short": (b"hello", "too little text"),
}


@pytest.mark.parametrize(("data", "said"), DATA.values(), ids=DATA)
def test_data(data: bytes, said: str, spec: Path, out: Path, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(data)
    refused(dskc("train", spec, "--data", file, "--out", out), said, "help: name ")
    nothing_is_left(out)


def test_data_in_folders(spec: Path, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    refused(dskc("train", spec, "--data", folder, "--out", out), "no text found", "help: ")
    (folder / "a").write_bytes(b"")
    (folder / "b").write_bytes(b"\0\1\2")
    refused(dskc("train", spec, "--data", folder, "--out", out), "no text found (skipped 1 binary, 1 empty)", "help: ")
    refused(dskc("train", spec, "--data", tmp_path / "nowhere", "--out", out), "there is no such file or folder")
    refused(dskc("train", spec, "--out", out), "there is nothing to train on", "help: name files or folders of text")
    nothing_is_left(out)


# --- tokenizers


def tokenizer(path: Path, size: int, end: str = "<|endoftext|>") -> Path:
    words = {end: 0} | {f"w{i}": i for i in range(1, size)}
    Tokenizer(models.WordLevel(words, unk_token="w1")).save(str(path))
    return path


def test_tokenizer_for_training(spec: Path, text: Path, out: Path, tmp_path: Path) -> None:
    def train(file: Path) -> object:
        return dskc("train", spec, "--data", text, "--tokenizer", file, "--out", out)

    large = tokenizer(tmp_path / "large.json", VOCABULARY + 1)
    refused(train(large), "ids go up to 300, but the model's vocabulary is 300", "help: set V = 301 or more")
    refused(train(tokenizer(tmp_path / "endless.json", 10, end="w0")), "no token that ends a document", "help: add one")
    refused(train(text), "not a tokenizers JSON file", "help: it is the file called tokenizer.json")
    refused(train(tmp_path / "nowhere.json"), "there is no such file", "help: ")
    nothing_is_left(out)


def test_tokenizer_of_a_checkpoint(spec: Path, out: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, weights())
    large = tokenizer(tmp_path / "large.json", VOCABULARY + 1)
    said = "go up to 300, but the model's vocabulary is 300"
    refused(dskc("import", spec, folder, "-o", out, "--tokenizer", large), said, "help: ")
    refused(dskc("import", spec, folder, "-o", out, "--tokenizer", spec), "is not a tokenizer")
    refused(dskc("import", spec, folder, "-o", out, "--tokenizer", tmp_path), "there is no tokenizer in it", "help: ")
    refused(dskc("import", spec, folder, "-o", out, "--tokenizer", tmp_path / "nowhere"), "there is no tokenizer at")
    tokenizer(folder / "tokenizer.json", VOCABULARY + 1)
    refused(dskc("import", spec, folder, "-o", out), said, "help: ")
    (folder / "tokenizer.json").write_text('{"version": ')
    refused(dskc("import", spec, folder, "-o", out), "tokenizer.json is not a tokenizer")
    nothing_is_left(out)


# --- checkpoints


def weights() -> dict[str, Tensor]:
    """Those of `small`, as transformers would save them."""
    square, wide = (WIDTH, WIDTH), (INNER, WIDTH)
    layer = {
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
        **{f"self_attn.{name}_proj": square for name in "qkvo"},
        "mlp.gate_proj": wide,
        "mlp.up_proj": wide,
        "mlp.down_proj": wide[::-1],
    }
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    table = (VOCABULARY, WIDTH)
    shapes |= {"model.embed_tokens.weight": table, "model.norm.weight": (WIDTH,), "lm_head.weight": table}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def checkpoint(folder: Path, tensors: dict[str, Tensor]) -> Path:
    (folder / "checkpoint").mkdir()
    save_file(tensors, folder / "checkpoint" / "model.safetensors")
    return folder / "checkpoint"


def test_the_checkpoint_that_the_bad_ones_come_from_is_good(spec: Path, out: Path, tmp_path: Path) -> None:
    result = dskc("import", spec, checkpoint(tmp_path, weights()), "-o", out)
    assert result.exit_code == 0 and "12 tensors, 28,000 parameters in fp32" in result.output
    assert out.is_dir() and [path.name for path in out.parent.iterdir()] == ["small"]


Q = "model.layers.0.self_attn.q_proj"
WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], tuple[str, ...]]] = {
    "missing": (
        lambda tensors: {name: value for name, value in tensors.items() if not name.startswith((Q, "model.norm"))},
        (
            "missing in the checkpoint:",
            f"{Q}.weight",
            "model.norm.weight",
            "deepseek_7b.dsk:17",
            "help: the model has more",
        ),
    ),
    "extra": (
        lambda tensors: tensors | {f"{Q}.bias": torch.zeros(WIDTH), "model.layers.1.norm": torch.zeros(3)},
        ("not asked for by the model:", f"{Q}.bias", "model.layers.1.norm", "help: the model has less"),
    ),
    "shape": (
        lambda tensors: tensors | {"model.norm.weight": torch.zeros(31), f"{Q}.weight": torch.zeros(WIDTH, 1)},
        (
            "norm.weight is [32] in the model, and [31]",
            "deepseek_7b.dsk:20)",
            "q.weight is [32, 32] in the model",
            "help: the spec's dims",
        ),
    ),
    "transposed": (
        lambda tensors: {name: value.t().contiguous() for name, value in tensors.items()},
        ("swiglu.up.weight is [48, 32] in the model, and [32, 48]", "help: the spec's dims"),
    ),
    "not a number": (
        lambda tensors: (
            tensors | {f"{Q}.weight": tensors[f"{Q}.weight"].clone().index_fill_(1, torch.tensor(3), torch.nan)}
        ),
        (
            f"`{Q}.weight`",
            "holds 32 of 1,024 numbers that are not finite: nan at [0, 3]",
            "help: the checkpoint was saved",
        ),
    ),
    "no floats": (
        lambda tensors: tensors | {"model.norm.weight": torch.zeros(WIDTH, dtype=torch.int8)},
        ("`model.norm.weight`", "holds int8", "help: quantised checkpoints"),
    ),
}


@pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
def test_checkpoint_that_does_not_match(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    said: tuple[str, ...],
    spec: Path,
    out: Path,
    tmp_path: Path,
) -> None:
    result = dskc("import", spec, checkpoint(tmp_path, change(weights())), "-o", out)
    refused(result, *said)
    assert result.output.count("help: ") == 1
    nothing_is_left(out)


CONFIGS = {
    '{"rms_norm_eps": 1e-5}': "rms_norm_eps is 1e-05, and the spec has 1e-06 (",
    '{"rope_theta": 500000.0}': "rope_theta is 500000, and the spec has 10000 (",
    '{"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}': "rope_theta is 1000000, and the spec has 10000",
    '{"num_attention_heads": 8, "num_hidden_layers": 2}': "num_hidden_layers is 2, and the spec has 1 (",
    '{"vocab_size": 7, "hidden_size": 9}': "hidden_size is 9, and the spec has 32 (",
    "[1]": "is not the configuration of a model",
    '{"rms': "is not the configuration of a model",
}


@pytest.mark.parametrize(("config", "said"), CONFIGS.items())
def test_configuration_that_contradicts_the_spec(config: str, said: str, spec: Path, out: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, weights())
    (folder / "config.json").write_text(config)
    refused(dskc("import", spec, folder, "-o", out), str(folder / "config.json"), said, "--no-config")
    nothing_is_left(out)
    result = dskc("import", spec, folder, "-o", out, "--no-config")
    assert result.exit_code == 0, result.output


def test_configuration_that_agrees(spec: Path, out: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, weights())
    (folder / "config.json").write_text(
        '{"rms_norm_eps": 9.999999974752427e-07, "rope_theta": 10000, "vocab_size": 300, "sliding_window": null}'
    )
    assert dskc("import", spec, folder, "-o", out).exit_code == 0


@pytest.mark.parametrize("keep", [0.0, 1e-5, 1e-4, 0.002, 0.02, 0.5, 0.99999])
def test_truncated_checkpoint(keep: float, spec: Path, out: Path, tmp_path: Path) -> None:
    whole = save(weights())
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(whole[: int(keep * len(whole))])
    refused(dskc("import", spec, folder, "-o", out), "is not a whole safetensors file", "help: it was probably cut off")
    nothing_is_left(out)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "is not the index of a checkpoint"),
        ("[]", "is not the index of a checkpoint"),
        ('{"weight_map": 3}', "is not the index of a checkpoint"),
        ('{"weight_map": {"a": 3}}', "is not the index of a checkpoint"),
        ('{"weight_map": {"a": "model-1.safetensors"}}', "lacks 1 of its 1 files: model-1.safetensors"),
        ('{"weight_map": {"a": "model.safetensors"}}', "says that model.safetensors holds `a`, and it does not"),
    ],
)
def test_index_of_a_checkpoint(index: str, said: str, spec: Path, out: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, weights())
    (folder / "model.safetensors.index.json").write_text(index)
    refused(dskc("import", spec, folder, "-o", out), said, "help: ")
    nothing_is_left(out)


def test_no_checkpoint(spec: Path, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    refused(dskc("import", spec, folder, "-o", out), "there is no checkpoint at")
    folder.mkdir()
    refused(dskc("import", spec, folder, "-o", out), "holds no .safetensors and no .gguf file")
    torch.save(weights(), folder / "pytorch_model.bin")
    refused(dskc("import", spec, folder, "-o", out), "help: pytorch_model.bin is a pickle")
    refused(dskc("import", spec, spec, "-o", out), "is neither a .safetensors nor a .gguf file", "help: ")
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    refused(dskc("import", spec, folder / "model.gguf", "-o", out), "is not a whole GGUF file", "help: ")
    spec.write_text(SPEC.replace("repeat layers 1", "repeat layers 1\n  weights lama"))
    refused(dskc("import", spec, folder, "-o", out), "no checkpoint map is called `lama`")
    nothing_is_left(out)


# --- where results go


def test_out_that_cannot_be(spec: Path, text: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, weights())
    before = sorted(folder.iterdir())
    for command in (("train", spec, "--data", text), ("import", spec, folder)):
        refused(dskc(*command, "--out", text), f"--out {text} is a file", "help: name another")
        refused(dskc(*command, "--out", text / "run"), f"{text} is a file", "help: name another")
        refused(dskc(*command, "--out", folder), f"--out {folder} is not empty", "help: ")
    refused(dskc("compile", spec, "--out", text), f"{text}/small: ", "help: name another folder with --out")
    assert text.read_text() == TEXT and sorted(folder.iterdir()) == before


def test_resume_without_a_run(spec: Path, text: Path, out: Path) -> None:
    refused(dskc("train", spec, "--data", text, "--out", out, "--resume"), "there is no run in", "help: leave --resume")
    refused(dskc("train", spec, "--out", text.parent, "--resume"), "is not the folder of a run")
    refused(dskc("generate", out, "--prompt", "x"), "there is no such run", "help: ")
    refused(dskc("generate", text.parent, "--prompt", "x"), "is not the folder of a run")
    nothing_is_left(out)


# --- numbers


RATES = {
    "nan": "a number is written in digits",
    "NaN": "a number is written in digits",
    "inf": "a number is written in digits",
    "-inf": "a number is written in digits",
    "-1": "`lr` must be over 0",
    "0": "`lr` must be over 0",
    "1e400": "the exponent of `1e400` is over 300",
    "1e": "has no unit that is known",
    "1GiB": "`lr` is a plain number",
    "[1]": "`lr` is a number",
    '"fast"': "`lr` is a number",
    "true": "`lr` is a number",
    "adamw": "no value is called `adamw`",
    "": "a setting is written `path.to.key=value`",
}


@pytest.mark.parametrize(("rate", "said"), RATES.items())
def test_learning_rate(rate: str, said: str, spec: Path, text: Path, out: Path) -> None:
    setting = f"tiny.optimizer.lr={rate}"
    result = dskc("train", spec, "--data", text, "--out", out, "--set", setting)
    refused(result, said, f"1 | {setting}\n", "1 problem")
    nothing_is_left(out)


def test_learning_rate_in_a_spec(spec: Path) -> None:
    spec.write_text(SPEC.replace("1e-3", "nan"))
    refused(dskc("check", spec), f"{spec}:14:17", "a number is written in digits, such as `3e-4`")


def test_learning_rate_that_reaches_the_runtime(spec: Path, text: Path, out: Path, tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    for rate in (float("nan"), float("inf"), -1.0):
        for optimizer in (optim.AdamW, optim.Lion):
            with pytest.raises(Problem, match="learning rate is"):
                optimizer(model, lr=rate)
        for schedule in (optim.cosine, optim.constant, optim.steps):
            with pytest.raises(Problem, match="learning rate is"):
                schedule(peak=rate, warmup=0, steps=10)

    assert dskc("compile", spec, "--out", tmp_path).exit_code == 0
    trainer = tmp_path / "small" / "train.py"
    trainer.write_text(trainer.read_text().replace("lr=0.001", 'lr=float("nan")'))
    package = load_package(trainer.parent)
    main = __import__(f"{package.__name__}.train", fromlist=["main"]).main
    with pytest.raises(Problem, match="learning rate is nan") as raised:
        main(["--data", str(text), "--out", str(out)])
    del raised
    gc.collect()  # what had been begun goes with the run
    nothing_is_left(out)


def test_model_that_cannot_fit(spec: Path, text: Path, out: Path) -> None:
    result = dskc("train", spec, "--data", text, "--out", out, "--set", "dims.D=4M")
    refused(result, "total", "available on cpu", "help: ")
    nothing_is_left(out)


# --- specs


def test_twenty_mistakes_in_one_run() -> None:
    """Each line of the file that ends in a code has that mistake; all are found, each on its line, and no others."""
    path = Path(__file__).with_name("twenty_mistakes.dsk")
    lines = enumerate(path.read_text().splitlines(), start=1)
    expected = [(number, found[1]) for number, line in lines if (found := re.search(r"# (DSK\d+)$", line))]
    assert len({code for _, code in expected}) == len(expected) == 20

    result = dskc("check", "--format", "json", path)
    assert result.exit_code == 1
    problems = json.loads(result.output)
    assert {problem["file"] for problem in problems} == {str(path)}
    assert [(problem["line"], problem["code"]) for problem in problems] == expected
    refused(dskc("check", path), "\n20 problems\n")
    refused(dskc("compile", path, "--out", path.parent), "\n20 problems\n")


MODEL = """\
dsk 1

model m(tokens: ids[B, S]) -> logits: [B, S, V] {{
  dims {{ V = 300, D = 16 }}
  x = embed(tokens, V -> D)
  {}
  logits = linear(x, D -> V)
}}
"""


def nested_blocks(count: int, body: str) -> str:
    blocks = [f"block b{i}(x: [.., D]) -> [.., D] {{\n  return {body.format(f'b{i + 1}')}\n}}" for i in range(count)]
    last = f"block b{count}(x: [.., D]) -> [.., D] {{\n  return silu(x)\n}}"
    return MODEL.format("x = b0(x)").replace("dsk 1\n", "\n\n".join(["dsk 1", *blocks, last]))


UNREADABLE: dict[str, tuple[bytes | str, str]] = {
    "empty": (b"", "a spec opens with its edition"),
    "comments": ("# nothing\n/// at all\n", "a spec opens with its edition"),
    "binary": (bytes(range(256)) * 20, "is not UTF-8"),
    "zeros": (bytes(5000), "unexpected the character"),
    "latin-1": ("dsk 1\n# café\n".encode("latin-1"), "is not UTF-8"),
    "UTF-16": (SPEC.encode("utf-16"), "it looks like UTF-16: save it as UTF-8"),
    "huge": ("# x\n" * 300_000, "is over 1 MB"),
    "long": ("# x\n" * 20_000, "over 30_000 words and signs"),
    "long name": (MODEL.format("x = silu(x)" + "x" * 900_000), "unexpected `xxx"),
    "prose": ("Dear compiler,\n\nplease train a model.\n", "unexpected `Dear`"),
    "parentheses": (MODEL.format("x = " + "(" * 5000 + "x" + ")" * 5000), "nested over 100 deep"),
    "open parentheses": (MODEL.format("x = " + "(" * 5000), "nested over 100 deep"),
    "braces": ("dsk 1\n" + "model m {" * 2000, "nested over 100 deep"),
    "minus": (MODEL.format("x = x * " + "-" * 5000 + "1"), "nested over 300 deep"),
    "not": (MODEL.format("if " + "not " * 5000 + "true { x = silu(x) }"), "nested over 300 deep"),
    "plus": (MODEL.format("x = " + " + ".join(["x"] * 14_000)), "nested over 300 deep"),
    "else if": (MODEL.format("if false { x = x }" + " else if false { x = x }" * 3000), "nested over 300 deep"),
    "if then else": (MODEL.format("x = " + "if false then x else " * 3000 + "x"), "nested over 300 deep"),
    "blocks": (nested_blocks(1000, "{}(x)"), "blocks are nested over 100 deep"),
    "doubling": (nested_blocks(40, "{0}({0}(x))"), "over 20_000 operations"),
    "endless number": (MODEL.format("x = x * " + "9" * 100_000), "this number has over 300 digits"),
    "endless exponent": (MODEL.format("x = x * 1e999999999"), "the exponent of `1e999999999` is over 300"),
    "powers": (MODEL.format("").replace("D = 16", "A = 10, D = " + " * ".join(["A"] * 200)), "error[DSK"),
    "itself": (f'{SPEC}\nuse "small.dsk" {{ small }}\n', "import each other"),
}


@pytest.mark.parametrize(("content", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_spec_that_cannot_be_read(content: bytes | str, said: str, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "small.dsk"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = dskc("check", path)
    refused(result, said, "problem")
    assert max(map(len, result.output.splitlines())) < 1000
    refused(dskc("compile", path, "--out", out), said)
    nothing_is_left(out)


def test_spec_that_is_not_there(tmp_path: Path, spec: Path, out: Path) -> None:
    for command in (("check",), ("fmt",), ("ir",), ("compile",), ("train",), ("import",)):
        more = (tmp_path, "-o", out) if command == ("import",) else ()
        refused(dskc(*command, tmp_path / "smal.dsk", *more), "there is no file", "did you mean", "small.dsk")
        refused(dskc(*command, tmp_path, *more), "is a folder, not a spec file", "help: name one of the files in it")
    nothing_is_left(out)


@pytest.mark.parametrize("depth", [98, 99])
def test_as_deep_as_may_be(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "deep.dsk"
    path.write_text(MODEL.format("x = " + "silu(" * depth + "x" + ")" * depth))
    assert dskc("compile", path).exit_code == 0
    path.write_text(nested_blocks(depth, "{}(x)"))
    assert dskc("compile", path).exit_code == 0


# --- a process of its own


def test_generated_trainer_as_a_script(spec: Path, text: Path, out: Path, tmp_path: Path) -> None:
    assert dskc("compile", spec, "--out", tmp_path).exit_code == 0
    trainer = tmp_path / "small" / "train.py"
    command = [sys.executable, str(trainer), "--data", str(text), "--out", str(text)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: --out {text} is a file, and a run needs a folder\nhelp: name another one\n"
    nothing_is_left(out)
