"""Files of many documents: JSON lines, Parquet and data sets, which of their rows are text, and runs on them."""

from __future__ import annotations

import gc
import gzip
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_trainer import log_lines, train, write_package, write_text

from dskc.runtime.data import DataSettings, find_documents, split_held_out, text_digest
from dskc.runtime.data import parquet as parquet_module
from dskc.runtime.data import table as table_module
from dskc.runtime.data.jsonl import Jsonl
from dskc.runtime.data.parquet import Parquet
from dskc.runtime.data.table import Row, read_texts
from dskc.runtime.data.template import Template, Unfit, template_of
from dskc.runtime.problem import Problem
from dskc.runtime.train.folder import RunFolder
from dskc.runtime.train.kept import list_checkpoints

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)  # what UTF-8 can write


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def texts(path: Path, **choices: str) -> list[str]:
    corpus = find_documents([path], settings=DataSettings(**choices, max_control=1.0, keep_duplicates=True))
    return ["".join(pieces) for _, pieces in read_texts(corpus.documents)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@settings(max_examples=60, deadline=None)
@given(written=st.lists(ANY.filter(str.strip), min_size=1, max_size=8), escaped=st.booleans())
def test_lines_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, written: list[str], escaped: bool
) -> None:
    rows = [json.dumps({"text": text, "n": 1}, ensure_ascii=escaped) for text in written]
    assert texts(write_lines(tmp_path_factory.mktemp("lines") / name, rows)) == written


def test_fields_are_named_and_joined(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"title": "T", "content": "C {x}"}, {"title": "", "content": "D"}])
    assert texts(path, text_field="content") == ["C {x}", "D"]
    assert texts(path, join="{title} [SEP] {content}") == ["T [SEP] C {x}", " [SEP] D"]
    assert texts(path, join=r"{{{title}}}\n{content}{title}") == ["{T}\nC {x}T", "{}\nD"]
    assert template_of(DataSettings(join="{b}{a}{b}")).fields == ("b", "a")


@pytest.mark.parametrize("join", ["{title", "title}", "{}", "{title!r}", "{title:>3}", "plain"])
def test_a_template_that_is_none_is_refused(join: str) -> None:
    with pytest.raises(Problem, match="--join"):
        template_of(DataSettings(join=join))


