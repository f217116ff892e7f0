"""Files of many documents: JSON lines, which of their lines are text, and runs on them."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_trainer import log_lines, train, write_package, write_text

from dskc.runtime.data import DataSettings, find_documents, split_held_out, text_digest
from dskc.runtime.data import table as table_module
from dskc.runtime.data.jsonl import Jsonl
from dskc.runtime.data.table import Row, read_texts
from dskc.runtime.data.template import Template, Unfit, template_of
from dskc.runtime.problem import Problem
from dskc.runtime.train.checkpoint import list_checkpoints
from dskc.runtime.train.folder import RunFolder

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
