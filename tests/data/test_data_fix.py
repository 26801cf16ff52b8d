"""mlx-dpo data fix: what it leaves out, what it rewrites, and that it lists all of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mlx_dpo.cli.data import app
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.row_fixing import CHANGES, NOT_FIXED, fix_rows
from mlx_dpo.data.row_parsing import parse_pairs
from mlx_dpo.errors import UserError, Where
from mlx_dpo.forward.model_loading import load_tokenizer
from tests.conftest import CHECKPOINT

OK = b'{"prompt":  "q",  "chosen": "A.", "rejected": "B.", "source": "\\u00e9"}\n'
USER, GOOD = {"role": "user", "content": "q"}, {"role": "assistant", "content": "A."}
SYSTEM = {"role": "system", "content": "S"}


def line(**row: Any) -> bytes:
    return json.dumps(row).encode() + b"\n"


def run(tmp_path: Path, data: bytes, *options: object, name: str = "a.jsonl") -> tuple[bytes, dict[str, Any]]:
    """What is written, and what is reported."""
    (tmp_path / name).write_bytes(data)
    out = tmp_path / "out.jsonl"
    arguments = ["fix", str(tmp_path / name), str(out), "--json", *map(str, options)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return out.read_bytes(), json.loads(result.stdout)


def kinds(report: dict[str, Any]) -> list[tuple[int, str]]:
    return [(change["line"], change["kind"]) for change in report["changed_rows"]]


def test_rows_that_need_nothing_are_written_to_the_byte(tmp_path: Path) -> None:
    data = OK + b"\n" + line(prompt="r", completions=["a", "b"], scores=[1, 1]) + OK.replace(b'"q"', b'"s"')[:-1]
    written, report = run(tmp_path, data)
    assert written == data.replace(b"\n\n", b"\n") + b"\n"
    assert (report["rows"], report["written"], report["changes"]) == (3, 3, {})


def test_what_is_left_out_is_listed(tmp_path: Path) -> None:
    data = [
        OK,
        line(prompt="r", chosen="same", rejected="same"),
        line(prompt="r", chosen="", rejected="B."),
        line(prompt="r", chosen="A.", rejected="\u200b"),
        line(rejected="B.", chosen="A.", prompt="q"),
        line(prompt="r", choosen="A.", rejected="B."),
        b"{\n",
        line(prompt="r", completions=["A.", "B.", "B."], scores=[2, 1, 1]),
    ]
    written, report = run(tmp_path, b"".join(data))
    assert written == data[0] + data[5] + data[6] + data[7]
    assert kinds(report) == [
        (2, "equal_completions"),
        (3, "empty"),
        (4, "empty"),
        (5, "duplicate"),
        (6, NOT_FIXED),
        (7, NOT_FIXED),
    ]
    assert "line 1" in report["changed_rows"][3]["message"]
    assert (report["rows"], report["written"]) == (8, 4)


def test_nulls_of_a_table(tmp_path: Path) -> None:
    calls = [{"name": "f", "arguments": {"x": 1, "y": None}}, {"name": "g", "arguments": {"x": None, "y": 2}}]
    row = {"prompt": [USER], "chosen": [{**GOOD, "tool_calls": calls}], "rejected": "B.", "note": None}
    written, report = run(tmp_path, line(**row))
    clean = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": 2}}]
    assert json.loads(written) == {**row, "chosen": [{**GOOD, "tool_calls": clean}]}
    assert kinds(report) == [(1, "table_nulls")]


def chatml(*turns: dict[str, str]) -> str:
    return "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)


def test_rendered_texts_become_messages(tmp_path: Path) -> None:
    turns = [SYSTEM, USER, GOOD, {"role": "user", "content": "more\nof it"}]
    whole = chatml(*turns) + "<|im_start|>assistant\n"
    rendered = line(id=3, prompt=whole, chosen="A.<|im_end|>\n", rejected="B.<|im_end|>")
    header = line(prompt=whole[5:], chosen="A.", rejected="B.")
    inside = line(prompt="q", chosen="A.<|im_end|>B", rejected="B.")
    ends = line(prompt="q", chosen="A.<|im_end|>", rejected="B.")
    written, report = run(tmp_path, rendered + header + inside + ends, "--model", CHECKPOINT)
    first, second, third, fourth = map(json.loads, written.splitlines())
    answers = {"chosen": [GOOD], "rejected": [{"role": "assistant", "content": "B."}]}
    assert first == {"id": 3, "prompt": turns, **answers}
    assert (second, third) == (json.loads(header), json.loads(inside)), "what can't be parsed stays"
    assert fourth == {"prompt": "q", "chosen": "A.", "rejected": "B."}
    assert kinds(report) == [(1, "special_tokens"), (2, NOT_FIXED), (3, NOT_FIXED), (4, "special_tokens")]
    encoder = ExampleEncoder(load_tokenizer(str(CHECKPOINT)), max_length=512, overlong="error", raw=False)
    (pair,) = parse_pairs(first, Where("x"))
    encoded = encoder(pair)
    assert encoded is not None
    assert list(encoded.prompt) == encoder.tokenizer.encode(whole, add_special_tokens=False), "the ids of the text"
    assert [tuple(ids) for ids in encoded.completions] == [
        tuple(encoder.tokenizer.encode(f"{text}<|im_end|>\n", add_special_tokens=False)) for text in ("A.", "B.")
    ]


def test_a_system_turn_that_the_template_refuses(tmp_path: Path, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    refuse = "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    config["chat_template"] = (
        "{% for m in messages %}"
        + refuse
        + "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    data = [
        line(system="S", prompt="q", chosen="A.", rejected="B.", source="web"),
        line(prompt=[SYSTEM, USER], chosen=[GOOD], rejected=[{**GOOD, "content": "B."}], tools=[{"name": "f"}]),
        OK,
    ]
    written, report = run(tmp_path, b"".join(data), "--model", checkpoint)
    moved = {"role": "user", "content": "S\n\nq"}
    first, second, third = written.splitlines()
    assert json.loads(first)["prompt"] == [moved] == json.loads(second)["prompt"]
    assert json.loads(first)["source"] == "web" and json.loads(second)["tools"] == [{"name": "f"}]
    assert third + b"\n" == OK
    assert kinds(report) == [(1, "system_moved"), (2, "system_moved")]
    encoder = ExampleEncoder(load_tokenizer(str(checkpoint)), max_length=512, overlong="error", raw=False)
    for fixed in (first, second):
        assert encoder(parse_pairs(json.loads(fixed), Where("x"))[0]) is not None


def test_other_kinds_of_files(tmp_path: Path) -> None:
    written, report = run(tmp_path, b"prompt,chosen,rejected\nq,A.,B.\nq,A\nq,A.,B.\n", name="a.csv")
    assert json.loads(written) == {"prompt": "q", "chosen": "A.", "rejected": "B."}
    assert kinds(report) == [(3, "unreadable"), (4, "duplicate")]
    written, report = run(tmp_path, b"[" + OK[:-1] + b"," + OK[:-1], name="a.json")
    assert written == OK and kinds(report) == [(1, "duplicate"), (1, "unreadable")]
    written, _ = run(tmp_path, gzip.compress(OK), name="a.jsonl.gz")
    assert written == OK


def test_columns_of_other_names(tmp_path: Path) -> None:
    data = line(question="q", yes="A.", no="A.") + line(question="q", yes="A.", no="B.")
    written, report = run(
        tmp_path, data, "--prompt-column", "question", "--chosen-column", "yes", "--rejected-column", "no"
    )
    assert written == data.splitlines(keepends=True)[1] and kinds(report) == [(1, "equal_completions")]


def test_for_people(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(OK + OK)
    result = CliRunner().invoke(app, ["fix", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert "a.jsonl:2: duplicate: left out: the same example is on line 1" in result.stdout
    assert "1 rows in" in result.stdout and "of 2" in result.stdout
    result = CliRunner().invoke(app, ["fix", str(tmp_path / "b.jsonl"), "-"])
    assert result.stdout.encode() == OK and "Nothing to fix." in result.stderr
    both = CliRunner().invoke(app, ["fix", str(tmp_path / "b.jsonl"), "-", "--json"])
    assert isinstance(both.exception, UserError)
    assert "mlx-dpo data fix " in CliRunner().invoke(app, ["fix", "--help"]).stdout


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    return ChatRenderer(load_tokenizer(str(CHECKPOINT)))


texts = st.sampled_from(
    ["q", "A.", "B.", "", "\u200b", "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "A.<|im_end|>"]
)
some_rows = st.lists(
    st.fixed_dictionaries({"prompt": texts, "chosen": texts, "rejected": texts}), min_size=1, max_size=6
)


@settings(deadline=None, derandomize=True, max_examples=150, suppress_health_check=list(HealthCheck))
@given(some_rows)
def test_nothing_is_changed_that_is_not_listed(
    tmp_path_factory: pytest.TempPathFactory, renderer: ChatRenderer, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "some.jsonl").write_bytes(b"".join(line(**row) for row in rows))
    report = fix_rows(str(folder / "some.jsonl"), str(folder / "some-fixed.jsonl"), renderer=renderer)
    changed = {change.where.line for change in report.changes if change.kind != NOT_FIXED}
    dropped = {change.where.line for change in report.changes if CHANGES.get(change.kind, "").startswith("left out")}
    written = (folder / "some-fixed.jsonl").read_bytes().splitlines(keepends=True)
    kept = [(number, row) for number, row in enumerate(rows, 1) if number not in dropped]
    assert len(written) == len(kept) == report.written and report.rows == len(rows)
    for (number, row), output in zip(kept, written, strict=True):
        assert (output == line(**row)) == (number not in changed)
    again = (
        fix_rows(str(folder / "some-fixed.jsonl"), str(folder / "some-again.jsonl"), renderer=renderer)
        if kept
        else report
    )
    assert not kept or all(change.kind == NOT_FIXED for change in again.changes), "a fixed file needs no fixing"