WRONG = [
    ("{", "not JSON"),
    ('{"text": "a"', "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("[1]", "not an object with fields"),
    ('{"title": "a"}', 'without "text"'),
    ('{"text": null}', 'whose "text" is no string'),
    ('{"text": 3}', 'whose "text" is no string'),
    ('{"text": "\\ud800"}', "not UTF-8"),
    ('{"text": " \\n"}', "empty"),
]


def test_lines_that_are_no_text_are_counted_by_reason_and_named(tmp_path: Path) -> None:
    rows = ['{"text": "good"}', *(line for line, _ in WRONG), "", '{"text": "last"}']
    path = write_lines(tmp_path / "a.jsonl", rows)
    path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n')
    corpus = find_documents([path])
    assert [document.name for document in corpus.documents] == ["a.jsonl:1", "a.jsonl:12"]
    expected: dict[str, int] = {}
    for reason in [*(reason for _, reason in WRONG), "not UTF-8"]:
        expected[reason] = expected.get(reason, 0) + 1
    assert corpus.skipped == expected
    assert corpus.examples['without "text"'] == ['a.jsonl:6: it has "title"']
    assert corpus.examples["not UTF-8"] == [
        "a.jsonl:9: it has a lone surrogate, '\\ud800'",
        "a.jsonl:13: its byte 10 is 0xff",
    ]
    assert "; skipped 1 empty, " in corpus.summary()


@pytest.mark.parametrize(("line", "reason"), WRONG)
def test_named_file_without_any_text_says_why(tmp_path: Path, line: str, reason: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["", line])
    with pytest.raises(Problem, match=rf"a\.jsonl: there is no text in it; row 2 is one {reason}") as raised:
        find_documents([path])
    assert raised.value.help is not None and "--text-field" in raised.value.help


def test_a_folder_is_read_line_by_line_beside_its_files(tmp_path: Path) -> None:
    write_lines(tmp_path / "b" / "rows.jsonl", [{"text": "one"}, "{}", {"text": "two"}])
    write_lines(tmp_path / "c.jsonl", ["{}"])
    (tmp_path / "a.txt").write_text("file")
    corpus = find_documents([tmp_path, tmp_path / "b"])
    assert [document.name for document in corpus.documents] == ["a.txt", "b/rows.jsonl:1", "b/rows.jsonl:3"]
    assert corpus.skipped == {'without "text"': 2}
    assert corpus.examples == {'without "text"': ["c.jsonl:1: it has no field", "b/rows.jsonl:2: it has no field"]}


def test_a_compressed_file_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl.gz", [{"text": f"{n} " * 50} for n in range(2000)])
    whole = path.read_bytes()
    for cut, reason in ((whole[: len(whole) // 2], "it is cut off"), (b"text", "Not a gzipped file")):
        path.write_bytes(cut)
        with pytest.raises(Problem, match=f"it cannot be read after line .*: {reason}"):
            find_documents([path])


def test_rows_that_changed_since_are_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    documents = find_documents([path]).documents
    for rows in ([{"text": "one"}, {"text": "too"}], [{"text": "one"}], [{"text": "one"}, {}]):
        write_lines(path, rows)
        with pytest.raises(Problem, match="changed while it was read"):
            [list(pieces) for _, pieces in read_texts(documents)]


def test_a_text_is_on_the_same_side_in_a_file_and_in_a_row(tmp_path: Path) -> None:
    written = [f"document {n} é\n" for n in range(200)]
    (tmp_path / "files").mkdir()
    for n, text in enumerate(written):
        (tmp_path / "files" / f"{n:03}").write_text(text)
    as_files = find_documents([tmp_path / "files"]).documents
    as_rows = find_documents([write_lines(tmp_path / "a.jsonl", [{"text": text} for text in written])]).documents
    assert [document.sha256 for document in as_rows] == [document.sha256 for document in as_files]
    for of_files, of_rows in zip(split_held_out(as_files), split_held_out(as_rows), strict=True):
        assert of_files and [each.sha256 for each in of_rows] == [each.sha256 for each in of_files]
    # what the field was called, and how the line was written, does not matter
    other = write_lines(tmp_path / "b.jsonl", [json.dumps({"x": 1, "t": t}, ensure_ascii=False) for t in written])
    renamed = find_documents([other], settings=DataSettings(text_field="t")).documents
    assert [document.sha256 for document in renamed] == [document.sha256 for document in as_rows]
    assert text_digest(renamed) != text_digest(as_rows)  # which names the files


@settings(max_examples=40, deadline=None)
@given(text=st.text("é漢🙂a\n", min_size=2, max_size=80).filter(str.strip), piece=st.integers(1, 9))
def test_of_a_single_row_the_tail_is_held_out(tmp_path_factory: pytest.TempPathFactory, text: str, piece: int) -> None:
    path = write_lines(tmp_path_factory.mktemp("tail") / "a.jsonl", [{"text": text}])
    training, held = split_held_out(find_documents([path]).documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "PIECE", piece)
        parts = ["".join(pieces) for _, pieces in read_texts([*training, *held])]
    assert "".join(parts) == text and parts[-1]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 12))
def test_wanted_rows_are_those_of_all(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int
) -> None:
    rows = [data.draw(st.sampled_from(["", "{}", '{"text": "x"}', '{"text": "y"}'])) for _ in range(count)]
    path = write_lines(tmp_path_factory.mktemp("wanted") / "a.jsonl", rows)
    table = Jsonl(path, "a", Template((("", "text"),)))
    every = dict(table.rows())
    wanted = sorted(data.draw(st.sets(st.sampled_from(sorted(every))))) if every else []
    assert list(table.rows(wanted)) == [(number, every[number]) for number in wanted]
    assert all(isinstance(text, Unfit) == (rows[number - 1] == "{}") for number, text in every.items())


def test_a_document_takes_little_memory(tmp_path: Path) -> None:
    (row,) = find_documents([write_lines(tmp_path / "a.jsonl", [{"text": "x"}])]).documents
    assert isinstance(row, Row) and not hasattr(row, "__dict__")


# Parquet


def write_parquet(path: Path, columns: dict[str, object], group: int = 3) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    return path


@settings(max_examples=40, deadline=None)
@given(written=st.lists(ANY.filter(str.strip), min_size=1, max_size=12), group=st.integers(1, 5), data=st.data())
def test_rows_of_parquet_are_those_of_lines(
    tmp_path_factory: pytest.TempPathFactory, written: list[str], group: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    titles = [f"{n}" for n in range(len(written))]
    path = write_parquet(folder / "a.parquet", {"title": titles, "body": written, "n": titles}, group)
    lines = write_lines(folder / "a.jsonl", [{"title": n, "body": text} for n, text in enumerate(written)])
    assert texts(path, text_field="body") == texts(lines, text_field="body") == written
    assert texts(path, join="{title}: {body}") == [f"{n}: {text}" for n, text in enumerate(written)]
    table = Parquet(path, "a", template_of(DataSettings(text_field="body")))
    wanted = sorted(data.draw(st.sets(st.integers(1, len(written)))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_module, "ROWS", 2)
        assert list(table.rows(wanted)) == [(n, written[n - 1]) for n in wanted]


def test_rows_of_parquet_that_are_no_text_are_counted(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    broken = pyarrow.array([b"good", b"\xff", None, b" "]).cast(pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 4, broken.buffers())  # as a careless writer makes it
    path = write_parquet(tmp_path / "a.parquet", {"text": column, "n": [1, 2, 3, 4]})
    corpus = find_documents([path])
    assert [document.name for document in corpus.documents] == ["a.parquet:1"]
    assert corpus.examples == {
        "not UTF-8": ["a.parquet:2: its byte 0 is 0xff"],
        'whose "text" is no string': ["a.parquet:3: it is null"],
        "empty": ["a.parquet:4"],
    }
    with pytest.raises(Problem, match='row 1 is one whose "n" is no string; it is a number'):
        find_documents([path], settings=DataSettings(text_field="n"))
    with pytest.raises(Problem, match='row 1 is one without "body"; it has "text", "n"'):
        find_documents([path], settings=DataSettings(text_field="body"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Problem, match=r"a\.parquet: it cannot be read: "):
        find_documents([path])


@pytest.mark.parametrize(("package", "path"), [("pyarrow", "a.parquet"), ("datasets", "hf:some/name")])
def test_a_package_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if package == "pyarrow":
        Path(path).write_text("x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Problem, match=f"takes the package {package}") as raised:
        find_documents([Path(path)])
    assert raised.value.help == "pip install 'dskc[data]'"


# Data sets


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a data set of two splits, far from any network."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "cache"))
    for split, count in (("train", 40), ("test", 3)):
        rows = [{"title": f"{split} {n}", "body": f"text {n}", "n": n} for n in range(count)]
        write_lines(tmp_path / "set" / f"{split}.jsonl", rows)
    return Path("hf:set")


def test_a_data_set_is_streamed_and_read_like_its_lines(hub: Path, tmp_path: Path) -> None:
    assert texts(hub, text_field="body") == texts(tmp_path / "set" / "train.jsonl", text_field="body")
    assert texts(Path(f"{hub}:test"), join="{title}: {body}") == [f"test {n}: text {n}" for n in range(3)]
    some = find_documents([hub], settings=DataSettings(text_field="body", max_rows=7))
    assert [document.name for document in some.documents] == [f"hf:set:{n}" for n in range(1, 8)]
    assert isinstance(some.documents[0], Row)
    spool = some.documents[0].table.path
    assert spool.exists() and '"n"' not in spool.read_text()
    del some
    gc.collect()
    assert not spool.exists()


def test_a_data_set_that_cannot_be_had_is_an_error(hub: Path) -> None:
    for name, message in (
        ("hf:set:valid", "hf:set:valid: it cannot be had: .*valid"),
        ("hf:nowhere", "hf:nowhere: it cannot be had: "),
    ):
        with pytest.raises(Problem, match=message):
            find_documents([Path(name)])
    with pytest.raises(Problem, match='hf:set: there is no text in it; row 1 is one without "text"; it has "title"'):
        find_documents([hub])
    with pytest.raises(Problem, match='whose "n" is no string'):
        find_documents([hub], settings=DataSettings(text_field="n"))


# Whole runs


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("generated"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents of `write_text`, each a line with a title."""
    folder = tmp_path_factory.mktemp("lines")
    files = sorted(write_text(folder / "text").iterdir())
    return write_lines(
        folder / "rows.jsonl", [{"title": file.stem, "body": file.read_text()} for file in files] + ["{}"]
    )


def cut_run(run: Path, to: Path, step: int) -> Path:
    shutil.copytree(run, to)
    for path in list_checkpoints(to / "checkpoints"):
        if path.name != f"step-{step:08d}":
            shutil.rmtree(path)
    return to


def test_a_run_on_lines_says_what_it_left_out_and_resumes_as_it_was(
    package: Path, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    join = "{title} [SEP] {body}"
    train(package, "--data", lines, "--join", join, "--steps", 6, "--out", out, "--microbatch", 4)
    assert '20 documents, 0.0 MB; skipped 1 without "title"' in capsys.readouterr().out
    assert RunFolder(out).read().data == DataSettings(join=join)
    for named in ([], ["--data", lines], ["--data", lines, "--join", join]):
        again = cut_run(out, tmp_path / f"again{len(named)}", 4)
        train(package, "--resume", "--out", again, *named)
        assert log_lines(again) == log_lines(out)
    with pytest.raises(Problem, match="--text-field: body now, and text when this run was begun, which cannot change"):
        train(package, "--resume", "--out", out, "--text-field", "body")


def test_a_run_that_was_begun_before_there_were_settings_goes_on(package: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(package, "--data", lines.parent / "text", "--steps", 4, "--out", out, "--microbatch", 4)
    facts = json.loads((out / "run.json").read_text())
    del facts["data"]
    (out / "run.json").write_text(json.dumps(facts))
    train(package, "--resume", "--out", out, "--data", lines.parent / "text", "--steps", 5)
    assert len(log_lines(out)) == 5


def test_a_run_on_a_data_set_goes_on_without_it(package: Path, hub: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "set" / "train.jsonl", [{"text": f"line {n} of the text\n" * 20} for n in range(60)])
    (tmp_path / "set" / "test.jsonl").unlink()
    out = tmp_path / "run"
    train(package, "--data", hub, "--max-rows", 50, "--steps", 4, "--out", out, "--microbatch", 4)
    assert json.loads((out / "data" / "cleaning.json").read_text())["text"]["documents"] == 50
    train(package, "--data", hub, "--steps", 5, "--out", out, "--resume")
    shutil.rmtree(tmp_path / "set")
    train(package, "--steps", 6, "--out", out, "--resume")
    assert len(log_lines(out)) == 6


def test_a_run_says_how_much_is_padding(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"{n:03} alpha beta gamma delta epsilon zeta eta theta iota"} for n in range(300)]
    data = write_lines(tmp_path / "rows.jsonl", rows)
    train(package, "--data", data, "--steps", 1, "--out", tmp_path / "fit")
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("packing"))
    assert said.startswith("packing: ") and said.endswith("% padding; --packing stream has none"), said
    filled = json.loads((tmp_path / "fit" / "result.json").read_text())["tokens"]
    assert 8 * 8 < filled < 8 * 31
    train(package, "--data", data, "--steps", 1, "--out", tmp_path / "stream", "--packing", "stream")
    assert "padding" not in capsys.readouterr().out
    assert json.loads((tmp_path / "stream" / "result.json").read_text())["tokens"] == 8 * 32
    with pytest.raises(Problem, match="--packing: bestfit now, and stream when this run was begun"):
        train(package, "--resume", "--out", tmp_path / "stream", "--packing", "bestfit")
