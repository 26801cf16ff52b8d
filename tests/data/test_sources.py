"""Files of every kind, what is said of broken ones, and that memory does not grow with the file."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.examples import Pair
from mlx_dpo.data.files.row_files import find_data_files
from mlx_dpo.errors import RowError, UserError, Where

DEMO = Path("/work/shared/data/dpo_en_demo.json")


def row(i: int) -> dict[str, Any]:
    return {"prompt": f"q{i} “é” \U0001f600", "chosen": f"good {i}\n", "rejected": f"bad {i}"}


ROWS = [row(i) for i in range(5)]
PAIRS = [Pair(**r) for r in ROWS]
BAD = {"prompt": "q", "chosen": 3, "rejected": "x"}


def lines(rows: list[Any], end: str = "\n", ascii_: bool = False) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=ascii_) + end for r in rows).encode()


def array(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=2, ensure_ascii=False).encode()


def put(file: Path, data: bytes) -> str:
    file.write_bytes(data)
    return str(file)


def pairs(file: ExampleFile) -> list[Pair]:
    return [file[i] for i in range(len(file))]


def complaint(path: str) -> RowError | UserError:
    with pytest.raises(UserError) as raised:
        ExampleFile.open(path)
    return raised.value


GOOD: dict[str, tuple[str, bytes]] = {
    "jsonl": ("a.jsonl", lines(ROWS)),
    "jsonl, ascii": ("a.jsonl", lines(ROWS, ascii_=True)),
    "jsonl, CRLF": ("a.jsonl", lines(ROWS, "\r\n")),
    "jsonl, BOM": ("a.jsonl", b"\xef\xbb\xbf" + lines(ROWS)),
    "jsonl, blank lines": ("a.jsonl", b"\n \n" + lines(ROWS, "\n\t\n") + b"\n"),
    "jsonl, no last line break": ("a.jsonl", lines(ROWS).rstrip()),
    "jsonl, other name": ("a.txt", lines(ROWS)),
    "json": ("a.json", array(ROWS)),
    "json, one line": ("a.json", json.dumps(ROWS).encode()),
    "json, BOM": ("a.json", b"\xef\xbb\xbf  \n" + array(ROWS) + b"\n\n"),
    "json that is jsonl": ("a.json", lines(ROWS)),
    "jsonl that is json": ("a.jsonl", array(ROWS)),
    "gz": ("a.jsonl.gz", gzip.compress(lines(ROWS))),
    "gz in two members": ("a.jsonl.gz", gzip.compress(lines(ROWS[:2])) + gzip.compress(lines(ROWS[2:]))),
    "json.gz": ("a.json.gz", gzip.compress(array(ROWS))),
    "gz by another name": ("a.jsonl", gzip.compress(lines(ROWS))),
}


@pytest.mark.parametrize("name", GOOD)
def test_file(name: str, tmp_path: Path) -> None:
    path = put(tmp_path / GOOD[name][0], GOOD[name][1])
    file = ExampleFile.open(path)
    assert pairs(file) == PAIRS
    assert file[3] == PAIRS[3]
    assert file.name == path
    with pytest.raises(IndexError):
        file[5]


@pytest.mark.parametrize("data", [lines(ROWS), array(ROWS), gzip.compress(lines(ROWS))])
def test_stdin(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    file = ExampleFile.open("-")
    assert pairs(file) == PAIRS
    assert file.name == "stdin"


def test_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(lines(ROWS)))
    writer.start()
    assert pairs(ExampleFile.open(str(fifo))) == PAIRS
    writer.join()


def test_rows_of_many_pairs(tmp_path: Path) -> None:
    ranked = {"prompt": "q", "completions": ["a", "b", "c"], "scores": [1, 2, 3]}
    tied = {"prompt": "q", "completions": ["a", "b"], "scores": [1, 1]}
    file = ExampleFile.open(put(tmp_path / "a.jsonl", lines([tied, ranked, ROWS[0]])))
    assert pairs(file) == [Pair("q", "b", "a"), Pair("q", "c", "a"), Pair("q", "c", "b"), PAIRS[0]]
    assert [file.location(i).line for i in range(4)] == [2, 2, 2, 3]


KINDS: dict[str, Callable[[bytes, bytes], tuple[str, bytes]]] = {
    "jsonl": lambda as_lines, as_array: ("a.jsonl", as_lines),
    "gz": lambda as_lines, as_array: ("a.jsonl.gz", gzip.compress(as_lines)),
    "json": lambda as_lines, as_array: ("a.json", as_array),
    "json.gz": lambda as_lines, as_array: ("a.json.gz", gzip.compress(as_array)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_row_is_named_by_its_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [ROWS[0], ROWS[1], BAD, ROWS[2]]
    name, data = KINDS[kind](lines(rows, "\n\n"), array(rows))
    line = 12 if kind.startswith("json") and kind != "jsonl" else 5
    path = put(tmp_path / name, data)
    error = complaint(path)
    assert isinstance(error, RowError)
    assert (error.where, error.field) == (Where(path, line), "chosen")

    problems: list[RowError] = []
    file = ExampleFile.open(path, problems.append)
    assert pairs(file) == PAIRS[:3]
    assert [p.where for p in problems] == [Where(path, line)]

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert complaint("-").where == Where("stdin", line)


NESTED = b"[" * 100_000
# file name, bytes, line, what is said
BROKEN: dict[str, tuple[str, bytes, int | None, str]] = {
    "bad JSON": (
        "a.jsonl",
        lines(ROWS[:2]) + b'{"prompt": "q", }\n' + lines(ROWS[2:]),
        3,
        r"not valid JSON.*column 17",
    ),
    "cut line": ("a.jsonl", lines(ROWS[:2])[:-20], 2, "not valid JSON"),
    "bad UTF-8": ("a.jsonl", lines(ROWS[:2]) + b'{"prompt": "\xff"}\n', 3, "not UTF-8.*0xff"),
    "UTF-16": ("a.jsonl", lines(ROWS).decode().encode("utf-16"), None, "is text in UTF-16"),
    "bad UTF-8 at once": ("a.jsonl", b'{"prompt": "\xff"}\n' + lines(ROWS[:2]), 1, "not UTF-8"),
    "nested": ("a.jsonl", lines(ROWS[:1]) + b'{"prompt": ' + NESTED + b"\n", 2, "nested too deep"),
    "huge number": ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}\n", 1, "not valid JSON"),
    "surrogate": ("a.jsonl", b'{"prompt": "q", "chosen": "\\ud800", "rejected": "x"}', 1, "surrogate"),
    "two objects on a line": ("a.jsonl", lines(ROWS[:1]) + b"{} {}\n", 2, "not valid JSON: Extra data"),
    "not an object": ("a.jsonl", lines(ROWS[:1]) + b"7\n", 2, "must be a JSON object"),
    "pretty object": ("a.json", json.dumps({"foo": ROWS}, indent=1).encode(), 1, "no preference pair"),
    "wrapper cut": ("a.json", json.dumps({"data": ROWS}, indent=1).encode()[:-2], 28, "object around the rows"),
    "wrapper, more": ("a.json", json.dumps({"data": ROWS}).encode() + b"{}", 1, "more after the object"),
    "array cut": ("a.json", array(ROWS)[:-30], 24, "not valid JSON"),
    "array not closed": ("a.json", array(ROWS)[:-2], 26, "ends inside the array"),
    "array with no comma": ("a.json", array(ROWS).replace(b"},", b"}", 1), 7, "expecting ','"),
    "array, bad JSON": (
        "a.json",
        array(ROWS).replace(b'"chosen": "good 2', b'"chosen": good 2', 1),
        14,
        "not valid JSON",
    ),
    "array, bad UTF-8": ("a.json", array(ROWS).replace(b"good 2", b"good \xff", 1), 14, "not UTF-8"),
    "array, more": ("a.json", array(ROWS) + b"\n{}", 28, "more after"),
    "array, nested": ("a.json", b"[\n" + NESTED, 2, "nested too deep"),
    "array, huge number": ("a.json", b"[\n" + b"9" * 5000 + b"]", 2, "not valid JSON"),
    "array of numbers": ("a.json", b"[1, 2]", 1, "must be a JSON object"),
    "empty": ("a.jsonl", b"", None, "holds no pairs"),
    "blank": ("a.jsonl", b"\n\n", None, "holds no pairs"),
    "empty array": ("a.json", b"[]", None, "holds no pairs"),
    "empty gz": ("a.jsonl.gz", b"", None, "holds no pairs"),
    "cut gz": ("a.jsonl.gz", gzip.compress(lines(ROWS))[:-12], None, "gzip file is cut short"),
    "damaged gz": ("a.jsonl.gz", gzip.compress(lines(ROWS))[:-8] + b"\0" * 8, None, "gzip file is damaged"),
    "gz by name only": ("a.jsonl.gz", lines(ROWS), None, "not a gzip file"),
    "parquet": ("a.parquet", b"PAR1", None, "the parquet file can't be read"),
    "csv without rows": ("a.CSV", b"prompt,chosen", None, "holds no pairs"),
    "xlsx": ("a.xlsx", b"PK", None, "of tables, .csv, .tsv and .parquet are read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file(name: str, tmp_path: Path) -> None:
    file, data, line, said = BROKEN[name]
    path = put(tmp_path / file, data)
    with pytest.raises(UserError, match=said) as raised:
        ExampleFile.open(path)
    assert raised.value.where == Where(path, line)
    with suppress(UserError):  # in a survey nothing else may come of it
        ExampleFile.open(path, lambda error: None)


@pytest.mark.parametrize("path", ["nowhere.jsonl", "", "a\0b", "~nobody/x.jsonl", "x" * 5000])
def test_no_such_file(path: str) -> None:
    complaint(path)
    with pytest.raises(UserError):
        find_data_files(path, None)


def test_folder_is_no_file(tmp_path: Path) -> None:
    assert "is a folder" in complaint(str(tmp_path)).message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_no_permission(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", lines(ROWS))
    Path(path).chmod(0)
    assert "permission" in complaint(path).message


def test_a_file_that_changes(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", lines(ROWS))
    file = ExampleFile.open(path)
    with Path(path).open("ab") as more:
        more.write(b"{}\n")
    with pytest.raises(UserError, match="changed") as raised:
        file[0]
    assert raised.value.where == Where(path)

    status = Path(path).stat()
    file = ExampleFile.open(path, lambda error: None)
    Path(path).write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time
    with pytest.raises(UserError, match="changed"):
        file[0]


def test_a_file_that_is_replaced_is_still_the_old_one(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", lines(ROWS))
    file = ExampleFile.open(path)
    Path(put(tmp_path / "b.jsonl", b"new")).replace(path)
    assert pairs(file) == PAIRS


def test_threads_read_at_once(tmp_path: Path) -> None:
    rows = [row(i) | {"chosen": "good " * (1 + i % 50 * 100)} for i in range(300)]
    file = ExampleFile.open(put(tmp_path / "a.jsonl", lines(rows)))
    wrong: list[int] = []

    def read(seed: int) -> None:
        for i in random.Random(seed).sample(range(300), 300):
            if file[i] != Pair(**rows[i]):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz"])
def test_memory_does_not_grow_with_the_file(kind: str, tmp_path: Path) -> None:
    count, size = (8_000, 10_000) if kind != "jsonl.gz" else (4_000, 10_000)
    line = json.dumps({"prompt": "q", "chosen": "a" * size, "rejected": "b"})
    path = tmp_path / f"a.{kind}"
    open_: Any = gzip.open if kind.endswith("gz") else open
    with open_(path, "wt") as file:
        file.write("[" if kind == "json" else "")
        for i in range(count):
            file.write(line + ("\n" if kind != "json" else "]" if i == count - 1 else ",\n"))
    shares: list[float] = []
    tracemalloc.start()
    try:
        opened = ExampleFile.open(str(path), on_progress=shares.append)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(opened) == count
    assert len(opened[count - 1].chosen) == size
    assert peak < 12e6
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_rows_longer_than_the_buffer(tmp_path: Path) -> None:
    rows = [row(0), row(1) | {"chosen": "é\n" * 1_500_000}, row(2)]
    for name, data in (("a.jsonl", lines(rows)), ("a.json", array(rows)), ("b.json", json.dumps(rows).encode())):
        assert pairs(ExampleFile.open(put(tmp_path / name, data))) == [Pair(**r) for r in rows]


def test_array_read_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(i) | {"n": [1.5e10, -7, True, None, '\\"', {"a": []}]} for i in range(20)]
    path = put(tmp_path / "a.json", array(rows))
    for size in (2, 3, 7, 64):
        monkeypatch.setattr("mlx_dpo.data.files.json_array.BUFFER_BYTES", size)
        assert pairs(ExampleFile.open(path)) == [Pair(r["prompt"], r["chosen"], r["rejected"]) for r in rows]


def test_find_data(tmp_path: Path) -> None:
    train = put(tmp_path / "train.jsonl.gz", b"")
    assert find_data_files(str(tmp_path), None) == (train, None)
    validation = put(tmp_path / "validation.jsonl", b"")
    assert find_data_files(str(tmp_path), None) == (train, validation)
    valid = put(tmp_path / "valid.jsonl", b"")
    train = put(tmp_path / "train.jsonl", b"")
    assert find_data_files(str(tmp_path), None) == (train, valid)
    assert find_data_files(train, None) == (train, None)
    assert find_data_files(train, str(tmp_path)) == (train, valid)
    assert find_data_files(str(tmp_path), validation) == (train, validation)
    assert find_data_files("-", valid) == ("-", valid)
    for data, held_out, said in (
        (str(tmp_path / "no.jsonl"), None, "no such file"),
        (train, str(tmp_path / "no.jsonl"), "no such file"),
        ("-", "-", "stdin"),
        ("trl-lib/ultrafeedback_binarized", None, "no such file or folder here(?s:.*)HF_HUB_OFFLINE"),
    ):
        with pytest.raises(UserError, match=said):
            find_data_files(data, held_out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no train\.jsonl"):
        find_data_files(str(tmp_path / "empty"), None)


@pytest.mark.skipif(not DEMO.is_file(), reason="the file is only where the project is built")
def test_demo_file() -> None:
    file = ExampleFile.open(str(DEMO))
    assert len(file) == 300
    assert file[0].prompt[0]["role"] == "user"  # type: ignore[index]
