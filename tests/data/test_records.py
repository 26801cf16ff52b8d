"""Every shape a row may have, and what is said about the others."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from mlx_dpo.data.examples import Pair
from mlx_dpo.data.row_parsing import parse_examples, parse_pairs, row_format_label
from mlx_dpo.errors import RowError, Where

WHERE = Where("rows.jsonl", 7)


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


USER, GOOD, BAD = turn("user", "q"), turn("assistant", "good"), turn("assistant", "bad")
SYSTEM = turn("system", "be brief")
PLAIN = Pair("q", "good", "bad")
CHAT = Pair([USER], [GOOD], [BAD])
LONG = [USER, turn("assistant", "a"), turn("user", "more")]
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}
CALL = turn("assistant", "", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}])
RESULT = turn("tool", "2", name="f")

SHAPES: dict[str, tuple[dict[str, Any], list[Pair]]] = {
    "texts": ({"prompt": "q", "chosen": "good", "rejected": "bad"}, [PLAIN]),
    "messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, [CHAT]),
    "single messages": ({"prompt": [USER], "chosen": GOOD, "rejected": BAD}, [CHAT]),
    "texts beside messages": ({"prompt": [USER], "chosen": "good", "rejected": "bad"}, [CHAT]),
    "messages beside a text": ({"prompt": "q", "chosen": [GOOD], "rejected": "bad"}, [CHAT]),
    "implicit": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [CHAT]),
    "implicit, long": ({"chosen": [*LONG, GOOD], "rejected": [*LONG, BAD]}, [Pair(LONG, [GOOD], [BAD])]),
    "implicit, parts early": (
        {"chosen": [USER, GOOD, turn("user", "x"), GOOD], "rejected": [USER, BAD, turn("user", "x"), GOOD]},
        [Pair([USER], [GOOD, turn("user", "x"), GOOD], [BAD, turn("user", "x"), GOOD])],
    ),
    "implicit, parts at a user turn": (
        {"chosen": [USER, GOOD, turn("user", "x"), GOOD], "rejected": [USER, GOOD, turn("user", "y"), GOOD]},
        [Pair([USER], [GOOD, turn("user", "x"), GOOD], [GOOD, turn("user", "y"), GOOD])],
    ),
    "implicit, one goes on": (
        {"chosen": [USER, GOOD, turn("user", "x"), GOOD], "rejected": [USER, GOOD]},
        [Pair([USER], [GOOD, turn("user", "x"), GOOD], [GOOD])],
    ),
    "implicit, equal": ({"chosen": [*LONG, GOOD], "rejected": [*LONG, GOOD]}, [Pair(LONG, [GOOD], [GOOD])]),
    "implicit text": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        [Pair("The sky is", " blue.", " green.")],
    ),
    "HH": (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: more\n\nAssistant: good",
            "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: more\n\nAssistant: bad",
        },
        [Pair(LONG, [GOOD], [BAD])],
    ),
    "HH prompt": (
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "good", "rejected": "bad"},
        [CHAT],
    ),
    "HH with its prompt apart": (
        {
            "prompt": "\n\nHuman: q\n\nAssistant:",
            "chosen": "\n\nHuman: q\n\nAssistant: good",
            "rejected": "\n\nHuman: q\n\nAssistant: bad",
        },
        [CHAT],
    ),
    "system": (
        {"system": "be brief", "question": "q", "chosen": "good", "rejected": "bad"},
        [Pair([SYSTEM, USER], [GOOD], [BAD])],
    ),
    "system twice": (
        {"system": "other", "prompt": [SYSTEM, USER], "chosen": "good", "rejected": "bad"},
        [Pair([SYSTEM, USER], [GOOD], [BAD])],
    ),
    "system, implicit": (
        {"system": "be brief", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        [Pair([SYSTEM, USER], [GOOD], [BAD])],
    ),
    "system empty": ({"system": "", "prompt": "q", "chosen": "good", "rejected": "bad"}, [PLAIN]),
    "tools": (
        {"prompt": [USER], "chosen": [CALL, RESULT, GOOD], "rejected": [BAD], "tools": [{"name": "f"}]},
        [Pair([USER], [CALL, RESULT, GOOD], [BAD], [{"name": "f"}])],
    ),
    "tools as text": (
        {"prompt": "q", "chosen": "good", "rejected": "bad", "tools": '[{"name": "f"}]'},
        [Pair("q", "good", "bad", [{"name": "f"}])],
    ),
    "a call as the answer": (
        {"prompt": [USER], "chosen": [{**CALL, "content": None}], "rejected": [BAD]},
        [Pair([USER], [CALL], [BAD])],
    ),
    "template kwargs": (
        {"prompt": "q", "chosen": "good", "rejected": "bad", "chat_template_kwargs": {"enable_thinking": False}},
        [Pair("q", "good", "bad", None, {"enable_thinking": False})],
    ),
    "UltraFeedback": (
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD], "score_chosen": 8.0},
        [CHAT],
    ),
    "prompt repeated": (
        {"prompt": LONG, "chosen": [*LONG, GOOD], "rejected": [*LONG, BAD]},
        [Pair(LONG, [GOOD], [BAD])],
    ),
    "scores": (
        {"prompt": "q", "completions": ["a", "b", "c"], "scores": [1, 3.5, 1]},
        [Pair("q", "b", "a"), Pair("q", "b", "c")],
    ),
    "huge scores": (
        {"prompt": "q", "completions": ["a", "b"], "scores": [10**400, 1.5]},
        [Pair("q", "a", "b")],
    ),
    "scores all alike": ({"prompt": "q", "completions": ["a", "b"], "scores": [1, 1.0]}, []),
    "rankings": (
        {"prompt": [USER], "completions": ["bad", [GOOD]], "rankings": [2, 1]},
        [CHAT],
    ),
    "ShareGPT": ({"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "bad"}}, [CHAT]),
    "ShareGPT, texts": ({"conversations": [HUMAN], "chosen": "good", "rejected": "bad"}, [CHAT]),
    "ShareGPT, tools": (
        {
            "conversations": [
                {"from": "system", "value": "be brief"},
                HUMAN,
                GPT,
                {"from": "observation", "value": "1"},
            ],
            "chosen": "good",
            "rejected": "bad",
        },
        [Pair([SYSTEM, USER, GOOD, turn("tool", "1")], [GOOD], [BAD])],
    ),
    "messages as the prompt": ({"messages": [USER], "chosen": [GOOD], "rejected": [BAD]}, [CHAT]),
    "instruction and input": (
        {"instruction": "Add.", "input": "1 2", "chosen": "good", "rejected": "bad"},
        [Pair("Add.\n1 2", "good", "bad")],
    ),
    "OpenAI": (
        {
            "input": {"messages": [USER], "tools": [{"type": "function"}], "parallel_tool_calls": True},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
        [Pair([USER], [GOOD], [BAD], [{"type": "function"}])],
    ),
    "nulls are absent": (
        {"prompt": "q", "chosen": "good", "rejected": "bad", "tools": None, "system": None, "completions": None},
        [PLAIN],
    ),
    "keys are kept": (
        {"prompt": [{**USER, "name": "Ann", "x": None}], "chosen": [{**GOOD, "thinking": "hm"}], "rejected": "bad"},
        [Pair([{**USER, "name": "Ann"}], [{**GOOD, "thinking": "hm"}], [BAD])],
    ),
    "content in parts": (
        {
            "prompt": [turn("user", "") | {"content": [{"type": "text", "text": "q"}]}],
            "chosen": [GOOD],
            "rejected": [BAD],
        },
        [CHAT],
    ),
    "NUL is text": ({"prompt": "\0", "chosen": "good\0", "rejected": "bad"}, [Pair("\0", "good\0", "bad")]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name: str) -> None:
    row, pairs = SHAPES[name]
    before = json.dumps(row)
    assert parse_pairs(row, WHERE) == pairs
    assert json.dumps(row) == before, "the row was changed"
    assert "unknown" not in row_format_label(row)


@pytest.mark.parametrize("name", [name for name, (_, pairs) in SHAPES.items() if pairs])
def test_canonical_row_gives_the_same_pair(name: str) -> None:
    for pair in SHAPES[name][1]:
        assert parse_pairs(json.loads(json.dumps(pair.to_row())), WHERE) == [pair]


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


OK = {"prompt": "q", "chosen": "good", "rejected": "bad"}
# row, kind, field
BAD_ROWS: dict[str, tuple[Any, str, str | None]] = {
    "list": ([1, 2], "not an object", None),
    "null": (None, "not an object", None),
    "text": ("x", "not an object", None),
    "nothing": ({}, "unknown shape", None),
    "other keys": ({"foo": 1}, "unknown shape", None),
    "typo": ({"prompt": "q", "choosen": "good", "rejected": "bad"}, "missing key", "chosen"),
    "no rejected": ({"prompt": "q", "chosen": "good"}, "missing key", "rejected"),
    "rejected null": ({**OK, "rejected": None}, "missing key", "rejected"),
    "chosen a number": ({**OK, "chosen": 3}, "type", "chosen"),
    "rejected true": ({**OK, "rejected": True}, "type", "rejected"),
    "prompt a number": ({**OK, "prompt": 1e999}, "type", "prompt"),
    "empty chosen": ({**OK, "chosen": ""}, "empty", "chosen"),
    "blank rejected": ({**OK, "rejected": " \n"}, "empty", "rejected"),
    "empty prompt": ({**OK, "prompt": ""}, "empty", "prompt"),
    "no messages": ({**OK, "prompt": []}, "empty", "prompt"),
    "no answer": ({**OK, "prompt": [USER], "chosen": []}, "empty", "chosen"),
    "empty answer": ({**OK, "prompt": [USER], "chosen": [turn("assistant", " ")]}, "empty", "chosen"),
    "empty question": ({**OK, "prompt": [turn("user", "")]}, "empty", "prompt"),
    "lone surrogate": ({**OK, "chosen": "a\ud83d"}, "broken text", "chosen"),
    "lone surrogate in a message": ({**OK, "prompt": [turn("user", "\udc00")]}, "broken text", "prompt[0].content"),
    "lone surrogate elsewhere": ({**OK, "prompt": [turn("user", "q", name="\udc00")]}, "broken text", "prompt[0]"),
    "role a number": ({**OK, "prompt": [{"role": 5, "content": "q"}]}, "role", "prompt[0].role"),
    "role a list": ({**OK, "prompt": [{"role": [], "content": "q"}]}, "role", "prompt[0].role"),
    "no role": ({**OK, "prompt": [USER, {"content": "q"}]}, "role", "prompt[1].role"),
    "no content": ({**OK, "prompt": [{"role": "user"}]}, "content", "prompt[0].content"),
    "content a number": ({**OK, "prompt": [{"role": "user", "content": 4}]}, "content", "prompt[0].content"),
    "an image": (
        {**OK, "prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
        "content",
        "prompt[0].content[0]",
    ),
    "message a number": ({**OK, "prompt": [7]}, "type", "prompt[0]"),
    "answer of the user": ({**OK, "prompt": [USER], "chosen": [USER]}, "roles", "chosen"),
    "ends with the user": ({**OK, "prompt": [USER], "chosen": [GOOD, USER]}, "roles", "chosen"),
    "other prompt": ({**OK, "prompt": "z", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "roles", "chosen"),
    "prompt without answer": ({**OK, "prompt": [USER], "chosen": [USER], "rejected": [USER]}, "empty", "chosen"),
    "nothing in common": ({"chosen": [USER, GOOD], "rejected": [turn("user", "z"), BAD]}, "no prompt", None),
    "one goes on with the user": ({"chosen": [USER, GOOD], "rejected": [USER, USER, BAD]}, "no prompt", None),
    "no text in common": ({"chosen": "good", "rejected": "bad"}, "no prompt", None),
    "one text starts the other": ({"chosen": "good", "rejected": "good day"}, "empty", "chosen"),
    "text and messages, no prompt": ({"chosen": "good", "rejected": [USER, BAD]}, "no prompt", None),
    "HH without the answer": (
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant:"},
        "empty",
        "rejected",
    ),
    "speaker": (
        {"conversations": [{"from": "cat", "value": "q"}], "chosen": "a", "rejected": "b"},
        "role",
        "conversations[0].from",
    ),
    "speaker a list": (
        {"conversations": [{"from": [], "value": "q"}], "chosen": "a", "rejected": "b"},
        "role",
        "conversations[0].from",
    ),
    "unpaired": ({"prompt": "q", "completion": "a", "label": False}, "unpaired", "completion"),
    "a conversation": ({"messages": [USER, GOOD]}, "unpaired", "messages"),
    "a margin in words": ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "much"}, "type", "margin"),
    "a margin that is no number": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")},
        "not finite",
        "margin",
    ),
    "no scores": ({"prompt": "q", "completions": ["a", "b"]}, "missing key", "scores"),
    "NaN": ({"prompt": "q", "completions": ["a", "b"], "scores": [1, float("nan")]}, "not finite", "scores[1]"),
    "infinity": (
        {"prompt": "q", "completions": ["a", "b"], "rankings": [float("inf"), 1]},
        "not finite",
        "rankings[0]",
    ),
    "score a text": ({"prompt": "q", "completions": ["a", "b"], "scores": [1, "two"]}, "type", "scores[1]"),
    "score true": ({"prompt": "q", "completions": ["a", "b"], "scores": [1, True]}, "type", "scores[1]"),
    "scores a number": ({"prompt": "q", "completions": ["a", "b"], "scores": 3}, "type", "scores"),
    "few scores": ({"prompt": "q", "completions": ["a", "b"], "scores": [1]}, "completions", "scores"),
    "one completion": ({"prompt": "q", "completions": ["a"], "scores": [1]}, "completions", "completions"),
    "completions a text": ({"prompt": "q", "completions": "ab", "scores": [1, 2]}, "type", "completions"),
    "empty completion": ({"prompt": "q", "completions": ["a", ""], "scores": [1, 2]}, "empty", "completions[1]"),
    "completions, no prompt": ({"completions": ["a", "b"], "scores": [1, 2]}, "missing key", "prompt"),
    "a thousand completions": (
        {"prompt": "q", "completions": ["a"] * 1000, "scores": list(range(1000))},
        "completions",
        "completions",
    ),
    "tools a number": ({**OK, "tools": 4}, "tools", "tools"),
    "tools of texts": ({**OK, "tools": ["f"]}, "tools", "tools"),
    "tools no JSON": ({**OK, "tools": "f("}, "tools", "tools"),
    "tools nested text": ({**OK, "tools": "[" * 100_000}, "tools", "tools"),
    "tools deep": ({**OK, "tools": [{"x": deep(500)}]}, "nesting", "tools"),
    "deep beside content": ({**OK, "prompt": [{"role": "user", "tool_calls": deep(500)}]}, "nesting", "prompt[0]"),
    "system an empty list": ({**OK, "system": []}, "empty", "system"),
    "system two messages": ({**OK, "system": [SYSTEM, SYSTEM]}, "type", "system"),
    "system of the user": ({**OK, "system": [USER]}, "type", "system"),
    "kwargs a list": ({**OK, "chat_template_kwargs": []}, "type", "chat_template_kwargs"),
    "kwargs of ours": (
        {**OK, "chat_template_kwargs": {"tokenize": False}},
        "chat_template_kwargs",
        "chat_template_kwargs",
    ),
    "kwargs NaN": ({**OK, "chat_template_kwargs": {"x": float("nan")}}, "type", "chat_template_kwargs"),
    "input a number": ({"instruction": "q", "input": 3, "chosen": "a", "rejected": "b"}, "type", "input"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row(name: str) -> None:
    row, kind, field = BAD_ROWS[name]
    assert isinstance(row_format_label(row), str)
    with pytest.raises(RowError) as raised:
        parse_pairs(row, WHERE)
    error = raised.value
    assert (error.kind, error.field) == (kind, field)
    assert str(error).startswith("rows.jsonl:7: ")
    str(error).encode()  # can be printed


def test_a_typo_names_the_key() -> None:
    with pytest.raises(RowError, match="Did you mean `chosen` by `choosen`"):
        parse_pairs({"prompt": "q", "choosen": "a", "rejected": "b"}, WHERE)
    with pytest.raises(RowError, match=r"Keys here: foo, b\\x1b"):
        parse_pairs({"foo": 1, "b\x1b": 2}, WHERE)


KEYS = [
    "completion",
    "label",
    "margin",
    "score_chosen",
    "prompt",
    "chosen",
    "rejected",
    "completions",
    "scores",
    "rankings",
    "conversations",
    "messages",
    "system",
]
KEYS += ["tools", "chat_template_kwargs", "instruction", "input", "completion", "label", "role", "content", "from"]
ATOMS = [None, True, 0, -1, 1.5, float("nan"), 10**400, "", " ", "q", "\ud800", "\0", "user", "assistant", "human", "é"]
ATOMS += ["\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant:", "[]", "{", (), {}, [], {1: 2}, object()]


def anything(rng: random.Random, depth: int) -> Any:
    kind = rng.random()
    if depth == 0 or kind < 0.4:
        return rng.choice(ATOMS)
    if kind < 0.55:
        return turn(rng.choice(["user", "assistant", "system", "tool"]), rng.choice(["a", "b", ""]))
    if kind < 0.8:
        return [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): anything(rng, depth - 1) for _ in range(rng.randrange(5))}


def test_any_row_is_taken_or_refused() -> None:
    rng = random.Random(0)
    good = [row for row, _ in SHAPES.values()]
    taken = 0
    for _ in range(20_000):
        row = {rng.choice(KEYS): anything(rng, 3) for _ in range(rng.randrange(4))}
        if rng.random() < 0.8:
            row = {**rng.choice(good), **row}
        assert isinstance(row_format_label(row), str)
        try:
            examples = parse_examples(row, WHERE)
        except RowError as error:
            str(error).encode()
            assert error.where == WHERE
        else:
            taken += len(examples)
            for example in examples:
                json.dumps(example.to_row(), allow_nan=False, ensure_ascii=False).encode()
                kinds = {type(side) for side in (example.prompt, *example.completions)}
                assert len(kinds) == 1
    assert taken > 1000
