"""Whatever is in a file of rows or of knobs, it is taken or refused with its place; nothing else happens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import read_yaml
from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.examples import Completion, Pair
from mlx_dpo.data.files.json_lines import parse_json_line
from mlx_dpo.data.row_parsing import parse_examples, row_format_label
from mlx_dpo.errors import RowError, UserError, Where
from tests.data.test_completions import SHAPES as SINGLES
from tests.data.test_records import SHAPES

WHERE = Where("rows.jsonl", 7)
GOOD = [json.dumps(row) for row, _ in (*SHAPES.values(), *SINGLES.values())]
KEYS = ("prompt", "chosen", "rejected", "completion", "completions", "label", "scores", "messages", "conversations")
KEYS += ("system", "tools", "margin", "role", "content", "from", "value", "input", "chat_template_kwargs")

texts = st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates and NULs among them
numbers = st.integers() | st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([10**400, -0.0])
values = st.recursive(
    st.none()
    | st.booleans()
    | numbers
    | texts
    | st.sampled_from(["user", "assistant", "\n\nHuman: a\n\nAssistant: b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | texts, inner, max_size=4),
    max_leaves=12,
)
rows = st.dictionaries(st.sampled_from(KEYS), values, max_size=5)
lenient = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
EXAMPLES = [200, pytest.param(5000, marks=pytest.mark.slow)]  # four tests, so 20,000


def fuzzed(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """Makes a check of what is drawn into a test, of some examples and of many."""

    def of(check: Callable[..., None]) -> Callable[[int], None]:
        @pytest.mark.parametrize("examples", EXAMPLES)
        def test(examples: int) -> None:
            settings(lenient, max_examples=examples)(given(*strategies)(check))()

        return test

    return of


def taken_or_refused(line: bytes) -> None:
    try:
        row = parse_json_line(line, WHERE)
        examples = parse_examples(row, WHERE)
        assert isinstance(row_format_label(row), str)
    except RowError as error:
        assert error.where == WHERE and error.message
        str(error).encode()  # what is printed can be printed
        return
    for example in examples:
        assert isinstance(example, (Pair, Completion))
        json.dumps(example.to_row(), allow_nan=False).encode()


@fuzzed(rows)
def test_rows_of_anything(row: dict[str, Any]) -> None:
    taken_or_refused(json.dumps(row).encode())


@fuzzed(st.sampled_from(GOOD), rows)
def test_good_rows_with_something_in_them(line: str, row: dict[str, Any]) -> None:
    taken_or_refused(json.dumps({**json.loads(line), **row}, ensure_ascii=False).encode(errors="surrogatepass"))


@fuzzed(st.sampled_from(GOOD), st.data())
def test_lines_that_were_damaged(line: str, data: st.DataObject) -> None:
    raw = bytearray(line.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        damage = data.draw(st.sampled_from(["flip", "cut", "insert", "double"]))
        if damage == "flip":
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif damage == "cut":
            del raw[at : at + data.draw(st.integers(1, 9))]
        elif damage == "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=5))
        else:
            raw[at:at] = raw[at:]
        if not raw:
            break
    taken_or_refused(bytes(raw))


@settings(lenient, max_examples=300)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([line.encode() for line in GOOD]), max_size=6))
def test_files_of_anything(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    file.write_bytes(b"\n".join(lines))
    problems: list[RowError] = []
    try:
        opened = ExampleFile.open(str(file), problems.append, parse=parse_examples)
    except UserError as error:
        assert str(file) in str(error)
    else:
        assert all(opened[i] for i in range(len(opened)))
        opened.close()
    assert all(error.where is not None and error.where.line for error in problems)


@pytest.mark.parametrize("size", [1 << 20, 3 << 20])
@pytest.mark.parametrize("kind", ["text", "list", "keys", "digits", "brackets"])
def test_lines_of_megabytes(size: int, kind: str) -> None:
    line = {
        "text": b'{"prompt": "' + b"x" * size + b'", "chosen": "a", "rejected": "b"}',
        "list": b'{"prompt": "q", "completions": [' + b'"a",' * (size // 4) + b'"b"], "scores": [1]}',
        "keys": b"{" + b",".join(b'"%d": 1' % i for i in range(size // 10)) + b"}",
        "digits": b'{"prompt": ' + b"9" * size + b"}",
        "brackets": b'{"prompt": ' + b"[" * size,
    }[kind]
    taken_or_refused(line)


KNOBS = [field.name for field in dataclasses.fields(TrainConfig)]
plain = (
    st.none()
    | st.booleans()
    | numbers
    | texts
    | st.lists(texts, max_size=3)
    | st.dictionaries(texts, texts, max_size=2)
)


@fuzzed(st.dictionaries(st.sampled_from(KNOBS) | texts, plain, max_size=6))
def test_knobs_of_anything(values: dict[Any, Any]) -> None:
    try:
        config = TrainConfig.from_mapping(values, Where("run.yaml"))
    except UserError as error:
        assert error.field is not None and "run.yaml" in str(error)
        return
    assert TrainConfig.from_mapping(config.to_mapping()) == config


@settings(lenient, max_examples=1000)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
def test_config_files_of_anything(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_bytes(content)
    try:
        values = read_yaml(file)
        TrainConfig.from_mapping(values, Where(str(file)))
    except UserError as error:
        assert str(file) in str(error)
