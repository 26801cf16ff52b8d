"""Tool calls and tools as people and table formats write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.row_parsing import parse_pairs
from mlx_dpo.forward.model_loading import load_tokenizer
from tests.data.test_rows_as_written import AT, assistant, human, user

PARTED = assistant(
    "",
    reasoning_content="hm",
    tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
)


@pytest.mark.parametrize(
    "turn",
    [
        {
            "role": "assistant",
            "content": [
                {"type": "reasoning", "value": "hm"},
                {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            ],
        },
        assistant(
            "",
            reasoning_content="hm",
            tool_calls=[{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
        ),
        assistant("", reasoning_content="hm", function_call={"name": "f", "arguments": '{"x": 1}'}),
    ],
)
def test_ways_to_write_a_tool_call(turn: dict[str, Any]) -> None:
    (pair,) = parse_pairs({"prompt": [user("q")], "chosen": [turn], "rejected": "B."}, AT)
    assert pair.chosen == [PARTED]


def test_a_call_in_sharegpt() -> None:
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
    row = {"conversations": [human("q"), call, {"from": "observation", "value": "2"}], "chosen": "A.", "rejected": "B."}
    (pair,) = parse_pairs(row, AT)
    assert isinstance(pair.prompt, list) and pair.prompt[1:] == [
        assistant("", tool_calls=PARTED["tool_calls"]),
        {"role": "tool", "content": "2"},
    ]
    (kept,) = parse_pairs({**row, "conversations": [human("q"), {**call, "value": "f(1)"}, human("?")]}, AT)
    assert isinstance(kept.prompt, list) and kept.prompt[1] == assistant("f(1)")


def test_arguments_that_are_no_object_stay() -> None:
    for arguments in ("f(", "[1]", '"x"'):
        turn = assistant("", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])
        (pair,) = parse_pairs({"prompt": [user("q")], "chosen": [turn], "rejected": "B."}, AT)
        assert pair.chosen == [turn]


TOOL_TEMPLATE = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def encoder(checkpoint: Path) -> ExampleEncoder:
    """Of a template that renders tools and arguments as JSON."""
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TOOL_TEMPLATE}))
    return ExampleEncoder(load_tokenizer(str(checkpoint)), max_length=2048, overlong="error", raw=False)


def call_row(arguments: Any, other: Any, tools: list[Any]) -> dict[str, Any]:
    def call(name: str, values: Any) -> dict[str, Any]:
        return assistant("", tool_calls=[{"type": "function", "function": {"name": name, "arguments": values}}])

    prompt = [user("q"), call("g", other), {"role": "tool", "content": "2"}]
    return {"prompt": prompt, "chosen": [call("f", arguments)], "rejected": "B.", "tools": tools}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}


CITY, NUMBER = {"type": "string", "default": "Rome"}, {"type": "number", "enum": [1, None]}
CLEAN = call_row({"city": "Bonn"}, {"x": 1}, [tool("f", city=CITY), tool("g", x=NUMBER)])


@pytest.mark.parametrize(
    "row",
    [
        call_row({"city": "Bonn", "x": None}, {"city": None, "x": 1}, [tool("f", city=CITY), tool("g", x=NUMBER)]),
        call_row({"city": "Bonn"}, {"x": 1}, [tool("f", city=CITY, x=None), tool("g", city=None, x=NUMBER)]),
        call_row('{"city": "Bonn"}', '{"x": 1}', [tool("f", city=CITY), tool("g", x=NUMBER)]),
    ],
)
def test_token_ids_without_nulls_of_a_table_and_arguments_as_text(row: Any, encoder: ExampleEncoder) -> None:
    (pair,), (clean,) = parse_pairs(row, AT), parse_pairs(CLEAN, AT)
    encoded, expected = encoder(pair), encoder(clean)
    assert encoded is not None and expected is not None
    assert (encoded.prompt, encoded.completions) == (expected.prompt, expected.completions)
    text = encoder.tokenizer.decode(list(encoded.prompt))
    assert '"enum": [1, null]' in text and text.count("null") == 1, "a null in a list stays"
    assert '{"city": "Bonn"}' in encoder.tokenizer.decode(list(encoded.chosen))


def test_a_null_that_may_be_meant_stays() -> None:
    row = call_row({"city": None}, {"x": 1}, [tool("f", city={**CITY, "default": None}), tool("g", x=NUMBER)])
    (pair,) = parse_pairs(row, AT)
    assert pair.to_row()["tools"] == row["tools"] and pair.chosen == row["chosen"]
    assert not pair.warnings
